"""Samples of one adapter whose caches have one width, decoded together: rows join and leave between steps.

Keys and values lie in slots that are allocated once; a sample keeps its slot until it ends, outgrows the width, or
is moved so that fewer rows have to run. Knows nothing of sampling, prompts or queues.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from semievol_providers.local.padding import prompt_bucket
from semievol_providers.local.prefill import ReadPrompts
from semievol_providers.local.row_shapes import Pass, RowShapes, sizes_around
from semievol_providers.local.samples import Growing
from semievol_providers.local.sight import Sight

_VIEW_STEP = 32
"""Attention looks at a multiple of so many tokens, as far as the longest sample needs."""


class _SlotCache(Cache):
    """Keys and values as tensors (slots, width, heads, size); a pass writes one token of each of its rows."""

    def __init__(self, width: int) -> None:
        super().__init__(layers=[])
        self.width = width
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._rows = slice(0, 0)
        self._view = width
        self._at = torch.zeros(0, dtype=torch.long)

    def aim(self, rows: slice, positions: Tensor, view: int) -> None:
        """The next pass runs these slots, writes each one's token at its position, and sees `view` tokens of them."""
        self._rows = rows
        self._view = view
        self._at = torch.arange(rows.start, rows.stop, device=positions.device) * self.width + positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        return self._write(self.keys[layer_idx], key_states), self._write(self.values[layer_idx], value_states)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        rows = new.transpose(1, 2).reshape(new.shape[0], -1)
        store.view(-1, rows.shape[1]).index_copy_(0, self._at, rows)
        return store[self._rows, : self._view].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width - 1

    def resize(self, slots: int, like: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Make room for so many slots; what is there is kept. `like` are tensors (rows, heads, length, size)."""
        fresh = [[new.new_zeros((slots, self.width, new.shape[1], new.shape[3])) for new in layer] for layer in like]
        for old, new in zip([*self.keys, *self.values], [*(k for k, _ in fresh), *(v for _, v in fresh)], strict=False):
            new[: len(old)] = old
        self.keys, self.values = [k for k, _ in fresh], [v for _, v in fresh]

    def fill(self, slots: Sequence[int], read: ReadPrompts, source: Sequence[int]) -> None:
        """Copy the caches of these rows of `read` to these slots."""
        count, length = len(slots), read.length
        run = slice(slots[0], slots[0] + count)
        plain = list(slots) == list(range(run.start, run.stop)) and list(source) == list(range(count))
        for keys, values, layer in zip(self.keys, self.values, read.layers, strict=True):
            for store, new in zip((keys, values), layer, strict=True):
                if plain:
                    store[run, :length] = new[:count].transpose(1, 2)
                else:
                    rows = torch.tensor(source, device=store.device)
                    store[torch.tensor(slots, device=store.device), :length] = new[rows].transpose(1, 2)

    def copy_slot(self, source: int, target: int) -> None:
        """Copy one slot's content onto another's."""
        for store in (*self.keys, *self.values):
            store[target] = store[source]

    def layers_of(self, slot: int, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """The first `length` tokens of one slot, as tensors (1, heads, length, size)."""
        at = slice(slot, slot + 1)
        pairs = zip(self.keys, self.values, strict=True)
        return tuple((k[at, :length].transpose(1, 2), v[at, :length].transpose(1, 2)) for k, v in pairs)


class Lane:
    """`put` samples in, `advance` all by a token, `settle` after some ended."""

    def __init__(self, width: int, reference_rows: int, pad_id: int, sight: Sight) -> None:
        self.width = width
        self.max_rows = 2 * reference_rows
        self._reference = reference_rows
        self._sizes = sizes_around(reference_rows)
        self._pad_id = pad_id
        self._sight = sight
        self._slots: list[Growing | None] = []
        self._cache = _SlotCache(width)

    @property
    def samples(self) -> list[Growing]:
        """Those that are under way here, in the order of their slots."""
        return [sample for sample in self._slots if sample is not None]

    @property
    def room(self) -> int:
        """How many more samples fit in."""
        return self.max_rows - len(self.samples)

    @property
    def allocated_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(store.numel() * store.element_size() for store in (*self._cache.keys, *self._cache.values))

    def put(self, samples: Sequence[Growing], read: ReadPrompts, source: Sequence[int]) -> None:
        """Let samples join; `source[i]` is the row of `read` that holds the cache of `samples[i]`."""
        needed = len(self.samples) + len(samples)
        while len(self._slots) < needed:
            self._slots += [None] * self._reference
            self._cache.resize(len(self._slots), read.layers)
        free = [i for i, held in enumerate(self._slots) if held is None][: len(samples)]
        for slot, sample in zip(free, samples, strict=True):
            self._slots[slot] = sample
        self._cache.fill(free, read, source)

    def advance(self, model: PreTrainedModel, shapes: RowShapes, kind: str) -> Tensor:
        """Feed every sample's token; float32 logits (samples, vocabulary) of the next, in the order of `samples`."""
        used = [i for i, held in enumerate(self._slots) if held is not None]

        view = prompt_bucket(1 + max(sample.position for sample in self.samples), _VIEW_STEP)
        work = Pass(
            used[-1] + 1,
            lambda start, end: [self._pass(model, start, end, self.width)],
            (lambda start, end: [self._pass(model, start, end, view)]) if view < self.width else None,
            view,
        )
        parts = shapes.run(("decode", kind, self.width), work, self._sizes, self._reference)
        logits = parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts])
        for sample in self.samples:
            sample.position += 1
        if len(used) == used[-1] + 1:
            return logits[: len(used)]
        return logits[torch.tensor(used, device=logits.device)]

    def _pass(self, model: PreTrainedModel, start: int, end: int, view: int) -> Tensor:
        idle = (self._pad_id, 0, 0)
        rows = [idle if held is None else (held.token, held.start, held.position) for held in self._slots[start:end]]
        token, first, position = torch.tensor(rows, device=model.device).unbind(1)
        self._cache.aim(slice(start, end), position, view)
        out = model(
            input_ids=token[:, None],
            attention_mask=self._sight.masks(first, position, view),
            position_ids=(position - first)[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def settle(self) -> None:
        """Let those go that are over, and close gaps where fewer rows can run then."""
        self._slots = [None if held is None or held.over else held for held in self._slots]
        used = [i for i, held in enumerate(self._slots) if held is not None]
        if not used:
            return
        enough = next((size for size in self._sizes if size >= len(used)), len(self._slots))
        gaps = [i for i, held in enumerate(self._slots[:enough]) if held is None]
        for slot, gap in zip([i for i in used if i >= enough], gaps, strict=False):
            self._cache.copy_slot(slot, gap)
            self._slots[gap], self._slots[slot] = self._slots[slot], None

    def take_outgrown(self) -> list[tuple[Growing, ReadPrompts]]:
        """Remove the samples that fill this width, with copies of their caches."""
        taken: list[tuple[Growing, ReadPrompts]] = []
        for slot, sample in enumerate(self._slots):
            if sample is not None and sample.position >= self.width:
                layers = self._cache.layers_of(slot, self.width)
                taken.append((sample, ReadPrompts(torch.zeros(0), layers, self.width)))
                self._slots[slot] = None
        return taken
