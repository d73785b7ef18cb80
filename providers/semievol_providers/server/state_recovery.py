"""`semievol serve --recover`: rebuild the database of a state folder from what lies in it.

A job folder holds its record and owner, its progress and its adapters; from an older server's folder the record is
put together from the training's own files. Nothing is deleted: what cannot be placed is moved to `unrecovered/`.
The new database appears whole or not at all. Knows nothing of HTTP or of running jobs.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from semievol_api.capabilities import TrainSpec
from semievol_api.records import JsonValue
from semievol_providers.local.training_job import TrainingEvent, TrainingJob, read_events
from semievol_providers.server.job_events import RUN_KEY, checkpoint_of, tuned_name, with_hyperparameters, with_spec
from semievol_providers.server.services import owner_of_key
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import DATABASE, ENDED, FileRow, JobRecord, Record, State, new_id, read_job_record
from semievol_providers.server.state_folder import (
    FolderCondition,
    StateFolderError,
    check_folder,
    claim,
    hold_state,
    own_entries,
    put_database_aside,
    unusable,
)

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
        """What to tell who asked for it."""
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
    """Hold a state folder that is ours, made ready for a server; gives what to tell of a recovery.

    Raises:
        UserError: it is not a server's, another server holds it, or a recovery does not know whose its jobs are.
    """
    _refuse_unless_ours(settings.state, recover)  # before there is a lock: a foreign folder gets no file of ours
    with hold_state(settings.state):
        yield _open_folder(settings, recover)


def _refuse_unless_ours(folder: Path, recover: bool) -> FolderCondition:
    """How a folder stands that a server may work in; changes nothing.

    Raises:
        StateFolderError: it is not a server's, or its database is lost and nobody asked to rebuild it.
    """
    condition = check_folder(folder)
    if condition.kind == "lost" and not recover:
        jobs = len(own_entries(folder, "jobs"))
        raise StateFolderError(
            f"The state folder {str(folder)!r} holds {jobs:,} job folder(s) with what they trained, but "
            f"{condition.why}. Nothing was touched. Put {DATABASE} back from a copy if you have one; else start "
            "again with --recover, which rebuilds it from the job folders, or name another folder with --state."
        )
    return condition


def _open_folder(settings: ServerSettings, recover: bool) -> str:
    """Make a folder, whose lock is held, ready for a server; returns what to tell of a recovery.

    Raises:
        StateFolderError: it is not a server's, or a recovery does not know whose its jobs are.
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
    found.damaged = put_database_aside(folder)
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
        StateFolderError: an older server's folder says not whose it is, and there are several keys.
    """
    found: dict[Path, JobRecord] = {}
    nobodys: list[str] = []
    for folder in own_entries(settings.state, "jobs"):
        if not folder.is_dir() or folder.name in known or not any(folder.iterdir()):
            continue
        kept = read_job_record(folder)
        if kept is None and len(settings.api_keys) > 1:
            nobodys.append(folder.name)
        found[folder] = kept or JobRecord(_record_of_files(settings, folder), _only_owner(settings), True)
    if nobodys:
        shown = ", ".join(nobodys[:3]) + (f" and {len(nobodys) - 3:,} more" if len(nobodys) > 3 else "")
        raise StateFolderError(
            f"The job folders {shown} are of an older version and do not say whose they are. Nothing was touched. "
            "Start once with --recover and, in the variable of --api-key-env, only the key that they belong to."
        )
    return found


def _only_owner(settings: ServerSettings) -> str:
    """Whose everything is where there is one key, or none."""
    return owner_of_key(settings.api_keys[0]) if settings.api_keys else ""


def _record_of_files(settings: ServerSettings, folder: Path) -> Record:
    """A job object from the files of a training alone: its name's suffix and its metadata are lost."""
    made_at = int(folder.stat().st_mtime)
    record: Record = {
        "object": "fine_tuning.job",
        "id": folder.name,
        "model": settings.name,
        "created_at": made_at,
        "finished_at": None,
        "fine_tuned_model": None,
        "organization_id": "org-local",
        "result_files": [],
        "status": "cancelled",
        "validation_file": None,
        "training_file": _file_id(settings.state, folder / "training_file"),
        "trained_tokens": None,
        "error": None,
        "seed": 0,
        "estimated_finish": None,
        "integrations": [],
        "metadata": None,
        "user_provided_suffix": None,
    }
    if (folder / "validation_file").exists():
        record["validation_file"] = _file_id(settings.state, folder / "validation_file")
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
    """Rows for files; returns those that nobody is known to own."""
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
    """What a file was uploaded or written for, by its beginning."""
    with path.open("rb") as file:
        start = file.read(65536)
    if start.startswith(b"step,train_loss"):
        return "fine-tune-results"
    for mark, purpose in ((b'"batch_req_', "batch_output"), (b'"custom_id"', "batch"), (b'"messages"', "fine-tune")):
        if mark in start:
            return purpose
    return "user_data"
