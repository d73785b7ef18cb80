"""Whose a state folder is, and `semievol serve --recover`, which rebuilds a lost database from what lies in it.

Nothing is started in, written to or removed from a folder that is not a server's: one that carries our marker, is
empty, or holds a database with our tables. Looking changes no byte. A job folder holds its record and owner, its
progress and its adapters; from an older server's folder the record is put together from the training's own files. A
recovery deletes nothing: what cannot be placed is moved to `unrecovered/`, and the new database appears whole or not
at all. Knows nothing of HTTP or of running jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import msgspec

from semievol_api.capabilities import TrainSpec
from semievol_api.errors import UserError
from semievol_api.records import JsonValue
from semievol_api.store.database_header import DamagedDatabaseError, read_header
from semievol_providers.local.training_job import TrainingEvent, TrainingJob, read_events
from semievol_providers.server.gate import owner_of_key
from semievol_providers.server.job_events import (
    RUN_KEY,
    JobBody,
    checkpoint_of,
    new_job,
    tuned_name,
    with_hyperparameters,
    with_spec,
)
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import (
    APPLICATION_ID,
    DATABASE,
    ENDED,
    FORMAT,
    TABLES,
    FileRow,
    JobRecord,
    Record,
    State,
    new_id,
    read_job_record,
)

_MARKER = "semievol-state.json"
_MADE_BY = "semievol serve"
_FOLDERS = ("files", "jobs", "batches", "tmp")
_DATABASE_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")
_OURS = {*_FOLDERS, *_DATABASE_FILES, _MARKER, "lock"}
_NOT_COUNTED = {"lock", "lost+found", "ready.json", "server.log"}
"""Allowed in a folder before its first server: the lock of a refused start, a volume's own entry, a parent's files."""

_OWN_NAMES = {
    "files": re.compile(r"file-[A-Za-z0-9]{24}(\.partial)?"),
    "jobs": re.compile(r"ftjob-[A-Za-z0-9]{24}"),
    "batches": re.compile(r"batch_[A-Za-z0-9]{24}"),
    "tmp": re.compile(r"(tmp|pymp-)[a-z0-9_]{8}"),
}
"""What the server itself, and Python for it, names in each of its folders; nothing else is ever removed."""


class _StateFolderError(UserError):
    """This folder cannot be the state of this server."""


@dataclass(frozen=True, slots=True)
class _FolderCondition:
    """`new` may be filled, `whole` may be used; a `lost` one has objects of ours but no database that names them."""

    kind: Literal["new", "whole", "lost"]
    why: str = ""


def _check_folder(folder: Path) -> _FolderCondition:
    """How this folder stands.

    Raises:
        _StateFolderError: it is not a server's, was written by a newer version, or cannot be read or written.
    """
    try:
        return _check(folder)
    except OSError as error:
        raise unusable(folder, error) from error


def own_entries(folder: Path, table: str) -> list[Path]:
    """What the server put into one of its folders: names of its own shape, and no links."""
    place = folder / table
    if place.is_symlink() or not place.is_dir():
        return []
    shape = _OWN_NAMES[table]
    return sorted(path for path in place.iterdir() if shape.fullmatch(path.name) and not path.is_symlink())


def claim(folder: Path) -> None:
    """Put the marker into a folder that was found to be ours, whole or not at all."""
    marker = folder / _MARKER
    if marker.exists():
        return
    partial = folder / f"{_MARKER}.partial"
    text = json.dumps({"made_by": _MADE_BY, "format": FORMAT, "note": "A folder of `semievol serve`."})
    try:
        partial.write_text(f"{text}\n", encoding="utf-8")
        partial.replace(marker)
    except OSError as error:
        raise unusable(folder, error) from error


def _put_database_aside(folder: Path) -> Path | None:
    """Rename a database that cannot be used, so that a new one has its place; returns its new name."""
    aside: Path | None = None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for name in _DATABASE_FILES:
        path = folder / name
        if path.exists():
            target = path.with_name(f"{name.replace(DATABASE, f'{DATABASE}.damaged-{stamp}')}")
            path.replace(target)
            aside = aside or target
    return aside


def unusable(folder: Path, error: OSError | sqlite3.Error) -> _StateFolderError:
    """The refusal for a folder that the operating system does not give."""
    reason = error.strerror if isinstance(error, OSError) else None
    return _StateFolderError(
        f"The state folder {str(folder)!r} cannot be used: {reason or error}. Make it a folder that this user "
        "can read and write, or name another one with --state."
    )


def _check(folder: Path) -> _FolderCondition:
    if not folder.exists():
        return _FolderCondition("new")
    names = {path.name for path in folder.iterdir()} - _NOT_COUNTED
    if not names:
        _check_access([folder])
        return _FolderCondition("new")
    marked = _MARKER in names
    if marked:
        _check_marker(folder)
    condition = _check_database(folder, names, marked)
    _check_kinds(folder)
    _check_access([folder, *(folder / name for name in (*_FOLDERS, *_DATABASE_FILES, "lock"))])
    return condition


def _check_marker(folder: Path) -> None:
    path = folder / _MARKER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        made_by, written = found["made_by"], int(found["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise _StateFolderError(
            f"The marker {str(path)!r} of a state folder is damaged ({error}). Nothing was touched. If this folder is "
            "a server's, delete the marker alone and start again; else name another folder with --state."
        ) from error
    if made_by != _MADE_BY:
        raise _StateFolderError(f"The folder {str(folder)!r} belongs to {made_by!r}. Name another one with --state.")
    if written > FORMAT:
        raise _newer(folder, written)


def _check_database(folder: Path, names: set[str], marked: bool) -> _FolderCondition:
    """What the database says of the folder, and what the folder says without one."""
    path = folder / DATABASE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise _StateFolderError(f"{str(path)!r} is no file of its own. Nothing was touched. Name another --state.")
    try:
        header = read_header(path)
        if header is not None and header.user_version > FORMAT and header.application_id == APPLICATION_ID:
            raise _newer(folder, header.user_version)
        tables = _tables(path) if header is not None else set[str]()
    except (DamagedDatabaseError, sqlite3.DatabaseError) as error:
        if not marked and not _looks_ours(folder, names):
            raise _not_ours(folder, names) from error
        return _FolderCondition("lost", f"its database {DATABASE} is damaged ({error})")
    foreign = header is not None and header.application_id not in (0, APPLICATION_ID)
    if foreign or (tables and not tables >= TABLES):
        raise _not_ours(folder, names)
    if tables:
        return _FolderCondition("whole")
    if any(own_entries(folder, table) for table in ("jobs", "files", "batches")) and (
        marked or _looks_ours(folder, names)
    ):
        return _FolderCondition("lost", f"its database {DATABASE} is missing or empty")
    if not marked and names - set(_DATABASE_FILES):
        raise _not_ours(folder, names)
    return _FolderCondition("new")


def _looks_ours(folder: Path, names: Iterable[str]) -> bool:
    """An older server's folder without a usable database: nothing but our names, and a job among them."""
    return set(names) <= _OURS and bool(own_entries(folder, "jobs") or own_entries(folder, "files"))


def _tables(path: Path) -> set[str]:
    """The tables of a database that is whole, read without leaving a trace beside it."""
    log = path.with_name(path.name + "-wal")
    if not log.exists() or log.stat().st_size == 0:
        return _tables_of(path)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(log.name))
        return _tables_of(copy, "mode=ro")


def _tables_of(path: Path, options: str = "mode=ro&immutable=1") -> set[str]:
    database = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True)
    try:
        (finding,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise sqlite3.DatabaseError(str(finding))
        return {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    finally:
        database.close()


def _check_kinds(folder: Path) -> None:
    """Refuse links in place of our folders: cleaning up would remove what they point to."""
    for name in _FOLDERS:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise _StateFolderError(
                f"{str(path)!r} is {'a link' if path.is_symlink() else 'no folder'}, and a state's folders must be "
                "real ones: the server removes what it left half done there. Nothing was touched. To keep the state "
                "elsewhere, name that place with --state."
            )


def _check_access(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists() and not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            raise _StateFolderError(
                f"{str(path)!r} cannot be written by this user. Nothing was touched. Give the server's user the right "
                "to write there, or name another folder with --state."
            )


def _newer(folder: Path, written: int) -> _StateFolderError:
    return _StateFolderError(
        f"The state folder {str(folder)!r} was written by a newer version (format {written}; this one reads up to "
        f"{FORMAT}). Nothing was touched. Start the version that wrote it, or name another folder with --state."
    )


def _not_ours(folder: Path, names: Iterable[str]) -> _StateFolderError:
    shown = sorted(names)
    more = f" and {len(shown) - 3:,} more" if len(shown) > 3 else ""
    listed = ", ".join(repr(name) for name in shown[:3])
    return _StateFolderError(
        f"The folder {str(folder)!r} is not the state of a server: it holds {listed}{more}. The server removes files "
        "in its state folder, so it takes only an empty one or its own. Nothing was touched. Name another folder with "
        "--state."
    )


_WAIT_S = 2.0
_STOPPING, _STOPPING_S = "stopping", 30.0
"""What the lock says while its holder ends by itself, and how long that is waited for: a training saves its state."""


class _StateInUseError(UserError):
    """Another server works in this state folder."""


@contextmanager
def _hold_state(folder: Path) -> Generator[None]:
    """Hold the folder's lock; the folder is made if it is missing.

    Raises:
        _StateInUseError: another process holds it, even after a few seconds.
        _StateFolderError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise unusable(folder, error) from error
    with lock:
        _wait_for(lock, folder)
        yield


def mark_as_stopping(folder: Path) -> None:
    """Say in the lock that its holder ends: a server that is started meanwhile waits for it."""
    with contextlib.suppress(OSError):
        (folder / "lock").write_text(_STOPPING, encoding="utf-8")


def _wait_for(lock: IO[str], folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            return
        except BlockingIOError as error:
            ends = (folder / "lock").read_text(encoding="utf-8") == _STOPPING
            if time.monotonic() - begun > (_STOPPING_S if ends else _WAIT_S):
                raise _StateInUseError(
                    f"The state folder {str(folder)!r} is in use by another server. Stop it, or give "
                    "this one a folder of its own with --state."
                ) from error
            time.sleep(0.1)


_ASIDE = "unrecovered"
_INPUTS = {"training_file": "fine-tune", "validation_file": "fine-tune"}


@dataclass(slots=True)
class _Found:
    """What was recovered."""

    jobs: int = 0
    models: int = 0
    files: int = 0
    aside: list[str] = field(default_factory=list[str])
    damaged: Path | None = None

    def sentence(self) -> str:
        """The summary that is printed."""
        message = f"Recovered {self.jobs:,} job(s), {self.models:,} model(s) and {self.files:,} file(s)."
        if self.damaged is not None:
            message += f" The damaged database is kept as {self.damaged.name}."
        if self.aside:
            message += (
                f" Moved to {_ASIDE}/, since nothing says whose they are or how to go on: {', '.join(self.aside)}."
            )
        return f"{message}\n"


@contextmanager
def held_folder(settings: ServerSettings, recover: bool) -> Generator[str]:
    """Hold a state folder that is ours, made ready for a server; yields the summary of a recovery.

    Raises:
        UserError: it is not a server's, another server holds it, or a recovery does not know whose its jobs are.
    """
    _refuse_unless_ours(settings.state, recover)  # before there is a lock: a foreign folder gets no file of ours
    with _hold_state(settings.state):
        yield _open_folder(settings, recover)


def _refuse_unless_ours(folder: Path, recover: bool) -> _FolderCondition:
    """How a folder stands that a server may work in; changes nothing.

    Raises:
        _StateFolderError: it is not a server's, or its database is lost and nobody asked to rebuild it.
    """
    condition = _check_folder(folder)
    if condition.kind == "lost" and not recover:
        jobs = len(own_entries(folder, "jobs"))
        raise _StateFolderError(
            f"The state folder {str(folder)!r} holds {jobs:,} job folder(s) with what they trained, but "
            f"{condition.why}. Nothing was touched. Put {DATABASE} back from a copy if you have one; else start "
            "again with --recover, which rebuilds it from the job folders, or name another folder with --state."
        )
    return condition


def _open_folder(settings: ServerSettings, recover: bool) -> str:
    """Make a folder, whose lock is held, ready for a server; returns the summary of a recovery.

    Raises:
        _StateFolderError: it is not a server's, or a recovery does not know whose its jobs are.
    """
    condition = _refuse_unless_ours(settings.state, recover)
    message = ""
    if condition.kind == "lost":
        try:
            message = _rebuild(settings).sentence()
        except (OSError, sqlite3.Error) as error:
            raise unusable(settings.state, error) from error
    elif recover:
        message = _take_up_unknown_jobs(settings)
    claim(settings.state)
    try:
        State(settings.state).close()  # what the disk refuses is told here, before anything is served
    except (OSError, sqlite3.Error) as error:
        raise unusable(settings.state, error) from error
    return message


def _rebuild(settings: ServerSettings) -> _Found:
    """A new database beside the place of the old one, renamed when it is complete."""
    folder = settings.state
    jobs = _read_jobs(settings, set())
    found = _Found()
    draft = f"{DATABASE}.recovering"
    for stale in folder.glob(f"{draft}*"):
        stale.unlink()
    state = State(folder, database=draft)
    try:
        with state.transaction():
            _add_jobs(state, jobs, found)
            unplaced = _add_files(state, settings, jobs, found)
        state.drop_remains()
    finally:
        state.close()
    for path in [*unplaced, *own_entries(folder, "batches")]:
        (folder / _ASIDE).mkdir(exist_ok=True)
        path.rename(folder / _ASIDE / path.name)
        found.aside.append(path.name)
    found.damaged = _put_database_aside(folder)
    (folder / draft).replace(folder / DATABASE)
    return found


def _take_up_unknown_jobs(settings: ServerSettings) -> str:
    """Add the jobs that a database, from an older copy perhaps, does not name."""
    state, found = State(settings.state), _Found()
    try:
        jobs = _read_jobs(settings, state.ids("jobs"))
        with state.transaction():
            _add_jobs(state, jobs, found)
    finally:
        state.close()
    return found.sentence()


# --------------------------------------------------------------------------------------------------- jobs
def _read_jobs(settings: ServerSettings, known: set[str]) -> dict[Path, JobRecord]:
    """The record and owner of every job folder that is not known.

    Raises:
        _StateFolderError: an older server's folder says not whose it is, and there are several keys.
    """
    found: dict[Path, JobRecord] = {}
    unowned: list[str] = []
    for folder in own_entries(settings.state, "jobs"):
        if not folder.is_dir() or folder.name in known or not any(folder.iterdir()):
            continue
        kept = read_job_record(folder)
        if kept is None and len(settings.api_keys) > 1:
            unowned.append(folder.name)
        found[folder] = kept or JobRecord(_record_of_files(settings, folder), _only_owner(settings), True)
    if unowned:
        shown = ", ".join(unowned[:3]) + (f" and {len(unowned) - 3:,} more" if len(unowned) > 3 else "")
        raise _StateFolderError(
            f"The job folders {shown} are of an older version and do not say whose they are. Nothing was touched. "
            "Start once with --recover and, in the variable of --api-key-env, only the key that they belong to."
        )
    return found


def _only_owner(settings: ServerSettings) -> str:
    """The owner of everything where there is one key, or none."""
    return owner_of_key(settings.api_keys[0]) if settings.api_keys else ""


def _record_of_files(settings: ServerSettings, folder: Path) -> Record:
    """A job object from the files of a training alone: its name's suffix and its metadata are lost."""
    made_at = int(folder.stat().st_mtime)
    validates = (folder / "validation_file").exists()
    body = JobBody(
        model=settings.name,
        training_file=_file_id(settings.state, folder / "training_file"),
        validation_file=_file_id(settings.state, folder / "validation_file") if validates else None,
        seed=0,
    )
    record = new_job(body, folder.name, made_at) | {"status": "cancelled"}
    try:
        job = TrainingJob.read(folder / "job.json")
    except (OSError, msgspec.MsgspecError):
        return with_hyperparameters(record, {"n_epochs": "auto", "batch_size": "auto"}) | {"finished_at": made_at}
    rate = job.learning_rate / settings.train.learning_rate
    spec = TrainSpec(n_epochs=job.n_epochs, batch_size=job.batch_size, learning_rate_multiplier=rate)
    base = _base_name(settings, Path(job.adapter)) if job.adapter is not None else settings.name
    return with_spec(record, spec) | {"model": base, "seed": job.seed, "status": "paused"}


def _file_id(state_folder: Path, kept: Path) -> str:
    """The uploaded file that a job's copy is another name of, else a new id, since that file was deleted."""
    for path in own_entries(state_folder, "files"):
        if kept.exists() and path.samefile(kept):
            return path.name
    return new_id("file-")


def _base_name(settings: ServerSettings, adapter: Path) -> str:
    """The name of the tuned model that a job went on from, by its adapter's folder."""
    checkpoint = f":ckpt-{adapter.name}" if adapter.parent.name == "checkpoints" else ""
    folder = settings.state / "jobs" / (adapter.parent.parent if checkpoint else adapter.parent).name
    kept = read_job_record(folder)
    maker: Record = kept.record if kept is not None else {"id": folder.name, "model": settings.name}
    return tuned_name(maker) + checkpoint


def _add_jobs(state: State, jobs: Mapping[Path, JobRecord], found: _Found) -> None:
    for folder, kept in sorted(jobs.items(), key=lambda item: int(str(item[1].record["created_at"]))):
        events = read_events(folder, 0)[0]
        record = _brought_up_to_date(kept.record, events)
        metadata = record.get("metadata")
        run_key = metadata.get(RUN_KEY) if isinstance(metadata, dict) else None
        state.add_job(record, kept.owner, str(run_key) if run_key is not None else None)
        job_id = str(record["id"])
        state.add_event(job_id, "recovered", f"Recovered from its folder: {job_id}")
        found.jobs += 1
        for event in events:
            name = f"{tuned_name(record)}:ckpt-step-{event.step}"
            place = folder / "checkpoints" / f"step-{event.step}"
            if event.kind == "checkpoint" and _has_adapter(place):
                state.add_checkpoint(job_id, event.step, checkpoint_of(record, event))
                state.add_model(name, str(place), kept.owner, int(place.stat().st_mtime))
        if record["status"] == "succeeded" and _has_adapter(folder / "adapter"):
            made_at = int((folder / "adapter").stat().st_mtime)
            state.add_model(tuned_name(record), str(folder / "adapter"), kept.owner, made_at)
        found.models += sum(name.startswith(tuned_name(record)) for name, _ in state.list_models(kept.owner))


def _has_adapter(folder: Path) -> bool:
    return (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_config.json").is_file()


def _brought_up_to_date(record: Record, events: list[TrainingEvent]) -> Record:
    """A job whose training has ended, by its own last word, has ended; others are as they were recorded."""
    last = next((event for event in reversed(events) if event.kind in ("done", "failed")), None)
    if last is None or record["status"] in ENDED:
        return record
    if last.kind == "failed":
        error: JsonValue = {"code": last.code, "message": last.message, "param": None}
        return record | {"status": "failed", "error": error, "finished_at": int(time.time())}
    return record | {
        "status": "succeeded",
        "fine_tuned_model": tuned_name(record),
        "finished_at": int(time.time()),
        "trained_tokens": last.trained_tokens,
        "estimated_finish": None,
    }


# -------------------------------------------------------------------------------------------------- files
def _add_files(state: State, settings: ServerSettings, jobs: Mapping[Path, JobRecord], found: _Found) -> list[Path]:
    """Add rows for files; returns the files without a known owner."""
    named: dict[str, tuple[str, str]] = {}
    for folder, kept in jobs.items():
        for which, purpose in _INPUTS.items():
            file_id = kept.record.get(which)
            if isinstance(file_id, str) and (folder / which).is_file():
                named[file_id] = (kept.owner, purpose)
                if kept.is_rebuilt and not state.file_path(file_id).exists():
                    state.disk.second_name(folder / which, state.file_path(file_id))
        results = kept.record.get("result_files")
        for file_id in results if isinstance(results, list) else []:
            named[str(file_id)] = (kept.owner, "fine-tune-results")
    unplaced: list[Path] = []
    for path in own_entries(state.folder, "files"):
        if path.suffix:  # an upload that was cut off
            continue
        if path.name in named:
            owner, purpose = named[path.name]
        elif len(settings.api_keys) <= 1:
            owner, purpose = _only_owner(settings), _purpose(path)
        else:
            unplaced.append(path)
            continue
        row = FileRow(
            id=path.name,
            filename=path.name,
            purpose=purpose,
            bytes=path.stat().st_size,
            created_at=int(path.stat().st_mtime),
        )
        state.add_file(row, owner)
        found.files += 1
    return unplaced


def _purpose(path: Path) -> str:
    """The purpose of a file, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(65536)
    if start.startswith(b"step,train_loss"):
        return "fine-tune-results"
    for mark, purpose in ((b'"batch_req_', "batch_output"), (b'"custom_id"', "batch"), (b'"messages"', "fine-tune")):
        if mark in start:
            return purpose
    return "user_data"
