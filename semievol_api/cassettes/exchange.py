"""What a cassette keeps: one request and its answer, in a form that reads well and compares exactly.

A `Content` holds a body as JSON, text, base64 or multipart parts, whichever is plainest. `canonical_request`
turns what is about to be sent into a `Request` and the key under which its exchange is found: host, headers,
key order, white space and multipart boundaries do not count. Knows nothing of files, modes or sending.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from functools import lru_cache
from hashlib import blake2b, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from semievol_api.cassettes.http import HttpResponse
from semievol_api.cassettes.scrub import Scrubber
from semievol_api.errors import DataError

_INLINE_PART_BYTES = 256
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
            return Content(json=msgspec.Raw(scrubber.clean(msgspec.json.encode(msgspec.json.decode(body)))))
        except (msgspec.DecodeError, RecursionError):
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
        canonical = scrubber.clean(msgspec.json.encode(msgspec.json.decode(body), order="sorted"))
    except (msgspec.DecodeError, RecursionError):
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
    inline = filename is None and len(content) <= _INLINE_PART_BYTES
    return Part(
        name=str(name),
        filename=filename,
        bytes=len(content),
        sha256=sha256(content).hexdigest(),
        text=content.decode("utf-8", "replace") if inline else None,
    )


_FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
EXCHANGES = "exchanges.jsonl.gz"
_PACKAGES = ("semievol-api", "openai", "httpx", "httpx2", "aiohttp", "litellm")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Where a cassette comes from: `recorded_against` says who answered, `date` (UTC) when it last did."""

    format_version: int = _FORMAT_VERSION
    recorded_against: str
    date: str
    seed: int | None = None
    packages: dict[str, str] = {}
    exchanges: int = 0
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole cassette in memory; `exchanges` are keyed by `Exchange.identity`."""

    manifest: Manifest
    exchanges: Mapping[tuple[str, str, int], Exchange]


class _Version(msgspec.Struct, frozen=True):
    format_version: int


def is_cassette(path: Path) -> bool:
    """True where both files of a cassette are."""
    return (path / _MANIFEST).is_file() and (path / EXCHANGES).is_file()


def read_manifest(path: Path) -> Manifest:
    """The manifest alone.

    Raises:
        DataError: there is no cassette, or one that this version does not read.
    """
    if not is_cassette(path):
        raise DataError(
            f"There is no cassette at {str(path)!r}: it is a folder with {_MANIFEST} and {EXCHANGES}. "
            f'Record one first, for instance with mode "record".'
        )
    refuse_other_format(path)
    try:
        return msgspec.json.decode((path / _MANIFEST).read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{str(path / _MANIFEST)!r} is not the manifest of a cassette ({error}). Restore it, or record "
            f"the cassette again."
        ) from error


def refuse_other_format(path: Path) -> None:
    """Look at a cassette's version before anything else of it is read, or replaced; one that has none passes.

    Raises:
        DataError: another version of semievol-api wrote it.
    """
    if not (path / _MANIFEST).is_file():
        return
    try:
        found = msgspec.json.decode((path / _MANIFEST).read_bytes(), type=_Version).format_version
    except msgspec.DecodeError:
        return  # not even that can be read: who needs more of it will say so
    if found != _FORMAT_VERSION:
        raise DataError(
            f"The cassette {str(path)!r} has format {found}; this version reads {_FORMAT_VERSION}. Use the version of "
            f"semievol-api that wrote it, or record into another folder."
        )


def load(path: Path) -> Recording:
    """Read a cassette.

    Raises:
        DataError: it is not there, damaged, or of another format.
    """
    manifest = read_manifest(path)
    decoder = msgspec.json.Decoder(Exchange)
    try:
        lines = gzip.decompress((path / EXCHANGES).read_bytes()).split(b"\n")
        exchanges = [decoder.decode(line) for line in lines if line]
    except (OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
        raise DataError(
            f"{str(path / EXCHANGES)!r} is damaged ({error}). Restore it from version control, or record the "
            f"cassette again."
        ) from error
    return Recording(manifest, {exchange.identity: exchange for exchange in exchanges})


def save(path: Path, manifest: Manifest, exchanges: Iterable[Exchange]) -> None:
    """Write a cassette; what was there before is replaced whole or not at all."""
    ordered = sorted(exchanges, key=lambda one: (one.request.path, one.request.method, one.key, one.slot, one.turn))
    manifest = msgspec.structs.replace(manifest, exchanges=len(ordered))
    encoder = msgspec.json.Encoder()
    lines = b"".join(encoder.encode(exchange) + b"\n" for exchange in ordered)
    path.mkdir(parents=True, exist_ok=True)
    written = [
        (_write_beside(path / EXCHANGES, gzip.compress(lines, 6, mtime=0)), path / EXCHANGES),
        (_write_beside(path / _MANIFEST, _readable(manifest)), path / _MANIFEST),
    ]
    for temporary, final in written:
        temporary.replace(final)


def package_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour a recording depends on, those that are installed."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _readable(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _write_beside(final: Path, content: bytes) -> Path:
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary
