"""Fewer garbage collections while requests are in flight.

A stream keeps thousands of small objects alive for a moment. With Python's default thresholds the collector walks
over them again and again and finds nothing: a fifth of the engine's CPU time. Knows nothing of the engine.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

THRESHOLDS = (20_000, 20, 20)


@contextmanager
def rare_collections() -> Generator[None]:
    """Collect garbage less often inside the block; settings that collect even less often stay as they are."""
    before = gc.get_threshold()
    if 0 < before[0] < THRESHOLDS[0]:
        gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
