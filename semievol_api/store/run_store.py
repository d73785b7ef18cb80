"""A run's folder: artifacts by fingerprint. Resuming lives here, and only here.

    with RunStore.open(folder, config_key) as store:
        neighbours = await store.once("retrieve", Neighbours, retrieve, embedder, data, settings)

`once` computes a stage's artifact, or loads it where the fingerprint of everything that went in is unchanged.
An artifact is written to a draft and renamed, so a killed run leaves whole artifacts or none. Artifacts
hold no clock, host, job or model id; those stand in `stamps.json`. Knows nothing of what the stages do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, cast, runtime_checkable

from pydantic import BaseModel

from semievol_api.data.table import ChunkedTable, Tabular, file_chunks, free_memory
from semievol_api.errors import RunFolderError
from semievol_api.store.fingerprints import Stage, entries, plain

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """An artifact as files: `tables` become NAME.parquet, `documents` NAME.json, `files` keep their names.

    A table in more than one part becomes a folder NAME of them. What is read back are chunked tables and paths.
    """

    tables: Mapping[str, Tabular] = field(default_factory=dict[str, "Tabular"])
    documents: Mapping[str, object] = field(default_factory=dict[str, object])
    files: Mapping[str, bytes | Path | Iterable[bytes]] = field(
        default_factory=dict[str, "bytes | Path | Iterable[bytes]"]
    )

    def parts(self, name: str) -> ChunkedTable[Mapping[str, Any]]:
        """A stored table, unread."""
        return cast("ChunkedTable[Mapping[str, Any]]", self.tables[name])

    def table(self, name: str) -> pa.Table:
        """A stored table, whole."""
        return self.parts(name).whole()

    def content(self, name: str) -> bytes:
        """A file's bytes; empty where there is none."""
        found = self.files.get(name, b"")
        if isinstance(found, bytes):
            return found
        return found.read_bytes() if isinstance(found, Path) else b"".join(found)


class Artifact(Protocol):
    """What a stage makes: a frozen value that can be packed into files and back without loss."""

    def pack(self) -> Packed:
        """The artifact as tables and documents."""
        ...

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """The artifact that `pack` described."""
        ...


@runtime_checkable
class Identified(Protocol):
    """A tool that names what it is: endpoint and model, never a key, a port that changes, or a job id."""

    @property
    def identity(self) -> str:
        """The same string for tools that give the same answers."""
        ...


_ArtifactT = TypeVar("_ArtifactT", bound=Artifact)
_ParamsT = ParamSpec("_ParamsT")


class RunStore:
    """One run's folder, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamps_path = folder / "stamps.json"
        self._stamps = _read_stamps(folder)
        self._contents: dict[int, tuple[object, str]] = {}
        self._events: dict[Path, set[str]] = {}
        self.computed: list[str] = []
        """Names of the artifacts that this process computed rather than loaded."""
        self.on_stage: Callable[[str, str], None] = lambda _name, _state: None
        """Called when an artifact's stage is `started`, `made` or `loaded`."""

    @classmethod
    @contextmanager
    def open(cls, folder: Path, config_key: str, *, accept_change: bool = False) -> Generator[RunStore]:
        """Hold the folder until the block ends.

        `config_key` fingerprints the settings that shape results; a folder made by other settings is refused
        unless `accept_change` (stages that the change does not touch are then kept).

        Raises:
            RunFolderError: another process holds the folder, another config made it, a file of it is damaged, or it
                cannot be written.
        """
        with _locked(folder):
            _read_stamps(folder)
            _check_maker(folder, config_key, accept_change)
            yield cls(folder)

    async def once(
        self,
        name: str,
        kind: type[_ArtifactT],
        make: Stage[_ParamsT, _ArtifactT],
        *inputs: _ParamsT.args,
        **named: _ParamsT.kwargs,
    ) -> _ArtifactT:
        """The artifact `name`: loaded where nothing that shapes it changed, else made by `make(*inputs)`.

        A stage whose meaning changes gets a new name in `@stage`, or a version among its inputs.
        """
        digest = self.fingerprint(make.known_as, *inputs, *([named] if named else []))
        stamp = self._stamps.get(name)
        place = self.folder / name
        if stamp is None or stamp["fingerprint"] != digest or not place.is_dir():
            self.on_stage(name, "started")
            begun = time.monotonic()
            made = await make(*inputs, **named)
            self.forget(name)
            content = await _write(place, made.pack())
            seconds = f"{time.monotonic() - begun:.3f}"
            self._stamps[name] = {"fingerprint": digest, "content": content, "seconds": seconds}
            _write_json(self._stamps_path, self._stamps)
            self.computed.append(name)
        self.on_stage(name, "made" if name in self.computed else "loaded")
        artifact = kind.unpack(_read(place))
        self._contents[id(artifact)] = (artifact, self._stamps[name]["content"])
        return artifact

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds that each artifact took when it was made, whichever process made it."""
        return {name: float(stamp["seconds"]) for name, stamp in self._stamps.items()}

    def note(self, name: str, text: str) -> None:
        """Write something about the run, such as its versions, that is no artifact and enters no fingerprint."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def log_event(self, name: str, event_id: str, line: str) -> None:
        """Append a job's event, once; a run that waits again gets old events again."""
        path = self.folder / "jobs" / f"{name}-events.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path not in self._events:
            known = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []
            self._events[path] = {str(json.loads(old)["id"]) for old in known}
        if event_id in self._events[path]:
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        self._events[path].add(event_id)

    def load(self, name: str, kind: type[_ArtifactT]) -> _ArtifactT:
        """A finished artifact of this store."""
        return kind.unpack(_read(self.folder / name))

    def nested(self, name: str) -> RunStore:
        """A store in a folder of its own within this one, under the same lock; what it makes is counted here."""
        (self.folder / name).mkdir(exist_ok=True)
        inner = RunStore(self.folder / name)

        def report(stage: str, state: str) -> None:
            if state == "made":
                self.computed.append(f"{name}/{stage}")
            self.on_stage(f"{name}/{stage}", state)

        inner.on_stage = report
        return inner

    def forget(self, name: str) -> None:
        """Drop an artifact, such as the ticket of a job that failed; it is made anew when next asked for."""
        self._stamps.pop(name, None)
        _write_json(self._stamps_path, self._stamps)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def fingerprint(self, *values: object) -> str:
        """A hash of settings, artifacts of this store (by content), tools (by identity) and plain values."""
        state = hashlib.blake2b(digest_size=20)
        for value in values:
            state.update(json.dumps(self._canonical(value), sort_keys=True).encode())
            state.update(b"\x00")
        return state.hexdigest()

    def _canonical(self, value: object) -> object:
        held = self._contents.get(id(value))
        if held is not None:
            return {"artifact": held[1]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, bytes):
            return {"bytes": hashlib.blake2b(value, digest_size=20).hexdigest()}
        if isinstance(value, ChunkedTable) and not value.identity:
            return [self._canonical(v) for v in value]
        if isinstance(value, Identified):
            return {"tool": value.identity}
        if isinstance(value, BaseModel):
            return plain(value)
        if isinstance(value, Mapping):
            return {str(k): self._canonical(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._canonical(v) for v in value]
        if is_dataclass(value) and not isinstance(value, type):
            return {name: self._canonical(part) for name, part in entries(value).items()}
        raise TypeError(f"{type(value).__name__} cannot enter a fingerprint: give it an `identity`")


def stages_done(folder: Path) -> dict[str, float]:
    """Every finished artifact of a run and the seconds that it took; empty where nothing is done yet."""
    return {name: float(stamp["seconds"]) for name, stamp in _read_stamps(folder).items()}


def load_artifact(folder: Path, name: str, kind: type[_ArtifactT]) -> _ArtifactT | None:
    """A finished artifact, read without holding the folder; None where it is not made yet."""
    place = folder / name
    return kind.unpack(_read(place)) if place.is_dir() else None


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)  # prompts and answers are their owner's alone
        handle = (folder / ".lock").open("a")
    except OSError as error:
        raise RunFolderError(
            f"The run folder {str(folder)!r} cannot be written: {error.strerror}. Choose another one in [run] folder."
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"The run folder {str(folder)!r} is in use by another process. Wait for it, or choose another folder "
                f"in [run] folder. `semievol status` shows how far it is."
            ) from None
        yield


def _check_maker(folder: Path, config_key: str, accept_change: bool) -> None:
    path = folder / "config_key.json"
    known = read_document(path).get("config_key")
    if known is not None and known != {"value": config_key} and not accept_change:
        raise RunFolderError(
            f"The run folder {str(folder)!r} was made by another config. Choose another folder in [run] folder, or "
            f"pass --accept-config-change to go on in this one: stages that the change does not touch are kept."
        )
    _write_json(path, {"config_key": {"value": config_key}})


def _read(place: Path) -> Packed:
    paths = sorted(place.iterdir())
    whole = {p.stem: ChunkedTable.stored([p]) for p in paths if p.suffix == ".parquet"}
    cut = {p.name: ChunkedTable.stored(sorted(p.iterdir())) for p in paths if p.is_dir()}
    return Packed(
        tables={**whole, **cut},
        documents={p.stem: _read_value(p) for p in paths if p.suffix == ".json"},
        files={p.name: p for p in paths if p.is_file() and p.suffix not in (".parquet", ".json")},
    )


async def _write(place: Path, packed: Packed) -> str:
    """Write a draft, rename it, and return a hash of the content."""
    draft = place.with_name(f".{place.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, table in packed.tables.items():
        await _write_table(draft / name, table)
    for name, document in packed.documents.items():
        _write_json(draft / f"{name}.json", document)
    for name, content in packed.files.items():
        with (draft / name).open("wb") as file:
            chunks = file_chunks(content) if isinstance(content, Path) else content
            file.writelines([chunks] if isinstance(chunks, bytes) else chunks)
    state = hashlib.blake2b(digest_size=20)
    for path in sorted(p for p in draft.rglob("*") if p.is_file()):
        state.update(path.relative_to(draft).as_posix().encode() + b"\x00")
        for chunk in file_chunks(path):
            state.update(chunk)
        with path.open("rb") as written:
            os.fsync(written.fileno())
    draft.rename(place)
    return state.hexdigest()


async def _write_table(place: Path, table: Tabular) -> None:
    """One part as PLACE.parquet, more of them as a folder; a part is written when it is made."""
    import pyarrow.parquet as pq

    def write(number: int, part: pa.Table) -> None:
        first = place.with_name(f"{place.name}.parquet")
        if number == 1:
            place.mkdir()
            first.rename(place / "part-00000.parquet")
        path = place / f"part-{number:05d}.parquet" if number else first
        pq.write_table(part, path, compression="zstd")
        if number:
            free_memory()

    if isinstance(table, ChunkedTable):
        for number, part in enumerate(table.tables()):
            write(number, part)
    else:
        number = 0
        async for part in table:
            write(number, part)
            number += 1


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object of a run's folder; empty where there is no such file.

    Raises:
        RunFolderError: it is damaged.
    """
    found = _read_value(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no object")
    return cast(dict[str, Any], found)


def _read_stamps(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / "stamps.json"
    stamps = read_document(path)
    for name, stamp in stamps.items():
        if not isinstance(stamp, dict) or not {"fingerprint", "content", "seconds"} <= stamp.keys():
            raise _damaged(path, f"its entry {name!r} is none of this version")
    return stamps


def _read_value(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{str(path)!r} is damaged: {why}. Nothing was touched. Put it back from a copy, or delete this one file and "
        "run again: what it described is made anew, and answers that the journal holds are not paid for again."
    )


def _write_json(path: Path, value: object) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", "utf-8")
    draft.rename(path)
