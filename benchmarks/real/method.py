"""What a method is: one file with a class that learns from a split's rows and labels others.

    class Majority:
        name = "majority"
        settings = {"rule": "the most frequent label"}
        minutes = 0.1

        def measure(self, split, seed, place):
            ...

    class Majority(Fitted):                # or, where it learns once and then labels texts, only this
        def fit(self, labeled, unlabeled, seed):
            label = Counter(row.label for row in labeled).most_common(1)[0][0]
            return lambda texts: [label] * len(texts)

`benchmarks/real/methods.py` lists them; a new one is a file and a line there. A method sees the texts of the unlabelled
rows and of the measured ones, never their gold. Knows nothing of cells or files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from benchmarks.real.splits import Row, Split

Predict: TypeAlias = Callable[[Sequence[str]], Sequence[str | None]]
"""Texts to labels; None where an answer could not be read."""


@dataclass(frozen=True, slots=True)
class Place:
    """Folders: `folder` is the split's own, to work in, and outlives a killed slice; `model` holds the chat model."""

    folder: Path
    model: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """Labels of the measured rows in their order, and what is worth keeping; CPU seconds where a slice was killed."""

    predicted: Sequence[str | None]
    details: Mapping[str, object] = field(default_factory=dict[str, object])
    cpu_s: float | None = None


class Method(Protocol):
    """One arm. `settings` is its recipe: it stands in every cell, and the test ledger compares it."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """Everything that was chosen."""
        ...

    @property
    def minutes(self) -> float:
        """CPU minutes of a cell with 100 labels, roughly: for the estimate before any cell was measured."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether the number of labels makes a difference; a method that needs none has one cell per seed."""
        ...

    def measure(self, split: Split, seed: int, place: Place) -> Measured:
        """Learn and label.

        Raises:
            NotYet: something that it needs is not there; the message says what.
        """
        ...


class Fitted(ABC):
    """A method that learns once in this process and then labels any texts."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, object]]
    minutes: ClassVar[float] = 1.0
    needs_labels: ClassVar[bool] = True

    @abstractmethod
    def fit(self, labeled: Sequence[Row], unlabeled: Sequence[str], seed: int) -> Predict:
        """Learn from labelled rows and from texts without labels."""

    def measure(self, split: Split, seed: int, place: Place) -> Measured:
        """See `Method`."""
        predict = self.fit(split.labeled, [row.text for row in split.unlabeled], seed)
        return Measured(predict([row.text for row in split.measured]))
