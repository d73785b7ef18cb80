"""Lay the examples of an optimizer step out for forward passes, and give the loss of one.

    for part in passes.split(rows, tokens_per_pass): loss, hits = passes.loss(model, part, device)

Logits are made where something is learnt alone. Knows nothing of gradients, steps or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from semievol_providers.local.training_cpu import RowPlan
from semievol_providers.local.training_data import TokenExample, split_by_tokens, to_batch


class Passes(Protocol):
    """`split` the examples of a step into passes, and give the `loss` of one."""

    def split(self, rows: Sequence[TokenExample], tokens_per_pass: int) -> list[list[TokenExample]]:
        """The examples in passes of at most this many tokens, or of one example."""
        ...

    def loss(self, model: Any, part: Sequence[TokenExample], device: str) -> tuple[Tensor, int]:
        """Weighted sum of the learnt tokens' negative log-likelihoods, and how many were the likeliest."""
        ...


@dataclass(frozen=True, slots=True)
class PaddedPasses:
    """Rows of similar length, padded on the left, so that only the last columns need logits."""

    pad_id: int

    def split(self, rows: Sequence[TokenExample], tokens_per_pass: int) -> list[list[TokenExample]]:
        """By length; padding counts."""
        return split_by_tokens(rows, tokens_per_pass)

    def loss(self, model: Any, part: Sequence[TokenExample], device: str) -> tuple[Tensor, int]:
        """Of one padded pass."""
        batch = to_batch(part, self.pad_id)
        mask = batch.mask.to(device)
        logits = model(
            input_ids=batch.ids.to(device),
            attention_mask=None if bool(batch.mask.all()) else mask,  # without one, attention is quicker
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=batch.targets.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
        learnt = batch.targets.to(device) >= 0
        targets = batch.targets.to(device)[learnt]
        return _weighted(logits[learnt].float(), targets, batch.weights.to(device)[learnt])


class PackedPasses:
    """One row of examples end to end: no padding at all. The model itself sees where one begins, by its positions."""

    def split(self, rows: Sequence[TokenExample], tokens_per_pass: int) -> list[list[TokenExample]]:
        """In the order given, each pass filled up."""
        passes: list[list[TokenExample]] = []
        held = 0
        for row in rows:
            if passes and held + len(row.ids) <= tokens_per_pass:
                passes[-1].append(row)
                held += len(row.ids)
            else:
                passes.append([row])
                held = len(row.ids)
        return passes

    def loss(self, model: Any, part: Sequence[TokenExample], device: str) -> tuple[Tensor, int]:
        """Of one packed pass; logits only where the next token is learnt."""
        ids = torch.tensor([token for row in part for token in row.ids])
        positions = torch.cat([torch.arange(len(row.ids)) for row in part])
        learnt = torch.tensor([flag for row in part for flag in row.learnt]).nonzero()[:, 0]
        weights = torch.tensor([row.weight for row in part for flag in row.learnt if flag], dtype=torch.float32)
        logits = model(
            input_ids=ids[None].to(device),
            position_ids=positions[None].to(device),
            logits_to_keep=(learnt - 1).to(device),
            use_cache=False,
            **self._settings(part),
        ).logits[0]
        return _weighted(logits.float(), ids[learnt].to(device), weights.to(device))

    def _settings(self, part: Sequence[TokenExample]) -> dict[str, Any]:
        return {}


class RowPasses(PackedPasses):
    """Examples end to end for a model that `quicken` prepared: attention is told where each begins."""

    def split(self, rows: Sequence[TokenExample], tokens_per_pass: int) -> list[list[TokenExample]]:
        """The longest first, so that rows of similar length are neighbours; each pass filled up."""
        return super().split(sorted(rows, key=lambda row: -len(row.ids)), tokens_per_pass)

    def _settings(self, part: Sequence[TokenExample]) -> dict[str, Any]:
        return {"row_plan": RowPlan.of([len(row.ids) for row in part])}


def _weighted(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, int]:
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    right = int((logits.detach().argmax(-1) == targets).sum())
    return (losses * weights).sum(), right
