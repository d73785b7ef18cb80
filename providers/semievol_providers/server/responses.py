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
from semievol_providers.local.tool_calls import CallPiece, ToolOffer
from semievol_providers.server.api_errors import ApiError, check_metadata, unsupported
from semievol_providers.server.completions import schema_of
from semievol_providers.server.conversation import (
    call_made,
    check_free_format,
    response_function,
    result_turn,
    tool_offer,
)
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
    parsed: object = None


class _Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refusal"):
    """An earlier refusal."""

    refusal: str


_Content: TypeAlias = str | list[_InputText | _OutputText | _Refusal]


class _Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message, call or result of `input`; an earlier answer's id and status, and what SDKs add, may stay on it."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: str | None = None
    content: _Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: _Content | None = None
    namespace: None = None
    caller: None = None
    async_: None = None
    parsed_arguments: object = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def checked(self, place: str) -> _Item:
        """This item, if it has the fields of its type and no other.

        Raises:
            ApiError: names the first one that is missing or too many.
        """
        wanted = _FIELDS[self.type]
        for name in ("role", "content", "call_id", "name", "arguments", "output"):
            if (msgspec.structs.asdict(self)[name] is not None) != (name in wanted):
                why = f"An item of the type {self.type!r} has {', '.join(wanted)}."
                raise ApiError(why, param=f"{place}.{name}", code="invalid_value")
        if self.type == "message" and self.role not in _ROLES:
            raise unsupported(f"{place}.role", f"takes one of {', '.join(_ROLES)}")
        return self


_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


def _turns(items: Sequence[_Item]) -> list[dict[str, object]]:
    """As chat templates take them: calls stand in the assistant's turn before them, or make one."""
    turns: list[dict[str, object]] = []
    called: dict[str, str] = {}
    calls: list[dict[str, object]] | None = None
    for i, item in enumerate(items):
        item.checked(place := f"input[{i}]")
        if item.type == "function_call":
            if calls is None:
                calls = []
                if not turns or turns[-1]["role"] != "assistant":
                    turns.append({"role": "assistant", "content": ""})
                turns[-1]["tool_calls"] = calls
            calls.append(call_made(item.call_id or "", item.name or "", item.arguments or "", called, place))
            continue
        calls = None
        if item.type == "function_call_output":
            turns.append(result_turn(item.call_id, _text_of(item.output), called, f"{place}.call_id"))
        else:
            role = "system" if item.role == "developer" else item.role
            turns.append({"role": role, "content": _text_of(item.content)})
    return turns


def _text_of(content: _Content | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, _Refusal) else part.text for part in content or ())


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
    tools: list[dict[str, object]] | None = None
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

    def offer(self) -> ToolOffer | None:
        """The tools that the answer may call.

        Raises:
            ApiError: names what cannot be honoured of them.
        """
        choice = None if not self.tools and self.tool_choice == "auto" else self.tool_choice
        found = tool_offer(self.tools, choice, self.parallel_tool_calls, response_function)
        if found is not None and self.text is not None and self.text.format is not None:
            check_free_format(found, self.text.format.type, "text.format")
        return found

    def shown_tools(self) -> list[JsonValue]:
        """`tools` of the response object."""
        given: dict[str, JsonValue] = {"description": None, "parameters": None, "strict": True}
        return [given | msgspec.to_builtins(tool) for tool in self.tools or ()]

    def shown_choice(self) -> JsonValue:
        """`tool_choice` of the response object."""
        choice: JsonValue = msgspec.to_builtins(self.tool_choice)
        return choice or "auto" if self.tools else "none"

    def messages(self) -> tuple[dict[str, object], ...]:
        """The chat: the instructions, then the input."""
        first: list[dict[str, object]] = []
        if self.instructions is not None:
            first.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return (*first, {"role": "user", "content": self.input})
        return (*first, *_turns(self.input))

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
class _Output:
    """One item of the output as far as it is written: the message, or a call, which has a name."""

    id: str
    name: str | None = None
    call_id: str = ""
    text: str = ""
    scores: list[TokenScore] = field(default_factory=list[TokenScore])

    def shown(self, status: Status) -> JsonValue:
        """As JSON; `text` is a call's arguments."""
        if self.name is not None:
            return {
                "id": self.id, "type": "function_call", "status": status, "call_id": self.call_id, "name": self.name,
                "arguments": self.text,
            }  # fmt: skip
        content: list[JsonValue] = [] if status == "in_progress" else [self.part()]
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}

    def part(self) -> JsonValue:
        """The message's text."""
        return _part(self.text, response_logprobs(self.scores))


@dataclass
class ResponseWriter:
    """Writes one response: whole, or as the events of a stream. One answer is written once."""

    body: ResponseBody
    id: str = field(default_factory=lambda: new_id("resp_"))
    created_at: int = field(default_factory=lambda: int(time.time()))
    _written: int = 0
    _items: list[_Output] = field(default_factory=list[_Output])
    _waiting: list[TokenScore] = field(default_factory=list[TokenScore])

    def whole(self, tell: ChoicesTell) -> dict[str, JsonValue]:
        """The response object."""
        (choice,) = tell.choices
        calls: list[CallPiece] = []
        for i, (name, arguments) in enumerate(choice.calls):
            calls += [CallPiece(i, name=name), CallPiece(i, arguments)]
        scores = choice.scores if not calls else _scores_within(choice)
        self.pieces(DeltaTell(tell.id, 0, choice.text, choice, scores, tuple(calls)))
        response = self.closing(tell)[-1]["response"]
        assert isinstance(response, dict)
        return response

    # -------------------------------------------------------------------------------------------- stream
    def opening(self) -> list[Event]:
        """The events before any text; where the answer may be a call, its items begin when that is clear."""
        begun = self._response("in_progress", [], None)
        events = [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
        ]
        return events if self.body.tools else events + self._begin(_Output(new_id("msg_")))

    def pieces(self, tell: DeltaTell) -> list[Event]:
        """The events of one piece of text, or of calls."""
        events: list[Event] = []
        self._waiting += tell.scores or ()
        if tell.text or (self._waiting and not self.body.tools):
            if not self._items:
                events += self._begin(_Output(new_id("msg_")))
            events.append(self._say(tell.text))
        for piece in tell.calls:
            self._waiting.clear()  # log-probabilities are those of texts
            if piece.name is not None:
                events += self._end("completed") if self._items else []
                events += self._begin(_Output(new_id("fc_"), piece.name, new_id("call_")))
            if piece.arguments:
                self._items[-1].text += piece.arguments
                kind = "response.function_call_arguments.delta"
                events.append(self._event(kind, **self._place(), delta=piece.arguments))
        return events

    def closing(self, tell: ChoicesTell) -> list[Event]:
        """The events after all text, the whole response last."""
        (choice,) = tell.choices
        status: Status = "incomplete" if choice.finish == "length" else "completed"
        events: list[Event] = [] if self._items else self._begin(_Output(new_id("msg_")))
        if self._waiting and self._items[-1].name is None:
            events.append(self._say(""))
        events += self._end(status)
        shown = [item.shown("completed") for item in self._items[:-1]]
        response = self._response(status, [*shown, self._items[-1].shown(status)], response_usage(tell))
        return [*events, self._event(f"response.{status}", response=response)]

    def _begin(self, item: _Output) -> list[Event]:
        self._items.append(item)
        place = self._place()
        added: JsonValue = item.shown("in_progress")
        events = [self._event("response.output_item.added", output_index=place["output_index"], item=added)]
        if item.name is None:
            events.append(self._event("response.content_part.added", **place, part=_part("", [])))
        return events

    def _say(self, text: str) -> Event:
        item, scores = self._items[-1], list(self._waiting)
        item.text += text
        item.scores += scores
        self._waiting.clear()
        told = response_logprobs(scores, with_bytes=False)
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=told)

    def _end(self, status: Status) -> list[Event]:
        """The events after the last item."""
        item, place = self._items[-1], self._place()
        if item.name is not None:
            kind = "response.function_call_arguments.done"
            events = [self._event(kind, **place, arguments=item.text)]
        else:
            scores = response_logprobs(item.scores, with_bytes=False)
            events = [
                self._event("response.output_text.done", **place, text=item.text, logprobs=scores),
                self._event("response.content_part.done", **place, part=item.part()),
            ]
        index = place["output_index"]
        return [*events, self._event("response.output_item.done", output_index=index, item=item.shown(status))]

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
        item = self._items[-1]
        place: dict[str, JsonValue] = {"item_id": item.id, "output_index": len(self._items) - 1}
        return place if item.name is not None else {**place, "content_index": 0}

    # --------------------------------------------------------------------------------------------- parts
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
            "parallel_tool_calls": bool(body.tools) and body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": self._format()},
            "tool_choice": body.shown_choice(),
            "tools": body.shown_tools(),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": body.user,
        }


def _part(text: str, scores: list[JsonValue]) -> JsonValue:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}


def _scores_within(choice: Choice) -> tuple[TokenScore, ...]:
    """Those of the tokens that made the answer's text, without its calls."""
    bytes_left, found = len(choice.text.encode()), list[TokenScore]()
    for score in choice.scores or ():
        if bytes_left <= 0:
            break
        bytes_left -= len(score.raw)
        found.append(score)
    return tuple(found)


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
