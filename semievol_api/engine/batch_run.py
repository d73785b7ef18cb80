"""One batch at a vendor, from its submission to its last answer.

It is written down before it is submitted, its id before anyone waits, and it is closed only when everything it
gave is stored: a process that dies anywhere in between finds it again. Knows nothing of splitting and of streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from semievol_api.capabilities import BatchAnswer, BatchChat, BatchState, ChatRequest, Provider
from semievol_api.config import Limits
from semievol_api.engine.batch_store import BatchLine, OpenBatch, close_batch, set_batch_id
from semievol_api.engine.retrying import until_it_works
from semievol_api.engine.work import AnyPiece
from semievol_api.engine.writer import GroupCommit
from semievol_api.transport.clock import Clock


@dataclass(slots=True, eq=False)
class BatchRun:
    """A batch under way: its lines, the pieces that it answers, and those that wait for it from outside.

    `waiting` are pieces of a later ask for the same lines; they are planned anew once the batch is stored.
    """

    provider: Provider
    batch: OpenBatch
    lines: dict[str, BatchLine]
    pieces: dict[str, AnyPiece] = field(default_factory=dict[str, AnyPiece])
    waiting: list[AnyPiece] = field(default_factory=list[AnyPiece])
    failures: dict[str, str] = field(default_factory=dict[str, str])


class Vendor:
    """The vendor's side of batches, with retries; `writer` stores what must not be forgotten."""

    def __init__(self, limits: Limits, writer: GroupCommit, clock: Clock) -> None:
        self._limits = limits
        self._writer = writer
        self._clock = clock

    async def submit(self, chat: BatchChat, batch: OpenBatch, requests: Mapping[str, ChatRequest]) -> str:
        """Submit once: after a lost answer, look for the batch before submitting again. The id is on disk."""
        submitted = False

        async def once() -> str:
            nonlocal submitted
            found = await chat.find(batch.run_key) if submitted else None
            submitted = True
            return found or await chat.submit(requests, batch.run_key)

        batch_id = await until_it_works(once, self._limits.max_attempts, self._clock)
        await self._remember(batch, batch_id)
        return batch_id

    async def find(self, chat: BatchChat, batch: OpenBatch) -> str | None:
        """The id of a batch whose submission an earlier process did not see confirmed."""
        if batch.batch_id is not None:
            return batch.batch_id
        batch_id = await until_it_works(lambda: chat.find(batch.run_key), self._limits.max_attempts, self._clock)
        if batch_id is not None:
            await self._remember(batch, batch_id)
        return batch_id

    async def wait(self, chat: BatchChat, batch_id: str) -> BatchState:
        """The state of the batch once it has ended."""
        while True:
            state = await until_it_works(lambda: chat.poll(batch_id), self._limits.max_attempts, self._clock)
            if state.status != "running":
                return state
            await self._clock.sleep(self._limits.batch_poll_s)

    async def collect(self, chat: BatchChat, batch_id: str) -> Sequence[BatchAnswer]:
        """All lines that were answered."""
        return await until_it_works(lambda: chat.collect(batch_id), self._limits.max_attempts, self._clock)

    async def close(self, batch: OpenBatch) -> None:
        """Everything handed to the writer before is on disk; forget the batch."""
        await self._writer.step(lambda journal: close_batch(journal, batch.id))

    async def _remember(self, batch: OpenBatch, batch_id: str) -> None:
        await self._writer.step(lambda journal: set_batch_id(journal, batch.id, batch_id))
