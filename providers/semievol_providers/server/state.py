"""What the server remembers: files, jobs, events, checkpoints, batches and tuned models in one SQLite file.

Every change is on disk before the call returns. Rows belong to an owner (a hash of the API key, empty where no
key is asked for) and are seen by that owner only. Knows nothing of HTTP, processes or training.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import sqlite3
import string
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.disk import Disk, is_full
from semievol_providers.server.settings import ServerSettings

NAME = "record.json"
_FORMAT = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The job object as it was last written, and the hash that names its owner.

    `is_rebuilt` where it was put together from other files.
    """

    record: dict[str, JsonValue]
    owner: str
    is_rebuilt: bool = False


def _write_job_record(folder: Path, record: dict[str, JsonValue], owner: str) -> None:
    """Write it completely or not at all. A failure is logged only, since the database holds the same."""
    partial = folder / f"{NAME}.partial"
    try:
        partial.write_text(json.dumps({"format": _FORMAT, "owner": owner, "record": record}), encoding="utf-8")
        partial.replace(folder / NAME)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        _log.warning("the record of %s could not be kept in its folder: %s", record["id"], error)


def read_job_record(folder: Path) -> JobRecord | None:
    """What was written; None where an older server wrote nothing, or what is there cannot be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if int(found["format"]) != _FORMAT or found["record"]["id"] != folder.name:
            return None
        return JobRecord(dict(found["record"]), str(found["owner"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


DATABASE = "state.sqlite"
APPLICATION_ID = 0x53455331
"""Marks the file as a server's state."""
FORMAT = 1
"""Format 0 is the same tables, without a mark and with remains of deleted rows."""
TABLES = frozenset({"files", "jobs", "events", "checkpoints", "models"})
"""What every format has."""
ENDED = ("succeeded", "failed", "cancelled")
"""The last statuses of a job."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER);
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
    run_key TEXT, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (owner, run_key);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, job_id TEXT NOT NULL, name TEXT NOT NULL,
    created_at INTEGER NOT NULL, record TEXT NOT NULL, UNIQUE (job_id, name));
CREATE TABLE IF NOT EXISTS checkpoints (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, job_id TEXT NOT NULL, step INTEGER NOT NULL,
    record TEXT NOT NULL, UNIQUE (job_id, step));
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
    output_lifetime_s INTEGER, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deployments (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, model TEXT NOT NULL,
    run_key TEXT, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS models (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, folder TEXT NOT NULL, created_at INTEGER NOT NULL);
"""
_HAS_PAIR = (
    "EXISTS (SELECT 1 FROM json_each(record, '$.metadata') AS pair WHERE pair.key = json_extract(PAIR, '$[0]') "
    "AND pair.value = json_extract(PAIR, '$[1]'))"
)
_RESERVE_BYTES = 2**19
_LETTERS = string.ascii_letters + string.digits
Record = dict[str, JsonValue]


def new_id(prefix: str, length: int = 24) -> str:
    """A fresh random id."""
    return prefix + "".join(secrets.choice(_LETTERS) for _ in range(length))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One uploaded or produced file; its bytes lie in the state folder under its id."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of records, newest first unless asked otherwise."""

    records: Sequence[Record]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page starts and how long it is."""

    limit: int
    after: str | None = None
    oldest_first: bool = False


class State:
    """The database of one state folder."""

    def __init__(self, folder: Path, disk: Disk | None = None, database: str = DATABASE) -> None:
        self.folder = folder
        self.disk = disk or Disk()
        (folder / "files").mkdir(parents=True, exist_ok=True)
        for name in ("jobs", "batches", "tmp"):
            (folder / name).mkdir(exist_ok=True)
        folder.chmod(0o700)  # prompts and training data lie here
        self._reserve = folder / "tmp" / "reserve"
        self._keep_reserve()
        self._db = self.disk.connect(folder / database)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")  # what is deleted leaves no bytes in free pages
        (written,) = self._db.execute("PRAGMA user_version").fetchone()
        self._db.executescript(_SCHEMA)
        if written < FORMAT:
            self._db.execute("VACUUM")
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {FORMAT}")

    def despite_full_disk(self, delete: Callable[[], None]) -> None:
        """Delete something; where there is no room to write that down, in the room that is kept for it.

        Raises:
            OSError, sqlite3.Error: there is none either, or it failed for another reason.
        """
        try:
            delete()
        except (OSError, sqlite3.Error) as error:
            if not is_full(error):
                raise
            self._reserve.unlink(missing_ok=True)
            delete()
        finally:
            self._keep_reserve()

    def _keep_reserve(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: there may be room after the next deletion
            if not self._reserve.exists():
                self.disk.allocate(self._reserve, _RESERVE_BYTES)

    def drop_remains(self) -> None:
        """Fold the write-ahead log into the database and empty it: it would hold deleted rows for a while."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Everything inside is written together or not at all."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself takes back what finds no room
                self._db.execute("ROLLBACK")
            raise

    # ---------------------------------------------------------------------------------------------- files
    def file_path(self, file_id: str) -> Path:
        """Where the bytes of a file lie. Only ids made by `new_id` ever get here."""
        assert file_id.removeprefix("file-").isalnum()
        return self.folder / "files" / file_id

    def add_file(self, row: FileRow, owner: str) -> None:
        """Record a file whose bytes are in place."""
        self._db.execute(
            "INSERT INTO files (id, owner, filename, purpose, bytes, created_at, expires_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.id, owner, row.filename, row.purpose, row.bytes, row.created_at, row.expires_at),
        )

    def find_file(self, file_id: str, owner: str) -> FileRow | None:
        """The file with this id, if it exists, has not expired and belongs to the owner."""
        found = self._db.execute(
            "SELECT id, filename, purpose, bytes, created_at, expires_at FROM files "
            "WHERE id = ? AND owner = ? AND coalesce(expires_at, 1e18) > ?",
            (file_id, owner, time.time()),
        ).fetchone()
        return _file_row(found) if found else None

    def list_files(self, owner: str, purpose: str | None, cursor: Cursor) -> tuple[list[FileRow], bool]:
        """One page of files, and whether more follow."""
        rows = self._page(
            "SELECT id, filename, purpose, bytes, created_at, expires_at FROM files",
            "files",
            {"owner = ?": owner, "coalesce(expires_at, 1e18) > ?": time.time()}
            | ({"purpose = ?": purpose} if purpose else {}),
            cursor,
        )
        return [_file_row(row) for row in rows[: cursor.limit]], len(rows) > cursor.limit

    def expired_files(self) -> list[tuple[str, str]]:
        """Ids and owners of everybody's files whose time is over."""
        rows = self._db.execute("SELECT id, owner FROM files WHERE expires_at <= ?", (time.time(),)).fetchall()
        return [(str(row[0]), str(row[1])) for row in rows]

    def forget_file(self, file_id: str, owner: str) -> None:
        """Remove a file's row; its bytes are gone already."""
        self._db.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner))

    # ----------------------------------------------------------------------------------------------- jobs
    def add_job(self, record: Record, owner: str, run_key: str | None) -> None:
        """Record a new job."""
        self._db.execute(
            "INSERT INTO jobs (id, owner, status, run_key, record) VALUES (?, ?, ?, ?, ?)",
            (record["id"], owner, record["status"], run_key, json.dumps(record)),
        )
        _write_job_record(self.job_folder(str(record["id"])), record, owner)

    def save_job(self, record: Record) -> None:
        """Replace a job's record."""
        job_id = str(record["id"])
        was, owner = self._db.execute("SELECT status, owner FROM jobs WHERE id = ?", (job_id,)).fetchone()
        self._db.execute(
            "UPDATE jobs SET status = ?, record = ? WHERE id = ?", (record["status"], json.dumps(record), job_id)
        )
        if record["status"] != was:
            _write_job_record(self.job_folder(job_id), record, str(owner))

    def job_folder(self, job_id: str) -> Path:
        """Where a job keeps its files, its progress and what it made."""
        assert job_id.removeprefix("ftjob-").isalnum()
        return self.folder / "jobs" / job_id

    def jobs_on_file(self, file_id: str) -> list[Record]:
        """Everybody's jobs that train or validate on a file."""
        rows = self._db.execute(
            "SELECT record FROM jobs WHERE ? IN (json_extract(record, '$.training_file'), "
            "json_extract(record, '$.validation_file'))",
            (file_id,),
        ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def find_job(self, job_id: str, owner: str | None = None) -> Record | None:
        """The job with this id; `owner` of None looks among everybody's."""
        found = self._db.execute(
            "SELECT record FROM jobs WHERE id = ? AND (?2 IS NULL OR owner = ?2)", (job_id, owner)
        ).fetchone()
        return json.loads(found[0]) if found else None

    def job_owner(self, job_id: str) -> str:
        """Whose job it is."""
        found = self._db.execute("SELECT owner FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return str(found[0])

    def find_job_by_key(self, run_key: str, owner: str) -> Record | None:
        """The newest job with this run key that has neither failed nor been cancelled."""
        found = self._db.execute(
            "SELECT record FROM jobs WHERE owner = ? AND run_key = ? "
            "AND status NOT IN ('failed', 'cancelled') ORDER BY seq DESC LIMIT 1",
            (owner, run_key),
        ).fetchone()
        return json.loads(found[0]) if found else None

    def jobs_with_status(self, *statuses: str) -> list[Record]:
        """Everybody's jobs with one of these statuses, oldest first."""
        marks = ", ".join("?" * len(statuses))
        rows = self._db.execute(
            f"SELECT record FROM jobs WHERE status IN ({marks}) ORDER BY seq",
            statuses,
        ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def job_owners_with_status(self, status: str) -> list[tuple[str, str]]:
        """Ids and owners of everybody's jobs with this status, oldest first."""
        return self._db.execute("SELECT id, owner FROM jobs WHERE status = ? ORDER BY seq", (status,)).fetchall()

    def list_jobs(self, owner: str, metadata: Mapping[str, str], cursor: Cursor) -> Page:
        """One page of jobs whose metadata holds all the given pairs."""
        return self._records("SELECT record FROM jobs", "jobs", _having(owner, metadata), cursor)

    # ---------------------------------------------------------------------------------- events, checkpoints
    def add_event(self, job_id: str, name: str, message: str, data: Record | None = None) -> None:
        """Record an event; one with the same name is already there after a resume and is kept as it was."""
        level = "error" if name == "failed" else "info"
        record: Record = {
            "object": "fine_tuning.job.event",
            "id": new_id("ftevent-"),
            "created_at": int(time.time()),
            "level": level,
            "message": message,
            "type": "metrics" if name.startswith("step/") else "message",
            "data": data or {},
        }
        self._db.execute(
            "INSERT OR IGNORE INTO events (id, job_id, name, created_at, record) VALUES (?, ?, ?, ?, ?)",
            (record["id"], job_id, name, record["created_at"], json.dumps(record)),
        )

    def list_events(self, job_id: str, cursor: Cursor) -> Page:
        """One page of a job's events."""
        return self._records("SELECT record FROM events", "events", {"job_id = ?": job_id}, cursor)

    def add_checkpoint(self, job_id: str, step: int, record: Record) -> None:
        """Record a checkpoint; the same step again changes nothing."""
        self._db.execute(
            "INSERT OR IGNORE INTO checkpoints (id, job_id, step, record) VALUES (?, ?, ?, ?)",
            (record["id"], job_id, step, json.dumps(record)),
        )

    def list_checkpoints(self, job_id: str, cursor: Cursor) -> Page:
        """One page of a job's checkpoints."""
        return self._records("SELECT record FROM checkpoints", "checkpoints", {"job_id = ?": job_id}, cursor)

    # -------------------------------------------------------------------------------------------- batches
    def batch_folder(self, batch_id: str) -> Path:
        """Where a batch keeps its input and its answers until it ends."""
        assert batch_id.removeprefix("batch_").isalnum()
        return self.folder / "batches" / batch_id

    def add_batch(self, record: Record, owner: str, output_lifetime_s: int | None) -> None:
        """Record a new batch."""
        self._db.execute(
            "INSERT INTO batches (id, owner, status, output_lifetime_s, record) VALUES (?, ?, ?, ?, ?)",
            (record["id"], owner, record["status"], output_lifetime_s, json.dumps(record)),
        )

    def save_batch(self, record: Record) -> None:
        """Replace a batch's record."""
        self._db.execute(
            "UPDATE batches SET status = ?, record = ? WHERE id = ?",
            (record["status"], json.dumps(record), record["id"]),
        )

    def find_batch(self, batch_id: str, owner: str) -> Record | None:
        """The batch with this id."""
        found = self._db.execute("SELECT record FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)).fetchone()
        return json.loads(found[0]) if found else None

    def batches_with_status(self, *statuses: str) -> list[tuple[Record, str]]:
        """Everybody's batches with one of these statuses and their owners, oldest first."""
        marks = ", ".join("?" * len(statuses))
        rows = self._db.execute(
            f"SELECT record, owner FROM batches WHERE status IN ({marks}) ORDER BY seq", statuses
        ).fetchall()
        return [(json.loads(row[0]), str(row[1])) for row in rows]

    def batch_output_lifetime_s(self, batch_id: str) -> int | None:
        """How long the batch's files are kept; None is for ever."""
        found = self._db.execute("SELECT output_lifetime_s FROM batches WHERE id = ?", (batch_id,)).fetchone()
        return int(found[0]) if found and found[0] is not None else None

    def list_batches(self, owner: str, cursor: Cursor) -> Page:
        """One page of batches."""
        return self._records("SELECT record FROM batches", "batches", {"owner = ?": owner}, cursor)

    # --------------------------------------------------------------------------------------------- models
    def add_model(self, name: str, folder: str, owner: str, created_at: int | None = None) -> None:
        """Record a tuned model, made now unless said otherwise."""
        self._db.execute(
            "INSERT OR IGNORE INTO models (id, owner, folder, created_at) VALUES (?, ?, ?, ?)",
            (name, owner, folder, created_at if created_at is not None else int(time.time())),
        )

    def find_model(self, name: str, owner: str) -> tuple[str, int] | None:
        """Adapter folder and creation time of a tuned model."""
        found = self._db.execute(
            "SELECT folder, created_at FROM models WHERE id = ? AND owner = ?", (name, owner)
        ).fetchone()
        return (str(found[0]), int(found[1])) if found else None

    def list_models(self, owner: str) -> list[tuple[str, int]]:
        """Names and creation times of tuned models, oldest first."""
        return self._db.execute(
            "SELECT id, created_at FROM models WHERE owner = ? ORDER BY created_at, id", (owner,)
        ).fetchall()

    def delete_model(self, name: str, owner: str) -> None:
        """Forget a tuned model."""
        self._db.execute("DELETE FROM models WHERE id = ? AND owner = ?", (name, owner))

    # ---------------------------------------------------------------------------------------- deployments
    def add_deployment(self, record: Record, owner: str, run_key: str | None) -> None:
        """Record a new deployment."""
        self._db.execute(
            "INSERT INTO deployments (id, owner, model, run_key, record) VALUES (?, ?, ?, ?, ?)",
            (record["id"], owner, record["model"], run_key, json.dumps(record)),
        )

    def save_deployment(self, record: Record) -> None:
        """Replace a deployment's record."""
        self._db.execute("UPDATE deployments SET record = ? WHERE id = ?", (json.dumps(record), record["id"]))

    def find_deployment(self, deployment_id: str, owner: str) -> Record | None:
        """The deployment with this id."""
        return self._one_deployment("id = ? AND owner = ?", deployment_id, owner)

    def find_deployment_by_key(self, run_key: str, owner: str) -> Record | None:
        """The newest deployment with this run key."""
        return self._one_deployment("run_key = ? AND owner = ?", run_key, owner)

    def deployments_of(self, model: str, owner: str) -> list[Record]:
        """The deployments of a model, newest first."""
        rows = self._db.execute(
            "SELECT record FROM deployments WHERE model = ? AND owner = ? ORDER BY seq DESC", (model, owner)
        ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def list_deployments(self, owner: str, metadata: Mapping[str, str], cursor: Cursor) -> Page:
        """One page of deployments whose metadata holds all the given pairs."""
        return self._records("SELECT record FROM deployments", "deployments", _having(owner, metadata), cursor)

    def delete_deployment(self, deployment_id: str) -> None:
        """Forget a deployment."""
        self._db.execute("DELETE FROM deployments WHERE id = ?", (deployment_id,))

    def _one_deployment(self, where: str, *values: str) -> Record | None:
        sql = f"SELECT record FROM deployments WHERE {where} ORDER BY seq DESC LIMIT 1"
        found = self._db.execute(sql, values).fetchone()
        return json.loads(found[0]) if found else None

    # ---------------------------------------------------------------------------------------------- pages
    def ids(self, table: Literal["files", "jobs", "batches"]) -> set[str]:
        """The ids of everybody's objects of one kind."""
        return {str(row[0]) for row in self._db.execute(f"SELECT id FROM {table}")}

    def count(self, table: Literal["jobs", "batches"], statuses: Sequence[str], owner: str | None = None) -> int:
        """How many jobs or batches have one of these statuses; `owner` of None counts everybody's."""
        marks = ", ".join("?" * len(statuses))
        sql = f"SELECT count(*) FROM {table} WHERE status IN ({marks})"
        mine = () if owner is None else (owner,)
        return int(self._db.execute(sql + (" AND owner = ?" if mine else ""), (*statuses, *mine)).fetchone()[0])

    def count_by_status(self, table: Literal["jobs", "batches"]) -> dict[str, int]:
        """How many of everybody's jobs or batches have each status."""
        rows = self._db.execute(f"SELECT status, count(*) FROM {table} GROUP BY status ORDER BY status").fetchall()
        return {str(row[0]): int(row[1]) for row in rows}

    def _records(self, select: str, table: str, where: Mapping[str, object], cursor: Cursor) -> Page:
        rows = self._page(select, table, where, cursor)
        return Page([json.loads(str(row[0])) for row in rows[: cursor.limit]], len(rows) > cursor.limit)

    def _page(self, select: str, table: str, where: Mapping[str, object], cursor: Cursor) -> list[tuple[object, ...]]:
        """Up to limit + 1 rows behind the cursor; an unknown cursor gives none."""
        conditions = dict(where)
        if cursor.after is not None:
            compare = ">" if cursor.oldest_first else "<"
            conditions[f"seq {compare} (SELECT seq FROM {table} WHERE id = ?)"] = cursor.after
        order = "ASC" if cursor.oldest_first else "DESC"
        return self._db.execute(
            f"{select} WHERE {' AND '.join(conditions)} ORDER BY seq {order} LIMIT ?",
            (*conditions.values(), cursor.limit + 1),
        ).fetchall()


def _having(owner: str, metadata: Mapping[str, str]) -> dict[str, object]:
    """Conditions on an owner's records whose metadata holds all the given pairs."""
    where: dict[str, object] = {"owner = ?": owner}
    for key, value in metadata.items():
        where[_HAS_PAIR.replace("PAIR", f"?{len(where) + 1}")] = json.dumps([key, value])
    return where


def _file_row(found: Sequence[object]) -> FileRow:
    expires = found[5]
    return FileRow(
        id=str(found[0]),
        filename=str(found[1]),
        purpose=str(found[2]),
        bytes=int(str(found[3])),
        created_at=int(str(found[4])),
        expires_at=int(str(expires)) if expires is not None else None,
    )


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked: `adapter` is a folder, None for the base."""

    name: str
    adapter: str | None
    created_at: int


class ModelTable:
    """Finds models by name for one owner."""

    def __init__(self, settings: ServerSettings, state: State) -> None:
        self._settings = settings
        self._state = state
        self._started_at = int(time.time())

    def find(self, name: str, owner: str) -> ServedModel:
        """The model with this name or alias.

        Raises:
            ApiError: there is none for this owner.
        """
        target = self.target(name)
        if target == self._settings.name:
            return ServedModel(name, None, self._started_at)
        found = self._state.find_model(target, owner)
        if found is None:
            raise ApiError(
                f"The model '{name}' does not exist or you do not have access to it.",
                status=404,
                param="model",
                code="model_not_found",
            )
        return ServedModel(name, found[0], found[1])

    def list(self, owner: str) -> list[dict[str, JsonValue]]:
        """All models as the API's objects."""
        names = [(self._settings.name, self._started_at)]
        names += [(alias, self._started_at) for alias in self._settings.aliases]
        return [model_object(n, at) for n, at in [*names, *self._state.list_models(owner)]]

    def target(self, name: str) -> str:
        """The name that an alias stands for, else the name itself."""
        return self._settings.aliases.get(name, name)

    def tuned_folder(self, name: str, owner: str) -> str:
        """The adapter folder of a tuned model that is about to be deleted.

        Raises:
            ApiError: there is no such model, or it is not a tuned one.
        """
        found = self._state.find_model(name, owner)
        if found is None:
            self.find(name, owner)
            raise ApiError(
                f"The model '{name}' is not a fine-tuned model and cannot be deleted.",
                status=403,
                param="model",
                code="model_not_deletable",
            )
        return found[0]


def model_object(name: str, created_at: int) -> dict[str, JsonValue]:
    """The API's model object."""
    owner = "user" if name.startswith("ft:") else "semievol"
    return {"id": name, "object": "model", "created": created_at, "owned_by": owner}
