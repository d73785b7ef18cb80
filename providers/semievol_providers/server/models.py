"""Which models there are: the base, its tuned models with their checkpoints, and aliases.

Knows nothing of HTTP, training or inference.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import State


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked: `adapter` is a folder, None for the base."""

    name: str
    adapter: str | None
    created_at: int


class ModelTable:
    """Finds models by name for one owner."""

    def __init__(self, settings: ServerSettings, state: State) -> None:
        self._settings = settings
        self._state = state
        self._started_at = int(time.time())

    def find(self, name: str, owner: str) -> ServedModel:
        """The model with this name or alias.

        Raises:
            ApiError: there is none for this owner.
        """
        target = self.target(name)
        if target == self._settings.name:
            return ServedModel(name, None, self._started_at)
        found = self._state.find_model(target, owner)
        if found is None:
            raise ApiError(
                f"The model '{name}' does not exist or you do not have access to it.",
                status=404,
                param="model",
                code="model_not_found",
            )
        return ServedModel(name, found[0], found[1])

    def list(self, owner: str) -> list[dict[str, JsonValue]]:
        """All models as the API's objects."""
        names = [(self._settings.name, self._started_at)]
        names += [(alias, self._started_at) for alias in self._settings.aliases]
        return [model_object(n, at) for n, at in [*names, *self._state.list_models(owner)]]

    def target(self, name: str) -> str:
        """The name that an alias stands for, else the name itself."""
        return self._settings.aliases.get(name, name)

    def tuned_folder(self, name: str, owner: str) -> str:
        """The adapter folder of a tuned model that is about to be deleted.

        Raises:
            ApiError: there is no such model, or it is not a tuned one.
        """
        found = self._state.find_model(name, owner)
        if found is None:
            self.find(name, owner)
            raise ApiError(
                f"The model '{name}' is not a fine-tuned model and cannot be deleted.",
                status=403,
                param="model",
                code="model_not_deletable",
            )
        return found[0]


def model_object(name: str, created_at: int) -> dict[str, JsonValue]:
    """The API's model object."""
    owner = "user" if name.startswith("ft:") else "semievol"
    return {"id": name, "object": "model", "created": created_at, "owned_by": owner}
