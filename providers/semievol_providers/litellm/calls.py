"""litellm's `acompletion` and `aembedding` as abilities; the only module that imports litellm, at the first call.

Log-probabilities are asked for whatever litellm's static lists say, and handed on as given: a model that ignores
them gives completions without. Its retries, callbacks and price downloads are off. Knows nothing of retrying.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from semievol_api.capabilities import ChatRequest, EmbedReply, EmbedRequest, Reply
from semievol_api.errors import (
    MissingAbilityError,
    ModelNotFoundError,
    ProviderError,
    RateLimitError,
    RefusedError,
    TransientError,
)
from semievol_api.records import Completion, Finish, FloatArray, Usage
from semievol_providers.litellm.settings import Access

_KEY_SHAPE = re.compile(r"\b(?:sk|rk|pk|gsk|org|proj)[-_][A-Za-z0-9_*-]{8,}|\bBearer\s+\S+|\bAIza[\w-]{20,}")
_LONGEST_QUOTE = 400
_QUOTA = ("insufficient_quota", "exceeded your current quota", "billing", "credit balance")

_ADVICE: dict[int, str] = {
    400: "Change the setting that the message names; one that this vendor does not know can stand in leave_out.",
    401: "Check the key's variable (api_key_env, or the one that litellm reads for this vendor), then start again.",
    402: "The account has no money left: add credit at the vendor, then start again.",
    403: "Check that the key may use this model, and that the region is served.",
    404: "Check the model's name: litellm wants VENDOR/MODEL, such as anthropic/claude-sonnet-4-5.",
    422: "Change the setting that the message names; one that this vendor does not know can stand in leave_out.",
}


def _translate(what: str, error: Exception, access: Access) -> ProviderError:
    """The error that an exception of litellm's stands for. `what` names the call."""
    known: Any = error
    status = _status(known)
    name = type(error).__name__
    quote = _quote(str(error), access)
    opening = f"{access.provider}: {what} through litellm failed ({name}{f', {status}' if status else ''})"
    if name == "ContextWindowExceededError" or (status == 400 and "context length" in quote.lower()):
        return RefusedError(
            f'{opening}: "{quote}". Use fewer or shorter references, or a model with a longer context.', status=400
        )
    if name == "ContentPolicyViolationError":
        return RefusedError(
            f'{opening}: "{quote}". The row is recorded as refused; asking again won\'t help.', status=400
        )
    if name == "UnsupportedParamsError":
        return RefusedError(
            f'{opening}: "{quote}". Name the setting in leave_out of [providers.{access.provider}], '
            "and it is not sent.",
            status=400,
            code="unsupported_parameter",
        )
    if status == 429:
        if any(word in quote.lower() for word in _QUOTA):
            return RefusedError(f'{opening}: "{quote}". {_ADVICE[402]}', status=429, code="insufficient_quota")
        return RateLimitError(f'{opening}: "{quote}". The engine waits and asks again.', retry_after_s=_wait_s(known))
    if status is None or status >= 500 or status in (408, 409, 425):
        return TransientError(f'{opening}: "{quote}". Another attempt may succeed.', status=status)
    advice = _ADVICE.get(status, "The vendor's message is all that is known.")
    refusal = ModelNotFoundError if status == 404 else RefusedError
    return refusal(f'{opening}: "{quote}". {advice}', status=status)


def _scrub(text: str, access: Access) -> str:
    """The text without the key or anything of its shape."""
    if access.api_key and access.api_key != "none":
        text = text.replace(access.api_key, "[key]")
    return _KEY_SHAPE.sub("[key]", text)


def _quote(text: str, access: Access) -> str:
    quote = " ".join(_scrub(text, access).split()).rstrip(".")
    return quote if len(quote) <= _LONGEST_QUOTE else quote[:_LONGEST_QUOTE] + "…"


def _status(error: Any) -> int | None:
    """The HTTP status; litellm gives timeouts 408 and lost connections 500."""
    try:
        return int(error.status_code)
    except (AttributeError, TypeError, ValueError):
        return None


def _wait_s(error: Any) -> float | None:
    """What the vendor asks to wait; litellm keeps its headers in one of two places, or in none."""
    kept: dict[str, Any] = vars(error)
    response = kept.get("response")
    for headers in (kept.get("litellm_response_headers"), response.headers if response is not None else None):
        if not headers:
            continue
        waits = (_number(headers.get("retry-after-ms")) / 1000, _number(headers.get("retry-after")))
        if max(waits) > 0:  # a wait of 0 says nothing
            return max(waits)
    return None


def _number(text: object) -> float:
    """0 for what is no number."""
    try:
        return float(str(text))
    except ValueError:
        return 0.0


_OFFLINE = "LITELLM_LOCAL_MODEL_COST_MAP"
"""Without this variable `import litellm` downloads a price table."""


class LiteLLM:
    """The library, imported when it is first used."""

    @cached_property
    def module(self) -> Any:
        """litellm itself, silent and offline."""
        os.environ.setdefault(_OFFLINE, "True")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its import raises deprecations of its own dependencies
            litellm: Any = import_module("litellm")
            litellm.ModelResponse()  # its types are built at their first use, with remarks of pydantic's
            litellm.EmbeddingResponse()

        litellm.suppress_debug_info = True
        litellm.telemetry = False
        litellm.drop_params = False
        litellm.num_retries = 0
        return litellm

    async def aclose(self) -> None:
        """Close litellm's connections."""
        if "module" in vars(self):
            await self.module.close_litellm_async_clients()


class LiteLLMChat:
    """`Chat` and `ScoredChat`."""

    def __init__(self, access: Access, library: LiteLLM) -> None:
        self._access = access
        self._library = library

    async def complete(self, request: ChatRequest) -> Reply:
        """Answer once.

        Raises:
            RateLimitError, TransientError, RefusedError: see errors.py.
            MissingAbilityError: the prompt has a prefill.
        """
        if request.prompt.prefill is not None:
            raise MissingAbilityError(
                "The provider litellm cannot go on from the first words of an answer (a prefill), which the prompt "
                "has. Ask without a prefill, or give the role to another provider."
            )
        answer = await _call(
            "chat", self._library.module.acompletion, _chat_arguments(request, self._access), self._access
        )
        choices = sorted(answer.get("choices") or [], key=lambda choice: choice.get("index") or 0)
        if not choices:
            raise TransientError(f"{self._access.provider}: chat through litellm gave no completion.", status=200)
        completions = tuple(_completion(choice, alternatives=request.top_logprobs > 0) for choice in choices)
        return Reply(completions=completions, usage=_usage(answer))


class LiteLLMEmbedder:
    """`Embedder`."""

    def __init__(self, access: Access, library: LiteLLM) -> None:
        self._access = access
        self._library = library

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Embed one batch; row i belongs to text i."""
        access = self._access
        arguments = _access_arguments(access, {"model": access.prefix + request.model, "input": list(request.texts)})
        if access.api_base is not None:
            arguments["encoding_format"] = "float"
        if access.embedding_dimensions is not None:
            arguments["dimensions"] = access.embedding_dimensions
        answer = await _call("embeddings", self._library.module.aembedding, arguments, access)
        rows = sorted(answer.get("data") or [], key=lambda row: row.get("index") or 0)
        if len(rows) != len(request.texts):
            raise TransientError(f"{access.provider}: {len(rows)} vectors came for {len(request.texts)} texts.")
        return EmbedReply(vectors=np.array([row["embedding"] for row in rows], dtype=np.float32), usage=_usage(answer))


def _chat_arguments(request: ChatRequest, access: Access) -> dict[str, Any]:
    """The arguments of `acompletion`; what the vendor does not know is left out, if the config says so."""
    arguments: dict[str, Any] = {
        "model": access.prefix + request.model,
        "messages": [turn.body for turn in request.prompt.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    if request.prompt.tools:
        arguments["tools"] = json.loads(request.prompt.tools)
    if request.schema:
        held = {"name": "answer", "schema": json.loads(request.schema)}
        arguments["response_format"] = {"type": "json_schema", "json_schema": held}
    if request.n != 1:
        arguments["n"] = request.n
    if request.seed is not None:
        arguments["seed"] = request.seed
    if request.stop:
        arguments["stop"] = list(request.stop)
    if (request.logprobs or request.top_logprobs) and "logprobs" not in access.leave_out:
        arguments |= {"logprobs": True, "allowed_openai_params": ["logprobs", "top_logprobs"]}
        if request.top_logprobs:
            arguments["top_logprobs"] = request.top_logprobs
    for name in access.leave_out:
        arguments.pop(name, None)
    return _access_arguments(access, arguments)


def _access_arguments(access: Access, arguments: dict[str, Any]) -> dict[str, Any]:
    arguments |= {"timeout": access.timeout_s, "num_retries": 0, "max_retries": 0}
    if access.api_base is not None:
        arguments["api_base"] = access.api_base
    if access.api_key is not None:
        arguments["api_key"] = access.api_key
    if access.extra_body:
        arguments["extra_body"] = dict(access.extra_body)
    return arguments


async def _call(what: str, function: Any, arguments: dict[str, Any], access: Access) -> dict[str, Any]:
    """The answer as plain dicts."""
    import openai

    try:
        answer = await function(**arguments)
    except openai.OpenAIError as error:  # the root of litellm's own errors
        # From None: its messages and causes quote requests, and so keys.
        raise _translate(what, error, access) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's remarks on litellm's own types
        plain: dict[str, Any] = answer.model_dump()
    return plain


def _completion(choice: dict[str, Any], *, alternatives: bool) -> Completion:
    message = choice.get("message") or {}
    text = message.get("content") or ""
    finish = _finish(choice.get("finish_reason"))
    if message.get("refusal") and not text:
        return Completion(message["refusal"], "refused")
    entries: Sequence[dict[str, Any]] = (choice.get("logprobs") or {}).get("content") or []
    if not entries:
        return Completion(text, finish)
    tokens = [str(entry.get("token", "")) for entry in entries]
    kept = _message_tokens(tokens, text)
    top = None
    if alternatives:
        top = tuple(
            tuple((other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ())
            for entry in entries[:kept]
        )
    return Completion(
        text,
        finish,
        token_logprobs=_logprobs(entries[:kept]),
        tokens=tuple(tokens[:kept]),
        top=top if top is not None and any(top) else None,
    )


def _logprobs(entries: Sequence[dict[str, Any]]) -> FloatArray | None:
    """NaN where one was left out; None where all were."""
    values = [entry.get("logprob") for entry in entries]
    return None if values and values.count(None) == len(values) else np.array(values, dtype=np.float32)


def _message_tokens(tokens: Sequence[str], text: str) -> int:
    """How many leading tokens belong to the message: the end of turn, shown as a token by some, does not."""
    count = len(tokens)
    while count and (not tokens[count - 1] or tokens[count - 1] not in text):
        joined = "".join(tokens[: count - 1])
        if text.strip() not in joined:
            break
        count -= 1
    return count


def _finish(reason: object) -> Finish:
    match reason:
        case "length" | "max_tokens":
            return "length"
        case "content_filter" | "refusal":
            return "refused"
        case "error" | "tool_calls" | "function_call":
            return "failed"
        case _:
            return "stop"


def _usage(answer: dict[str, Any]) -> Usage:
    usage = answer.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, details.get("cached_tokens") or 0
    )
