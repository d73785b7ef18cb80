"""One quota per minute, filled smoothly: when may the next request go?

A quota (requests or tokens per minute) comes from the config, from the server's headers, or both; the smaller
counts. Requests are spaced evenly at the quota's rate. Where the headers also tell what is left, the server's
bucket is followed: the rate rises while the bucket is more than half full and falls while it is less, and
nothing is sent that the bucket could not bear. Knows nothing of tasks, waiting or retrying.
"""

from __future__ import annotations

from typing import NamedTuple

CATCH_UP_S = 0.1
"""How far a late timer's lost time is made up for."""
MARGIN = 0.05
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
            needed = min(amount + MARGIN * self._holds, 0.95 * self._holds)
        return wait_s if level >= needed else max(wait_s, (needed - level) / rate)

    def claim(self, now_s: float, amount: float) -> None:
        """Count a request that goes now."""
        self.claimed += amount
        if self.per_minute:
            self._next_s = max(self._next_s, now_s - CATCH_UP_S) + amount * self._spacing_s

    def hold_until(self, at_s: float) -> None:
        """Nothing goes before; the spacing starts anew there."""
        self._next_s = max(self._next_s, at_s)
