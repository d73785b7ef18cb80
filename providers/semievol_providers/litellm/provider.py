"""litellm's own price table, read from the file inside its package: no import, no network.

    prices["gpt-4o-mini"].input_usd     # USD per million tokens

Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from semievol_api.capabilities import ModelLimits, ModelName, Provider, ProviderSettings, is_nearby
from semievol_api.errors import ConfigError, MissingExtraError
from semievol_providers.litellm.calls import LiteLLM, LiteLLMChat, LiteLLMEmbedder
from semievol_providers.litellm.settings import read_access

_FILE = "model_prices_and_context_window_backup.json"


class _LiteLLMPrices(Mapping[ModelName, ModelLimits]):
    """Limits by litellm's model names, with or without the vendor's prefix; read when first asked."""

    def __getitem__(self, name: ModelName) -> ModelLimits:
        found = self._table.get(name) or self._table.get(name.partition("/")[2])
        if not isinstance(found, dict):
            raise KeyError(name)
        return ModelLimits(
            context_tokens=_count(found.get("max_input_tokens")),
            input_usd=_per_million(found.get("input_cost_per_token")),
            cached_input_usd=_per_million(found.get("cache_read_input_token_cost")),
            output_usd=_per_million(found.get("output_cost_per_token")),
            shutdown_date=found.get("deprecation_date"),
        )

    def __iter__(self) -> Iterator[ModelName]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def _table(self) -> Mapping[str, Any]:
        spec = find_spec("litellm")
        folders = (spec.submodule_search_locations or []) if spec else []
        for folder in folders:
            path = Path(folder) / _FILE
            if path.is_file():
                table: Mapping[str, Any] = msgspec.json.decode(path.read_bytes())
                return table
        return {}


def _per_million(usd_per_token: object) -> float | None:
    return round(float(usd_per_token) * 1e6, 6) if isinstance(usd_per_token, int | float) else None


def _count(tokens: object) -> int | None:
    return int(tokens) if isinstance(tokens, int | float) else None


def connect(settings: ProviderSettings) -> Provider:
    """The provider that a table of the config describes.

    Raises:
        ConfigError: an unknown or wrong key, or a key variable or file that holds nothing.
        MissingExtraError: litellm is not installed.
    """
    if find_spec("litellm") is None:
        raise MissingExtraError("litellm", "litellm", "The provider 'litellm'")
    if settings.wire is not None:
        raise ConfigError(
            f"The provider {settings.name!r} is of kind 'litellm', which cannot send through the cassette of "
            f"[cassette]. Point its api_base at `semievol cassette record` or `replay`, or use kind 'openai'."
        )
    access = read_access(settings)
    library = LiteLLM()
    chat = LiteLLMChat(access, library)
    return Provider(
        name=access.provider,
        identity=access.identity,
        vendor="litellm",
        limits=_LiteLLMPrices(),
        chat=chat,
        scored=None if "logprobs" in access.leave_out else chat,
        embedder=LiteLLMEmbedder(access, library),
        refusals={
            "fine-tuning": "litellm drops a job's method, metadata and own fields, so that a training could neither be "
            "worded nor be found again"
        },
        nearby=is_nearby(access.api_base),
        aclose=library.aclose,
    )
