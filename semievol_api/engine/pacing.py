"""The pacer of one key and model: it decides when each request may be sent.

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
from semievol_api.cassettes.clock import Clock
from semievol_api.config.settings import Limits

_CATCH_UP_S = 0.1
"""How far a late timer's lost time is made up for."""
_MARGIN = 0.05
"""Share of the server's bucket that is left in it, against errors of the token estimate."""


class Sent(NamedTuple):
    """When a request went, and what had been claimed by then."""

    at_s: float
    claimed: float


class Quota:
    """Requests or tokens per minute of one key and model. Times are seconds of the injected clock."""

    def __init__(self, per_minute: float | None) -> None:
        self.configured = per_minute
        self.per_minute = per_minute
        self.claimed = 0.0
        self._next_s = float("-inf")
        self._spacing_s = 60.0 / per_minute if per_minute else 0.0
        self._left: float | None = None
        self._holds: float | None = None
        self._seen_s = float("-inf")
        self._claimed_then = 0.0

    def observe(self, limit: int | None, left: int | None, reset_s: float | None, sent: Sent) -> None:
        """Learn from a reply's headers."""
        if limit:
            self.per_minute = limit if self.configured is None else min(limit, self.configured)
        if not self.per_minute:
            return
        rate = self.per_minute / 60.0
        self._spacing_s = 1.0 / rate
        if left is None or sent.at_s < self._seen_s:  # the latter: an older request's reply
            return
        self._left, self._seen_s, self._claimed_then = left, sent.at_s, sent.claimed
        self._holds = None
        if reset_s is not None:
            self._holds = left + reset_s * rate
            if self._holds > 0:
                self._spacing_s *= 2.0 ** (1.0 - 2.0 * left / self._holds)

    def wait_s(self, now_s: float, amount: float) -> float:
        """Seconds until a request of this amount may go; zero or less for now."""
        if not self.per_minute:
            return 0.0
        wait_s = self._next_s - now_s
        if self._left is None:
            return wait_s
        rate = self.per_minute / 60.0
        level = self._left + (now_s - self._seen_s) * rate - (self.claimed - self._claimed_then)
        needed = amount
        if self._holds is not None:
            level = min(level, self._holds)
            needed = min(amount + _MARGIN * self._holds, 0.95 * self._holds)
        return wait_s if level >= needed else max(wait_s, (needed - level) / rate)

    def claim(self, now_s: float, amount: float) -> None:
        """Count a request that goes now."""
        self.claimed += amount
        if self.per_minute:
            self._next_s = max(self._next_s, now_s - _CATCH_UP_S) + amount * self._spacing_s

    def hold_until(self, at_s: float) -> None:
        """Nothing goes before; the spacing starts anew there."""
        self._next_s = max(self._next_s, at_s)


_START = 64
_DOUBLE = 2.0
_STEP = 1.25
_FEWEST = 8
"""Nothing goes below, but a lower ceiling."""
_JUDGED = 50
"""Fewer replies than this are no evidence."""
_TOO_MANY_FAILURES = 0.4
_ENOUGH = 0.97
"""Share of the throughput that a step down must keep."""
_GAIN = 1.05
"""Growth of the throughput that justifies a step up."""
_STEPS_AT_REST = 6
"""Epochs between trials."""
_JUDGED_SLOW = 4
"""The same where every reply takes long: fifty would come too late."""
_SLOW_ENOUGH = 0.85
"""Share of the throughput that halving must keep there."""
_FIRST_EPOCH_S = 0.2
_EPOCH_S = 1.0
"""Throughput is measured over so long, at least; shorter while it still doubles."""


class AdaptiveLimit:
    """The limit of one key and model; `ceiling` is what the config or the operating system allows."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.value = min(_START, ceiling)
        self._base = 0
        self._base_rate = 0.0
        self._growth = _DOUBLE
        self._rest = 0
        self._try_less = False
        self._begin(0.0)

    def begin_at(self, value: int) -> None:
        """Begin with no more than this: the first reply was slow."""
        self.value = min(self.value, value)

    def _begin(self, now_s: float) -> None:
        self._since_s = now_s
        self._replies = 0
        self._failures = 0
        self._slow = 0
        self._filled = False

    def replied(self, now_s: float, in_flight: int, *, failed: bool, slow: bool = False) -> None:
        """Count one reply, or one failed attempt; `in_flight` as it was with it, `slow` in view of the time-out."""
        if self._replies == 0 and self._failures == 0:
            self._since_s = now_s
        self._replies += not failed
        self._failures += failed
        self._slow += slow
        self._filled |= in_flight >= self.value
        count = self._replies + self._failures
        mostly_slow = 2 * self._slow > count
        epoch_s = _FIRST_EPOCH_S if self._growth == _DOUBLE else _EPOCH_S
        if count > max(self.value, _JUDGED_SLOW if mostly_slow else _JUDGED) and now_s - self._since_s >= epoch_s:
            rate, many_failures = self._replies / (now_s - self._since_s), self._failures > _TOO_MANY_FAILURES * count
            if mostly_slow and not many_failures:
                self._judge_slow(rate)
            else:
                self._judge(rate, many_failures)
            self._begin(now_s)

    def _judge_slow(self, rate: float) -> None:
        """Halve the limit for as long as that costs no throughput: the others only waited in the server's queue."""
        if self.value < self._base and rate < _SLOW_ENOUGH * self._base_rate:
            self._settle(self._base)
        elif not self._filled:
            return
        elif self._rest > 0:
            self._rest -= 1
        else:
            self._base, self._base_rate = self.value, rate
            self.value = max(1, self.value // 2)

    def _judge(self, rate: float, many_failures: bool) -> None:
        """The end of an epoch: keep what the last trial brought, or go back; rest, and try the other way."""
        if many_failures:
            self._settle(max(min(_FEWEST, self.ceiling), int(self.value * 0.7)))
        elif not self._filled:
            return
        elif self._rest > 0:
            self._rest -= 1
            self._base_rate = rate if self._rest == _STEPS_AT_REST - 1 else 0.7 * self._base_rate + 0.3 * rate
            if self._rest == 0:
                self._base = self.value
                self.value = self._step()
        elif self.value > self._base and rate >= _GAIN * self._base_rate:
            self._base, self._base_rate = self.value, rate
            self.value = min(self.ceiling, max(self.value + 1, int(self.value * self._growth)))
        else:
            less_is_enough = self.value < self._base and rate >= _ENOUGH * self._base_rate
            self._growth = _STEP
            self._settle(self.value if less_is_enough else self._base)

    def _step(self) -> int:
        """The next trial: more and less in turn, so that noise cannot carry the limit away."""
        self._try_less = not self._try_less
        if self._try_less and self.value > _FEWEST:
            return max(_FEWEST, int(self.value / self._growth))
        return min(self.ceiling, max(self.value + 1, int(self.value * self._growth)))

    def _settle(self, value: int) -> None:
        self.value = self._base = value
        self._rest = _STEPS_AT_REST


_log = logging.getLogger(__name__)
_FIRST_IN_FLIGHT = 16
"""Requests in flight until the first reply has told the quotas."""
_FIRST_PAUSE_S = 0.5
_SHORTEST_PAUSE_S = 0.05
"""Whatever a server asks for; doubled with every pause after which it still refuses all."""
_LONGEST_PAUSE_S = 60.0
_LEARN_EVERY_S = 0.01
_SLOW = 0.25
"""A reply that took this share of the time-out comes from a server with too much at once, or a slow one."""
_NO_PACE = Pace()


_OVERTAKEN = 4
"""A request is lost once so many times those that were in flight with it have been answered since."""
_NEARBY_SILENCE = 15
"""So many time-outs may pass without any answer from a machine of one's own."""


class Pass(NamedTuple):
    """The receipt of a request that was let through: when, what had been claimed, in flight and answered by then.

    `sent_s` is the clock's, `real_s` the event loop's, which time-outs go by.
    """

    sent_s: float
    requests: float
    tokens: float
    in_flight: int = 0
    answered: int = 0
    real_s: float = 0.0


class Pacer:
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
        self._answered = 0
        self._answered_s = float("-inf")
        self._ramp_until_s = float("-inf")
        self._ramp_next_s = float("-inf")
        self._reply_s = 0.0
        self._slow_s = limits.timeout_s * _SLOW
        self._learned_s = float("-inf")
        self._capped = limits.concurrency is not None
        self._known = limits.rpm is not None or limits.tpm is not None
        self._random = random.Random()

    @property
    def room(self) -> int:
        """How many requests may be in flight now."""
        return self.limit.value if self._known else min(_FIRST_IN_FLIGHT, self.limit.value)

    @property
    def _full(self) -> bool:
        """With a configured cap, replies that are not on disk yet count: a crash loses no more than the cap."""
        if self._capped and self.in_flight + self.unsaved >= self.limit.ceiling:
            return True
        return self.in_flight >= self.room

    async def enter(self, tokens: float) -> Pass:
        """Wait for one's turn; `tokens` is the request's estimated share of the token quota."""
        await self._queue(tokens)
        return self._pass(self._clock.now_s())

    def _pass(self, now_s: float) -> Pass:
        real_s = asyncio.get_running_loop().time()
        return Pass(now_s, self._requests.claimed, self._tokens.claimed, self.in_flight, self._answered, real_s)

    def enter_now(self, tokens: float) -> Pass | None:
        """Pass without waiting, where that is possible."""
        now_s = self._clock.now_s()
        if self._waiters or self._full or self._wait_s(now_s, tokens) > 0:
            return None
        self._let_through(now_s, tokens)
        return self._pass(now_s)

    def more_s(self, passed: Pass, timeout_s: float, *, nearby: bool) -> float:
        """Seconds for which a request that has had its time-out is waited for still; 0 where it is lost.

        As long as others are answered it may wait in the server's queue; asked again, it would wait there twice.
        """
        if self._answered - passed.answered > _OVERTAKEN * max(passed.in_flight, self.in_flight):
            return 0.0
        silent_s = asyncio.get_running_loop().time() - max(passed.real_s, self._answered_s)
        return max(0.0, timeout_s * (_NEARBY_SILENCE if nearby else 1) - silent_s)

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
        self._replies += 1
        self._answered += 1
        self._answered_s = asyncio.get_running_loop().time()
        self.refused_since_s = None
        took_s = now_s - passed.sent_s
        if not self._known and took_s > self._slow_s:
            self.limit.begin_at(_FIRST_IN_FLIGHT)
        self._known = True
        self._reply_s += 0.1 * (took_s - self._reply_s)
        self.limit.replied(now_s, self.in_flight, failed=False, slow=took_s > self._slow_s)
        if pace is not _NO_PACE and now_s - self._learned_s >= _LEARN_EVERY_S:
            self._learned_s = now_s
            sent_s, requests, tokens = passed.sent_s, passed.requests, passed.tokens
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
            floor_s = _SHORTEST_PAUSE_S * 2.0 ** min(self._vain_pauses, 6)
            retry_after_s = self._backoff_s() if retry_after_s is None else max(retry_after_s, floor_s)
        elif retry_after_s is None:
            retry_after_s = 0.0
        self._hold(now_s + retry_after_s * self._random.uniform(1.0, 1.1))
        if retry_after_s > _LONGEST_PAUSE_S:
            _log.warning("the server asks for a pause of %.0f s", retry_after_s)
        return now_s - self.refused_since_s

    def _backoff_s(self) -> float:
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**self._vain_pauses)
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
