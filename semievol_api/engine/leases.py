"""What an engine that is one of many asks of all of them: may a request go now, and is there money for it?

An engine that is alone asks nobody: its gate and its budget know everything. Knows nothing of where the others are.
"""

from __future__ import annotations

from typing import Protocol

from semievol_api.engine.budget import Spend


class Leases(Protocol):
    """Quotas and the budget of all engines of a run."""

    async def opened(self, spent: Spend) -> None:
        """An engine is open whose journal says that so much is charged; what it leased before it died is void."""
        ...

    async def pace(self, tokens: float) -> None:
        """Comes back when one more request of about so many tokens may go."""
        ...

    async def more(self, need: Spend) -> Spend:
        """What may be spent beyond what was leased, at least `need`; nothing where the caps leave no room."""
        ...

    async def closed(self, spent: Spend) -> None:
        """The engine is done, and so much is charged to its journal; the rest of its leases is free again."""
        ...
