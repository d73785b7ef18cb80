"""All batches under way: starts them, goes on with them after a restart, stops them with the server.

A batch that cannot go on fails alone; one that waits for the machine (a full disk) goes on by itself. Knows nothing
of HTTP or of what a batch asks.
"""

from __future__ import annotations

import asyncio
import logging

from semievol_providers.server.answers import Answers
from semievol_providers.server.batch_wire import UNFINISHED
from semievol_providers.server.batch_work import BatchParts, BatchWork
from semievol_providers.server.disk import causes, told, will_pass
from semievol_providers.server.loops import Loops
from semievol_providers.server.state import Record, State

RUNNER = "batch runner"
_log = logging.getLogger(__name__)


class BatchRunner:
    """`start`, `add` new ones, `close`."""

    def __init__(self, state: State, answers: Answers, loops: Loops) -> None:
        self._state = state
        self._answers = answers
        self._loops = loops
        self._parts: dict[str, BatchParts] = {}
        self._works: dict[str, BatchWork] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Take up what was under way when the server stopped."""
        self._tasks.add(self._loops.start(RUNNER, self._take_up))

    async def _take_up(self) -> None:
        for record, owner in self._state.batches_with_status(*UNFINISHED):
            if str(record["id"]) not in self._works:
                self.add(record, owner)
        self._loops.finished(RUNNER)

    def add(self, record: Record, owner: str) -> None:
        """Run a batch that is already on disk."""
        work = self._works[str(record["id"])] = BatchWork(self._parts_of(owner), record, owner)
        task = asyncio.create_task(self._run(work, owner), name=work.part)
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
            self._parts[owner] = BatchParts(self._state, self._answers, slots, asyncio.Lock(), self._loops)
        return self._parts[owner]

    async def _run(self, work: BatchWork, owner: str) -> None:
        batch_id = str(work.record["id"])
        try:
            while not await self._attempt(work):
                await self._loops.pause()
                work = self._works[batch_id] = BatchWork(self._parts_of(owner), work.record, owner)
            self._loops.well(work.part)
        finally:
            self._works.pop(batch_id, None)

    async def _attempt(self, work: BatchWork) -> bool:
        """Go on with a batch until it has ended; False where it must be tried again later."""
        try:
            try:
                await work.run()
            except Exception as error:
                lasting = [cause for cause in causes(error) if not will_pass(cause)]
                if not lasting:
                    raise
                _log.warning("%s cannot go on: %s", work.part, told(lasting[0]), exc_info=error)
                await work.fail(f"The batch cannot go on: {told(lasting[0])}")
        except Exception as error:  # noqa: BLE001 - one batch's trouble is that batch's
            self._loops.trouble(work.part, causes(error)[0])
            return False
        return True
