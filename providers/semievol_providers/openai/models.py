"""The vendor's models: which there are, and until when.

Knows nothing of prices or abilities.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from msgspec import Struct

from semievol_providers.openai.sdk import Sdk

_WHAT = "models"


class Deprecation(Struct, frozen=True):
    """Azure's dates of a model's end, in Unix seconds."""

    inference: int | None = None


class ModelFacts(Struct, frozen=True):
    """One model as its vendor tells it."""

    id: str
    created: int | None = None
    owned_by: str | None = None
    shutdown_date: str | None = None
    deprecation: Deprecation | None = None

    @property
    def end(self) -> str | None:
        """The ISO date from which the model does not answer; None where the vendor announces none."""
        if self.shutdown_date or self.deprecation is None or self.deprecation.inference is None:
            return self.shutdown_date
        return datetime.datetime.fromtimestamp(self.deprecation.inference, datetime.UTC).date().isoformat()


class OpenAIModels:
    """Lists and looks up models at one endpoint."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk

    async def list(self) -> Sequence[ModelFacts]:
        """All models that the key may see."""
        listed = self._sdk.items(ModelFacts, _WHAT, lambda client, _: client.models.with_raw_response.list())
        return [model async for model in listed]

    async def retrieve(self, name: str) -> ModelFacts:
        """One model; `RefusedError` with code `model_not_found` where there is none."""
        return await self._sdk.ask_for(ModelFacts, _WHAT, lambda client: client.models.with_raw_response.retrieve(name))
