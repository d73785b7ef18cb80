"""Quotas and the budget of all workers of a run, in one place; and a worker's side of it.

The quota server hands out leases: so many requests that may go now, so much that may be spent. What a dead worker had
leased stays charged until its shard is opened again and the shard's journal tells what was really spent. Knows nothing
of Ray, of requests or of stages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import Protocol

from semievol_api.config.settings import Limits
from semievol_api.engine.budget import NOTHING, Spend
from semievol_api.engine.pacing import Quota

PACED_S = 0.25
"""Requests are leased for about so long at a time."""
AHEAD = 16
"""Budget is leased for so many requests at a time, while there is much of it."""
_ROOM = 1e-12


class QuotaServer:
    """Runs as one actor. `spent` is what each shard's journal, by its name, has charged so far."""

    def __init__(self, limits: Limits, spent: Mapping[str, Spend], workers: int) -> None:
        self._limits = limits
        self._workers = workers
        self._charged = dict(spent)
        self._leased: dict[str, Spend] = {}
        self._requests, self._tokens = Quota(limits.rpm), Quota(limits.tpm)
        self._turn = asyncio.Lock()

    async def opened(self, shard: str, spent: Spend) -> None:
        """See `Leases`."""
        self._charged[shard] = spent
        self._leased[shard] = NOTHING

    async def closed(self, shard: str, spent: Spend) -> None:
        """See `Leases`."""
        await self.opened(shard, spent)

    async def more(self, shard: str, need: Spend) -> Spend:
        """Lease up to `AHEAD` times the need; just the need where little is left, nothing where it does not fit."""
        left_usd, left_tokens = self._left()
        for times in (AHEAD, 1):
            lease = Spend(times * need.usd, times * need.tokens)
            margin = self._workers * (times - 1) + 1
            if margin * need.usd <= left_usd + _ROOM and margin * need.tokens <= left_tokens:
                self._leased[shard] = self._leased.get(shard, NOTHING).plus(lease)
                return lease
        return NOTHING

    async def pace(self, tokens: float) -> int:
        """Comes back when some requests of about so many tokens each may go; how many."""
        async with self._turn:
            count = self._at_once()
            now_s = time.monotonic()
            wait_s = max(self._requests.wait_s(now_s, count), self._tokens.wait_s(now_s, tokens * count))
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            now_s = time.monotonic()
            self._requests.claim(now_s, count)
            self._tokens.claim(now_s, tokens * count)
            return count

    async def spent(self) -> Spend:
        """What is charged to all shards, leases of dead workers among it."""
        total = NOTHING
        for amount in (*self._charged.values(), *self._leased.values()):
            total = total.plus(amount)
        return total

    def _left(self) -> tuple[float, float]:
        usd, tokens = 0.0, 0
        for amount in (*self._charged.values(), *self._leased.values()):
            usd, tokens = usd + amount.usd, tokens + amount.tokens
        most_usd = float("inf") if self._limits.max_usd is None else self._limits.max_usd
        most_tokens = float("inf") if self._limits.max_tokens is None else self._limits.max_tokens
        return most_usd - usd, most_tokens - tokens

    def _at_once(self) -> int:
        per_second = (self._limits.rpm or 60_000) / 60.0
        return max(1, round(per_second * PACED_S / self._workers))


class Line(Protocol):
    """The way to the quota server."""

    def opened(self, shard: str, spent: Spend) -> Awaitable[None]: ...
    def closed(self, shard: str, spent: Spend) -> Awaitable[None]: ...
    def more(self, shard: str, need: Spend) -> Awaitable[Spend]: ...
    def pace(self, tokens: float) -> Awaitable[int]: ...


class ShardLeases:
    """`Leases` of the engine that works on one shard; `line` leads to the quota server."""

    def __init__(self, line: Line, shard: str, *, paced: bool) -> None:
        self._line = line
        self._shard = shard
        self._paced = paced
        self._pocket = 0
        self._tokens = 0.0
        self._turn = asyncio.Lock()

    async def opened(self, spent: Spend) -> None:
        """See `Leases`."""
        await self._line.opened(self._shard, spent)

    async def closed(self, spent: Spend) -> None:
        """See `Leases`."""
        await self._line.closed(self._shard, spent)

    async def more(self, need: Spend) -> Spend:
        """See `Leases`."""
        return await self._line.more(self._shard, need)

    async def pace(self, tokens: float) -> None:
        """See `Leases`."""
        if not self._paced:
            return
        async with self._turn:
            while self._pocket < 1 or self._tokens < tokens:
                count = await self._line.pace(tokens)
                self._pocket += count
                self._tokens += count * tokens
            self._pocket -= 1
            self._tokens -= tokens
