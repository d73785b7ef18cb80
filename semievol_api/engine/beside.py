"""A journal with others beside it: what any of them holds is known, what is new goes into the first.

Engines of one run that each have a journal of their own never ask twice what one of them has asked. Knows nothing
of who wrote the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semievol_api.engine.journal import Journal
from semievol_api.engine.rows import Found


class WithOthers(Journal):
    """The first journal for everything; the others are only read."""

    def __init__(self, own: Journal, others: Sequence[Path]) -> None:
        super().__init__(own.connection, own.path)
        self.others = [Journal.read_only(path) for path in others]

    def fetch(self, keys: Sequence[bytes]) -> dict[bytes, list[Found]]:
        """The stored samples of each key that has any, from the first journal that has them."""
        found = super().fetch(keys)
        for other in self.others:
            missing = [key for key in keys if key not in found]
            if not missing:
                break
            found |= other.fetch(missing)
        return found

    def close(self) -> None:
        """Close all of them."""
        for other in self.others:
            other.close()
        super().close()
