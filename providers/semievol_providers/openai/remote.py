"""What lies at the vendor: models and their end, uploaded files; looked up, and deleted on request.

Knows nothing of runs or of what is worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence

from semievol_api.capabilities import ModelName
from semievol_api.remote import RemoteModel
from semievol_providers.openai.files import Files, content_name
from semievol_providers.openai.models import OpenAIModels
from semievol_providers.openai.sdk import Sdk


class OpenAIRemote:
    """`Remote` at one endpoint."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk
        self._files = Files(sdk)
        self._models = OpenAIModels(sdk)

    async def model(self, name: ModelName) -> RemoteModel:
        """One model; `RefusedError` with code `model_not_found` where there is none."""
        facts = await self._models.retrieve(name)
        return RemoteModel(name=facts.id, shutdown_date=facts.end)

    async def files_with(self, training_file: bytes) -> Sequence[str]:
        """The ids of the files that were uploaded under this content's name."""
        return [file.id for file in await self._files.named(content_name(training_file), "fine-tune")]

    async def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file."""
        await self._sdk.ask("files", lambda client: client.files.with_raw_response.delete(file_id))

    async def delete_model(self, name: ModelName) -> None:
        """Delete a tuned model."""
        await self._sdk.ask("models", lambda client: client.models.with_raw_response.delete(name))
