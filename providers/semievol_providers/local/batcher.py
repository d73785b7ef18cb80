"""Decides what runs next: which prompts are prefilled, and for which adapter's samples a token is decoded.

Samples of one adapter share their steps, whenever they came. Owners take turns in prefill and in decoding, and share
the places of a step: where one holds more than its share and another waits, the shortest of its samples are preempted;
their keys and values are kept, and they go on later, bit for bit. Knows nothing of threads, futures, HTTP or models.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from semievol_api.errors import UserError
from semievol_providers.local.decoding import DecodingSequence, KVCacheBuckets, NextTokens, Row
from semievol_providers.local.fairness import Places, Turns
from semievol_providers.local.packed import PASS_TOKENS, AdapterShelf, Layers, PackedModel, cache_width, read_prompts
from semievol_providers.local.requests import EngineSettings

FAILURES = (RuntimeError, ValueError, OSError, MemoryError, UserError)
"""Errors that fail the requests of a pass; the engine goes on."""


_NEWCOMERS_SHARE = 8


class CachePlan:
    """What all keys and values together may take, and what those of one token take.

    `newcomers_bytes` of it are kept for owners that have nothing under way.
    """

    def __init__(self, limit_bytes: int, token_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.newcomers_bytes = limit_bytes // _NEWCOMERS_SHARE
        self._token_bytes = token_bytes

    def needed_bytes(self, rows: Iterable[Row | DecodingSequence]) -> int:
        """What these samples take when they are as long as they may get."""
        asked = (row.request for row in rows)
        return sum(cache_width(len(r.prompt_ids) + r.max_tokens) * self._token_bytes for r in asked)


_Queue = tuple[str | None, str]
"""An adapter and an owner."""


@dataclass(frozen=True, slots=True)
class _Preempted:
    """A sample that was preempted for another owner, and what its cache held."""

    sample: DecodingSequence
    layers: Layers


class Batcher:
    """`add` rows and call `step` while `busy`; answers go to the rows' listeners."""

    def __init__(
        self,
        shelf: AdapterShelf,
        packed: PackedModel,
        next_tokens: NextTokens,
        plan: CachePlan,
        settings: EngineSettings,
    ) -> None:
        self._shelf = shelf
        self._packed = packed
        self._next_tokens = next_tokens
        self._plan = plan
        self._settings = settings
        self._waiting: dict[_Queue, deque[tuple[int, Row]]] = {}
        self._preempted: dict[_Queue, deque[_Preempted]] = {}
        self._buckets: dict[str | None, KVCacheBuckets] = {}
        self._prefilling = Turns()
        self._decoding = Turns()
        self._arrivals = 0

    @property
    def busy(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self._waiting or self._preempted) or any(buckets.samples for buckets in self._buckets.values())

    @property
    def allocated_bytes(self) -> int:
        """Memory of all keys and values in buckets."""
        return sum(buckets.allocated_bytes for buckets in self._buckets.values())

    @property
    def preempted(self) -> int:
        """How many samples were preempted and wait to go on."""
        return sum(len(queue) for queue in self._preempted.values())

    def add(self, row: Row) -> None:
        """Queue one sample."""
        self._arrivals += 1
        queue = (row.request.adapter, row.request.owner)
        self._waiting.setdefault(queue, deque()).append((self._arrivals, row))

    def uses(self, adapter: str) -> bool:
        """Whether something waits or runs that needs this adapter."""
        buckets = self._buckets.get(adapter)
        waits = any(name == adapter for name, _ in (*self._waiting, *self._preempted))
        return waits or (buckets is not None and bool(buckets.samples))

    def free(self) -> None:
        """Give back the caches in which nothing is under way."""
        for buckets in self._buckets.values():
            buckets.compact()
            buckets.free()
        self._buckets = {adapter: buckets for adapter, buckets in self._buckets.items() if buckets.samples}

    def step(self) -> None:
        """Read some of the prompts that wait, then choose one more token for every sample of one adapter."""
        self._drop_abandoned()
        self._resume()
        decoding = sum(bool(buckets.samples) for buckets in self._buckets.values())
        deadline_s = time.monotonic() + self._settings.prefill_s / max(1, decoding)
        while time.monotonic() < deadline_s and (rows := self._next_rows()):
            self._read(rows)
        self._decode()

    def _drop_abandoned(self) -> None:
        """Drop samples that ended and requests that were cancelled."""
        for buckets in self._buckets.values():
            buckets.compact()
        for waiting in self._waiting.values():
            while waiting and waiting[0][1].listener.dropped:
                waiting.popleft()
        self._waiting = {queue: waiting for queue, waiting in self._waiting.items() if waiting}
        kept = {
            queue: deque(one for one in preempted if not one.sample.over)
            for queue, preempted in self._preempted.items()
        }
        self._preempted = {queue: preempted for queue, preempted in kept.items() if preempted}

    # --------------------------------------------------------------------------------------------- places
    def _places(self, adapter: str | None) -> Places:
        """Who holds and who wants a place in this adapter's steps."""
        buckets = self._buckets.get(adapter)
        running = (
            Counter(sample.request.owner for sample in buckets.samples if not sample.over) if buckets else Counter()
        )
        wanted: Counter[str] = Counter()
        for queues in (self._waiting, self._preempted):
            for (name, owner), queue in queues.items():
                if name == adapter:
                    wanted[owner] += len(queue)
        return Places(self._settings.decode_rows, running, wanted)

    def _preempt_for(self, adapter: str | None, owner: str, count: int) -> None:
        """Preempt samples of the owners that hold most until so many of this owner's have a place."""
        buckets = self._buckets.setdefault(adapter, KVCacheBuckets())
        buckets.compact()
        places = self._places(adapter)
        running = Counter(places.running)
        for _ in range(sum(running.values()) + count - self._settings.decode_rows):
            other = Places(places.count, running, {}).largest(besides=owner)
            if other is None:
                return
            shortest = min((s for s in buckets.samples if s.request.owner == other), key=lambda s: s.position)
            self._preempted.setdefault((adapter, other), deque()).append(
                _Preempted(shortest, buckets.take_out(shortest))
            )
            running[other] -= 1

    def _resume(self) -> None:
        """Let preempted samples go on where there is room for them."""
        for owner in self._decoding.order(owner for _, owner in self._preempted):
            for queue in [queue for queue in self._preempted if queue[1] == owner]:
                adapter, preempted = queue[0], self._preempted[queue]
                for _ in range(min(len(preempted), self._places(adapter).room(owner))):
                    one = preempted.popleft()
                    try:
                        self._preempt_for(adapter, owner, 1)
                        self._buckets[adapter].put(one.sample, one.layers)
                    except FAILURES as error:
                        _fail([one.sample], error)
                if not preempted:
                    del self._preempted[queue]

    # -------------------------------------------------------------------------------------------- prompts
    def _under_way(self) -> Iterator[DecodingSequence]:
        for buckets in self._buckets.values():
            yield from (sample for sample in buckets.samples if not sample.over)
        for preempted in self._preempted.values():
            yield from (one.sample for one in preempted)

    def _next_rows(self) -> list[Row]:
        """Rows of the owner whose turn it is, those first that have waited longest, if they fit."""
        for owner in self._prefilling.order(owner for _, owner in self._waiting):
            queues = [queue for queue in self._waiting if queue[1] == owner]
            for queue in sorted(queues, key=lambda queue: self._waiting[queue][0][0]):
                rows = self._taken(queue)
                if rows:
                    return rows
        return []

    def _taken(self, queue: _Queue) -> list[Row]:
        waiting, (adapter, owner) = self._waiting[queue], queue
        room = 0 if queue in self._preempted else self._places(adapter).room(owner)
        under_way = list(self._under_way())
        known = any(sample.request.owner == owner for sample in under_way)
        bytes_left = self._plan.limit_bytes - self._plan.needed_bytes(under_way)
        bytes_left -= self._plan.newcomers_bytes if known else 0
        rows: list[Row] = []
        prompts: set[tuple[int, ...]] = set()
        while waiting and len(rows) < self._settings.decode_rows:
            row = waiting[0][1]
            if row.request.max_tokens > 1:  # else it ends with its prompt and needs no place
                room -= 1
                bytes_left -= self._plan.needed_bytes([row])
            fits = room >= 0 and (bytes_left >= 0 or not (under_way or rows))
            tokens = sum(len(prompt) for prompt in prompts | {row.request.prompt_ids})
            if (row.request.max_tokens > 1 and not fits) or (prompts and tokens > PASS_TOKENS):
                break
            waiting.popleft()
            if not row.listener.dropped:
                rows.append(row)
                prompts.add(row.request.prompt_ids)
        if not waiting:
            del self._waiting[queue]
        return rows

    def _read(self, rows: Sequence[Row]) -> None:
        """Read these prompts and choose their first tokens."""
        adapter, owner = rows[0].request.adapter, rows[0].request.owner
        prompts = list(dict.fromkeys(row.request.prompt_ids for row in rows))
        self._prefilling.charge(owner, sum(len(prompt) for prompt in prompts))
        try:
            read = read_prompts(self._packed, self._shelf.model_for(adapter), prompts, keep=True)
            source = {prompt: i for i, prompt in enumerate(prompts)}
            started = [self._next_tokens.start(row) for row in rows]
            self._next_tokens.take(read.logits[[source[row.request.prompt_ids] for row in rows]], started)
            self._make_room()
            samples = [sample for sample in started if not sample.over]
            self._preempt_for(adapter, owner, len(samples))
            for sample in samples:
                self._buckets[adapter].put(sample, read.layers_of(source[sample.request.prompt_ids]))
        except FAILURES as error:
            _fail(rows, error)

    def _make_room(self) -> None:
        """Give back empty buckets' slots where all slots together are more than half of what they may be."""
        if 2 * self.allocated_bytes > self._plan.limit_bytes:
            self.free()

    # ---------------------------------------------------------------------------------------------- steps
    def _decode(self) -> None:
        """A step of the owner whose turn it is, with the adapter of its that has waited longest."""
        owners = {adapter: {s.request.owner for s in buckets.samples} for adapter, buckets in self._buckets.items()}
        order = self._decoding.order(owner for found in owners.values() for owner in sorted(found))
        if not order:
            return
        adapter = next(adapter for adapter, found in owners.items() if order[0] in found)
        buckets = self._buckets[adapter] = self._buckets.pop(adapter)  # to the end of the line
        since_s = time.monotonic()
        buckets.compact()
        if buckets.samples:
            self._advance(adapter, buckets)
        self._decoding.charge(order[0], time.monotonic() - since_s)

    def _advance(self, adapter: str | None, buckets: KVCacheBuckets) -> None:
        samples = buckets.samples
        try:
            self._next_tokens.take(buckets.advance(self._packed, self._shelf.model_for(adapter)), samples)
        except FAILURES as error:
            _fail(samples, error)


def _fail(waiting: Iterable[Row | DecodingSequence], error: Exception) -> None:
    for one in waiting:
        one.listener.fail(error)
