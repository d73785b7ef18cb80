"""Decides what runs next: which prompts are prefilled, and for which samples a token is decoded.

Samples share their steps, whenever they came, with whatever plain adapter. A prompt that shares its beginning with one
that is just being read waits for the next pass, and goes on from there. Owners take turns in prefill and in decoding,
and share the places of a step: where one holds more than its share and another waits, the shortest of its samples are
preempted; their keys and values are kept, and they go on later, bit for bit. Knows nothing of threads, HTTP or models.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from semievol_api.errors import UserError
from semievol_providers.local.adapters import AdapterShelf
from semievol_providers.local.decoding import DecodingSequence, KVCacheBuckets, NextTokens, ReadRow, Row
from semievol_providers.local.fairness import Places, Turns
from semievol_providers.local.packed import Layers, PackedModel, Prompt, cache_width, read_prompts
from semievol_providers.local.prefix import Leaders, PrefixCache

FAILURES = (RuntimeError, ValueError, OSError, MemoryError, UserError)
"""Errors that fail the requests of a pass; the engine goes on."""


_NEWCOMERS_SHARE = 8

_LOOK_AHEAD = 256
"""How many waiting prompts are looked at for a pass: those that had better come later give way to the next ones."""

_Waiting: TypeAlias = Row | ReadRow


class CachePlan:
    """What all keys and values together may take, and what those of one token take.

    `newcomers_bytes` of it are kept for owners that have nothing under way; `prefix_bytes` beside it are for beginnings
    that prompts share.
    """

    def __init__(self, limit_bytes: int, token_bytes: int, prefix_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.prefix_bytes = prefix_bytes
        self.newcomers_bytes = limit_bytes // _NEWCOMERS_SHARE
        self._token_bytes = token_bytes

    def needed_bytes(self, rows: Iterable[Row | DecodingSequence]) -> int:
        """What these samples take when they are as long as they may get."""
        asked = (row.request for row in rows)
        return sum(cache_width(len(r.prompt_ids) + r.max_tokens) * self._token_bytes for r in asked)


_Queue = tuple[str | None, str]
"""A group of adapters that share passes, and an owner."""


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
        decode_rows: int,
        prefill_s: float,
    ) -> None:
        self._shelf = shelf
        self._packed = packed
        self._next_tokens = next_tokens
        self._plan = plan
        self._decode_rows = decode_rows
        self._prefill_s = prefill_s
        self._prefixes = PrefixCache(plan.prefix_bytes)
        self._waiting: dict[_Queue, deque[tuple[int, _Waiting]]] = {}
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

    @property
    def hit_tokens(self) -> int:
        """How many tokens of prompts were not read, since a shared beginning had been."""
        return self._prefixes.hit_tokens

    def add(self, row: _Waiting) -> None:
        """Queue one sample or one look."""
        self._arrivals += 1
        adapter = row.request.adapter
        queue = (self._shelf.group_of(adapter), row.request.owner)
        self._waiting.setdefault(queue, deque()).append((self._arrivals, row))
        if row.sample == 0:  # the other samples of a request share its reading anyway
            self._prefixes.note(adapter, row.request.prompt_ids)

    def uses(self, adapter: str) -> bool:
        """Whether something waits or runs that needs this adapter."""
        waiting = (row for queue in self._waiting.values() for _, row in queue)
        return any(one.request.adapter == adapter for rows in (waiting, self._under_way()) for one in rows)

    def forget(self, adapter: str) -> None:
        """Free what is held for an adapter that nothing uses."""
        self.free()
        self._prefixes.forget(adapter)
        self._shelf.forget(adapter)

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
        deadline_s = time.monotonic() + self._prefill_s / max(1, decoding)
        while time.monotonic() < deadline_s and (rows := self._next_rows()):
            self._read(rows)
        self._decode()

    def _drop_abandoned(self) -> None:
        """Drop samples that ended and requests that were cancelled."""
        for buckets in self._buckets.values():
            buckets.compact()
        for waiting in self._waiting.values():
            while waiting and waiting[0][1].over:
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
        return Places(self._decode_rows, running, wanted)

    def _preempt_for(self, adapter: str | None, owner: str, count: int) -> None:
        """Preempt samples of the owners that hold most until so many of this owner's have a place."""
        buckets = self._buckets.setdefault(adapter, KVCacheBuckets())
        buckets.compact()
        places = self._places(adapter)
        running = Counter(places.running)
        for _ in range(sum(running.values()) + count - self._decode_rows):
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

    def _next_rows(self) -> list[_Waiting]:
        """Rows of the owner whose turn it is, those first that have waited longest, if they fit."""
        for owner in self._prefilling.order(owner for _, owner in self._waiting):
            queues = [queue for queue in self._waiting if queue[1] == owner]
            for queue in sorted(queues, key=lambda queue: self._waiting[queue][0][0]):
                rows = self._taken(queue)
                if rows:
                    return rows
        return []

    def _taken(self, queue: _Queue) -> list[_Waiting]:
        """The rows of one pass, the oldest first; those that would rather go on from one of these stay behind."""
        waiting, (group, owner) = self._waiting[queue], queue
        room = 0 if queue in self._preempted else self._places(group).room(owner)
        bytes_left = self._bytes_left(owner)
        idle = next(self._under_way(), None) is None
        rows: list[_Waiting] = []
        behind: list[tuple[int, _Waiting]] = []
        chosen = _ChosenPrompts(self._prefixes, self._packed.pass_tokens)
        while waiting and len(rows) < self._decode_rows and len(behind) < _LOOK_AHEAD:
            arrival, row = waiting.popleft()
            if row.over:
                continue
            if chosen.follows(row):
                behind.append((arrival, row))
                continue
            fits = True
            if isinstance(row, Row) and row.grows:  # else it ends with its prompt and needs no place
                room -= 1
                bytes_left -= self._plan.needed_bytes([row])
                fits = room >= 0 and (bytes_left >= 0 or (idle and not rows))
            if not (fits and chosen.add(row)):
                behind.append((arrival, row))
                break
            rows.append(row)
        waiting.extendleft(reversed(behind))
        if not waiting:
            del self._waiting[queue]
        return rows

    def _bytes_left(self, owner: str) -> int:
        """What one more owner's samples may take."""
        under_way = list(self._under_way())
        known = any(sample.request.owner == owner for sample in under_way)
        left = self._plan.limit_bytes - self._plan.needed_bytes(under_way)
        return left - (self._plan.newcomers_bytes if known else 0)

    def _read(self, rows: Sequence[_Waiting]) -> None:
        """Read these prompts, answer looks and choose samples' first tokens."""
        rows = [row for row in rows if self._is_ready(row)]
        if not rows:
            return
        adapter, owner = rows[0].request.adapter, rows[0].request.owner
        place = {key: i for i, key in enumerate(dict.fromkeys(map(_key, rows)))}
        try:
            prompts = [Prompt(ids, name, self._prefixes.head(name, ids)) for name, ids in place]
            kept = [self._prefixes.worth_keeping(name, ids) for name, ids in place]
            self._prefilling.charge(owner, sum(len(prompt.ids) - prompt.read_before for prompt in prompts))
            keep = any(kept) or any(row.grows for row in rows)
            model = self._shelf.ready(adapter)
            read = read_prompts(self._packed, model, prompts, keep=keep, read_ids=_read_ids(rows, place))
            for i, count in enumerate(kept):
                if count:
                    self._prefixes.keep(prompts[i].adapter, prompts[i].ids[:count], read.layers_of(i))
            self._answer(rows, read.logits[[place[_key(row)] for row in rows]])
            started = self._started(rows, read.logits[[place[_key(row)] for row in rows if isinstance(row, Row)]])
            self._make_room()
            self._preempt_for(self._shelf.group_of(adapter), owner, len(started))
            for sample in started:
                layers = read.layers_of(place[sample.request.adapter, sample.request.prompt_ids])
                self._buckets[self._shelf.group_of(adapter)].put(sample, layers)
        except FAILURES as error:
            _fail(rows, error)
        self._shelf.trim()

    def _is_ready(self, row: _Waiting) -> bool:
        try:
            self._shelf.ready(row.request.adapter)
        except FAILURES as error:
            row.fail(error)
            return False
        return True

    def _answer(self, rows: Sequence[_Waiting], logits: Tensor) -> None:
        """Answer the looks among these."""
        looks = [(i, row) for i, row in enumerate(rows) if isinstance(row, ReadRow)]
        if looks:
            logprobs = logits[[i for i, _ in looks]].log_softmax(-1).cpu()
            for (_, row), scores in zip(looks, logprobs, strict=True):
                row.answer(scores)

    def _started(self, rows: Sequence[_Waiting], logits: Tensor) -> list[DecodingSequence]:
        """The samples among these that go on after their first token."""
        started = [self._next_tokens.start(row) for row in rows if isinstance(row, Row)]
        if started:
            self._next_tokens.take(logits, started)
        return [sample for sample in started if not sample.over]

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
            self._advance(buckets)
        self._decoding.charge(order[0], time.monotonic() - since_s)

    def _advance(self, buckets: KVCacheBuckets) -> None:
        samples = buckets.samples
        try:
            models = [self._shelf.ready(sample.request.adapter) for sample in samples]
            self._next_tokens.take(buckets.advance(self._packed, models[0]), samples)
        except FAILURES as error:
            _fail(samples, error)


class _ChosenPrompts:
    """The different prompts of a pass that is being put together."""

    def __init__(self, prefixes: PrefixCache, most_tokens: int) -> None:
        self._prefixes = prefixes
        self._leaders = Leaders(prefixes)
        self._left = most_tokens
        self._keys: set[_Key] = set()

    def follows(self, row: _Waiting) -> bool:
        """Whether it had better wait until one of these has been read."""
        return _key(row) not in self._keys and self._leaders.follows(*_key(row))

    def add(self, row: _Waiting) -> bool:
        """Take a row in; False where the pass is full."""
        key = _key(row)
        if key in self._keys:
            return True
        tokens = len(key[1]) - self._prefixes.head_tokens(*key)
        if self._keys and tokens > self._left:
            return False
        self._left -= tokens
        self._keys.add(key)
        self._leaders.lead(*key)
        return True


_Key = tuple[str | None, tuple[int, ...]]
"""An adapter and a prompt."""


def _key(row: _Waiting) -> _Key:
    return row.request.adapter, row.request.prompt_ids


def _read_ids(rows: Sequence[_Waiting], place: dict[_Key, int]) -> list[list[int]]:
    """For every prompt, the tokens that somebody looks at."""
    found: list[list[int]] = [[] for _ in place]
    for row in rows:
        if isinstance(row, ReadRow):
            found[place[_key(row)]] += [token for group in row.request.token_groups for token in group]
    return found


def _fail(waiting: Iterable[_Waiting | DecodingSequence], error: Exception) -> None:
    for one in waiting:
        one.fail(error)
