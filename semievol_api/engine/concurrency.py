"""How many requests to keep in flight: more for as long as more come back per second.

Starts moderately and doubles while that pays; once it does not, goes back one step, and from time to time tries
a little less and a little more. Many failures at once bring it down. Knows nothing of what is in flight.
"""

from __future__ import annotations

START = 64
DOUBLE = 2.0
STEP = 1.25
FEWEST = 8
"""Nothing goes below, but a lower ceiling."""
JUDGED = 50
"""Fewer replies than this are no evidence."""
TOO_MANY_FAILURES = 0.4
ENOUGH = 0.97
"""Share of the throughput that a step down must keep."""
GAIN = 1.05
"""Growth of the throughput that justifies a step up."""
STEPS_AT_REST = 6
"""Epochs between trials."""
FIRST_EPOCH_S = 0.2
EPOCH_S = 1.0
"""Throughput is measured over so long, at least; shorter while it still doubles."""


class AdaptiveLimit:
    """The limit of one key and model; `ceiling` is what the config or the operating system allows."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.value = min(START, ceiling)
        self._base = 0
        self._base_rate = 0.0
        self._growth = DOUBLE
        self._rest = 0
        self._try_less = False
        self._begin(0.0)

    def _begin(self, now_s: float) -> None:
        self._since_s = now_s
        self._replies = 0
        self._failures = 0
        self._filled = False

    def replied(self, now_s: float, in_flight: int, *, failed: bool) -> None:
        """Count one reply, or one failed attempt; `in_flight` as it was with it."""
        if self._replies == 0 and self._failures == 0:
            self._since_s = now_s
        self._replies += not failed
        self._failures += failed
        self._filled |= in_flight >= self.value
        count = self._replies + self._failures
        epoch_s = FIRST_EPOCH_S if self._growth == DOUBLE else EPOCH_S
        if count > max(self.value, JUDGED) and now_s - self._since_s >= epoch_s:
            self._judge(self._replies / (now_s - self._since_s), self._failures > TOO_MANY_FAILURES * count)
            self._begin(now_s)

    def _judge(self, rate: float, many_failures: bool) -> None:
        """The end of an epoch: keep what the last trial brought, or go back; rest, and try the other way."""
        if many_failures:
            self._settle(max(min(FEWEST, self.ceiling), int(self.value * 0.7)))
        elif not self._filled:
            return
        elif self._rest > 0:
            self._rest -= 1
            self._base_rate = rate if self._rest == STEPS_AT_REST - 1 else 0.7 * self._base_rate + 0.3 * rate
            if self._rest == 0:
                self._base = self.value
                self.value = self._step()
        elif self.value > self._base and rate >= GAIN * self._base_rate:
            self._base, self._base_rate = self.value, rate
            self.value = min(self.ceiling, max(self.value + 1, int(self.value * self._growth)))
        else:
            less_is_enough = self.value < self._base and rate >= ENOUGH * self._base_rate
            self._growth = STEP
            self._settle(self.value if less_is_enough else self._base)

    def _step(self) -> int:
        """The next trial: more and less in turn, so that noise cannot carry the limit away."""
        self._try_less = not self._try_less
        if self._try_less and self.value > FEWEST:
            return max(FEWEST, int(self.value / self._growth))
        return min(self.ceiling, max(self.value + 1, int(self.value * self._growth)))

    def _settle(self, value: int) -> None:
        self.value = self._base = value
        self._rest = STEPS_AT_REST
