"""How long a run's requests take: by its quotas, by the vendor's smallest paid ones, or by a guess, and it says which.

Trainings wait in a vendor's queue besides; nobody can plan that. Knows nothing of prices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semievol_api.catalogue import ModelFacts
from semievol_api.config import Limits
from semievol_api.planning.bill import BillRow, Range

REPLY_S = Range(0.3, 1.0, 4.0)
"""A guess: how long a hosted model takes for a short answer, its completion tokens apart."""
TOKEN_S = Range(0.002, 0.01, 0.03)
"""A guess: how long a hosted model takes for one completion token."""
IN_FLIGHT = 64
"""Requests in flight where the config caps none: where the engine starts."""
BATCH_MINUTES = Range(10.0, 12 * 60.0, 24 * 60.0)
"""A round of batches: vendors promise a day and are usually quicker (a guess)."""
BY_LIMITS = "the quotas of [limits]"
BY_CATALOGUE = "the vendor's quotas for its smallest paying customers (catalogue)"
BY_GUESS = f"a guess: {IN_FLIGHT} requests in flight, about a second each"
BY_BATCHES = "batches: a round for each stage, each within a day"

FactsOf = Callable[[BillRow], ModelFacts | None]


@dataclass(frozen=True)
class Duration:
    """Minutes of waiting for answers, and what they rest on."""

    minutes: Range
    by: tuple[str, ...]


def duration(limits: Limits, rows: Sequence[BillRow], facts_of: FactsOf) -> Duration:
    """The sum over stages and models, as if one came after the other."""
    asking = [row for row in rows if row.kind != "train" and row.requests.high > 0]
    if limits.mode == "batch":
        rounds = len({row.stage for row in asking if row.kind == "chat"})
        return Duration(BATCH_MINUTES.times(rounds), (BY_BATCHES,))
    found = [_of_row(limits, row, facts_of(row)) for row in asking]
    total = Range(0.0, 0.0, 0.0)
    for minutes, _ in found:
        total += minutes
    return Duration(total, tuple(dict.fromkeys(by for _, by in found)))


def _of_row(limits: Limits, row: BillRow, facts: ModelFacts | None) -> tuple[Range, str]:
    by_quota, by = _quotas(limits, row, facts)
    if by_quota is None:
        return _by_latency(limits, row), BY_GUESS
    return by_quota, by


def _quotas(limits: Limits, row: BillRow, facts: ModelFacts | None) -> tuple[Range | None, str]:
    """What the quotas allow; the tighter of the two."""
    rpm, tpm, by = limits.rpm, limits.tpm, BY_LIMITS
    if rpm is None and tpm is None and facts is not None:
        rpm, tpm, by = facts.requests_per_minute, facts.tokens_per_minute, BY_CATALOGUE
    waits = [
        amount.times(1 / quota) for amount, quota in ((row.requests, rpm), (row.prompt + row.completion, tpm)) if quota
    ]
    if not waits:
        return None, by
    return Range(*(max(getter(w) for w in waits) for getter in _ENDS)), by


def _by_latency(limits: Limits, row: BillRow) -> Range:
    minutes: list[float] = []
    for get in _ENDS:
        requests = get(row.requests)
        at_once = min(limits.concurrency or IN_FLIGHT, max(1.0, requests))
        minutes.append((requests * get(REPLY_S) + get(row.completion) * get(TOKEN_S)) / at_once / 60)
    return Range.around(*minutes)


_ENDS: tuple[Callable[[Range], float], ...] = (lambda r: r.low, lambda r: r.expected, lambda r: r.high)
