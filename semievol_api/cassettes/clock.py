"""The injected clock: whoever waits, waits through one of these, so that a replay need not wait at all.

`RealClock` waits. `VirtualClock` only counts: sleepers wake in the order of their wake-up times, at once.
Knows nothing of what is waited for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    async def sleep(self, wait_s: float) -> None:
        """Come back when `wait_s` seconds have passed on this clock; negative waits count as zero."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Seconds of `time.monotonic`."""
        return time.monotonic()

    async def sleep(self, wait_s: float) -> None:
        """Wait."""
        await asyncio.sleep(max(0.0, wait_s))


class VirtualClock:
    """A clock that jumps to the next wake-up time as soon as everyone who could run has had a turn."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def now_s(self) -> float:
        """The start plus all that was slept since."""
        return self._now_s

    async def sleep(self, wait_s: float) -> None:
        """Come back after everyone whose wake-up time is earlier, without waiting."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a loop that ended took its sleepers along
            self._loop, self._sleepers = loop, []
        woken: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._sleepers, (self._now_s + max(0.0, wait_s), next(self._order), woken))
        if len(self._sleepers) == 1:
            loop.call_soon(self._wake_next, loop)
        await woken

    def _wake_next(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        wake_s, _, woken = heapq.heappop(self._sleepers)
        if not woken.done():  # else: it was cancelled while it slept
            self._now_s = max(self._now_s, wake_s)
            woken.set_result(None)
        if self._sleepers:
            loop.call_soon(self._wake_next, loop)
