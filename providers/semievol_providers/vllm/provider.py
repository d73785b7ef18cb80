"""`connect` of kind `vllm`: the engine answers, PEFT trains, a local model embeds.

    [providers.gpu]
    kind = "vllm"
    model = "models/Llama-3.1-8B-Instruct"

Connecting checks folders and versions, and imports neither vLLM nor torch. Knows nothing of the method.
"""

from __future__ import annotations

import asyncio

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_providers.local.model_folder import read_facts
from semievol_providers.local.provider_chat import EngineHolder, LocalChat
from semievol_providers.local.provider_settings import LocalPlaces, need_packages, read_options, read_places
from semievol_providers.local.provider_table import (
    PACKAGES,
    Parts,
    finetuner_of,
    models_of,
    provider_of,
    sentence_embedder,
)
from semievol_providers.vllm.chat import TextSide, VllmChat
from semievol_providers.vllm.engine import EngineArguments, VllmEngine
from semievol_providers.vllm.settings import VllmOptions, check_version, installed_versions, lora_rank


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
    models = models_of(places)
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
