"""A finding that a user should hear about before trusting a selection.

Knows nothing of how it was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

AlertKind: TypeAlias = Literal[
    "one-class", "missing-class", "drift", "uninformative", "ambiguous", "vanished-class", "shifted-classes"
]
"""What is wrong: with the labels, the pool, the answers, the task itself, or the selection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One finding: what was seen, in which numbers, and what to try."""

    kind: AlertKind
    message: str
