"""Providers by name: entry points of the group `semievol.providers`, imported only when chosen.

Third parties join through the same door. Knows nothing of what a provider can do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from semievol_api.capabilities import Connect, Provider, ProviderSettings, Wire
from semievol_api.config.settings import ProviderTable, nearest
from semievol_api.errors import ConfigError, MissingExtraError

_GROUP = "semievol.providers"
_EXTRA_OF_PACKAGE = {
    "torch": "local",
    "transformers": "local",
    "peft": "local",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "litellm": "litellm",
    "vllm": "vllm",
}


def provider_kinds() -> Mapping[str, EntryPoint]:
    """Every installed provider's entry point by its `kind`; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=_GROUP), key=lambda p: p.name)}


def connect(
    name: str,
    table: ProviderTable,
    environ: Mapping[str, str] | None = None,
    base_folder: str = ".",
    *,
    wire: Wire | None = None,
    planning: bool = False,
) -> Provider:
    """Import a provider and hand it its settings; nothing is sent. `planning`: nothing ever will be, keys may miss.

    `wire` takes the place of the network. `planning` says that no key will be needed.

    Raises:
        ConfigError: no provider of this kind is installed, or it refuses its settings.
        MissingExtraError: it needs a package that is not installed.
    """
    kinds = provider_kinds()
    if table.kind not in kinds:
        raise ConfigError(
            f"[providers.{name}]: there is no provider of kind {table.kind!r}. {nearest(table.kind, list(kinds))}"
        )
    try:
        factory: Connect = kinds[table.kind].load()
        return factory(
            ProviderSettings(
                name=name,
                options=table.options,
                environ=os.environ if environ is None else environ,
                base_folder=base_folder,
                planning=planning,
                wire=wire,
            )
        )
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF_PACKAGE:
            raise
        raise MissingExtraError(package, _EXTRA_OF_PACKAGE[package], f"The provider {table.kind!r}") from None
