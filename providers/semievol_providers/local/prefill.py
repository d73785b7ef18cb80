"""Read prompts of one bucketed length in one pass: the next token's logits and the cache of every prompt.

Knows nothing of samples, queues or where the caches go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from semievol_providers.local.padding import padded_batch
from semievol_providers.local.row_shapes import Pass, RowShapes

REFERENCE_ROWS = 4
"""Prompts of a pass whose bits are the measure."""
_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
_PASS_TOKENS = 1536


def most_prompts(length: int) -> int:
    """How many prompts of this padded length share a pass: as many as make it efficient, at least the reference."""
    return max(REFERENCE_ROWS, max(size for size in _SIZES if size == 1 or size * length <= _PASS_TOKENS))


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """`logits` float32 (prompts, vocabulary); `layers` are keys and values, each (prompts, heads, length, size)."""

    logits: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]
    length: int


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Reads up to `most_prompts` prompts at a time."""

    shapes: RowShapes
    pad_id: int

    def read(self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], length: int, kind: str) -> ReadPrompts:
        """Prompts of at most `length` tokens; `kind` names what other than the length decides on shapes."""

        def compute(start: int, end: int) -> Sequence[Tensor]:
            return self._pass(model, prompts[start:end], end - start, length)

        work = Pass(len(prompts), compute)
        parts = self.shapes.run(("prefill", kind, length), work, _SIZES, REFERENCE_ROWS)
        whole = parts[0] if len(parts) == 1 else [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        logits, *flat = [tensor[: len(prompts)] for tensor in whole]
        return ReadPrompts(logits, tuple(zip(flat[::2], flat[1::2], strict=True)), length)

    def _pass(
        self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], rows: int, length: int
    ) -> Sequence[Tensor]:
        ids, mask = padded_batch(prompts, rows, length, self.pad_id)
        ids, mask = ids.to(model.device), mask.to(model.device)
        cache = DynamicCache()
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=-(-REFERENCE_ROWS // rows),  # the head sees as many rows as in the reference, or more
        )
        found: list[Tensor] = [out.logits[:, -1].float()]
        for layer in cache.layers:
            if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
                raise ValueError(f"Models with a {type(layer).__name__} cache are not supported.")
            found += [layer.keys, layer.values]
        return found
