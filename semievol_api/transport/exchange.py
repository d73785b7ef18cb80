"""What a cassette keeps: one request and its answer, in a form that reads well and compares exactly.

A `Content` holds a body as JSON, text, base64 or multipart parts, whichever is plainest. `canonical_request`
turns what is about to be sent into a `Request` and the key under which its exchange is found: host, headers,
key order, white space and multipart boundaries do not count. Knows nothing of files, modes or sending.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from email import message_from_bytes
from functools import lru_cache
from hashlib import blake2b, sha256
from urllib.parse import parse_qsl, urlsplit

import msgspec
import orjson

from semievol_api.transport.http import HttpResponse
from semievol_api.transport.scrub import Scrubber

INLINE_PART_BYTES = 256
"""A multipart part without a file name is kept as text up to this size; all others by size and hash."""
_VERSION_SEGMENT = re.compile(r"v\d+[a-z0-9]*")


class Part(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One part of a multipart body. `sha256` is of the content without secrets."""

    name: str
    filename: str | None = None
    bytes: int
    sha256: str
    text: str | None = None


class Content(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, eq=False):
    """A body: at most one field is set, none for an empty body."""

    json: msgspec.Raw = msgspec.Raw(b"")
    text: str = ""
    base64: str = ""
    parts: tuple[Part, ...] = ()

    def to_bytes(self) -> bytes:
        """The body as it goes over the wire (for multipart: its listing, since contents are not kept)."""
        if self.json:
            return bytes(self.json)
        if self.base64:
            return base64.b64decode(self.base64)
        return msgspec.json.encode(self.parts) if self.parts else self.text.encode()


class Request(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, eq=False):
    """A request as it is compared. `path` begins behind the API's version segment."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Content = Content()


class Response(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, eq=False):
    """An answer; status 0 stands for a connection that failed, with the reason in `failure`."""

    status: int
    headers: dict[str, str] = {}
    body: Content = Content()
    failure: str = ""

    def to_http(self) -> HttpResponse:
        """The answer as the sender gets it, at recording and at replay alike."""
        return HttpResponse(self.status, self.headers, self.body.to_bytes())


class Exchange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, eq=False):
    """A request and its answer.

    `slot` is the sender's own name for the work it did; `turn` counts equal requests of one slot in the order
    in which they were started.
    """

    key: str
    slot: str = ""
    turn: int = 0
    request: Request
    response: Response

    @property
    def identity(self) -> tuple[str, str, int]:
        """What tells this exchange from all others of a cassette."""
        return (self.key, self.slot, self.turn)

    @property
    def label(self) -> str:
        """`POST /chat/completions -> 200`, for people."""
        return f"{self.request.method} {self.request.path} -> {self.response.status or 'no answer'}"


def canonical_request(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], scrubber: Scrubber
) -> tuple[str, Request]:
    """The key of a request (32 hex digits) and the request as it is kept, both without secrets."""
    path, pairs = _route(url)
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    content, canonical = _request_content(body or b"", content_type, scrubber)
    request = Request(method=method.upper(), path=path, query=scrubber.clean_query(pairs), body=content)
    head = f"{request.method}\n{path}\n{request.query}\n".encode()
    return blake2b(head + canonical, digest_size=16).hexdigest(), request


def response_content(body: bytes, content_type: str, scrubber: Scrubber) -> Content:
    """A response's body without secrets: JSON keeps its key order and loses its white space."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            return Content(json=msgspec.Raw(scrubber.clean(orjson.dumps(orjson.loads(body)))))
        except orjson.JSONDecodeError:
            pass  # kept as the text that it is
    return _opaque_content(body, scrubber)


@lru_cache(maxsize=4096)
def _route(url: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The path behind the version segment (the whole path where there is none) and the query's pairs."""
    parts = urlsplit(url)
    segments = parts.path.split("/")
    for position, segment in enumerate(segments):
        if _VERSION_SEGMENT.fullmatch(segment):
            segments = ["", *segments[position + 1 :]]
            break
    return "/".join(segments) or "/", tuple(parse_qsl(parts.query, keep_blank_values=True))


def _request_content(body: bytes, content_type: str, scrubber: Scrubber) -> tuple[Content, bytes]:
    """A request's body as it is kept, and the bytes that its key is made of."""
    if not body:
        return Content(), b""
    if content_type.startswith("multipart/"):
        parts = _multipart(body, content_type, scrubber)
        return Content(parts=parts), msgspec.json.encode([(part.name, part.filename, part.sha256) for part in parts])
    try:
        canonical = scrubber.clean(orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS))
    except orjson.JSONDecodeError:
        content = _opaque_content(body, scrubber)
        return content, content.to_bytes()
    return Content(json=msgspec.Raw(canonical)), canonical


def _opaque_content(body: bytes, scrubber: Scrubber) -> Content:
    cleaned = scrubber.clean(body)
    try:
        return Content(text=cleaned.decode())
    except UnicodeDecodeError:
        return Content(base64=base64.b64encode(cleaned).decode())


def _multipart(body: bytes, content_type: str, scrubber: Scrubber) -> tuple[Part, ...]:
    head = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n")
    boundary = b"--" + (head.get_boundary() or "").encode()
    parts: list[Part] = []
    for piece in (b"\r\n" + body).split(b"\r\n" + boundary)[1:]:
        if piece.startswith(b"--"):
            break
        header, _, content = piece.partition(b"\r\n\r\n")
        parts.append(_part(header.strip(), scrubber.clean(content)))
    return tuple(sorted(parts, key=lambda part: (part.name, part.filename or "", part.sha256)))


def _part(header: bytes, content: bytes) -> Part:
    fields = message_from_bytes(header + b"\r\n\r\n")
    filename = fields.get_filename()
    name = fields.get_param("name", "", header="content-disposition")
    inline = filename is None and len(content) <= INLINE_PART_BYTES
    return Part(
        name=str(name),
        filename=filename,
        bytes=len(content),
        sha256=sha256(content).hexdigest(),
        text=content.decode("utf-8", "replace") if inline else None,
    )
