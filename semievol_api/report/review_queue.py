"""Which rows a person's minute is worth most on: the least certain first, and a uniform audit sample among them.

Knows nothing of pages or of how decisions are kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from semievol_api.report.label_table import LabelTable

AUDIT_EVERY = 7
"""Every seventh row is drawn uniformly: 14 % of any budget, within the 10 to 20 % that keep a calibration
exchangeable (method §3, `human-budget`)."""


@dataclass(frozen=True)
class QueueRow:
    """One row to review: its place in the table, and whether it was drawn uniformly."""

    place: int
    audit: bool


def review_queue(labels: LabelTable, limit: int | None = None) -> list[QueueRow]:
    """Every row once, best first: fewest annotators behind its answer, then lowest confidence; none before those."""
    agreement = np.nan_to_num(labels.agreement(), nan=0.0)
    confidence = np.nan_to_num(labels.confidences, nan=-1.0)
    doubtful = np.lexsort((confidence, agreement)).tolist()
    uniform = sorted(range(len(labels)), key=lambda i: _hash(labels.examples[i].id))
    rows: list[QueueRow] = []
    seen: set[int] = set()
    sources = {False: iter(doubtful), True: iter(uniform)}
    while len(rows) < min(len(labels), limit or len(labels)):
        audit = len(rows) % AUDIT_EVERY == AUDIT_EVERY - 1
        place = next(p for p in sources[audit] if p not in seen)
        seen.add(place)
        rows.append(QueueRow(place, audit))
    return rows


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
