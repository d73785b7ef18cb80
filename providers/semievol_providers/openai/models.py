"""The vendor's models: which there are, and until when.

Knows nothing of prices or abilities.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from semievol_providers.openai.sdk import Sdk

_WHAT = "models"


class ModelFacts(Struct, frozen=True):
    """One model; `shutdown_date` (ISO) is None where the vendor announces none."""

    id: str
    created: int | None = None
    owned_by: str | None = None
    shutdown_date: str | None = None


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
