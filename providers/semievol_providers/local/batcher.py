"""Decides what runs next: prompts are read as they come, and every sample under way grows by a token in turn.

Samples of one adapter share their steps, whenever they came; adapters take turns. Knows nothing of threads, futures,
HTTP or how a model works.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from semievol_api.errors import UserError
from semievol_providers.local.adapters import AdapterShelf
from semievol_providers.local.lanes import Lanes
from semievol_providers.local.packed import PackedModel
from semievol_providers.local.padding import cache_width
from semievol_providers.local.prefill import PASS_TOKENS, read_prompts
from semievol_providers.local.requests import EngineSettings
from semievol_providers.local.samples import Growing, NextTokens, Row

FAILURES = (RuntimeError, ValueError, OSError, MemoryError, UserError)
"""What ends the requests of a pass, and not the engine."""


class CachePlan:
    """What all keys and values together may take, and what those of one token take."""

    def __init__(self, limit_bytes: int, token_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._token_bytes = token_bytes

    def needed_bytes(self, rows: Iterable[Row | Growing]) -> int:
        """What these samples take when they are as long as they may get."""
        asked = (row.request for row in rows)
        return sum(cache_width(len(r.prompt_ids) + r.max_tokens) * self._token_bytes for r in asked)


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
        self._waiting: dict[str | None, deque[tuple[int, Row]]] = {}
        self._lanes: dict[str | None, Lanes] = {}
        self._arrivals = 0

    @property
    def busy(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self._waiting) or any(lanes.samples for lanes in self._lanes.values())

    @property
    def allocated_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(lanes.allocated_bytes for lanes in self._lanes.values())

    def add(self, row: Row) -> None:
        """Queue one sample."""
        self._arrivals += 1
        self._waiting.setdefault(row.request.adapter, deque()).append((self._arrivals, row))

    def uses(self, adapter: str) -> bool:
        """Whether something waits or runs that needs this adapter."""
        lanes = self._lanes.get(adapter)
        return adapter in self._waiting or (lanes is not None and bool(lanes.samples))

    def free(self) -> None:
        """Give back the caches in which nothing is under way."""
        for lanes in self._lanes.values():
            lanes.settle()
            lanes.free()
        self._lanes = {adapter: lanes for adapter, lanes in self._lanes.items() if lanes.samples}

    def step(self) -> None:
        """Read some of the prompts that wait, then choose one more token for every sample under way."""
        deadline_s = time.monotonic() + self._settings.prefill_s
        while time.monotonic() < deadline_s and (rows := self._next_rows()):
            self._read(rows)
        for adapter, lanes in list(self._lanes.items()):
            lanes.settle()
            if lanes.samples:
                self._advance(adapter, lanes)

    # -------------------------------------------------------------------------------------------- prompts
    def _next_rows(self) -> list[Row]:
        """The rows that have waited longest and fit, with others of their adapter for one pass."""
        for adapter in sorted(self._waiting, key=lambda adapter: self._waiting[adapter][0][0]):
            rows = self._taken(adapter)
            if rows:
                return rows
        return []

    def _taken(self, adapter: str | None) -> list[Row]:
        waiting = self._waiting[adapter]
        under_way = [sample for lanes in self._lanes.values() for sample in lanes.samples if not sample.over]
        room = self._settings.decode_rows - sum(sample.request.adapter == adapter for sample in under_way)
        bytes_left = self._plan.limit_bytes - self._plan.needed_bytes(under_way)
        rows: list[Row] = []
        prompts: set[tuple[int, ...]] = set()
        while waiting and len(rows) < room:
            row = waiting[0][1]
            bytes_left -= self._plan.needed_bytes([row])
            fits = bytes_left >= 0 or not (under_way or rows)
            tokens = sum(len(prompt) for prompt in prompts | {row.request.prompt_ids})
            if not fits or (prompts and tokens > PASS_TOKENS):
                break
            waiting.popleft()
            if not row.listener.dropped:
                rows.append(row)
                prompts.add(row.request.prompt_ids)
        if not waiting:
            del self._waiting[adapter]
        return rows

    def _read(self, rows: Sequence[Row]) -> None:
        """Read these prompts and choose their first tokens."""
        adapter = rows[0].request.adapter
        prompts = list(dict.fromkeys(row.request.prompt_ids for row in rows))
        try:
            read = read_prompts(self._packed, self._shelf.model_for(adapter), prompts, keep=True)
            source = {prompt: i for i, prompt in enumerate(prompts)}
            samples = [self._next_tokens.start(row) for row in rows]
            self._next_tokens.take(read.logits[[source[row.request.prompt_ids] for row in rows]], samples)
            self._make_room()
            lanes = self._lanes.setdefault(adapter, Lanes())
            for sample in samples:
                if not sample.over:
                    lanes.put(sample, read.layers_of(source[sample.request.prompt_ids]))
        except FAILURES as error:
            _fail(rows, error)

    def _make_room(self) -> None:
        """Give back empty lanes' slots where all slots together are more than half of what they may be."""
        if 2 * self.allocated_bytes > self._plan.limit_bytes:
            self.free()

    # ---------------------------------------------------------------------------------------------- steps
    def _advance(self, adapter: str | None, lanes: Lanes) -> None:
        samples = lanes.samples
        try:
            self._next_tokens.take(lanes.advance(self._packed, self._shelf.model_for(adapter)), samples)
        except FAILURES as error:
            _fail(samples, error)


def _fail(waiting: Iterable[Row | Growing], error: Exception) -> None:
    for one in waiting:
        one.listener.fail(error)
