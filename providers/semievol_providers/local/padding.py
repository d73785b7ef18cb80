"""Lengths that depend on one sample only: the width of the cache behind which it is decoded.

Knows nothing of models, queues or sampling.
"""

from __future__ import annotations

_STEP = 64
_STEPS_PER_DOUBLING = 8


def cache_width(tokens: int) -> int:
    """The padded length of the cache that holds `tokens` tokens: multiples of 64 up to 512, then coarser ones."""
    step = _STEP
    while tokens > _STEPS_PER_DOUBLING * step:
        step *= 2
    return -(-tokens // step) * step


def multiple_of(unit: int, count: int) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit
