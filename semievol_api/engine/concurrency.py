"""How many requests to keep in flight: more for as long as more come back per second.

Starts moderately and doubles while that pays; once it does not, goes back one step, and tries again from time
to time. Many failures at once bring it down. Knows nothing of what is in flight.
"""

from __future__ import annotations

START = 64
GAIN = 1.05
"""Growth of the throughput that justifies a step up."""
STEPS_AT_REST = 12
"""Epochs without a trial after a step up that did not pay."""
EPOCH_S = 0.2


class AdaptiveLimit:
    """The limit of one key and model; `ceiling` is what the config or the operating system allows."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.value = min(START, ceiling)
        self._base = self.value
        self._base_rate = 0.0
        self._growth = 2.0
        self._rest = 0
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
        if count > self.value and now_s - self._since_s >= EPOCH_S:
            self._judge(self._replies / (now_s - self._since_s), self._failures > 0.25 * count)
            self._begin(now_s)

    def _judge(self, rate: float, many_failures: bool) -> None:
        if many_failures:
            self._settle(max(1, int(self.value * 0.7)))
        elif not self._filled:
            return
        elif self._rest > 0:
            self._rest -= 1
            self._base_rate = rate
        elif self.value > self._base and rate < GAIN * self._base_rate:
            self._growth = 1.25
            self._settle(self._base)
        else:
            self._base, self._base_rate = self.value, rate
            self.value = min(self.ceiling, max(self.value + 1, int(self.value * self._growth)))

    def _settle(self, value: int) -> None:
        self.value = self._base = value
        self._rest = STEPS_AT_REST
