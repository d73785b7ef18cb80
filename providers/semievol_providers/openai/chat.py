"""A chat completion's JSON as a `Reply`: only what is used is decoded.

Token log-probabilities stay as they came (vLLM writes -9999 for a token outside its list), but for trailing
entries whose text is not part of the message: the end of turn, and what a stop string cut off. Knows nothing of
requests, sending or errors' wording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from semievol_api.capabilities import ChatRequest, Pace, Reply
from semievol_api.errors import DataError, MissingAbilityError, TransientError
from semievol_api.records import Completion, Finish, FloatArray, Prompt, Usage
from semievol_providers.openai.errors import error_from_answer, error_in_body, error_on_the_way, invalid_answer, pace_of
from semievol_providers.openai.settings import Connection, Dialect

if TYPE_CHECKING:
    from semievol_api.cassettes.http import HttpResponse, HttpSend


_SLOT_HEADER = "x-semievol-slot"
"""Read by cassettes; what sends to the network drops it."""


class HotPath:
    """Sends bodies to the paths of one connection."""

    def __init__(self, connection: Connection, send: HttpSend) -> None:
        self.connection = connection
        self._send = send
        self._headers = connection.headers

    async def post(self, path: str, body: bytes, model: str, slot: str = "") -> HttpResponse:
        """The answer with status 200. `slot` tells a cassette apart what is worded alike.

        Raises:
            RateLimitError, TransientError, RefusedError: see error_translation.py.
        """
        headers = {**self._headers, _SLOT_HEADER: slot} if slot else self._headers
        return await self._exchange(path, "POST", self.connection.url(path, model), body, headers)

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """The answer of a route that is no model's; `path` may be a whole address, with headers of its own.

        Raises:
            RateLimitError, TransientError, RefusedError: as for `post`.
        """
        url = path if path.startswith("http") else f"{self.connection.base_url}{path}"
        content = None if body is None else encode(dict(body))
        return await self._exchange(path.partition("?")[0], method, url, content, headers or self._headers)

    async def _exchange(
        self, what: str, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> HttpResponse:
        connection = self.connection
        try:
            answer = await self._send(method, url, body, headers, connection.answer_timeout_s)
        except TransientError as error:
            raise error_on_the_way(what.strip("/"), error, connection) from error
        if not 200 <= answer.status < 300:
            raise error_from_answer(what.strip("/"), answer.status, answer.headers, answer.body, connection)
        return answer


def chat_body(request: ChatRequest, dialect: Dialect) -> dict[str, Any]:
    """The body as a tree; its keys stand in the SDK's order.

    Raises:
        MissingAbilityError: the prompt has a prefill and the server cannot go on from one.
    """
    prompt = request.prompt
    body: dict[str, Any] = {
        "messages": _turns(prompt, fold_system=dialect.fold_system),
        "model": request.model,
    }
    if prompt.tools:
        body["tools"] = msgspec.json.decode(prompt.tools)
    flat = dialect.logprobs_shape == "flat"
    if request.logprobs or request.top_logprobs:
        body["logprobs"] = max(1, request.top_logprobs) if flat else True
    body[dialect.max_tokens_field] = request.max_tokens
    if request.n != 1:
        body["n"] = request.n
    if request.schema:
        held = {"name": "answer", "schema": msgspec.json.decode(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": held}
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


def _turns(prompt: Prompt, *, fold_system: bool) -> list[dict[str, object]]:
    """The turns as the API has them; a folded system text stands at the beginning of the first user turn."""
    turns = [turn.body for turn in prompt.messages]
    if fold_system and len(turns) > 1 and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
        turns[0] = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
    return turns


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
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise DataError(
            f"A prompt cannot be written as JSON ({error}); the usual cause is a broken character (half of a "
            f"surrogate pair) in a question or an option. Repair the row in the data file."
        ) from error


class Alternative(Struct, gc=False):
    """A token and its natural log-probability."""

    token: str
    logprob: float | None = None


class TokenWithAlternatives(Struct, gc=False):
    """A chosen token and what else stood at its place."""

    token: str
    logprob: float | None = None
    top_logprobs: list[Alternative] | None = None


_TokenT = TypeVar("_TokenT", Alternative, TokenWithAlternatives)


_Shown: TypeAlias = dict[str, float | None]


class _Logprobs(Struct, Generic[_TokenT], gc=False):
    """The log-probabilities of one message: OpenAI's `content`, or Together's lists side by side.

    Together's alternatives count where there is a table for each token; its SDK types one table for a whole answer,
    which belongs to a place only where the answer has a single token.
    """

    content: list[_TokenT] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[_Shown | None] | _Shown | None = None

    @property
    def entries(self) -> Sequence[_TokenT | TokenWithAlternatives] | None:
        """A place each; None where the server showed none, or lists that do not fit each other."""
        if self.content is not None:
            return self.content
        tokens, values, shown = self.tokens, self.token_logprobs, self.top_logprobs
        if tokens is None or values is None or len(tokens) != len(values):
            return None
        if isinstance(shown, dict):
            shown = [shown] if len(tokens) == 1 else None
        tables = shown if shown is not None and len(shown) == len(tokens) else [None] * len(tokens)
        return [
            TokenWithAlternatives(token, value, [Alternative(*pair) for pair in (table or {}).items()])
            for token, value, table in zip(tokens, values, tables, strict=True)
        ]


class _AnswerMessage(Struct, gc=False):
    """What the assistant said."""

    content: str | None = None
    refusal: str | None = None


class _Choice(Struct, Generic[_TokenT], gc=False):
    """One of the n completions."""

    message: _AnswerMessage
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs[_TokenT] | None = None


class PromptDetails(Struct, gc=False):
    """How the prompt's tokens were billed."""

    cached_tokens: int | None = None


class UsageFields(Struct, gc=False):
    """Tokens as the server counted them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    def usage(self) -> Usage:
        """The same as a record."""
        details = self.prompt_tokens_details
        cached = details.cached_tokens if details else None
        return Usage(self.prompt_tokens or 0, self.completion_tokens or 0, cached or 0)


class ChatAnswer(Struct, Generic[_TokenT], gc=False):
    """The whole answer. Some proxies send errors with status 200; they have no choices."""

    choices: list[_Choice[_TokenT]] = []
    usage: UsageFields | None = None


@dataclass(frozen=True, slots=True)
class Positions:
    """The token places of one completion, with what else stood there."""

    entries: tuple[TokenWithAlternatives, ...]
    usage: Usage


class ChatDecoder:
    """Turns bodies into replies. Stateless; made once because msgspec compiles its decoders."""

    def __init__(self) -> None:
        self._plain = msgspec.json.Decoder(ChatAnswer[Alternative])
        self._rich = msgspec.json.Decoder(ChatAnswer[TokenWithAlternatives])

    def positions(self, body: bytes) -> Positions | None:
        """Every token place of the first completion, end of turn included; None without a completion.

        Raises:
            msgspec.DecodeError: the body is not JSON, or not of this shape.
        """
        answer = self._rich.decode(body)
        if not answer.choices:
            return None
        logprobs = answer.choices[0].logprobs
        entries = logprobs.entries if logprobs else None
        return Positions(tuple(entries or ()), answer.usage.usage() if answer.usage else Usage())

    def reply(self, body: bytes, pace: Pace, *, alternatives: bool) -> Reply | None:
        """The reply, or None for a body without a single completion.

        A server that ignores `n` gives fewer completions than were asked for: they are handed on as they are.

        Raises:
            msgspec.DecodeError: the body is not JSON, or not of this shape.
        """
        answer = self._rich.decode(body) if alternatives else self._plain.decode(body)
        choices = answer.choices
        if not choices:
            return None
        if len(choices) > 1:
            choices = sorted(choices, key=_index)
        completions = tuple([_completion(choice) for choice in choices])
        return Reply(completions=completions, usage=answer.usage.usage() if answer.usage else Usage(), pace=pace)


def _index(choice: _Choice[Alternative] | _Choice[TokenWithAlternatives]) -> int:
    return choice.index


def _completion(choice: _Choice[Alternative] | _Choice[TokenWithAlternatives]) -> Completion:
    message = choice.message
    if message.refusal and not message.content:
        return Completion(message.refusal, "refused")
    text = message.content or ""
    finish = finish_of(choice.finish_reason)
    entries = choice.logprobs.entries if choice.logprobs else None
    if entries is None or (text and not entries):
        return Completion(text, finish)
    tokens = [entry.token for entry in entries]
    kept = message_tokens(tokens, text)
    top = _alternatives(entries[:kept])
    return Completion(
        text,
        finish,
        token_logprobs=_logprobs(entries[:kept]),
        tokens=tuple(tokens[:kept]),
        top=top,
    )


def _logprobs(entries: Sequence[Alternative | TokenWithAlternatives]) -> FloatArray | None:
    """float32, shape (tokens,), NaN where the server left one out; None where it left out all."""
    values = [entry.logprob for entry in entries]
    return None if values and values.count(None) == len(values) else np.array(values, dtype=np.float32)


def _alternatives(
    entries: Sequence[Alternative | TokenWithAlternatives],
) -> tuple[tuple[tuple[str, float], ...], ...] | None:
    """Per token the alternatives that were shown; None where there was none at all."""
    if not entries or isinstance(entries[0], Alternative):
        return None
    shown = [_pairs(entry) for entry in entries if isinstance(entry, TokenWithAlternatives)]
    return tuple(shown) if any(shown) else None


def _pairs(entry: TokenWithAlternatives) -> tuple[tuple[str, float], ...]:
    return tuple([(other.token, other.logprob) for other in entry.top_logprobs or () if other.logprob is not None])


def message_tokens(tokens: Sequence[str], text: str) -> int:
    """How many leading tokens belong to the message; the rest is the end of turn or a cut-off stop string."""
    joined = "".join(tokens)
    count = len(tokens)
    while count and not tokens[count - 1]:
        count -= 1
    if joined == text:
        return count
    start = joined.find(text)
    if start < 0:  # the pieces of one character are shown escaped, so that nothing adds up: look at the last alone
        return count - 1 if count and _is_marker(tokens[count - 1], text) else count
    end = len(joined)
    while count and end - len(tokens[count - 1]) >= start + len(text):
        count -= 1
        end -= len(tokens[count])
    return count


def _is_marker(token: str, text: str) -> bool:
    """True for a token that stands nowhere in the message and is no piece of a character either."""
    return token not in text and "\ufffd" not in token and "\\x" not in token


def finish_of(reason: str | None) -> Finish:
    """The vendor's word for why a completion ended, as ours; an unknown word is an ordinary end."""
    match reason:
        case "length" | "max_tokens" | "model_length":
            return "length"
        case "content_filter" | "refusal" | "safety" | "SAFETY":
            return "refused"
        case "error" | "abort" | "cancelled" | "tool_calls" | "function_call":
            return "failed"
        case _:
            return "stop"


class OpenAIChat:
    """`Chat` and `ScoredChat` at one endpoint."""

    def __init__(self, path: HotPath) -> None:
        self._path = path
        self._decoder = ChatDecoder()

    async def complete(self, request: ChatRequest) -> Reply:
        """Answer once.

        Raises:
            RateLimitError: too many requests or tokens.
            TransientError: no answer, a broken one, or a server's own failure.
            RefusedError: the vendor does not accept the request.
            MissingAbilityError: the prompt has a prefill and the server cannot go on from one.
        """
        connection = self._path.connection
        slot = f"sample/{request.first_sample}" if request.first_sample else ""
        answer = await self._path.post(
            "/chat/completions", encode(chat_body(request, connection.dialect)), request.model, slot
        )
        try:
            reply = self._decoder.reply(answer.body, pace_of(answer.headers), alternatives=request.top_logprobs > 0)
        except msgspec.DecodeError as error:
            raise invalid_answer("chat/completions", answer.body, connection) from error
        if reply is None:
            raise error_in_body("chat/completions", answer, connection)
        return reply
