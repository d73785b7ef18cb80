"""Provider `local`: an open model answered by transformers and trained by PEFT in this very environment.

    [providers.home]
    kind = "local"
    model = "models/Llama-3.1-8B-Instruct"

No server and no network: the engine lives in this process, trainings in processes of their own. Connecting imports
no torch and loads nothing. Knows nothing of HTTP or of the method.
"""

from __future__ import annotations

from pathlib import Path

from semievol_api.capabilities import ModelLimits, Provider, ProviderSettings
from semievol_providers.local.model_folder import read_facts
from semievol_providers.local.provider_chat import EngineHolder, LocalChat, SentenceEmbedder
from semievol_providers.local.provider_jobs import JobSettings, LocalFineTuner, TunedModels
from semievol_providers.local.provider_settings import LocalOptions, need_packages, read_options, read_places

PACKAGES = ("torch", "transformers", "peft", "safetensors")
MAX_N = 128
MAX_TOP_LOGPROBS = 20


def connect(settings: ProviderSettings) -> Provider:
    """The table of a provider that runs a model folder here.

    Raises:
        ConfigError: an unknown or wrong key.
        ModelFolderError: the model folder is missing, incomplete or cannot chat.
        MissingExtraError: torch, transformers or peft is not installed.
    """
    need_packages(PACKAGES, "local", f"[providers.{settings.name}]")
    options = read_options(settings, LocalOptions)
    places = read_places(settings, options, "local")
    models = TunedModels(places.jobs, places.base_name, places.base_folder)
    holder = EngineHolder(places.base_folder, places.device, options.threads)
    chat = LocalChat(holder, models.adapter_of)
    tuner = LocalFineTuner(
        JobSettings(
            folder=places.jobs,
            base_folder=places.base_folder,
            base_name=places.base_name,
            train=places.train,
            device=places.device,
            make_room=holder.make_room,
        ),
        models,
    )
    embedder = (
        SentenceEmbedder(str((Path(settings.base_folder) / options.embedding_model).resolve()), places.device)
        if options.embedding_model
        else chat
    )

    async def aclose() -> None:
        await tuner.aclose()
        await holder.release()

    limits = ModelLimits(
        context_tokens=read_facts(places.base_folder).context_tokens, max_n=MAX_N, max_top_logprobs=MAX_TOP_LOGPROBS
    )
    return Provider(
        name=settings.name,
        identity=places.identity,
        limits={places.base_name: limits},
        chat=chat,
        scored=chat,
        option_reader=chat,
        embedder=embedder,
        finetuner=tuner,
        aclose=aclose,
    )
