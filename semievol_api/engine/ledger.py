"""What each stage sent, was served, paid and lost, as the engine goes along.

    ledger.stages["annotate"].requests

Knows nothing of how requests are sent or stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from semievol_api.records import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBill:
    """One stage's bill in this process.

    `requests` counts replies paid for, `attempts` everything that was sent, `cached` the asks served without
    sending. `lost_usd` and `lost_tokens` are upper bounds for replies that never arrived; they are not in
    `usd` and `usage`. `unpriced` counts requests to models whose price nobody knows. `seconds` is the time in
    which the stage had asks open.
    """

    asks: int = 0
    requests: int = 0
    attempts: int = 0
    cached: int = 0
    failed: int = 0
    rate_limited: int = 0
    usage: Usage = field(default_factory=Usage)
    usd: float = 0.0
    unpriced: int = 0
    lost_usd: float = 0.0
    lost_tokens: int = 0
    seconds: float = 0.0


class Tally:
    """The running counts behind one bill."""

    def __init__(self) -> None:
        self.asks = 0
        self.requests = 0
        self.attempts = 0
        self.cached = 0
        self.failed = 0
        self.rate_limited = 0
        self.prompt = 0
        self.completion = 0
        self.cached_tokens = 0
        self.usd = 0.0
        self.unpriced = 0
        self.lost_usd = 0.0
        self.lost_tokens = 0
        self.seconds = 0.0
        self._open = 0
        self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """A stream of asks opens."""
        if self._open == 0:
            self._since_s = now_s
        self._open += 1

    def end(self, now_s: float) -> None:
        """A stream of asks is done."""
        self._open -= 1
        if self._open == 0:
            self.seconds += now_s - self._since_s

    def paid(self, usage: Usage, usd: float, *, priced: bool) -> None:
        """A reply arrived."""
        self.requests += 1
        self.prompt += usage.prompt
        self.completion += usage.completion
        self.cached_tokens += usage.cached
        self.usd += usd
        self.unpriced += not priced

    def add(self, bill: StageBill) -> None:
        """What another engine of the run did for the stage."""
        self.asks += bill.asks
        self.requests += bill.requests
        self.attempts += bill.attempts
        self.cached += bill.cached
        self.failed += bill.failed
        self.rate_limited += bill.rate_limited
        self.prompt += bill.usage.prompt
        self.completion += bill.usage.completion
        self.cached_tokens += bill.usage.cached
        self.usd += bill.usd
        self.unpriced += bill.unpriced
        self.lost_usd += bill.lost_usd
        self.lost_tokens += bill.lost_tokens

    def bill(self, now_s: float) -> StageBill:
        """The counts as of now."""
        return StageBill(
            asks=self.asks,
            requests=self.requests,
            attempts=self.attempts,
            cached=self.cached,
            failed=self.failed,
            rate_limited=self.rate_limited,
            usage=Usage(self.prompt, self.completion, self.cached_tokens),
            usd=self.usd,
            unpriced=self.unpriced,
            lost_usd=self.lost_usd,
            lost_tokens=self.lost_tokens,
            seconds=self.seconds + (now_s - self._since_s if self._open else 0.0),
        )


class Ledger:
    """The bills of all stages."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._tallies: dict[str, Tally] = {}

    def tally(self, stage: str) -> Tally:
        """The running counts of a stage."""
        return self._tallies.setdefault(stage, Tally())

    @property
    def stages(self) -> Mapping[str, StageBill]:
        """One bill per stage, in the order of their first ask."""
        now_s = self._now_s()
        return {stage: tally.bill(now_s) for stage, tally in self._tallies.items()}

    @property
    def usd(self) -> float:
        """What this process paid, lost replies not counted."""
        return sum(tally.usd for tally in self._tallies.values())
