"""Decides what runs next: prompts are read as they come, and every sample under way grows by a token in turn.

Samples of one adapter and cache width share their steps, whenever they came; adapters take turns. Knows nothing of
threads, futures, HTTP or how a model works.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semievol_api.errors import UserError
from semievol_providers.local.adapters import AdapterShelf
from semievol_providers.local.lanes import Lane
from semievol_providers.local.padding import cache_width, prompt_bucket
from semievol_providers.local.prefill import PromptReader, most_prompts
from semievol_providers.local.requests import EngineSettings
from semievol_providers.local.row_shapes import RowShapes
from semievol_providers.local.samples import Growing, NextTokens, Row
from semievol_providers.local.sight import Sight

FAILURES = (RuntimeError, ValueError, OSError, MemoryError, UserError)
"""What ends the requests of a pass, and not the engine."""
_LEAST_ROWS = 4
_Bucket = tuple[str | None, int]


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What all keys and values together may take, what those of one token take, and what layers see of them."""

    limit_bytes: int
    token_bytes: int
    sight: Sight


class Batcher:
    """`add` rows and call `step` while `busy`; answers go to the rows' listeners."""

    def __init__(
        self, shelf: AdapterShelf, next_tokens: NextTokens, pad_id: int, plan: CachePlan, settings: EngineSettings
    ) -> None:
        self._shelf = shelf
        self._next_tokens = next_tokens
        self._pad_id = pad_id
        self._plan = plan
        self._settings = settings
        self._shapes = RowShapes()
        self._reader = PromptReader(self._shapes, pad_id)
        self._waiting: dict[_Bucket, deque[tuple[int, Row]]] = {}
        self._lanes: dict[_Bucket, Lane] = {}
        self._arrivals = 0

    @property
    def busy(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self._waiting) or any(lane.samples for lane in self._lanes.values())

    def add(self, row: Row) -> None:
        """Queue one sample."""
        request = row.request
        bucket = (request.adapter, prompt_bucket(len(request.prompt_ids), self._settings.prompt_bucket))
        self._arrivals += 1
        self._waiting.setdefault(bucket, deque()).append((self._arrivals, row))

    def uses(self, adapter: str) -> bool:
        """Whether something waits or runs that needs this adapter."""
        running = (key for key, lane in self._lanes.items() if lane.samples)
        return any(name == adapter for name, _ in (*self._waiting, *running))

    def free(self, adapter: str | None = None) -> None:
        """Give back the caches in which nothing is under way; all of them, or those of one adapter."""
        self._lanes = {
            key: lane for key, lane in self._lanes.items() if lane.samples or (adapter and key[0] != adapter)
        }

    def step(self) -> None:
        """Read some of the prompts that wait, then choose one more token for every sample under way."""
        deadline_s = time.monotonic() + self._settings.prefill_s
        while time.monotonic() < deadline_s and (found := self._next_rows()) is not None:
            self._read(*found)
        for (adapter, _), lane in list(self._lanes.items()):
            lane.settle()
            if lane.samples:
                self._advance(adapter, lane)

    # -------------------------------------------------------------------------------------------- prompts
    def _next_rows(self) -> tuple[_Bucket, list[Row]] | None:
        """The rows that have waited longest and fit, with others of their bucket for one pass."""
        for bucket in sorted(self._waiting, key=lambda bucket: self._waiting[bucket][0][0]):
            room = self._room(bucket)
            if room > 0:
                return bucket, self._taken(bucket, room)
        return None

    def _taken(self, bucket: _Bucket, room: int) -> list[Row]:
        waiting = self._waiting[bucket]
        rows: list[Row] = []
        prompts: set[tuple[int, ...]] = set()
        most = most_prompts(bucket[1])
        while waiting and len(rows) < room:
            row = waiting[0][1]
            if len(prompts) == most and row.request.prompt_ids not in prompts:
                break
            waiting.popleft()
            if not row.listener.dropped:
                rows.append(row)
                prompts.add(row.request.prompt_ids)
        if not waiting:
            del self._waiting[bucket]
        return rows

    def _read(self, bucket: _Bucket, rows: Sequence[Row]) -> None:
        """Read these prompts and choose their first tokens."""
        adapter, length = bucket
        prompts = list(dict.fromkeys(row.request.prompt_ids for row in rows))
        if not prompts:
            return
        try:
            model = self._shelf.model_for(adapter)
            read = self._reader.read(model, prompts, length, self._kind(adapter))
            source = [prompts.index(row.request.prompt_ids) for row in rows]
            samples = [self._next_tokens.start(row, length) for row in rows]
            self._next_tokens.take(read.logits[source], samples)
            live = [i for i, sample in enumerate(samples) if not sample.over]
            if live:
                lane = self._lane(adapter, length + 1)
                lane.put([samples[i] for i in live], read, [source[i] for i in live])
        except FAILURES as error:
            _fail(rows, error)

    def _kind(self, adapter: str | None) -> str:
        """What changes a pass's shapes besides its lengths: an adapter that is not merged."""
        return "plain" if adapter is None or self._shelf.merges else "adapter"

    # ---------------------------------------------------------------------------------------------- steps
    def _advance(self, adapter: str | None, lane: Lane) -> None:
        samples = lane.samples
        try:
            for sample, read in lane.take_outgrown():
                self._lane(adapter, sample.position + 1).put([sample], read, [0])
            samples = lane.samples
            if samples:
                logits = lane.advance(self._shelf.model_for(adapter), self._shapes, self._kind(adapter))
                self._next_tokens.take(logits, samples)
        except FAILURES as error:
            _fail(samples, error)

    def _room(self, bucket: _Bucket) -> int:
        """How many samples of this bucket can join now."""
        key = (bucket[0], cache_width(bucket[1] + 1))
        found = self._lanes.get(key)
        if found is not None and (found.samples or self._fits(key)):
            found.settle()
            return found.room
        if self._fits(key) or not any(lane.samples for lane in self._lanes.values()):
            return 2 * self._reference_rows(key[1])
        return 0

    def _fits(self, wanted: _Bucket) -> bool:
        """Whether a lane of this key can be filled within the memory for caches; frees idle ones if need be."""
        needed = 2 * self._reference_rows(wanted[1]) * wanted[1] * self._plan.token_bytes
        others = {key: lane for key, lane in self._lanes.items() if key != wanted}
        spent = sum(lane.allocated_bytes for lane in others.values())
        for key, lane in others.items():
            if spent + needed > self._plan.limit_bytes and not lane.samples:
                spent -= lane.allocated_bytes
                del self._lanes[key]
        return spent + needed <= self._plan.limit_bytes

    def _lane(self, adapter: str | None, tokens: int) -> Lane:
        key = (adapter, cache_width(tokens))
        found = self._lanes.get(key)
        if found is None:
            found = self._lanes[key] = Lane(key[1], self._reference_rows(key[1]), self._pad_id, self._plan.sight)
        return found

    def _reference_rows(self, width: int) -> int:
        """Half of what a lane of this width may hold: fewer where a full lane would take half of all memory."""
        rows = self._settings.decode_rows // 2
        while rows > _LEAST_ROWS and 4 * rows * width * self._plan.token_bytes > self._plan.limit_bytes:
            rows //= 2
        return rows


def _fail(waiting: Iterable[Row | Growing], error: Exception) -> None:
    for one in waiting:
        one.listener.fail(error)
