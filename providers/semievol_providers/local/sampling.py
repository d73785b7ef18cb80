"""Choose the next token of every row of a batch, each row by its own settings and random stream.

Every operation works row by row, so a row's token never depends on its neighbours. Knows nothing of models,
text or scheduling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row is sampled; `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def penalises(self) -> bool:
        """Whether what was generated counts."""
        return bool(self.presence_penalty or self.frequency_penalty)


def random_stream(seed: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample of one request."""
    key = np.array([seed & (2**64 - 1), sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def choose(logits: Tensor, rows: Sequence[RowSampling], draws: Tensor, counts: Sequence[Tensor | None]) -> Tensor:
    """Token ids, shape (rows,).

    `logits` float32 (rows, vocabulary) are left as they are; `draws` float64 (rows,) in [0, 1);
    `counts[i]` (vocabulary,) says how often row i generated each token, needed for penalties only.
    """
    used = {
        i: seen for i, (row, seen) in enumerate(zip(rows, counts, strict=True)) if row.penalises and seen is not None
    }
    if used:
        logits = _penalised(logits, rows, used)
    hot = [i for i, row in enumerate(rows) if row.temperature > 0]
    if not hot:
        return logits.argmax(-1)
    index = torch.tensor(hot, device=logits.device)
    heat = torch.tensor([rows[i].temperature for i in hot], dtype=torch.float32, device=logits.device)
    warm = logits if len(hot) == len(rows) else logits[index]
    probs = (warm / heat[:, None]).softmax(-1)
    nucleus = [j for j, i in enumerate(hot) if rows[i].top_p < 1]
    if nucleus:
        probs = _nucleus(probs, nucleus, [rows[hot[j]].top_p for j in nucleus])
    picked = _invert(probs, draws.to(logits.device)[index])
    return picked if len(hot) == len(rows) else logits.argmax(-1).index_copy(0, index, picked)


def _invert(probs: Tensor, draws: Tensor) -> Tensor:
    """The token at which each row's cumulative probability passes its draw; never one of probability 0.

    Looks for the block of tokens first and inside it then, which is much quicker than one long running sum.
    """
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[1] % _BLOCK)).view(len(probs), -1, _BLOCK)
    sums = blocks.sum(-1).double()
    upto = sums.cumsum(-1)
    target = (draws * upto[:, -1])[:, None]
    block = _passes(upto, target)
    before = upto.gather(1, block) - sums.gather(1, block)
    inside = blocks[torch.arange(len(probs), device=probs.device), block[:, 0]].double().cumsum(-1)
    return (block * _BLOCK + _passes(inside, target - before))[:, 0]


def _passes(cumulative: Tensor, target: Tensor) -> Tensor:
    """First position, shape (rows, 1), whose running sum exceeds the target, at most the last that adds to it."""
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)


def _penalised(logits: Tensor, rows: Sequence[RowSampling], counts: Mapping[int, Tensor]) -> Tensor:
    logits = logits.clone()
    for i, used in counts.items():
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
