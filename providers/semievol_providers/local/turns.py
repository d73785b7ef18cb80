"""Turns between owners: whoever has cost least is next, and one who comes (back) starts level with the others.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): an owner's next piece of work starts where its last one ended,
but never before the piece that was started last. Nobody saves turns up by being idle. Knows nothing of what the work
is, of threads or of models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns:
    """`order` owners by whose turn it is, and `charge` the one that was served."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}
        self._level = 0.0

    def order(self, owners: Iterable[str]) -> list[str]:
        """These owners, each once, the next one first; equals stay in the given order."""
        return sorted(dict.fromkeys(owners), key=self._start)

    def charge(self, owner: str, cost: float) -> None:
        """An owner was served; `cost` in any one unit."""
        self._level = start = self._start(owner)
        self._ends[owner] = start + cost
        self._ends = {name: end for name, end in self._ends.items() if end > self._level}

    def _start(self, owner: str) -> float:
        return max(self._ends.get(owner, 0.0), self._level)


class TurnQueue(Generic[T]):
    """Work of several owners: each one's in the order of its coming, owners in turns."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        self._turns = Turns()

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[T]:
        return (work for line in self._lines.values() for work in line)

    def add(self, owner: str, work: T) -> None:
        """Queue a piece of work."""
        self._lines.setdefault(owner, deque()).append(work)

    def next_owner(self) -> str:
        """Whose turn it is; asked only where something waits."""
        return self._turns.order(self._lines)[0]

    def first(self, owner: str) -> T:
        """An owner's oldest work."""
        return self._lines[owner][0]

    def remove(self, owner: str, work: T) -> None:
        """Take a piece of work out; nothing happens where it is not there."""
        line = self._lines.get(owner)
        if line is not None and work in line:
            line.remove(work)
            if not line:
                del self._lines[owner]

    def charge(self, owner: str, cost: float) -> None:
        """Count what an owner's work has cost."""
        self._turns.charge(owner, cost)
