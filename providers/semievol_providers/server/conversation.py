"""What a chat is made of besides settings: its turns, the functions that it offers, the calls that they answer.

Tools other than functions are refused by name. Knows nothing of HTTP, sampling, or of the form in which a model writes
its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from semievol_api.records import JsonValue
from semievol_providers.local.constrained import SchemaError, check_schema
from semievol_providers.local.tool_calls import Function, ToolOffer
from semievol_providers.server.api_errors import ApiError, unsupported

_MOST_FUNCTIONS = 128
_MOST_BYTES = 2**16
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def invalid_body(error: msgspec.ValidationError, place: str = "") -> ApiError:
    """The refusal of a body of the wrong shape; `place` is where in the request it stands."""
    message = str(error)
    if "unknown field" in message:
        field = message.split("`")[1]
        return ApiError(
            f"Unrecognized request argument supplied: {field}", param=place or field, code="unknown_parameter"
        )
    inside = message.split("`$.")[1].split("`")[0] if "`$." in message else None
    param = ".".join(part for part in (place, inside) if part) or None
    return ApiError(f"Invalid request: {message}", param=param, code="invalid_value")


# ------------------------------------------------------------------------------------------------ turns
class _TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text"):
    """A part of a message; this server reads text only."""

    text: str


class _Called(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`function` of an earlier call; SDKs add what they made of the arguments."""

    name: str
    arguments: str
    parsed_arguments: object = None


class _CallBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of an earlier answer."""

    id: str
    function: _Called
    type: str = "function"
    index: int | None = None


class MessageBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One chat turn. An earlier answer may come back as SDKs print it, with the fields that it left empty.

    `parsed` is what an SDK made of its text.
    """

    role: str
    content: str | list[_TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[object] | None = None
    audio: object = None
    function_call: object = None
    tool_calls: list[_CallBody] | None = None
    tool_call_id: str | None = None
    parsed: object = None

    def turn(self, place: str, called: dict[str, str]) -> dict[str, object]:
        """The turn as chat templates take it; `called` has the names by id of the calls before it, and gets its own."""
        if self.role not in ("system", "developer", "user", "assistant", "tool"):
            raise ApiError(
                f"The role {self.role!r} is not supported by this server; use system, user, assistant or tool.",
                param=f"{place}.role",
                code="unsupported_value",
            )
        empty_only = {
            "name": self.name, "annotations": self.annotations, "audio": self.audio,
            "function_call": self.function_call,
            "tool_calls": None if self.role == "assistant" else self.tool_calls,
            "tool_call_id": None if self.role == "tool" else self.tool_call_id,
        }  # fmt: skip
        for name, value in empty_only.items():
            if value not in (None, []):
                raise unsupported(f"{place}.{name}")
        text = self._text(place)
        if self.role == "tool":
            return result_turn(self.tool_call_id, text, called, f"{place}.tool_call_id")
        turn: dict[str, object] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [
                call_made(call.id, call.function.name, call.function.arguments, called, f"{place}.tool_calls[{i}]")
                for i, call in enumerate(self.tool_calls)
            ]
        return turn

    def _text(self, place: str) -> str:
        """A refusal is the text of the turn that has no other; a turn that calls needs none."""
        content = self.refusal if self.content is None and self.role == "assistant" else self.content
        if content is None and not self.tool_calls:
            raise ApiError("A message needs content.", param=f"{place}.content")
        return content if isinstance(content, str) else "".join(part.text for part in content or ())


def chat_turns(messages: Sequence[MessageBody]) -> tuple[dict[str, object], ...]:
    """A chat completion's turns as chat templates take them.

    Raises:
        ApiError: names the first thing that this server cannot read.
    """
    called: dict[str, str] = {}
    return tuple(message.turn(f"messages[{i}]", called) for i, message in enumerate(messages))


def call_made(number: str, name: str, arguments: str, called: dict[str, str], place: str) -> dict[str, object]:
    """An earlier call as chat templates take it, its arguments read.

    Raises:
        ApiError: the arguments are no JSON object.
    """
    try:
        read = msgspec.json.decode(arguments, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ApiError(f"The arguments of a call are a JSON object as text: {error}", param=place) from error
    called[number] = name
    return {"id": number, "type": "function", "function": {"name": name, "arguments": read}}


def result_turn(number: str | None, text: str, called: dict[str, str], place: str) -> dict[str, object]:
    """What a function gave back.

    Raises:
        ApiError: no call before it has this id.
    """
    if number is None or number not in called:
        raise ApiError(f"A result needs the id of a call in an earlier turn; there is no call {number!r}.", param=place)
    return {"role": "tool", "content": text, "tool_call_id": number, "name": called[number]}


# ------------------------------------------------------------------------------------------------ tools
class FunctionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that is offered; `strict` changes nothing, since every call is held to the schema."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None

    def checked(self, place: str) -> Function:
        """With a schema that calls can be held to.

        Raises:
            ApiError: they cannot.
        """
        schema = _NO_ARGUMENTS if self.parameters is None else {"type": "object", **self.parameters}
        if schema["type"] != "object":
            raise ApiError("The parameters of a function are an object's schema.", param=f"{place}.parameters")
        try:
            text = msgspec.json.encode(schema).decode()
            check_schema(text)
        except (SchemaError, RecursionError) as error:
            raise ApiError(
                f"Invalid schema for function {self.name!r}: {error}",
                param=f"{place}.parameters",
                code="invalid_function_parameters",
            ) from error
        return Function(self.name, text, self.description)


class _ChatTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of `tools` of a chat completion."""

    type: str
    function: FunctionBody


class _ResponseTool(FunctionBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `tools` of a response."""

    type: str


class _Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class _ChatChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tool_choice` of a chat completion that names a function."""

    type: str
    function: _Name


class _ResponseChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tool_choice` of a response that names a function."""

    type: str
    name: str


def chat_function(given: dict[str, object], place: str) -> Function:
    """One of a chat completion's `tools`."""
    return _converted(given, _ChatTool, place).function.checked(f"{place}.function")


def response_function(given: dict[str, object], place: str) -> Function:
    """One of a response's `tools`."""
    return _converted(given, _ResponseTool, place).checked(place)


def tool_offer(
    tools: Sequence[dict[str, object]] | None,
    choice: object,
    parallel: bool | None,
    read: Callable[[dict[str, object], str], Function],
) -> ToolOffer | None:
    """What `tools`, `tool_choice` and `parallel_tool_calls` say; None without tools.

    Raises:
        ApiError: names what cannot be honoured.
    """
    if not tools:
        if choice not in (None, "none"):
            raise ApiError("'tool_choice' is only allowed with 'tools'.", param="tool_choice")
        return None
    if len(tools) > _MOST_FUNCTIONS:
        raise ApiError(f"'tools' takes up to {_MOST_FUNCTIONS} functions.", param="tools")
    functions = [_function(tool, f"tools[{i}]", read) for i, tool in enumerate(tools)]
    if len({function.name for function in functions}) < len(functions):
        raise ApiError("Two functions of 'tools' have the same name.", param="tools")
    if sum(len(function.parameters) for function in functions) > _MOST_BYTES:
        raise ApiError(f"The schemas of 'tools' take up to {_MOST_BYTES:,} bytes together.", param="tools")
    offer = ToolOffer(tuple(functions), parallel=parallel is not False)
    if choice in (None, "auto"):
        return offer
    if choice == "none":
        return replace(offer, choice="none")
    named = None if choice == "required" else _named(choice, of_chat=read is chat_function)
    if named is not None and named not in {function.name for function in functions}:
        raise ApiError(f"'tool_choice' names {named!r}, which is not in 'tools'.", param="tool_choice")
    return replace(offer, choice="required", named=named)


def _function(tool: dict[str, object], place: str, read: Callable[[dict[str, object], str], Function]) -> Function:
    if (kind := tool.get("type")) != "function":
        raise unsupported(f"{place}.type", f"takes 'function' only, not {kind!r}: this server has no such tool")
    return read(tool, place)


def _named(choice: object, of_chat: bool) -> str:
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise unsupported("tool_choice", "takes 'none', 'auto', 'required' or a function")
    if of_chat:
        return _converted(choice, _ChatChoice, "tool_choice").function.name
    return _converted(choice, _ResponseChoice, "tool_choice").name


def check_free_format(offer: ToolOffer, kind: str, param: str) -> None:
    """Return if the answer may be any text or call, as the grammar for calls has it.

    Raises:
        ApiError: its text is to be JSON while it may also be a call.
    """
    if offer.choice != "none" and kind != "text":
        raise unsupported(param, f"{kind!r} is not supported beside 'tools' whose choice is not 'none'")


def _converted(given: object, kind: type[_Struct], place: str) -> _Struct:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise invalid_body(error, place) from error


def chat_call(number: str, name: str, arguments: str) -> dict[str, JsonValue]:
    """One of `tool_calls` of an answer."""
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
