"""`POST /v1/responses`: text in, text out, in the bodies and events of OpenAI's Responses API.

A body becomes the same question to the engine as a chat completion's. Nothing is stored, so `store` may be false or
absent and there is no response to go on from. Unknown fields are refused, and known ones that cannot be honoured by
name. Knows nothing of HTTP or of how the engine works.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError, check_metadata, unsupported
from semievol_providers.server.completions import schema_of
from semievol_providers.server.engine_wire import Choice, ChoicesTell, DeltaTell, Sampling, TokenScore
from semievol_providers.server.settings import Limits
from semievol_providers.server.state import new_id

LOGPROBS = "message.output_text.logprobs"
_ROLES = ("user", "system", "developer", "assistant")
Event: TypeAlias = dict[str, JsonValue]


class _InputText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="input_text"):
    """A part of a question."""

    text: str


class _OutputText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="output_text"):
    """A part of an earlier answer, as the API printed it."""

    text: str
    annotations: list[object] = []
    logprobs: list[object] | None = None


class _Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refusal"):
    """An earlier refusal."""

    refusal: str


class _Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of `input`; an earlier answer's id and status may stay on it."""

    role: str
    content: str | list[_InputText | _OutputText | _Refusal]
    type: str = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def plain(self, position: int) -> dict[str, str]:
        """Role and text, as chat templates take them."""
        if self.type != "message":
            raise unsupported(f"input[{position}].type", "takes 'message' only")
        if self.role not in _ROLES:
            raise unsupported(f"input[{position}].role", f"takes one of {', '.join(_ROLES)}")
        parts = [self.content] if isinstance(self.content, str) else [_text_of(part) for part in self.content]
        return {"role": "system" if self.role == "developer" else self.role, "content": "".join(parts)}


def _text_of(part: _InputText | _OutputText | _Refusal) -> str:
    return part.refusal if isinstance(part, _Refusal) else part.text


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stream_options`; without obfuscation there is nothing to choose."""

    include_obfuscation: bool | None = None


class _Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    schema: dict[str, object] | None = None
    description: str | None = None
    strict: bool | None = None

    def held_to(self) -> str | None:
        """The schema that the answer is held to."""
        whole = self.name is not None and self.schema is not None
        if (self.type == "json_schema") != whole:
            raise ApiError("'name' and 'schema' belong to the type 'json_schema'.", param="text.format")
        return schema_of(self.type, self.schema, "text.format")

    def shown(self) -> dict[str, JsonValue]:
        """As JSON."""
        found: dict[str, JsonValue] = msgspec.to_builtins(self)
        return {**found, "description": self.description, "strict": bool(self.strict)} if self.schema else found


class _Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text`."""

    format: _Format | None = None
    verbosity: str | None = None


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /responses`."""

    model: str
    input: str | Annotated[list[_Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    text: _Text | None = None
    tools: list[object] | None = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: object = None
    previous_response_id: str | None = None
    conversation: object = None
    prompt: object = None
    reasoning: dict[str, object] | None = None
    background: bool | None = None
    background_options: object = None
    context_management: object = None
    truncation: str | None = None
    service_tier: str | None = None
    moderation: object = None
    image: object = None
    access_programs: object = None
    prompt_cache_options: object = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    def checked(self) -> ResponseBody:
        """This body, if the server can honour all of it.

        Raises:
            ApiError: names the first field that it cannot.
        """
        check_metadata(self.metadata)
        asked = {
            "tools": self.tools, "tool_choice": self.tool_choice not in (None, "none", "auto"),
            "parallel_tool_calls": self.parallel_tool_calls is not None and bool(self.tools),
            "max_tool_calls": self.max_tool_calls is not None,
            "previous_response_id": self.previous_response_id, "conversation": self.conversation is not None,
            "prompt": self.prompt is not None, "reasoning": self.reasoning, "background": self.background,
            "background_options": self.background_options is not None,
            "context_management": self.context_management is not None,
            "truncation": self.truncation not in (None, "disabled"),
            "service_tier": self.service_tier not in (None, "auto", "default"),
            "moderation": self.moderation is not None, "image": self.image is not None,
            "access_programs": self.access_programs is not None,
            "prompt_cache_options": self.prompt_cache_options is not None,
            "text.verbosity": self.text is not None and self.text.verbosity not in (None, "medium"),
        }  # fmt: skip
        for name, value in asked.items():
            if value:
                raise unsupported(name)
        if self.store:
            raise unsupported("store", "must be false or absent: this server stores no responses")
        for name in self.include or ():
            if name != LOGPROBS:
                raise unsupported("include", f"takes {LOGPROBS!r} only")
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise ApiError(f"'top_logprobs' needs include = [{LOGPROBS!r}].", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise ApiError("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        return self

    def messages(self) -> tuple[dict[str, str], ...]:
        """The chat: the instructions, then the input."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions is not None else []
        if isinstance(self.input, str):
            return (*first, {"role": "user", "content": self.input})
        return (*first, *(item.plain(i) for i, item in enumerate(self.input)))

    def sampling(self, limits: Limits) -> Sampling:
        """Settings for the engine."""
        if (self.max_output_tokens or 0) > limits.completion_tokens:
            raise ApiError(
                f"This server allows 'max_output_tokens' up to {limits.completion_tokens:,}.",
                param="max_output_tokens",
                code="limit_exceeded",
            )
        return Sampling(
            seed=secrets.randbits(63),
            max_tokens=self.max_output_tokens,
            token_limit=limits.default_completion_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_logprobs=(self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None,
            schema=self.text.format.held_to() if self.text is not None and self.text.format is not None else None,
        )


Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


@dataclass
class ResponseWriter:
    """Writes one response: whole, or as the events of a stream."""

    body: ResponseBody
    id: str = field(default_factory=lambda: new_id("resp_"))
    item_id: str = field(default_factory=lambda: new_id("msg_"))
    created_at: int = field(default_factory=lambda: int(time.time()))
    _written: int = 0

    def whole(self, tell: ChoicesTell) -> dict[str, JsonValue]:
        """The response object."""
        (choice,) = tell.choices
        status: Status = "incomplete" if choice.finish == "length" else "completed"
        return self._response(status, [self._message(choice, status)], response_usage(tell))

    # -------------------------------------------------------------------------------------------- stream
    def opening(self) -> list[Event]:
        """The events before any text."""
        begun = self._response("in_progress", [], None)
        item: JsonValue = {
            "id": self.item_id, "type": "message", "role": "assistant", "status": "in_progress", "content": [],
        }  # fmt: skip
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._place(), part=_part("", [])),
        ]

    def pieces(self, tell: DeltaTell) -> list[Event]:
        """The event of one piece of text."""
        scores = response_logprobs(tell.scores or (), with_bytes=False)
        if not tell.text and not scores:
            return []
        return [self._event("response.output_text.delta", **self._place(), delta=tell.text, logprobs=scores)]

    def closing(self, tell: ChoicesTell) -> list[Event]:
        """The events after all text, the whole response last."""
        response = self.whole(tell)
        (choice,) = tell.choices
        scores = response_logprobs(choice.scores or (), with_bytes=False)
        part = _part(choice.text, response_logprobs(choice.scores or ()))
        item = self._message(choice, "incomplete" if choice.finish == "length" else "completed")
        return [
            self._event("response.output_text.done", **self._place(), text=choice.text, logprobs=scores),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{response['status']}", response=response),
        ]

    def failed(self, error: ApiError) -> Event:
        """The last event of a stream that cannot go on."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    @staticmethod
    def encoded(event: Event) -> bytes:
        """One server-sent event with its name."""
        return f"event: {event['type']}\n".encode() + b"data: " + msgspec.json.encode(event) + b"\n\n"

    end = b""
    """What follows the last event: nothing."""

    def _event(self, kind: str, **fields: JsonValue) -> Event:
        self._written += 1
        return {"type": kind, "sequence_number": self._written - 1, **fields}

    def _place(self) -> dict[str, JsonValue]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    # --------------------------------------------------------------------------------------------- parts
    def _message(self, choice: Choice, status: Status) -> JsonValue:
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_part(choice.text, response_logprobs(choice.scores or ()))],
        }

    def _format(self) -> JsonValue:
        text = self.body.text
        return text.format.shown() if text is not None and text.format is not None else {"type": "text"}

    def _response(self, status: Status, output: list[JsonValue], usage: JsonValue) -> dict[str, JsonValue]:
        body = self.body
        metadata: JsonValue = {**(body.metadata or {})}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": metadata,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": self._format()},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": body.user,
        }


def _part(text: str, scores: list[JsonValue]) -> JsonValue:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}


def response_usage(tell: ChoicesTell) -> JsonValue:
    """The `usage` object of a response."""
    made = sum(choice.tokens for choice in tell.choices)
    return {
        "input_tokens": tell.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tell.prompt_tokens + made,
    }


def response_logprobs(scores: Sequence[TokenScore], *, with_bytes: bool = True) -> list[JsonValue]:
    """The `logprobs` of a text part; events of a stream have them without bytes."""
    found: list[JsonValue] = []
    for score in scores:
        top: list[JsonValue] = [_score(text, raw, value, with_bytes) for text, raw, value in score.top]
        found.append({**_score(score.text, score.raw, score.logprob, with_bytes), "top_logprobs": top})
    return found


def _score(text: str, raw: bytes, logprob: float, with_bytes: bool) -> dict[str, JsonValue]:
    return {"token": text, "logprob": logprob, **({"bytes": list(raw)} if with_bytes else {})}
