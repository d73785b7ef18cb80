"""What the rate-limit headers say about the quota that is left.

Knows nothing of waiting: the engine's gates do that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from semievol_api.capabilities import Pace

_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|us|µs|ns|d|h|m|s)")
_UNSAID = Pace()


def pace_of(headers: Mapping[str, str]) -> Pace:
    """The `x-ratelimit-*` headers (lower-case names) as a `Pace`; nonsense counts as not said."""
    read = headers.get
    limit, left = read("x-ratelimit-limit-requests"), read("x-ratelimit-remaining-requests")
    limit_tokens, left_tokens = read("x-ratelimit-limit-tokens"), read("x-ratelimit-remaining-tokens")
    if limit is None and left is None and limit_tokens is None and left_tokens is None:
        return _UNSAID
    return Pace(
        limit_requests=_count(limit),
        limit_tokens=_count(limit_tokens),
        remaining_requests=_count(left),
        remaining_tokens=_count(left_tokens),
        reset_requests_s=duration_s(read("x-ratelimit-reset-requests")),
        reset_tokens_s=duration_s(read("x-ratelimit-reset-tokens")),
    )


def duration_s(text: str | None) -> float | None:
    """Seconds of `6m0s`, `12ms`, `1h2m3.5s` or a bare number; None for anything else."""
    if not text:
        return None
    if text.endswith("ms") and text[:-2].isdecimal():  # by far the most frequent form
        return int(text[:-2]) / 1000.0
    total, end = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end:
            return None
        total += float(part[1]) * _UNIT_S[part[2]]
        end = part.end()
    if end == len(text):
        return total
    return _seconds(text) if end == 0 else None


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
