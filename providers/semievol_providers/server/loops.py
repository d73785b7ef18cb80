"""The server's background work by name: started here, started again when it breaks, known to be in trouble meanwhile.

Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from semievol_providers.server.disk import told

_log = logging.getLogger(__name__)


class Loops:
    """`start` work that goes on until the server closes; `trouble` and `well` say how a part of it stands."""

    def __init__(self, retry_s: float) -> None:
        self.retry_s = retry_s
        self._closing = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, str] = {}

    @property
    def closing(self) -> bool:
        """Whether the server stops."""
        return self._closing.is_set()

    @property
    def troubles(self) -> Mapping[str, str]:
        """What does not run as it should, and why; empty when all is well."""
        ended = {
            name: "It has ended." for name, task in self._tasks.items() if task.done() and not self._closing.is_set()
        }
        return ended | self._troubles

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work` until it returns; when it raises, it is started again after `retry_s`."""
        task = self._tasks[name] = asyncio.create_task(self._keep(name, work), name=name)
        return task

    def finished(self, name: str) -> None:
        """Work that had an end of its own came to it."""
        self._tasks.pop(name, None)
        self.well(name)

    def trouble(self, name: str, error: BaseException) -> None:
        """Something stands in the way of this part; said once in the log as long as it stays the same."""
        reason = told(error)
        if self._troubles.get(name) != reason:
            _log.error("%s is not running: %s", name, reason)
        self._troubles[name] = reason

    def well(self, name: str) -> None:
        """This part works."""
        if self._troubles.pop(name, None) is not None:
            _log.warning("%s is running again", name)

    async def pause(self) -> None:
        """Wait `retry_s`, or until the server closes."""
        await first_of(self._closing, self.retry_s)

    def close(self) -> None:
        """Whoever pauses goes on, and nothing is started again."""
        self._closing.set()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while not self.closing:
            try:
                await work()
                return
            except Exception as error:  # noqa: BLE001 - a loop must outlive whatever happens in it
                _log.exception("%s broke", name)
                self.trouble(name, error)
            await self.pause()


async def first_of(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for an event, at most this long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
