"""A chat request as the JSON body that the official SDK would send for it.

Temperature and top_p are always said: several servers have defaults of their own (vLLM takes them from the
model's generation_config). Knows nothing of sending, answers or keys.
"""

from __future__ import annotations

from typing import Any

import orjson

from semievol_api.capabilities import ChatRequest
from semievol_api.errors import DataError, MissingAbilityError
from semievol_api.records import Prompt
from semievol_providers.openai.settings import Dialect


def chat_body(request: ChatRequest, dialect: Dialect) -> dict[str, Any]:
    """The body as a tree; its keys stand in the SDK's order.

    Raises:
        MissingAbilityError: the prompt has a prefill and the server cannot go on from one.
    """
    prompt = request.prompt
    body: dict[str, Any] = {
        "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.messages],
        "model": request.model,
    }
    flat = dialect.logprobs_shape == "flat"
    if request.logprobs or request.top_logprobs:
        body["logprobs"] = max(1, request.top_logprobs) if flat else True
    body[dialect.max_tokens_field] = request.max_tokens
    if request.n != 1:
        body["n"] = request.n
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    body["temperature"] = request.temperature
    if request.top_logprobs and not flat:
        body["top_logprobs"] = request.top_logprobs
    body["top_p"] = request.top_p
    if prompt.prefill is not None:
        _add_prefill(body, prompt, dialect)
    if dialect.extra_body:
        body.update(dialect.extra_body)
    return body


def _add_prefill(body: dict[str, Any], prompt: Prompt, dialect: Dialect) -> None:
    if not dialect.continue_final_message:
        raise MissingAbilityError(
            "This server cannot go on from the first words of an answer (a prefill), which the prompt has. Ask "
            "without a prefill, give the role to another provider, or set continue_final_message = true in its "
            "table if the server can."
        )
    body["messages"].append({"role": "assistant", "content": prompt.prefill})
    body["add_generation_prompt"] = False
    body["continue_final_message"] = True


def encode(body: dict[str, Any]) -> bytes:
    """The tree as UTF-8 JSON.

    Raises:
        DataError: a text holds half of a surrogate pair, which no server can read.
    """
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise DataError(
            f"A prompt cannot be written as JSON ({error}); the usual cause is a broken character (half of a "
            f"surrogate pair) in a question or an option. Repair the row in the data file."
        ) from error
