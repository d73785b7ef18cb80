"""One timer for everything that is waited for: whoever is not done in time is cancelled, and learns why.

    deadline = deadlines.begin(60.0)
    try:
        await something()
    except asyncio.CancelledError:
        if not deadlines.passed(deadline):
            raise
        ...                                 # it took too long
    finally:
        deadlines.end(deadline)

`asyncio.timeout` and aiohttp's own set a timer per request; with thousands of requests a second those timers cost
more than sending does. The price is coarseness: a wait may last a twentieth longer than asked. Knows nothing of
what is waited for.
"""

from __future__ import annotations

import asyncio

COARSENESS = 0.05
LONGEST_SWEEP_S = 1.0


class Deadline:
    """One task's deadline, in seconds of the event loop's clock."""

    __slots__ = ("due_s", "passed", "task")

    def __init__(self, task: asyncio.Task[object], due_s: float) -> None:
        self.task = task
        self.due_s = due_s
        self.passed = False


class Deadlines:
    """All deadlines of one event loop."""

    def __init__(self) -> None:
        self._open: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_s = LONGEST_SWEEP_S

    def begin(self, timeout_s: float) -> Deadline:
        """From now on the running task has `timeout_s` seconds."""
        task = asyncio.current_task()
        assert task is not None, "a deadline belongs to a task"
        loop = task.get_loop()
        deadline = Deadline(task, loop.time() + timeout_s)
        self._open[deadline] = None
        self._sweep_s = min(self._sweep_s, timeout_s * COARSENESS)
        if self._timer is None:
            self._timer = loop.call_later(self._sweep_s, self._sweep, loop)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """The wait is over, however it ended."""
        self._open.pop(deadline, None)

    def passed(self, deadline: Deadline) -> bool:
        """True where the cancellation that was just caught is the deadline's; it is taken back then."""
        if deadline.passed:
            deadline.task.uncancel()
        return deadline.passed

    def close(self) -> None:
        """Forget all deadlines; nobody is cancelled any more."""
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for deadline in [deadline for deadline in self._open if deadline.due_s <= now_s]:
            del self._open[deadline]
            deadline.passed = True
            deadline.task.cancel()
        self._timer = loop.call_later(self._sweep_s, self._sweep, loop) if self._open else None
