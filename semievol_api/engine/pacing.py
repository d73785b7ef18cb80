"""One quota per minute, filled smoothly: when may the next request go?

A quota (requests or tokens per minute) comes from the config, from the server's headers, or both; the smaller
counts. Requests are spaced evenly at the quota's rate. Where the headers also tell what is left, the server's
bucket is followed: the rate rises while the bucket is more than half full and falls while it is less, and
nothing is sent that the bucket could not bear. Knows nothing of tasks, waiting or retrying.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CATCH_UP_S = 0.1
"""How far a late timer's lost time is made up for."""
MARGIN = 0.05
"""Share of the server's bucket that is left in it, against errors of the token estimate."""


@dataclass(frozen=True, slots=True)
class QuotaView:
    """The server's bucket as of one request: what was left, how much it holds, and what had been claimed."""

    left: float
    holds: float | None
    at_s: float
    claimed: float


class Quota:
    """Requests or tokens per minute of one key and model. Times are seconds of the injected clock."""

    def __init__(self, per_minute: float | None) -> None:
        self.configured = per_minute
        self.per_minute = per_minute
        self.claimed = 0.0
        self._next_s = float("-inf")
        self._view: QuotaView | None = None

    def observe(
        self, limit: int | None, left: int | None, reset_s: float | None, sent: tuple[float, float]
    ) -> None:
        """Learn from a reply's headers; `sent` is when its request went and what had been claimed by then."""
        if limit is not None and limit > 0:
            self.per_minute = limit if self.configured is None else min(limit, self.configured)
        if left is None or not self.per_minute:
            return
        at_s, claimed = sent
        if self._view is not None and self._view.at_s > at_s:
            return  # an older request's reply
        holds = None if reset_s is None else left + reset_s * self.per_minute / 60.0
        self._view = QuotaView(left, holds, at_s, claimed)

    def wait_s(self, now_s: float, amount: float) -> float:
        """Seconds until a request of this amount may go; 0 for now."""
        if not self.per_minute:
            return 0.0
        return max(self._next_s - now_s, self._deficit_s(now_s, amount), 0.0)

    def claim(self, now_s: float, amount: float) -> None:
        """Count a request that goes now."""
        self.claimed += amount
        if self.per_minute:
            spacing_s = amount * 60.0 / (self.per_minute * self._speed(now_s))
            self._next_s = max(self._next_s, now_s - CATCH_UP_S) + spacing_s

    def hold_until(self, at_s: float) -> None:
        """Nothing goes before; the spacing starts anew there."""
        self._next_s = max(self._next_s, at_s)

    def _level(self, view: QuotaView, now_s: float) -> float:
        assert self.per_minute
        level = view.left + (now_s - view.at_s) * self.per_minute / 60.0 - (self.claimed - view.claimed)
        return level if view.holds is None else min(level, view.holds)

    def _deficit_s(self, now_s: float, amount: float) -> float:
        view = self._view
        if view is None or not self.per_minute:
            return 0.0
        needed = amount
        if view.holds is not None:
            needed = min(amount + MARGIN * view.holds, 0.95 * view.holds)
        return (needed - self._level(view, now_s)) * 60.0 / self.per_minute

    def _speed(self, now_s: float) -> float:
        view = self._view
        if view is None or not view.holds:
            return 1.0
        fullness = min(max(self._level(view, now_s) / view.holds, 0.0), 1.0)
        return math.exp2(2.0 * fullness - 1.0)
