"""Delete means delete: no byte of a deleted file's text or of a deleted model's weights stays in the state folder.

What still needs a file or a model is named in a refusal. Bytes go before rows, so a deletion that was cut off can
be asked for again. Knows nothing of HTTP routes or of how jobs and batches run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.batches import UNFINISHED as UNFINISHED_BATCH
from semievol_providers.server.batches import BatchLine, batch_lines
from semievol_providers.server.job_events import tuned_name
from semievol_providers.server.services import Services
from semievol_providers.server.state import ENDED, Record, State
from semievol_providers.server.state_folder import own_entries

_INPUTS = ("training_file", "validation_file")
_SHOWN = 3
_log = logging.getLogger(__name__)
_KEPT_FILES = ("state.safetensors", "state.partial")
_KEPT_FOLDERS = ("best", "best.partial", "adapter.partial")
"""Copies of the same weights, from which an unfinished training would resume."""


class _Model(msgspec.Struct, frozen=True):
    model: str


def delete_file(state: State, file_id: str, owner: str) -> None:
    """Remove a file, and the copies of its text that ended jobs kept.

    Raises:
        ApiError: a job or a batch that has not ended needs it.
    """
    users = _users_of_file(state, file_id, owner)
    if users:
        raise _in_use(f"The file {file_id}", users, "file_in_use")
    state.despite_full_disk(lambda: _delete_file(state, file_id, owner))


def delete_model(served: Services, name: str, owner: str) -> None:
    """Remove a tuned model, its adapter and what its job kept to go on from.

    Raises:
        ApiError: there is no such model, it is not a tuned one, or a job, a batch or a request needs it.
    """
    adapter = Path(served.models.tuned_folder(name, owner))
    users = _users_of_model(served, name, owner)
    asking = served.engine.asking(str(adapter))
    if asking:
        users.append(f"{asking} request(s) under way")
    if users:
        raise _in_use(f"The model {name}", users, "model_in_use")
    served.engine.forget(str(adapter))
    served.state.despite_full_disk(lambda: _delete_model(served.state, name, owner, adapter))


def _delete_model(state: State, name: str, owner: str, adapter: Path) -> None:
    job_folder = _job_folder_of(state, adapter)
    if job_folder is not None:
        for folder in (adapter, *(job_folder / kept for kept in _KEPT_FOLDERS)):
            if folder.exists():
                shutil.rmtree(folder)
        for kept in _KEPT_FILES:
            (job_folder / kept).unlink(missing_ok=True)
    state.delete_model(name, owner)
    state.drop_remains()


def delete_expired(state: State) -> None:
    """Remove expired files; those still needed are kept until the next call."""
    for file_id, owner in state.expired_files():
        if not _users_of_file(state, file_id, owner):
            _delete_file(state, file_id, owner)


def _remove_orphaned_texts(state: State) -> None:
    """Remove the copies that ended jobs of older servers keep of deleted files."""
    known = state.ids("files")
    for record in state.jobs_with_status(*ENDED):
        for which in _INPUTS:
            if record.get(which) not in known:
                _remove_copy(state, record, which)


def _delete_file(state: State, file_id: str, owner: str) -> None:
    for record in state.jobs_on_file(file_id):
        for which in _INPUTS:
            if record.get(which) == file_id:
                _remove_copy(state, record, which)
    state.file_path(file_id).unlink(missing_ok=True)
    state.forget_file(file_id, owner)
    state.drop_remains()


def _remove_copy(state: State, record: Record, which: str) -> None:
    folder = state.job_folder(str(record["id"]))
    if not folder.is_symlink():
        (folder / which).unlink(missing_ok=True)


def _users_of_file(state: State, file_id: str, owner: str) -> list[str]:
    jobs = [_job_text(record) for record in state.jobs_on_file(file_id) if record["status"] not in ENDED]
    batches = [
        f"batch {record['id']} ({record['status']})"
        for record, whose in state.batches_with_status(*UNFINISHED_BATCH)
        if whose == owner and record["input_file_id"] == file_id
    ]
    return jobs + batches


def _users_of_model(served: Services, name: str, owner: str) -> list[str]:
    state, running = served.state, served.jobs.running
    unfinished = [
        record
        for record in state.jobs_with_status("validating_files", "queued", "running", "paused")
        if state.job_owner(str(record["id"])) == owner
    ]
    stopping = state.find_job(running[0], owner) if running is not None else None
    if stopping is not None and stopping["status"] in ENDED:
        unfinished.append(stopping)  # its process has not ended yet
    users: list[str] = []
    for record in unfinished:
        made_by_it = name == tuned_name(record) or name.startswith(f"{tuned_name(record)}:ckpt-step-")
        if made_by_it or served.models.target(str(record["model"])) == name:
            users.append(_job_text(record))
    for record, whose in state.batches_with_status(*UNFINISHED_BATCH):
        if whose == owner and served.models.target(_model_of(state, record)) == name:
            users.append(f"batch {record['id']} ({record['status']})")
    return users


def _job_text(record: Record) -> str:
    return f"job {record['id']} ({record['status']})"


def _model_of(state: State, record: Record) -> str:
    """The model that a batch asks: its record names it once its input has been read."""
    if record.get("model"):
        return str(record["model"])
    try:
        _, raw = next(batch_lines(state.batch_folder(str(record["id"])) / "input"))
        return msgspec.json.decode(msgspec.json.decode(raw, type=BatchLine).body, type=_Model).model
    except (OSError, StopIteration, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _job_folder_of(state: State, adapter: Path) -> Path | None:
    """The job folder of this state that an adapter lies in; None for a folder that lies elsewhere or is a link."""
    jobs = state.folder / "jobs"
    if not adapter.is_relative_to(jobs) or ".." in adapter.parts:
        return None
    inner = adapter.relative_to(jobs).parts
    places = [jobs.joinpath(*inner[:depth]) for depth in range(1, len(inner) + 1)]
    return places[0] if len(places) > 1 and not any(place.is_symlink() for place in places) else None


def _in_use(what: str, users: Sequence[str], code: str) -> ApiError:
    more = f" and {len(users) - _SHOWN:,} more" if len(users) > _SHOWN else ""
    return ApiError(
        f"{what} is needed by {', '.join(users[:_SHOWN])}{more}. Wait until that has ended, or cancel it, and delete "
        "again.",
        status=409,
        code=code,
        param="id" if code == "file_in_use" else "model",
        headers={"x-should-retry": "false"},
    )


def sweep(state: State) -> int:
    """Remove strays and what expired; returns how many strays there were."""
    strays = list(_strays(state))
    for path in strays:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    delete_expired(state)
    _remove_orphaned_texts(state)
    return len(strays)


def _strays(state: State) -> Iterator[Path]:
    yield from own_entries(state.folder, "tmp")
    yield from (path for path in _unknown(state, "files") if path.is_file())
    yield from (path for path in _unknown(state, "batches") if path.is_dir())
    for path in _unknown(state, "jobs"):
        if path.is_dir() and {inner.name for inner in path.iterdir()} <= set(_INPUTS):
            yield path
        elif path.is_dir():
            _log.warning("%s is not in the database and was left alone; --recover takes it up", path)


def _unknown(state: State, table: Literal["files", "jobs", "batches"]) -> list[Path]:
    """Entries of one of the server's folders that have a name of its own form and are not in the database."""
    known = state.ids(table)
    return [path for path in own_entries(state.folder, table) if path.name not in known]
