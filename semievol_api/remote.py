"""The ability to look at, and clean up, what lies at a vendor; a field of the `Provider` table of capabilities.py.

Knows nothing of runs or of what is worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """What the vendor itself says of a model; `shutdown_date` (ISO) is None where it announces none."""

    name: str
    shutdown_date: str | None = None


class Remote(Protocol):
    """What lies at the vendor: uploaded files and models, to be looked at and cleaned up."""

    async def model(self, name: str) -> RemoteModel:
        """One model; `RefusedError` where there is none."""
        ...

    async def files_with(self, training_file: bytes) -> Sequence[str]:
        """The ids of the uploaded files with this content that this project uploaded."""
        ...

    async def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file."""
        ...

    async def delete_model(self, name: str) -> None:
        """Delete a tuned model."""
        ...
