"""Is it what the published specification says? Called by every suite that asks or answers over HTTP.

    validate_request("POST", "/v1/chat/completions", body)            # bytes, text or parsed JSON
    validate_response("POST", "/v1/chat/completions", 200, body)
    send = ConformingSend(AiohttpSend())                              # both, for everything that passes
    validate_sft_line(line); validate_batch_line(line); validate_batch_result_line(line)

Requests are held to the letter: a field that the specification does not know is an error, since servers
ignore misspelt fields in silence. Responses may say more than the specification, never less or otherwise.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import pydantic
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from semievol_api.cassettes.exchange import canonical_request
from semievol_api.cassettes.http import HttpResponse, HttpSend
from semievol_api.cassettes.scrub import Scrubber

SPECIFICATION = Path(__file__).resolve().parent / "data" / "openapi.subset.json"
Body: TypeAlias = "bytes | str | Mapping[str, Any] | list[Any] | None"
_VERSION = re.compile(r"^.*?/v\d+(?=/)")


class ConformanceError(BaseException):
    """A request or a response is not what the specification allows; no `except Exception` of an SDK swallows it."""


# ------------------------------------------------------------------------------------------------ public
def validate_request(
    method: str, path: str, body: Body = None, *, content_type: str = "", extensions: tuple[str, ...] = ()
) -> None:
    """Check path, query parameters and body. `extensions` are body fields that a vendor adds knowingly."""
    bare, _, query = path.partition("?")
    operation = _operation(method, bare)
    _check_query(method, bare, query, operation)
    content = _request_content(bare, body, content_type)
    described = operation.value.get("requestBody")
    if described is None:
        if content not in (None, {}):
            raise ConformanceError(f"{method} {bare} takes no body; got {content!r:.200}")
        return
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name not in extensions}
    media = next(iter(described["content"]))
    pointer = f"{operation.pointer}/requestBody/content/{_escape(media)}/schema"
    _check(f"{method} {bare} request", pointer, content, strict=True)


def validate_response(method: str, path: str, status: int, body: Body) -> None:
    """Check an answer: the operation's own schema for 2xx, the error object for the rest."""
    bare = path.partition("?")[0]
    what = f"{method} {bare} response {status}"
    if status >= 400:
        _check(what, "/components/schemas/ErrorResponse", _parsed(what, body), strict=False)
        return
    operation = _operation(method, bare)
    content = operation.value["responses"]["200"]["content"]
    pointer = f"{operation.pointer}/responses/200/content"
    if operation.template.endswith("/content"):
        return  # a file's own bytes
    if isinstance(body, bytes) and body.startswith(b"data:") and "text/event-stream" in content:
        for chunk in _stream_chunks(body):
            _check(what, f"{pointer}/text~1event-stream/schema", chunk, strict=False)
        return
    _check(what, f"{pointer}/application~1json/schema", _parsed(what, body), strict=False)


class ConformingSend:
    """An `HttpSend` that checks all that passes through it; without `responses` only what is asked."""

    def __init__(self, send: HttpSend, *, extensions: tuple[str, ...] = (), responses: bool = True) -> None:
        self._send = send
        self._extensions = extensions
        self._responses = responses

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        content_type = next((text for name, text in headers.items() if name.lower() == "content-type"), "")
        path = "/" + url.split("/", 3)[3]
        validate_request(method, path, body, content_type=content_type, extensions=self._extensions)
        answer = await self._send(method, url, body, headers, timeout_s)
        if self._responses:
            validate_response(method, path, answer.status, answer.body)
        return answer


# ------------------------------------------------------------------- lines that the specification lacks
class _Line(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class SftMessage(_Line):
    """One turn of a training example; `weight` (0 or 1) is for assistant turns only."""

    role: Literal["system", "user", "assistant"]
    content: str = pydantic.Field(min_length=1)
    weight: Literal[0, 1] | None = None

    @pydantic.model_validator(mode="after")
    def _only_assistants_have_weights(self) -> SftMessage:
        if self.weight is not None and self.role != "assistant":
            raise ValueError("only an assistant turn has a weight")
        return self


class SftLine(_Line):
    """One line of a fine-tuning file in chat format."""

    messages: tuple[SftMessage, ...] = pydantic.Field(min_length=2, strict=False)

    @pydantic.model_validator(mode="after")
    def _ends_with_an_answer(self) -> SftLine:
        roles = [message.role for message in self.messages]
        if roles[-1] != "assistant" or "user" not in roles or "system" in roles[1:]:
            raise ValueError(f"the turns {roles} are not [system,] user ... assistant")
        return self


class BatchLine(_Line):
    """One line of a batch's input file."""

    custom_id: str = pydantic.Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/embeddings", "/v1/completions"]
    body: dict[str, Any]


class BatchAnswer(pydantic.BaseModel):
    """The `response` of a batch's output line."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class BatchFailure(pydantic.BaseModel):
    """The `error` of a batch's output line."""

    code: str
    message: str


class BatchResultLine(_Line):
    """One line of a batch's output or error file: exactly one of `response` and `error` is set."""

    id: str
    custom_id: str
    response: BatchAnswer | None
    error: BatchFailure | None

    @pydantic.model_validator(mode="after")
    def _says_one_thing(self) -> BatchResultLine:
        if (self.response is None) == (self.error is None):
            raise ValueError("exactly one of response and error is set")
        return self


def validate_sft_line(line: bytes | str) -> SftLine:
    """Check one line of a fine-tuning file."""
    return _model_line(SftLine, line)


def validate_batch_line(line: bytes | str) -> BatchLine:
    """Check one line of a batch input, its request body included."""
    parsed = _model_line(BatchLine, line)
    validate_request(parsed.method, parsed.url, parsed.body)
    return parsed


def validate_batch_result_line(line: bytes | str, url: str = "/v1/chat/completions") -> BatchResultLine:
    """Check one line of a batch output, the answer inside it included."""
    parsed = _model_line(BatchResultLine, line)
    if parsed.response is not None:
        validate_response("POST", url, parsed.response.status_code, parsed.response.body)
    return parsed


# ------------------------------------------------------------------------------------------------ inside
Model = TypeVar("Model", bound=pydantic.BaseModel)


class _Operation:
    def __init__(self, template: str, method: str, value: dict[str, Any]) -> None:
        self.template = template
        self.value = value
        self.pointer = f"/paths/{_escape(template)}/{method}"


def _model_line(model: type[Model], line: bytes | str) -> Model:
    try:
        return model.model_validate_json(line)
    except pydantic.ValidationError as error:
        raise ConformanceError(f"{line!r:.300} is no {model.__name__}: {error}") from error


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    return dict(json.loads(SPECIFICATION.read_text()))


@lru_cache(maxsize=256)
def _operation(method: str, path: str) -> _Operation:
    path = _VERSION.sub("", path)
    for template in sorted(_document()["paths"], key=lambda one: one.count("{")):
        pattern = re.sub(r"\{\w+\}", "[^/]+", template)
        if re.fullmatch(pattern, path):
            operations = _document()["paths"][template]
            if method.lower() not in operations:
                raise ConformanceError(f"the specification has no {method} for {template}")
            return _Operation(template, method.lower(), operations[method.lower()])
    raise ConformanceError(f"the specification has no path {path}")


def _check_query(method: str, path: str, query: str, operation: _Operation) -> None:
    known = {one["name"]: one["schema"] for one in operation.value.get("parameters", ()) if one["in"] == "query"}
    for name, value in parse_qsl(query, keep_blank_values=True):
        schema = known.get(name.partition("[")[0])
        if schema is None:
            raise ConformanceError(f"{method} {path} has no query parameter {name!r}; it has {sorted(known)}")
        if schema.get("type") == "integer" and not value.isdecimal():
            raise ConformanceError(f"{method} {path}: {name}={value} is no whole number")
        if value not in schema.get("enum", [value]):
            raise ConformanceError(f"{method} {path}: {name}={value} is none of {schema['enum']}")


def _request_content(path: str, body: Body, content_type: str) -> Any:
    if isinstance(body, bytes) and content_type.startswith("multipart/"):
        _, request = canonical_request("POST", f"http://x{path}", body, {"content-type": content_type}, Scrubber())
        fields: dict[str, Any] = {}
        for part in request.body.parts:
            outer, _, inner = part.name.partition("[")
            value = part.text or ""
            if inner:
                nested = int(value) if value.isdecimal() else value
                fields.setdefault(outer, {})[inner.rstrip("]")] = nested
            else:
                fields[outer] = value
        return fields
    return _parsed(path, body) if body else None


def _parsed(what: str, body: Body) -> Any:
    if not isinstance(body, bytes | str):
        return body
    try:
        return json.loads(body)
    except ValueError as error:
        raise ConformanceError(f"{what} is no JSON: {body!r:.200}") from error


def _stream_chunks(body: bytes) -> Iterator[Any]:
    for line in body.decode().splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _check(what: str, pointer: str, content: Any, *, strict: bool) -> None:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    if (problem := _problem(pointer, canonical, strict)) is not None:
        raise ConformanceError(f"{what}: {problem}")


@lru_cache(maxsize=20_000)
def _problem(pointer: str, canonical: str, strict: bool) -> str | None:
    """What is wrong with a body; remembered, since tests send the same ones again and again."""
    errors: list[ValidationError] = list(_validator(pointer, strict).iter_errors(json.loads(canonical)))
    specific = [one for one in errors if one.validator != "unevaluatedProperties"]  # else it hides the cause
    error = best_match(specific or errors)
    if error is None:
        return None
    place = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in error.absolute_path)
    message = error.message if len(error.message) < 600 else f"{error.message[:200]} ... {error.message[-300:]}"
    return f"body{place}: {message}"


@lru_cache(maxsize=256)
def _validator(pointer: str, strict: bool) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"urn:specification#{pointer}"}, registry=_registry(strict))


@lru_cache(maxsize=2)
def _registry(strict: bool) -> Registry[Any]:
    document = copy.deepcopy(_document())
    if strict:
        joined = {_escape(one["$ref"]) for one in _members_of_all_of(document) if "$ref" in one}
        for name, schema in document["components"]["schemas"].items():
            _close(schema, member=_escape(f"#/components/schemas/{name}") in joined)
    resource = Resource(contents=document, specification=DRAFT202012)
    return Registry().with_resource("urn:specification", resource)


def _members_of_all_of(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield from node.get("allOf", ())
        for value in node.values():
            yield from _members_of_all_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from _members_of_all_of(value)


def _close(node: Any, *, member: bool = False) -> None:
    """Refuse unknown fields in every object whose fields are listed; an allOf is closed as a whole."""
    if isinstance(node, list):
        for value in node:
            _close(value)
    if not isinstance(node, dict):
        return
    if not member:
        _close_object(node)
    for key, value in node.items():
        if key in ("properties", "allOf"):
            for schema in value.values() if isinstance(value, dict) else value:
                _close(schema, member=key == "allOf")
        elif key not in ("example", "examples", "enum", "default", "const"):
            _close(value)


def _close_object(node: dict[str, Any]) -> None:
    if "allOf" in node:
        node["unevaluatedProperties"] = False
    elif "properties" in node:
        node.setdefault("additionalProperties", False)


def _escape(text: str) -> str:
    return text.replace("~", "~0").replace("/", "~1")
