"""How prompts and caches are padded: bucketed lengths that depend on the one prompt only, and left-padded batches.

Knows nothing of models, queues or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_WIDTH = 128


def prompt_bucket(length: int, step: int) -> int:
    """The padded length at which a prompt of `length` tokens is read: the next multiple of `step`."""
    return -(-length // step) * step


def cache_width(tokens: int) -> int:
    """The padded length of the cache that holds a sample of `tokens` tokens: powers of two from 128."""
    width = _LEAST_WIDTH
    while width < tokens:
        width *= 2
    return width


def padded_batch(prompts: Sequence[Sequence[int]], rows: int, length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-padded ids and mask, both (rows, length); spare rows hold one padding token that is attended."""
    ids = torch.full((rows, length), pad_id, dtype=torch.long)
    mask = torch.zeros((rows, length), dtype=torch.long)
    mask[len(prompts) :, -1] = 1
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, length - len(prompt) :] = 1
    return ids, mask
