"""Bring other tools' recordings in: vcrpy's YAML and the session JSON of the azure-sdk test proxy.

A recording becomes ordinary exchanges, scrubbed like our own. Knows nothing of modes and sending.
"""

from __future__ import annotations

import base64
import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from semievol_api.cassettes.exchange import Exchange, Manifest, Response, canonical_request, response_content, save
from semievol_api.cassettes.scrub import Scrubber
from semievol_api.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignExchange:
    """One exchange as another tool kept it; header names are lower-case, bodies decompressed."""

    method: str
    url: str
    request_headers: Mapping[str, str]
    request_body: bytes
    status: int
    response_headers: Mapping[str, str]
    response_body: bytes


def read_foreign(path: Path) -> tuple[ForeignExchange, ...]:
    """The exchanges of a `.yaml`/`.yml` (vcrpy) or `.json` (session record) file, in their order.

    Raises:
        DataError: the file is neither, or cannot be read.
    """
    try:
        if path.suffix in (".yaml", ".yml"):
            return tuple(_from_vcr(one) for one in _load_yaml(path.read_bytes())["interactions"])
        return tuple(_from_session(one) for one in msgspec.json.decode(path.read_bytes())["Entries"])
    except (OSError, ValueError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{str(path)!r} is neither a vcrpy cassette (.yaml with interactions) nor a session record "
            f"(.json with Entries): {type(error).__name__}: {error}. Give recordings of these two kinds."
        ) from error


def import_recordings(sources: Iterable[Path], into: Path, scrubber: Scrubber, *, slot_per_source: bool = False) -> int:
    """Write one cassette with the exchanges of all `sources`; returns how many there are.

    `slot_per_source` keeps the files apart: each exchange's slot is then its file's stem.
    """
    turns: Counter[tuple[str, str]] = Counter()
    exchanges: list[Exchange] = []
    hosts: set[str] = set()
    for source in sources:
        slot = source.stem if slot_per_source else ""
        for foreign in read_foreign(source):
            exchange = _convert(foreign, slot, turns, scrubber)
            turns[exchange.key, slot] += 1
            exchanges.append(exchange)
            hosts.add(urlsplit(foreign.url).hostname or "")
    manifest = Manifest(
        recorded_against=", ".join(sorted(hosts)),
        date=datetime.now(UTC).date().isoformat(),
        notes="Imported from recordings of another tool; the date is the import's.",
    )
    save(into, manifest, exchanges)
    return len(exchanges)


def _convert(foreign: ForeignExchange, slot: str, turns: Counter[tuple[str, str]], scrubber: Scrubber) -> Exchange:
    key, request = canonical_request(
        foreign.method, foreign.url, foreign.request_body, foreign.request_headers, scrubber
    )
    content_type = foreign.response_headers.get("content-type", "")
    response = Response(
        status=foreign.status,
        headers=scrubber.clean_headers(foreign.response_headers),
        body=response_content(foreign.response_body, content_type, scrubber),
    )
    return Exchange(key=key, slot=slot, turn=turns[key, slot], request=request, response=response)


def _load_yaml(content: bytes) -> dict[str, Any]:
    yaml = import_module("yaml")
    try:
        loaded = yaml.load(content, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return cast(dict[str, Any], loaded)


def _from_vcr(one: Mapping[str, Any]) -> ForeignExchange:
    request, response = one["request"], one["response"]
    headers = _flat(response.get("headers"))
    body = response.get("body")
    content = _as_bytes(body.get("string") if isinstance(body, dict) else body)
    return ForeignExchange(
        method=request["method"],
        url=request["uri"],
        request_headers=_flat(request.get("headers")),
        request_body=_as_bytes(request.get("body")),
        status=int(response["status"]["code"]),
        response_headers=headers,
        response_body=_decompressed(content, headers.get("content-encoding", "")),
    )


def _from_session(one: Mapping[str, Any]) -> ForeignExchange:
    request_headers, response_headers = _flat(one["RequestHeaders"]), _flat(one["ResponseHeaders"])
    return ForeignExchange(
        method=one["RequestMethod"],
        url=one["RequestUri"],
        request_headers=request_headers,
        request_body=_session_body(one["RequestBody"], request_headers.get("content-type", "")),
        status=int(one["StatusCode"]),
        response_headers=response_headers,
        response_body=_session_body(one["ResponseBody"], response_headers.get("content-type", "")),
    )


def _session_body(body: Any, content_type: str) -> bytes:
    """Session records keep JSON as JSON, and other bodies as a list of lines, some of them base64."""
    if body is None:
        return b""
    if isinstance(body, list) and "json" not in content_type:
        return b"".join(base64.b64decode(line[4:]) if line.startswith("b64:") else line.encode() for line in body)
    return body.encode() if isinstance(body, str) else msgspec.json.encode(body)


def _flat(headers: Any) -> dict[str, str]:
    return {
        str(name).lower(): ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in (headers or {}).items()
    }


def _as_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else (body or "").encode()


def _decompressed(content: bytes, encoding: str) -> bytes:
    if not encoding or encoding == "identity" or not content.startswith((b"\x1f\x8b", b"\x78")):
        return content  # vcrpy may have decoded it and kept the header
    try:
        return gzip.decompress(content) if encoding == "gzip" else zlib.decompress(content)
    except zlib.error as error:
        raise ValueError(f"a body says content-encoding {encoding!r} and is not: {error}") from error
