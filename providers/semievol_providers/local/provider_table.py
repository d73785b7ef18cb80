"""What the kinds `local` and `vllm` have in common: the trainer, the names of tuned models, and the table itself.

Knows nothing of which engine answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from semievol_api.capabilities import (
    ChatRequest,
    Embedder,
    FineTuner,
    ModelLimits,
    OptionReply,
    OptionRequest,
    Provider,
    ProviderSettings,
    Reply,
)
from semievol_providers.local.provider_chat import SentenceEmbedder
from semievol_providers.local.provider_jobs import JobSettings, LocalFineTuner, TunedModels
from semievol_providers.local.provider_settings import LocalOptions, LocalPlaces
from semievol_providers.local.served_adapters import AdapterServer

PACKAGES = ("torch", "transformers", "peft", "safetensors")
MAX_N = 128
MAX_TOP_LOGPROBS = 20


class Answers(Protocol):
    """An engine as `Chat`, `ScoredChat` and `OptionReader`."""

    async def complete(self, request: ChatRequest) -> Reply:
        """As in `ScoredChat`."""
        ...

    async def read(self, request: OptionRequest) -> OptionReply:
        """As in `OptionReader`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a provider of models on this machine is made of."""

    answers: Answers
    embedder: Embedder | None
    finetuner: FineTuner
    context_tokens: int
    aclose: Callable[[], Awaitable[None]]


OWN_MACHINE = "semievol"
"""The vendor by which the catalogue knows that tokens cost nothing here."""


def provider_of(name: str, places: LocalPlaces, parts: Parts) -> Provider:
    """The table."""
    limits = ModelLimits(context_tokens=parts.context_tokens, max_n=MAX_N, max_top_logprobs=MAX_TOP_LOGPROBS)
    return Provider(
        name=name,
        identity=places.identity,
        vendor=OWN_MACHINE,
        limits={places.base_name: limits},
        chat=parts.answers,
        scored=parts.answers,
        option_reader=parts.answers,
        embedder=parts.embedder,
        finetuner=parts.finetuner,
        aclose=parts.aclose,
    )


def models_of(places: LocalPlaces) -> TunedModels:
    """The base model and what was trained from it."""
    return TunedModels(places.jobs, places.base_name, places.base_folder)


def finetuner_of(
    options: LocalOptions, places: LocalPlaces, models: TunedModels, make_room: Callable[[], Awaitable[None]]
) -> LocalFineTuner:
    """The trainer; `make_room` is awaited before each training."""
    settings = JobSettings(
        folder=places.jobs,
        base_folder=places.base_folder,
        base_name=places.base_name,
        train=places.train,
        device=places.device,
        make_room=make_room,
    )
    if options.served_at is not None:
        settings = settings.announcing(AdapterServer(options.served_at).tell)
    return LocalFineTuner(settings, models)


def sentence_embedder(settings: ProviderSettings, options: LocalOptions, device: str) -> SentenceEmbedder | None:
    """A model of its own for embeddings, where one is named."""
    if options.embedding_model is None:
        return None
    return SentenceEmbedder(str((Path(settings.base_folder) / options.embedding_model).resolve()), device)
