"""Group commit: a thread that writes what the event loop hands it, many entries in one transaction.

An entry's `stored` callback runs on the event loop, only after the commit that holds the entry's rows. Knows
nothing of what rows mean.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from semievol_api.engine.journal import Journal, explain
from semievol_api.engine.rows import Row
from semievol_api.errors import JournalError

LINGER_S = 0.02
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
                    self._changed.wait(LINGER_S)
                group, self._pending = self._pending, []
                self._urgent = False
                if not group:
                    return
            try:
                self._write(group)
            except (sqlite3.Error, OSError) as error:
                broken = explain(error, self._journal.path, "written")
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
