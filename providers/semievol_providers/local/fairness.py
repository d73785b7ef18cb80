"""Owners in turns: whose work comes next, and how many places of a step each of them gets.

An owner's turn follows from what its work has cost so far, so one that asks much does not hold up one that asks little.
Knows nothing of models, requests or HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    pass


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


@dataclass(frozen=True, slots=True)
class Places:
    """`running` and `wanted` count each owner's samples that hold a place, and those that wait for one."""

    count: int
    running: Mapping[str, int]
    wanted: Mapping[str, int]

    @property
    def share(self) -> int:
        """What each owner gets where all want as much; at least one."""
        return max(1, self.count // max(1, len({*self.running, *self.wanted})))

    def room(self, owner: str) -> int:
        """How many more samples of this owner may come: up to its share, others that hold more than theirs give way.

        Beyond its share it gets what is free and not wanted by those who are below theirs.
        """
        mine = self.running.get(owner, 0)
        free = self.count - sum(self.running.values())
        if mine < self.share:
            beyond = sum(max(0, held - self.share) for other, held in self.running.items() if other != owner)
            return max(self._spare(owner, free), min(self.share - mine, free + beyond))
        return self._spare(owner, free)

    def largest(self, besides: str) -> str | None:
        """Who of the others holds most, and gives way first."""
        return max((o for o in self.running if o != besides), key=lambda o: self.running[o], default=None)

    def _spare(self, owner: str, free: int) -> int:
        owed = sum(
            min(wanted, max(0, self.share - self.running.get(other, 0)))
            for other, wanted in self.wanted.items()
            if other != owner
        )
        return max(0, free - owed)
