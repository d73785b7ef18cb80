"""What each sample of a decoding step may look at: its own tokens, and in some layers the latest of them only.

Knows nothing of caches' contents, models' weights or sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Masks: TypeAlias = Tensor | dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Sight:
    """`window` tokens are seen by layers with sliding attention, of which `mixed` models have some and not all.

    `additive` is the number type of masks that are added to the scores, None where masks are booleans.
    """

    window: int | None = None
    mixed: bool = False
    additive: torch.dtype | None = None

    def masks(self, first: Tensor, position: Tensor, view: int) -> Masks:
        """Attention masks (rows, 1, 1, view) of rows whose tokens lie at `first` to `position`, both (rows,)."""
        index = torch.arange(view, device=position.device)
        whole = ((index >= first[:, None]) & (index <= position[:, None]))[:, None, None]
        if self.window is None:
            return self._written(whole)
        near = whole & (index > position[:, None] - self.window)[:, None, None]
        if not self.mixed:
            return self._written(near)
        return {"full_attention": self._written(whole), "sliding_attention": self._written(near)}

    def _written(self, seen: Tensor) -> Tensor:
        if self.additive is None:
            return seen
        return torch.zeros_like(seen, dtype=self.additive).masked_fill(~seen, torch.finfo(self.additive).min)


def sight_of(model: PreTrainedModel) -> Sight:
    """What the layers of this model see.

    Raises:
        ValueError: some layers are neither of full nor of sliding attention.
    """
    written = model.config.to_dict()
    attention = model.config._attn_implementation  # pyright: ignore[reportPrivateUsage] (transformers has no other way)
    additive = None if attention == "sdpa" else model.dtype
    text = written.get("text_config") or written
    kinds, window = set(text.get("layer_types") or ()), text.get("sliding_window")
    if kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"Models with layers of {sorted(kinds)} are not supported.")
    if not window or kinds == {"full_attention"}:
        return Sight(additive=additive)
    return Sight(int(window), bool(kinds), additive)
