"""Choose the next token of every row of a batch, each row by its own settings and random stream.

Every operation works row by row, so a row's token never depends on its neighbours. Knows nothing of models,
text or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row is sampled; `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def random_stream(seed: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample of one request."""
    key = np.array([seed & (2**64 - 1), sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def choose(logits: Tensor, rows: Sequence[RowSampling], draws: Tensor, counts: Tensor | None) -> Tensor:
    """Token ids, shape (rows,).

    `logits` float32 (rows, vocabulary) are left as they are; `draws` float64 (rows,) in [0, 1);
    `counts` (rows, vocabulary) says how often each token was generated, needed for penalties only.
    """
    greedy = logits.argmax(-1)
    hot = [i for i, row in enumerate(rows) if row.temperature > 0]
    penalised = [i for i, row in enumerate(rows) if row.presence_penalty or row.frequency_penalty]
    if penalised and counts is not None:
        logits = _penalised(logits, rows, penalised, counts)
        greedy = logits.argmax(-1)
    if not hot:
        return greedy
    index = torch.tensor(hot, device=logits.device)
    heat = torch.tensor([rows[i].temperature for i in hot], dtype=torch.float32, device=logits.device)
    probs = (logits[index] / heat[:, None]).softmax(-1)
    nucleus = [j for j, i in enumerate(hot) if rows[i].top_p < 1]
    if nucleus:
        probs = _nucleus(probs, nucleus, [rows[hot[j]].top_p for j in nucleus])
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    target = draws.to(logits.device)[index] * cumulative[:, -1]
    picked = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return greedy.index_copy(0, index, picked.clamp(max=logits.shape[1] - 1))


def _penalised(logits: Tensor, rows: Sequence[RowSampling], which: Sequence[int], counts: Tensor) -> Tensor:
    logits = logits.clone()
    for i in which:
        used = counts[i]
        logits[i] -= rows[i].frequency_penalty * used + rows[i].presence_penalty * (used > 0)
    return logits


def _nucleus(probs: Tensor, which: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Keep the fewest likeliest tokens whose probability reaches top_p, always at least one."""
    index = torch.tensor(which, device=probs.device)
    keep = torch.tensor(top_p, dtype=torch.float64, device=probs.device)
    ordered, order = probs[index].sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    ordered = ordered.masked_fill(before >= keep[:, None], 0.0)
    ordered[:, 0] = ordered[:, 0].clamp(min=1e-30)
    return probs.index_copy(0, index, torch.zeros_like(ordered).scatter(-1, order, ordered))
