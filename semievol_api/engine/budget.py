"""The budget: reserved before a request is sent, settled by its reply, kept where the reply was lost.

What is reserved is an upper bound, so the cap holds under any concurrency. Near the cap, requests wait for
others to be settled; only when nothing is in flight and the next one still does not fit is the budget spent.
With a cap, what is in flight is also written down beforehand (a lease), so that a process that is killed
leaves it charged. The ledger beside it counts what each stage has sent and paid. Knows nothing of requests and
providers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from semievol_api.capabilities import ModelLimits
from semievol_api.config.settings import Limits
from semievol_api.errors import BudgetError, ConfigError
from semievol_api.records import Usage

BATCH_SHARE = 0.5
"""What a request costs in a batch, as a share of its usual price."""
_ROOM = 1e-12


class Spend(NamedTuple):
    """An amount of money and of tokens."""

    usd: float
    tokens: int

    def plus(self, other: Spend) -> Spend:
        """The sum."""
        return Spend(self.usd + other.usd, self.tokens + other.tokens)

    def minus(self, other: Spend) -> Spend:
        """The difference."""
        return Spend(self.usd - other.usd, self.tokens - other.tokens)


NOTHING = Spend(0.0, 0)


def price(usage: Usage, limits: ModelLimits | None, *, share: float = 1.0) -> float:
    """USD of a usage; 0 where the price is not known."""
    if limits is None or limits.input_usd is None:
        return 0.0
    cached_usd = limits.input_usd if limits.cached_input_usd is None else limits.cached_input_usd
    input_usd = (usage.prompt - usage.cached) * limits.input_usd + usage.cached * cached_usd
    return share * (input_usd + usage.completion * (limits.output_usd or 0.0)) / 1e6


class Budget:
    """One run's caps. `persist` writes a lease to the journal and comes back when it is on disk.

    One of several engines of a run spends no more than `more` has leased to it.
    """

    def __init__(
        self,
        limits: Limits,
        spent: Spend,
        persist: Callable[[Spend], Awaitable[None]],
        more: Callable[[Spend], Awaitable[Spend]] | None = None,
    ) -> None:
        self.capped = limits.max_usd is not None or limits.max_tokens is not None
        self.lost = NOTHING
        self.reserved = NOTHING
        self._max_usd = limits.max_usd
        self._max_tokens = limits.max_tokens
        self._more = more
        self._extending = asyncio.Lock()
        if more is not None:  # nothing may be spent before it is leased
            self._max_usd = None if limits.max_usd is None else spent.usd
            self._max_tokens = None if limits.max_tokens is None else spent.tokens
        self._spent = spent
        self._persist = persist
        self._open = 0
        self._written_down = NOTHING  # open batches: reserved, but not by anything in flight here
        self._leased = NOTHING
        self._writing = asyncio.Lock()
        self._waiters: deque[tuple[asyncio.Future[bool], Spend]] = deque()

    @property
    def spent(self) -> Spend:
        """Everything that is charged, lost replies among it; what is in flight is not."""
        return self._spent.plus(self.lost)

    def check_price(self, model: str, limits: ModelLimits | None) -> None:
        """Refuse a model without a price where USD are capped.

        Raises:
            ConfigError: nobody knows what the model costs.
        """
        if self._max_usd is not None and (limits is None or limits.input_usd is None):
            raise ConfigError(
                f"max_usd is set, but the price of the model {model!r} is not known. Give its prices in a file of your "
                f"own and name it in [catalogue] file (0 for a model that costs nothing), or cap max_tokens instead."
            )

    async def reserve(self, need: Spend) -> None:
        """Set an amount aside; comes back when a request of that size may be sent.

        Raises:
            BudgetError: it does not fit, and nothing in flight could make room.
        """
        if self._more is not None and not self._fits(need):
            await self._lease(need, self._more)
        if self._waiters or not self._fits(need):
            await self._wait_for_room(need)
        else:
            self._set_aside(need)
        try:
            await self._write_beforehand()
        except BaseException:
            self._give_back(need)
            raise

    async def _lease(self, need: Spend, more: Callable[[Spend], Awaitable[Spend]]) -> None:
        """Lease as much as is needed, if all together still may spend it."""
        async with self._extending:
            if self._fits(need):
                return
            extra = await more(need)
            if self._max_usd is not None:
                self._max_usd += extra.usd
            if self._max_tokens is not None:
                self._max_tokens += extra.tokens
            self._wake()

    def could_take(self, need: Spend) -> bool:
        """True where an amount could be adopted now."""
        return not self._waiters and self._fits(need)

    def adopt(self, need: Spend) -> None:
        """Set aside what the journal knows otherwise: an open batch, of this process or an earlier one."""
        self._written_down = self._written_down.plus(need)

    def settle_written(self, need: Spend) -> None:
        """What was written down is over; what it cost has been added by `add`."""
        self._written_down = self._written_down.minus(need)
        self._wake()

    def add(self, actual: Spend) -> None:
        """Something was paid whose reservation is settled as a whole."""
        self._spent = self._spent.plus(actual)

    def settle(self, need: Spend, actual: Spend) -> None:
        """The reply came, and cost `actual`."""
        self._spent = self._spent.plus(actual)
        self._give_back(need)

    def release(self, need: Spend) -> None:
        """Nothing was bought: the server refused, or was never reached."""
        self._give_back(need)

    def lose(self, need: Spend) -> None:
        """The reply was lost on the way: it stays charged."""
        self.lost = self.lost.plus(need)
        self._give_back(need)

    def _set_aside(self, need: Spend) -> None:
        self._open += 1
        self.reserved = self.reserved.plus(need)

    def _give_back(self, need: Spend) -> None:
        self._open -= 1
        self.reserved = self.reserved.minus(need) if self._open else NOTHING
        self._wake()

    async def _wait_for_room(self, need: Spend) -> None:
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append((turn, need))
        self._wake()
        try:
            granted = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._give_back(need)
            raise
        if not granted:
            raise self.exhausted(need)

    def _wake(self) -> None:
        while self._waiters:
            turn, need = self._waiters[0]
            fits = self._fits(need)
            if not turn.done():
                if not fits and self._open:
                    return
                if fits:
                    self._set_aside(need)
                turn.set_result(fits)
            self._waiters.popleft()

    def _outstanding(self) -> Spend:
        return self.reserved.plus(self.lost)

    def _fits(self, need: Spend) -> bool:
        total = self.spent.plus(self.reserved).plus(self._written_down).plus(need)
        fits_usd = self._max_usd is None or total.usd <= self._max_usd + _ROOM
        return fits_usd and (self._max_tokens is None or total.tokens <= self._max_tokens)

    def _covers(self, amount: Spend) -> bool:
        return amount.usd <= self._leased.usd + _ROOM and amount.tokens <= self._leased.tokens

    async def _write_beforehand(self) -> None:
        """Have a lease on disk that covers all that is in flight, with room for as much again."""
        while not self._covers(self._outstanding()):
            async with self._writing:
                now = self._outstanding()
                if not self._covers(now):
                    lease = Spend(2 * now.usd, 2 * now.tokens)
                    await self._persist(lease)
                    self._leased = lease

    def exhausted(self, need: Spend) -> BudgetError:
        """The error that says so."""
        caps: list[str] = []
        if self._max_usd is not None:
            caps.append(f"{self.spent.usd:.4f} of max_usd = {self._max_usd:g} USD")
        if self._max_tokens is not None:
            caps.append(f"{self.spent.tokens} of max_tokens = {self._max_tokens}")
        return BudgetError(
            f"The budget is spent: {' and '.join(caps)}, and the next request may need up to {need.usd:.4f} USD "
            f"and {need.tokens} tokens. Everything paid for is kept; raise the cap and run again to go on."
        )


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
