"""The server's background tasks by name: started, restarted when they fail, and the problems that health reports.

Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from semievol_providers.server.disk import reason_of

_log = logging.getLogger(__name__)


class BackgroundTasks:
    """`start` tasks that run until the server closes; report and clear the problems of each."""

    def __init__(self, retry_s: float) -> None:
        self.retry_s = retry_s
        self._closing = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._problems: dict[str, str] = {}

    @property
    def closing(self) -> bool:
        """Whether the server stops."""
        return self._closing.is_set()

    @property
    def problems(self) -> Mapping[str, str]:
        """The parts that do not work, with the reason."""
        ended = {
            name: "It has ended." for name, task in self._tasks.items() if task.done() and not self._closing.is_set()
        }
        return ended | self._problems

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work` until it returns; when it raises, it is started again after `retry_s`."""
        task = self._tasks[name] = asyncio.create_task(self._keep(name, work), name=name)
        return task

    def finished(self, name: str) -> None:
        """A task that was to end has ended."""
        self._tasks.pop(name, None)
        self.clear_problem(name)

    def report_problem(self, name: str, error: BaseException) -> None:
        """Note what keeps this part from working; the log says so once for each reason."""
        reason = reason_of(error)
        if self._problems.get(name) != reason:
            _log.error("%s is not running: %s", name, reason)
        self._problems[name] = reason

    def clear_problem(self, name: str) -> None:
        """This part works again."""
        if self._problems.pop(name, None) is not None:
            _log.warning("%s is running again", name)

    async def pause(self) -> None:
        """Wait `retry_s`, or until the server closes."""
        await wait_for(self._closing, self.retry_s)

    def close(self) -> None:
        """End all pauses; nothing is restarted from here on."""
        self._closing.set()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while not self.closing:
            try:
                await work()
                return
            except Exception as error:  # noqa: BLE001 - a loop must outlive whatever happens in it
                _log.exception("%s broke", name)
                self.report_problem(name, error)
            await self.pause()


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for an event, at most this long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
