"""The gate of one key and model: every request passes it, and it decides when.

Two quotas (requests and tokens per minute), a limit on requests in flight, and the pauses that the server
asks for. A pause holds everyone; after it the waiters go one by one. Knows nothing of retrying, budgets or what
a request says.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import NamedTuple

from semievol_api.capabilities import Pace
from semievol_api.config import Limits
from semievol_api.engine.concurrency import AdaptiveLimit
from semievol_api.engine.pacing import Quota, Sent
from semievol_api.transport.clock import Clock

_log = logging.getLogger(__name__)
FIRST_IN_FLIGHT = 16
"""Requests in flight until the first reply has told the quotas."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
_NO_PACE = Pace()


class Pass(NamedTuple):
    """The receipt of a request that was let through: when, and what had been claimed by then."""

    sent_s: float
    requests: float
    tokens: float


class Gate:
    """Holds requests back until they may go. `start` starts a background task."""

    def __init__(
        self,
        limits: Limits,
        ceiling: int,
        clock: Clock,
        start: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
    ) -> None:
        self.limit = AdaptiveLimit(ceiling)
        self.in_flight = 0
        self.unsaved = 0
        self.refused_since_s: float | None = None
        self._clock = clock
        self._start = start
        self._requests = Quota(limits.rpm)
        self._tokens = Quota(limits.tpm)
        self._waiters: deque[tuple[asyncio.Future[None], float]] = deque()
        self._timer: asyncio.Task[None] | None = None
        self._paused_until_s = float("-inf")
        self._pause_began_s = float("-inf")
        self._vain_pauses = 0
        self._replies = 0
        self._replies_before = 0
        self._ramp_until_s = float("-inf")
        self._ramp_next_s = float("-inf")
        self._reply_s = 0.0
        self._capped = limits.concurrency is not None
        self._known = limits.rpm is not None or limits.tpm is not None
        self._random = random.Random()

    @property
    def room(self) -> int:
        """How many requests may be in flight now."""
        return self.limit.value if self._known else min(FIRST_IN_FLIGHT, self.limit.value)

    @property
    def _full(self) -> bool:
        """With a configured cap, replies that are not on disk yet count: a crash loses no more than the cap."""
        if self._capped and self.in_flight + self.unsaved >= self.limit.ceiling:
            return True
        return self.in_flight >= self.room

    async def enter(self, tokens: float) -> Pass:
        """Wait for one's turn; `tokens` is the request's estimated share of the token quota."""
        await self._queue(tokens)
        return Pass(self._clock.now_s(), self._requests.claimed, self._tokens.claimed)

    def enter_now(self, tokens: float) -> Pass | None:
        """Pass without waiting, where that is possible."""
        now_s = self._clock.now_s()
        if self._waiters or self._full or self._wait_s(now_s, tokens) > 0:
            return None
        self._let_through(now_s, tokens)
        return Pass(now_s, self._requests.claimed, self._tokens.claimed)

    def leave(self) -> None:
        """The request is over, whatever became of it."""
        self.in_flight -= 1
        if self._waiters:
            self._pump()

    def saved(self) -> None:
        """A reply is on disk."""
        self.unsaved -= 1
        if self._waiters:
            self._pump()

    def replied(self, passed: Pass, pace: Pace) -> None:
        """A reply came: learn its pace."""
        now_s = self._clock.now_s()
        self.unsaved += 1
        self._known = True
        self._replies += 1
        self.refused_since_s = None
        self._reply_s += 0.1 * (now_s - passed.sent_s - self._reply_s)
        self.limit.replied(now_s, self.in_flight, failed=False)
        if pace is not _NO_PACE:
            sent_s, requests, tokens = passed
            self._requests.observe(
                pace.limit_requests, pace.remaining_requests, pace.reset_requests_s, Sent(sent_s, requests)
            )
            self._tokens.observe(pace.limit_tokens, pace.remaining_tokens, pace.reset_tokens_s, Sent(sent_s, tokens))

    def failed(self) -> None:
        """An attempt failed for a reason that is not the quota."""
        self._known = True
        self.limit.replied(self._clock.now_s(), self.in_flight, failed=True)

    def pause(self, passed: Pass, retry_after_s: float | None) -> float:
        """The server said 429: nobody goes for a while. Returns the seconds since it says nothing else."""
        now_s = self._clock.now_s()
        self._known = True
        if self.refused_since_s is None:
            self.refused_since_s = now_s
        if not self._requests.per_minute and not self._tokens.per_minute:  # perhaps it is too much at once
            self.limit.replied(now_s, self.in_flight, failed=True)
        if passed.sent_s >= self._pause_began_s:  # else it belongs to the pause that is on already
            self._pause_began_s = now_s
            # Requests that the last pause let through may be under way: look at two periods before growing.
            self._vain_pauses = 0 if self._replies or self._replies_before else self._vain_pauses + 1
            self._replies_before, self._replies = self._replies, 0
            retry_after_s = self._backoff_s() if retry_after_s is None else retry_after_s
        elif retry_after_s is None:
            retry_after_s = 0.0
        self._hold(now_s + retry_after_s * self._random.uniform(1.0, 1.1))
        if retry_after_s > LONGEST_PAUSE_S:
            _log.warning("the server asks for a pause of %.0f s", retry_after_s)
        return now_s - self.refused_since_s

    def _backoff_s(self) -> float:
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._vain_pauses)
        return self._random.uniform(0.5, 1.0) * longest

    def _hold(self, until_s: float) -> None:
        if until_s <= self._paused_until_s:
            return
        self._paused_until_s = until_s
        self._requests.hold_until(until_s)
        self._tokens.hold_until(until_s)
        self._ramp_until_s = until_s + max(self._reply_s, 0.05)

    def _wait_s(self, now_s: float, tokens: float) -> float:
        wait_s = max(self._paused_until_s, self._ramp_next_s) - now_s
        return max(wait_s, self._requests.wait_s(now_s, 1.0), self._tokens.wait_s(now_s, tokens))

    def _let_through(self, now_s: float, tokens: float) -> None:
        self.in_flight += 1
        self._requests.claim(now_s, 1.0)
        self._tokens.claim(now_s, tokens)
        if now_s < self._ramp_until_s:  # after a pause: spread the return over the time of one reply
            self._ramp_next_s = now_s + max(self._reply_s, 0.05) / max(1, self.room)

    async def _queue(self, tokens: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((turn, tokens))
        self._pump()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def _pump(self) -> None:
        """Let through whoever may go now; set the timer for the next one."""
        while self._waiters and not self._full:
            turn, tokens = self._waiters[0]
            if turn.done():
                self._waiters.popleft()
                continue
            now_s = self._clock.now_s()
            wait_s = self._wait_s(now_s, tokens)
            if wait_s > 0:
                if self._timer is None:
                    self._timer = self._start(self._pump_after(wait_s))
                return
            self._waiters.popleft()
            self._let_through(now_s, tokens)
            turn.set_result(None)

    async def _pump_after(self, wait_s: float) -> None:
        await self._clock.sleep(wait_s)
        self._timer = None
        self._pump()
