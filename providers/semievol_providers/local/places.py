"""How many samples of an owner may be under way among those of others: equal shares, and what others leave.

Knows nothing of models, caches or what a sample is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
