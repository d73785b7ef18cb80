"""The journal: one SQLite file (WAL) that keeps every sample that was ever paid for.

    journal = Journal.create(Path("runs/one/journal.sqlite"))
    found = journal.fetch([key])          # key -> its samples, in order
    journal.write(rows)                   # one durable transaction

Samples are found by key and sample number. Running totals per source are kept beside them, so that opening,
counting and summing cost the same for ten rows and for a million. A lease is what a process may have spent on
replies that the journal does not hold (yet); a process that dies leaves its lease behind, and it counts as
spent. Knows nothing of requests, providers, prices or asyncio.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from semievol_api.errors import JournalError
from semievol_api.store.database_header import DamagedDatabaseError, read_header


class Source(NamedTuple):
    """Who answered, for whom: the journal keeps its running totals per source."""

    run: str
    provider: str
    model: str
    kind: str
    stage: str
    mode: str


class Content(NamedTuple):
    """One sample's content. `numbers` are float32 or float64 values, `extra` is MessagePack; see `kinds`."""

    text: str | None
    finish: str | None
    numbers: bytes | None
    extra: bytes | None


class Row(NamedTuple):
    """One sample to be stored. Usage and cost of a request stand in the row of its first sample.

    `requests` is 1 in that row and 0 in the others, so that sums count each request once.
    """

    key: bytes
    sample: int
    source: Source
    ask_id: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usd: float
    content: Content


class Found(NamedTuple):
    """One sample read back, usage and content without its place."""

    sample: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    content: Content


class Record(NamedTuple):
    """One stored sample with everything that is known about it; `at` is seconds since 1970."""

    source: Source
    ask_id: str
    key: bytes
    found: Found
    usd: float
    at: int


class Total(NamedTuple):
    """The sums of one source."""

    source: Source
    requests: int
    samples: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usd: float


_APPLICATION_ID = 0x53454A31
"""Marks the file as a journal of this project."""
_FORMAT = 1
_SCHEMA = """
CREATE TABLE sources (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    kind TEXT NOT NULL, stage TEXT NOT NULL, mode TEXT NOT NULL,
    requests INTEGER NOT NULL DEFAULT 0, samples INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, cached_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0, usd REAL NOT NULL DEFAULT 0,
    UNIQUE (run, provider, model, kind, stage, mode)
);
CREATE TABLE samples (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL, sample INTEGER NOT NULL, source INTEGER NOT NULL, ask_id TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    usd REAL NOT NULL, at INTEGER NOT NULL,
    text TEXT, finish TEXT, numbers BLOB, extra BLOB
);
CREATE UNIQUE INDEX samples_by_key ON samples (key, sample);
CREATE TABLE leases (id INTEGER PRIMARY KEY, run TEXT NOT NULL, usd REAL NOT NULL, tokens INTEGER NOT NULL);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    run_key TEXT NOT NULL UNIQUE, provider TEXT NOT NULL, model TEXT NOT NULL, stage TEXT NOT NULL,
    run TEXT NOT NULL, usd REAL NOT NULL, tokens INTEGER NOT NULL,
    batch_id TEXT, open INTEGER NOT NULL DEFAULT 1, at INTEGER NOT NULL
);
CREATE TABLE batch_lines (
    batch INTEGER NOT NULL, key BLOB NOT NULL, first INTEGER NOT NULL, ask_id TEXT NOT NULL,
    PRIMARY KEY (batch, key, first)
) WITHOUT ROWID;
"""
_INSERT = (
    "INSERT OR IGNORE INTO samples (key, sample, source, ask_id, prompt_tokens, cached_tokens,"
    " completion_tokens, usd, at, text, finish, numbers, extra) VALUES "
)
_COLUMNS = 13
_FETCH_KEYS = 256
_FETCH = (
    "SELECT key, sample, prompt_tokens, cached_tokens, completion_tokens, text, finish, numbers, extra"
    f" FROM samples WHERE key IN ({','.join('?' * _FETCH_KEYS)}) ORDER BY key, sample"
)
_TOTALS = (
    "SELECT run, provider, model, kind, stage, mode, requests, samples, prompt_tokens, cached_tokens,"
    " completion_tokens, usd FROM sources ORDER BY id"
)


class Journal:
    """One connection to a journal file. Used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path
        self._source_ids: dict[Source, int] = {}

    @classmethod
    def create(cls, path: Path) -> Journal:
        """Open a journal for reading and writing; a missing one is made, with its folder.

        Raises:
            JournalError: the place cannot be written, or the file is no journal of this version; it stays as it was.
        """
        _refuse_foreign(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # what SQLite lays beside it gets the same rights
            connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise _explain(error, path, "opened") from None
        journal = cls(connection, path)
        try:
            journal._prepare()
        except sqlite3.Error as error:
            connection.close()
            raise _explain(error, path, "opened") from None
        except JournalError:
            connection.close()
            raise
        return journal

    @classmethod
    def read_only(cls, path: Path) -> Journal:
        """Open a journal for reading, wherever it lies: a running process may be writing it, or nobody may.

        Raises:
            JournalError: there is no such file, or it is no journal of this version.
        """
        if not path.is_file():
            raise JournalError(f"There is no journal {str(path)!r}. Each run keeps one in its folder.")
        _refuse_foreign(path)
        beside_wal = path.with_name(path.name + "-wal").exists()
        error: sqlite3.Error | None = None
        for options in ("mode=ro",) if beside_wal else ("mode=ro", "mode=ro&immutable=1"):
            try:
                connection = sqlite3.connect(
                    f"{path.resolve().as_uri()}?{options}", uri=True, timeout=30.0, isolation_level=None
                )
                journal = cls(connection, path)
                journal._check_format()
            except sqlite3.Error as caught:
                error = caught
                continue
            return journal
        raise _explain(error or sqlite3.Error("unreadable"), path, "read") from None

    def _prepare(self) -> None:
        execute = self.connection.execute
        execute("PRAGMA busy_timeout = 30000")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA wal_autocheckpoint = 4000")
        execute("PRAGMA cache_size = -4000")
        if self._format() == (0, 0) and not self._has_tables():
            execute("BEGIN IMMEDIATE")
            if not self._has_tables():
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        execute(statement)
                execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                execute(f"PRAGMA user_version = {_FORMAT}")
            execute("COMMIT")
        self._check_format()

    def _format(self) -> tuple[int, int]:
        (application,) = self.connection.execute("PRAGMA application_id").fetchone()
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        return application, version

    def _has_tables(self) -> bool:
        return bool(self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    def _check_format(self) -> None:
        _check_format(self.path, *self._format())

    def fetch(self, keys: Sequence[bytes]) -> dict[bytes, list[Found]]:
        """The stored samples of each key that has any, in sample order."""
        found: dict[bytes, list[Found]] = {}
        for start in range(0, len(keys), _FETCH_KEYS):
            chunk = keys[start : start + _FETCH_KEYS]
            if len(chunk) < _FETCH_KEYS:  # one statement for every size: it is compiled once
                chunk = [*chunk, *itertools.repeat(chunk[0], _FETCH_KEYS - len(chunk))]
            try:
                rows = self.connection.execute(_FETCH, chunk).fetchall()
            except sqlite3.Error as error:
                raise _explain(error, self.path, "read") from None
            for key, sample, prompt, cached, completion, text, finish, numbers, extra in rows:
                row = Found(sample, prompt, cached, completion, Content(text, finish, numbers, extra))
                if key in found:
                    found[key].append(row)
                else:
                    found[key] = [row]
        return found

    def write(self, rows: Sequence[Row]) -> None:
        """Store rows and bring the totals up to date, in one transaction that is on disk on return."""
        execute = self.connection.execute
        at = int(time.time())
        execute("BEGIN IMMEDIATE")
        try:
            start = 0
            for size in _chunk_sizes(len(rows)):
                self._insert(rows[start : start + size], at)
                start += size
            self._add_to_totals(rows)
            execute("COMMIT")
        except BaseException:
            self._source_ids.clear()
            if self.connection.in_transaction:
                execute("ROLLBACK")
            raise

    def _insert(self, rows: Sequence[Row], at: int) -> None:
        # One statement for many rows: SQLite gives up the interpreter lock once per statement, not per row.
        values: list[object] = []
        for key, sample, source, ask_id, _requests, prompt, cached, completion, usd, content in rows:
            values += (key, sample, self._source_id(source), ask_id, prompt, cached, completion, usd, at)
            values += content
        slots = ",".join(["(" + ",".join("?" * _COLUMNS) + ")"] * len(rows))
        self.connection.execute(_INSERT + slots, values)

    def _source_id(self, source: Source) -> int:
        known = self._source_ids.get(source)
        if known is None:
            execute = self.connection.execute
            execute(
                "INSERT OR IGNORE INTO sources (run, provider, model, kind, stage, mode) VALUES (?,?,?,?,?,?)",
                source,
            )
            (known,) = execute(
                "SELECT id FROM sources WHERE run=? AND provider=? AND model=? AND kind=? AND stage=? AND mode=?",
                source,
            ).fetchone()
            self._source_ids[source] = known
        return known

    def _add_to_totals(self, rows: Sequence[Row]) -> None:
        sums: dict[Source, list[float]] = {}
        for row in rows:
            total = sums.setdefault(row.source, [0, 0, 0, 0, 0, 0.0])
            total[0] += row.requests
            total[1] += 1
            total[2] += row.prompt_tokens
            total[3] += row.cached_tokens
            total[4] += row.completion_tokens
            total[5] += row.usd
        for source, total in sums.items():
            self.connection.execute(
                "UPDATE sources SET requests=requests+?, samples=samples+?, prompt_tokens=prompt_tokens+?,"
                " cached_tokens=cached_tokens+?, completion_tokens=completion_tokens+?, usd=usd+? WHERE id=?",
                (*total, self._source_id(source)),
            )

    def totals(self) -> list[Total]:
        """The sums of every source, oldest source first."""
        return [Total(Source(*row[:6]), *row[6:]) for row in self.connection.execute(_TOTALS)]

    def leased(self, run: str) -> tuple[float, int]:
        """USD and tokens of all leases of a run: what was, or may have been, spent without a stored reply."""
        usd, tokens = self.connection.execute(
            "SELECT coalesce(sum(usd), 0.0), coalesce(sum(tokens), 0) FROM leases WHERE run = ?", (run,)
        ).fetchone()
        return usd, tokens

    def open_lease(self, run: str) -> int:
        """A new lease of zero; returns its id."""
        try:
            cursor = self.connection.execute("INSERT INTO leases (run, usd, tokens) VALUES (?, 0, 0)", (run,))
        except sqlite3.Error as error:
            raise _explain(error, self.path, "written") from None
        return int(cursor.lastrowid or 0)

    def set_lease(self, lease: int, usd: float, tokens: int) -> None:
        """Change a lease; on disk on return."""
        self.connection.execute("UPDATE leases SET usd = ?, tokens = ? WHERE id = ?", (usd, tokens, lease))

    def end_lease(self, lease: int, usd: float, tokens: int) -> None:
        """What stays charged for good; a lease that owes nothing disappears."""
        self.set_lease(lease, usd, tokens)
        self.connection.execute("DELETE FROM leases WHERE id = ? AND usd = 0 AND tokens = 0", (lease,))

    def lost(self) -> tuple[float, int]:
        """USD and tokens of the leases of all runs."""
        usd, tokens = self.connection.execute(
            "SELECT coalesce(sum(usd), 0.0), coalesce(sum(tokens), 0) FROM leases"
        ).fetchone()
        return usd, tokens

    def export(self) -> Iterator[Record]:
        """Every sample, in the order in which they were stored."""
        sources = {row[0]: Source(*row[1:]) for row in self._source_rows()}
        query = (
            "SELECT source, ask_id, key, usd, at, sample, prompt_tokens, cached_tokens, completion_tokens,"
            " text, finish, numbers, extra FROM samples ORDER BY id"
        )
        for source, ask_id, key, usd, at, sample, *counts, text, finish, numbers, extra in self.connection.execute(
            query
        ):
            prompt, cached, completion = counts
            found = Found(sample, prompt, cached, completion, Content(text, finish, numbers, extra))
            yield Record(sources[source], ask_id, key, found, usd, at)

    def _source_rows(self) -> Iterable[tuple[int, str, str, str, str, str, str]]:
        return self.connection.execute("SELECT id, run, provider, model, kind, stage, mode FROM sources").fetchall()

    def close(self) -> None:
        """Close the connection; the last one folds the WAL into the file."""
        self.connection.close()


def _refuse_foreign(path: Path) -> None:
    """Look before SQLite does: it would write into a database of another program, or of a newer version."""
    try:
        header = read_header(path)
    except (DamagedDatabaseError, OSError) as error:
        raise _explain(error, path, "read") from None
    fresh = header is None or (header.is_empty and (header.application_id, header.user_version) == (0, 0))
    if header is not None and not fresh:
        _check_format(path, header.application_id, header.user_version)


def _check_format(path: Path, application: int, version: int) -> None:
    if application != _APPLICATION_ID:
        raise JournalError(f"{str(path)!r} is a database, but no journal. Give another journal path.")
    if version != _FORMAT:
        raise JournalError(
            f"The journal {str(path)!r} has format {version}; this version reads format {_FORMAT}. "
            f"Use the version of semievol-api that wrote it, or another journal path."
        )


def _chunk_sizes(rows: int) -> Iterator[int]:
    """Few different sizes, so that few statements are compiled: 64s, then powers of two."""
    size = 64
    while rows:
        while size > rows:
            size //= 2
        yield size
        rows -= size


def _explain(error: Exception, path: Path, done: str) -> JournalError:
    """One calm paragraph for what the disk or SQLite said."""
    reason = str(error)
    hint = "Check that the folder exists and can be written."
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "full" in reason:
        hint = "The disk is full: free some space and run again; everything stored so far is kept and readable."
    elif "disk I/O error" in reason:
        hint = "The disk refused the write (it may be full, or a quota reached); everything stored so far is kept."
    elif "readonly" in reason or "read-only" in reason.lower():
        hint = "The file or its folder is read-only: give another journal path, or make it writable."
    elif "not a database" in reason or "malformed" in reason:
        hint = "The file is no SQLite database, or it is damaged. Move it away, or give another journal path."
    elif "locked" in reason:
        hint = "Another process holds it: wait for that run to end, or give this run its own journal."
    return JournalError(f"The journal {str(path)!r} could not be {done}: {reason}. {hint}")


_LINGER_S = 0.02
"""How long the first entry of a group waits for company."""


class Entry(Protocol):
    """What can be stored."""

    @property
    def rows(self) -> Sequence[Row]:
        """What is to be written."""
        ...

    def stored(self) -> None:
        """Called on the event loop once the rows are on disk."""
        ...

    def unstored(self) -> None:
        """Called on the event loop where the rows could not be written."""
        ...


@dataclass(slots=True)
class Step:
    """An entry of another sort: a change of the journal that `apply` makes in the writer's thread."""

    apply: Callable[[Journal], None]
    done: asyncio.Future[None]
    rows: Sequence[Row] = ()

    def stored(self) -> None:
        """Wake whoever waits for the change."""
        if not self.done.done():
            self.done.set_result(None)

    def unstored(self) -> None:
        """Whoever waits has been told why already."""


class GroupCommit:
    """The writer. `failed` is called on the event loop, once, if the journal cannot be written any more."""

    def __init__(self, journal: Journal, failed: Callable[[JournalError], None]) -> None:
        self._journal = journal
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._pending: list[Entry] = []
        self._changed = threading.Condition()
        self._idle = True
        self._closing = False
        self._urgent = False
        self._broken: JournalError | None = None
        self._waiters: list[Step] = []
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Store an entry soon; returns at once."""
        if self._broken is not None:
            self._loop.call_soon(entry.unstored)
            return
        with self._changed:
            self._pending.append(entry)
            if self._idle:
                self._changed.notify()

    async def step(self, apply: Callable[[Journal], None]) -> None:
        """Make a change in its turn, and come back when it is on disk.

        Raises:
            JournalError: the journal cannot be written any more.
        """
        if self._broken is not None:
            raise self._broken
        step = Step(apply, self._loop.create_future())
        self._waiters.append(step)
        with self._changed:
            self._pending.append(step)
            self._urgent = True
            self._changed.notify()
        try:
            await step.done
        finally:
            self._waiters.remove(step)

    @property
    def broken(self) -> bool:
        """True where the journal could not be written; nothing is stored any more."""
        return self._broken is not None

    async def close(self) -> None:
        """Write what is left, end the thread, close the journal."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.shield(asyncio.to_thread(self._thread.join))
        self._journal.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closing:
                    self._idle = True
                    self._changed.wait()
                self._idle = False
                if not self._closing and not self._urgent:
                    self._changed.wait(_LINGER_S)
                group, self._pending = self._pending, []
                self._urgent = False
                if not group:
                    return
            try:
                self._write(group)
            except (sqlite3.Error, OSError) as error:
                broken = _explain(error, self._journal.path, "written")
                self._loop.call_soon_threadsafe(self._break, broken, group)
                return
            except BaseException as error:  # a bug: nobody may wait for ever
                broken = JournalError(f"The journal could not be written: {error!r}.")
                self._loop.call_soon_threadsafe(self._break, broken, group)
                raise
            self._loop.call_soon_threadsafe(_tell, group)

    def _write(self, group: list[Entry]) -> None:
        rows: list[Row] = []
        for entry in group:
            rows += entry.rows
        if rows:
            self._journal.write(rows)
        for entry in group:
            if isinstance(entry, Step):
                entry.apply(self._journal)

    def _break(self, error: JournalError, group: list[Entry]) -> None:
        self._broken = error
        for step in self._waiters:
            if not step.done.done():
                step.done.set_exception(error)
        self._failed(error)
        with self._changed:
            group, self._pending = group + self._pending, []
        for entry in group:
            entry.unstored()


def _tell(group: list[Entry]) -> None:
    for entry in group:
        entry.stored()
