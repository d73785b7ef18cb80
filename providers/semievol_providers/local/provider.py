"""Provider `local`: an open model answered by transformers and trained by PEFT in this very environment.

    [providers.home]
    kind = "local"
    model = "models/Llama-3.1-8B-Instruct"

No server and no network: the engine lives in this process, trainings in processes of their own. Connecting imports
no torch and loads nothing. Knows nothing of HTTP or of the method.
"""

from __future__ import annotations

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_providers.local.model_folder import read_facts
from semievol_providers.local.provider_chat import EngineHolder, LocalChat
from semievol_providers.local.provider_settings import LocalOptions, need_packages, read_options, read_places
from semievol_providers.local.provider_table import (
    PACKAGES,
    Parts,
    finetuner_of,
    models_of,
    provider_of,
    sentence_embedder,
)


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
    models = models_of(places)
    holder = EngineHolder(places.base_folder, places.device, options.threads)
    chat = LocalChat(holder, models.adapter_of)
    tuner = finetuner_of(options, places, models, holder.make_room)

    async def aclose() -> None:
        await tuner.aclose()
        await holder.release()

    parts = Parts(
        answers=chat,
        embedder=sentence_embedder(settings, options, places.device) or chat,
        finetuner=tuner,
        context_tokens=read_facts(places.base_folder).context_tokens,
        aclose=aclose,
    )
    return provider_of(settings.name, places, parts)
