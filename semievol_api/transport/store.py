"""The cassette on disk: a folder with `manifest.json` and a sorted `exchanges.jsonl.gz`.

Both are written beside the old ones and renamed, so that a crash leaves the old cassette whole. Equal
exchanges give equal bytes. Knows nothing of modes, sending or scrubbing: what it is given is already clean.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from semievol_api.errors import DataError
from semievol_api.transport.exchange import Exchange

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
EXCHANGES = "exchanges.jsonl.gz"
_PACKAGES = ("semievol-api", "openai", "httpx", "httpx2", "aiohttp", "litellm")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Where a cassette comes from: `recorded_against` says who answered, `date` (UTC) when it last did."""

    format_version: int = FORMAT_VERSION
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
    return (path / MANIFEST).is_file() and (path / EXCHANGES).is_file()


def read_manifest(path: Path) -> Manifest:
    """The manifest alone.

    Raises:
        DataError: there is no cassette, or one that this version does not read.
    """
    if not is_cassette(path):
        raise DataError(
            f"There is no cassette at {str(path)!r}: it is a folder with {MANIFEST} and {EXCHANGES}. "
            f'Record one first, for instance with mode "record".'
        )
    refuse_other_format(path)
    try:
        return msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{str(path / MANIFEST)!r} is not the manifest of a cassette ({error}). Restore it, or record "
            f"the cassette again."
        ) from error


def refuse_other_format(path: Path) -> None:
    """Look at a cassette's version before anything else of it is read, or replaced; one that has none passes.

    Raises:
        DataError: another version of semievol-api wrote it.
    """
    if not (path / MANIFEST).is_file():
        return
    try:
        found = msgspec.json.decode((path / MANIFEST).read_bytes(), type=_Version).format_version
    except msgspec.DecodeError:
        return  # not even that can be read: who needs more of it will say so
    if found != FORMAT_VERSION:
        raise DataError(
            f"The cassette {str(path)!r} has format {found}; this version reads {FORMAT_VERSION}. Use the version of "
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
        (_write_beside(path / MANIFEST, _readable(manifest)), path / MANIFEST),
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
