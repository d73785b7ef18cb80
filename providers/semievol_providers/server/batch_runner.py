"""All batches under way: starts them, goes on with them after a restart, stops them with the server.

Knows nothing of HTTP or of what a batch asks.
"""

from __future__ import annotations

import asyncio
import logging

from semievol_providers.server.answers import Answers
from semievol_providers.server.batch_wire import UNFINISHED
from semievol_providers.server.batch_work import BatchParts, BatchWork
from semievol_providers.server.state import Record, State

_log = logging.getLogger(__name__)
_DISK_WAIT_S = 10.0


class BatchRunner:
    """`start`, `add` new ones, `close`."""

    def __init__(self, state: State, answers: Answers) -> None:
        self._state = state
        self._answers = answers
        self._parts: dict[str, BatchParts] = {}
        self._works: dict[str, BatchWork] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Take up what was under way when the server stopped."""
        for record, owner in self._state.batches_with_status(*UNFINISHED):
            self.add(record, owner)

    def add(self, record: Record, owner: str) -> None:
        """Run a batch that is already on disk."""
        work = self._works[str(record["id"])] = BatchWork(self._parts_of(owner), record, owner)
        task = asyncio.create_task(self._run(work, owner), name=f"batch-{record['id']}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, batch_id: str) -> None:
        """Stop a batch that is under way."""
        self._works[batch_id].cancel()

    def current(self, record: Record) -> Record:
        """The batch object with its newest numbers."""
        work = self._works.get(str(record["id"]))
        return work.record if work is not None else record

    async def close(self) -> None:
        """Leave all batches as they stand; the next server goes on with them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _parts_of(self, owner: str) -> BatchParts:
        """What the batches of one owner share: none waits for another owner's slots."""
        if owner not in self._parts:
            slots = asyncio.Semaphore(self._answers.limits.batch_in_flight)
            self._parts[owner] = BatchParts(self._state, self._answers, slots, asyncio.Lock())
        return self._parts[owner]

    async def _run(self, work: BatchWork, owner: str) -> None:
        batch_id = str(work.record["id"])
        try:
            while True:
                try:
                    await work.run()
                    return
                except* OSError as errors:
                    _log.error("batch %s waits for the disk: %s", batch_id, errors.exceptions[0])
                await asyncio.sleep(_DISK_WAIT_S)
                work = self._works[batch_id] = BatchWork(self._parts_of(owner), work.record, owner)
        finally:
            self._works.pop(batch_id, None)
