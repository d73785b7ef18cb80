"""Beginnings that prompts share: which they are, what a model has read of them, and who waits for whom.

A prompt that shares its beginning with others leaves its keys and values here; the others go on from there. Nothing
is kept of prompts that share nothing. Every adapter has beginnings of its own. Knows nothing of models or queues.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

_LEAST_TOKENS = 16
"""Shorter beginnings are not worth their bookkeeping; nor is it worth waiting to save fewer tokens."""

_RECENT = 1024

Ids = tuple[int, ...]
Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each (heads, tokens, size)."""


class _SortedPrompts:
    """Token ids in lexicographic order, where the longest shared beginning is always a neighbour's."""

    def __init__(self) -> None:
        self._sorted: list[Ids] = []

    def add(self, ids: Ids) -> None:
        insort(self._sorted, ids)

    def remove(self, ids: Ids) -> None:
        place = bisect_left(self._sorted, ids)
        if place < len(self._sorted) and self._sorted[place] == ids:
            del self._sorted[place]

    def longest(self, ids: Ids) -> tuple[int, Ids]:
        """How many first tokens are shared with one of these, at most all but the last, and with which."""
        place = bisect_left(self._sorted, ids)
        near = self._sorted[max(0, place - 1) : place + 1]
        found = max(((_shared(ids, other), other) for other in near), key=lambda pair: pair[0], default=(0, ()))
        return min(found[0], len(ids) - 1), found[1]

    def longest_of_others(self, ids: Ids) -> int:
        """As `longest`, where `ids` itself is one of these."""
        place = bisect_left(self._sorted, ids)
        own = self._sorted[place : place + 1] == [ids]
        near = [*self._sorted[max(0, place - 1) : place], *self._sorted[place + own : place + own + 1]]
        return min(max((_shared(ids, other) for other in near), default=0), len(ids) - 1)


def _shared(one: Ids, other: Ids) -> int:
    """How many first tokens are equal, by bisection: comparing slices is quick."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(slots=True)
class _Known:
    """What is known of one adapter's prompts."""

    waiting: _SortedPrompts = field(default_factory=_SortedPrompts)
    recent: deque[Ids] = field(default_factory=deque[Ids])
    heads: _SortedPrompts = field(default_factory=_SortedPrompts)


class PrefixCache:
    """`note` prompts that come, ask for the `head` of one that is read, and `keep` what others may go on from."""

    def __init__(self, limit_bytes: int) -> None:
        """Heads take at most `limit_bytes` together; those unused for longest go first. 0 keeps nothing."""
        self._limit_bytes = limit_bytes
        self._known: dict[str | None, _Known] = {}
        self._layers: OrderedDict[tuple[str | None, Ids], Layers] = OrderedDict()
        self.held_bytes = 0
        self.hit_tokens = 0
        """Tokens that were not read since a head had them."""

    def note(self, adapter: str | None, ids: Ids) -> None:
        """A prompt has come; it counts among those that may share for a while."""
        if not self._limit_bytes or len(ids) <= _LEAST_TOKENS:
            return
        known = self._known.setdefault(adapter, _Known())
        known.waiting.add(ids)
        known.recent.append(ids)
        if len(known.recent) > _RECENT:
            known.waiting.remove(known.recent.popleft())

    def head_tokens(self, adapter: str | None, ids: Ids) -> int:
        """How many of the first tokens need not be read."""
        known = self._known.get(adapter)
        found = 0 if known is None else known.heads.longest(ids)[0]
        return found if found >= _LEAST_TOKENS else 0

    def head(self, adapter: str | None, ids: Ids) -> Layers | None:
        """Keys and values of the longest known beginning."""
        count = self.head_tokens(adapter, ids)
        if not count:
            return None
        key = (adapter, self._known[adapter].heads.longest(ids)[1])
        self._layers.move_to_end(key)
        self.hit_tokens += count
        return [(keys[:, :count], values[:, :count]) for keys, values in self._layers[key]]

    def worth_keeping(self, adapter: str | None, ids: Ids) -> int:
        """How many first tokens of a prompt to keep once it is read, since others share them; 0 where none do."""
        known = self._known.get(adapter)
        if known is None:
            return 0
        shared = known.waiting.longest_of_others(ids)
        return shared if shared - self.head_tokens(adapter, ids) >= _LEAST_TOKENS else 0

    def keep(self, adapter: str | None, ids: Ids, layers: Layers) -> None:
        """Keep a copy of a beginning's keys and values; `layers` may hold more tokens than `ids`."""
        if (adapter, ids) in self._layers:
            return
        copies = [tuple(states[:, : len(ids)].contiguous().clone() for states in pair) for pair in layers]
        self._layers[adapter, ids] = kept = [(keys, values) for keys, values in copies]
        self._known.setdefault(adapter, _Known()).heads.add(ids)
        self.held_bytes += _bytes_of(kept)
        while self.held_bytes > self._limit_bytes:
            self._drop(next(iter(self._layers)))

    def forget(self, adapter: str | None) -> None:
        """Drop all that belongs to an adapter."""
        for key in [key for key in self._layers if key[0] == adapter]:
            self._drop(key)
        self._known.pop(adapter, None)

    def _drop(self, key: tuple[str | None, Ids]) -> None:
        self.held_bytes -= _bytes_of(self._layers.pop(key))
        self._known[key[0]].heads.remove(key[1])


class Leaders:
    """The prompts of one pass that leave a head behind; `follows` says who had better wait for the next pass."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._leading: dict[str | None, _SortedPrompts] = {}

    def lead(self, adapter: str | None, ids: Ids) -> None:
        """A prompt is read in this pass."""
        if shared := self._cache.worth_keeping(adapter, ids):
            self._leading.setdefault(adapter, _SortedPrompts()).add(ids[:shared])

    def follows(self, adapter: str | None, ids: Ids) -> bool:
        """Whether a prompt shares more with one that is read in this pass than is known already."""
        leading = self._leading.get(adapter)
        if leading is None:
            return False
        return leading.longest(ids)[0] - self._cache.head_tokens(adapter, ids) >= _LEAST_TOKENS


def _bytes_of(layers: Sequence[tuple[Tensor, Tensor]]) -> int:
    return sum(states.numel() * states.element_size() for pair in layers for states in pair)
