"""The provider `local`: a model folder of this machine that answers and is trained; and what `vllm` shares with it.

Keys of `[providers.NAME]` are checked here, paths resolved, and the table put together. Reads a few small files of the
model folder; imports no torch. Knows nothing of how an engine answers or a training goes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    TrainSpec,
)
from semievol_api.errors import ConfigError, MissingExtraError
from semievol_providers.local.chat import EngineHolder, LocalChat, SentenceEmbedder
from semievol_providers.local.jobs import AdapterServer, LocalFineTuner, LocalPlaces, TunedModels
from semievol_providers.local.model_folder import check_model_folder, read_facts
from semievol_providers.local.training_job import NO_BITSANDBYTES, TrainDefaults, can_quantize, read_train_defaults

PACKAGES = ("torch", "transformers", "peft", "safetensors")

MAX_N = 128

MAX_TOP_LOGPROBS = 20

OWN_MACHINE = "semievol"
"""The vendor by which the catalogue knows that tokens cost nothing here."""


class LocalOptions(BaseModel):
    """Keys of a provider that runs models here; paths are relative to the config's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    """Folder of the base model, in the Hugging Face format."""
    name: str | None = None
    """What roles call the base model; the folder's name if left out."""
    state: str = "semievol-local"
    """Folder for jobs and the adapters that they train."""
    identity: str | None = Field(default=None, min_length=1)
    """Names the model in caches; made from its files if left out."""
    embedding_model: str | None = None
    """Folder of a sentence-transformers model for embeddings; the base model's last hidden state if left out."""
    device: str | None = Field(default=None, pattern=r"^(cpu|mps|cuda(:\d+)?)$")
    served_at: str | None = Field(default=None, pattern=r"^https?://")
    """A vLLM server that is told of every finished adapter, such as http://127.0.0.1:8000/v1."""
    threads: int = Field(default=1, ge=1)
    train: dict[str, object] = Field(default_factory=dict[str, object])
    """Overrides of the training defaults, such as `train = { rank = 32 }`."""


OptionsT = TypeVar("OptionsT", bound=LocalOptions)


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
    models = TunedModels(places)
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


def read_options(settings: ProviderSettings, kind: type[OptionsT]) -> OptionsT:
    """The provider's table, checked.

    Raises:
        ConfigError: an unknown or wrong key.
    """
    where = f"providers.{settings.name}"
    try:
        return kind.model_validate(dict(settings.options))
    except ValidationError as error:
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, list(kind.model_fields), n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(kind.model_fields)}."
            raise ConfigError(f"[{where}]: unknown key {key!r}. {hint}") from None
        if first["type"] == "missing":
            raise ConfigError(f"[{where}]: the key {key!r} is missing: the folder of the model to run.") from None
        raise ConfigError(f"[{where}]: {key!r} is wrong: {first['msg']}.") from None


def need_packages(packages: Sequence[str], extra: str, purpose: str) -> None:
    """Refuse while planning what would fail at the first request; nothing is imported.

    Raises:
        MissingExtraError: one of the packages is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra, purpose)


def read_places(settings: ProviderSettings, options: LocalOptions, kind: str) -> LocalPlaces:
    """Resolve paths and defaults, with the model folder checked.

    Raises:
        ModelFolderError: the model folder is missing, incomplete or cannot chat.
        ConfigError: a training default is unknown or wrong.
    """
    root = Path(settings.base_folder)
    folder = str((root / options.model).resolve())
    check_model_folder(folder)
    name = options.name or Path(folder).name
    return LocalPlaces(
        base_folder=folder,
        base_name=name,
        jobs=(root / options.state).resolve() / "jobs",
        identity=options.identity or f"{kind}:{name}:{_digest(Path(folder))}",
        device=options.device or default_device(),
        train=_train_defaults(settings.name, folder, options.train),
    )


def default_device() -> str:
    """`cuda` where an NVIDIA driver is loaded, else `cpu`."""
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def _digest(folder: Path) -> str:
    """Tells models apart without reading their weights: names and sizes of all files, and the config's bytes."""
    sizes = [(file.name, file.stat().st_size) for file in sorted(folder.iterdir()) if file.is_file()]
    digest = hashlib.sha256(json.dumps(sizes).encode())
    digest.update((folder / "config.json").read_bytes())
    return digest.hexdigest()[:12]


def _train_defaults(name: str, folder: str, overrides: Mapping[str, object]) -> TrainDefaults:
    defaults = read_train_defaults(Path(folder), read_facts(folder).weight_bytes, None)
    try:
        chosen = msgspec.convert({**msgspec.structs.asdict(defaults), **overrides}, TrainDefaults)
    except msgspec.ValidationError as error:
        known = ", ".join(TrainDefaults.__struct_fields__)
        raise ConfigError(f"[providers.{name}.train]: {error}. Known keys: {known}.") from None
    if chosen.qlora and not can_quantize():
        raise ConfigError(f"[providers.{name}.train]: {NO_BITSANDBYTES}")
    return chosen


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
    no_train_keys: tuple[str, ...] = ()
    """The fields of a `TrainSpec` that its trainings cannot take from a config's `[train]`."""


def provider_of(name: str, places: LocalPlaces, parts: Parts) -> Provider:
    """The table."""
    refused = (*parts.no_train_keys, *(() if can_quantize() else ("qlora",)))
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
        train_keys=tuple(key for key in TrainSpec.model_fields if key not in refused),
        aclose=parts.aclose,
    )


def finetuner_of(
    options: LocalOptions, places: LocalPlaces, models: TunedModels, make_room: Callable[[], Awaitable[None]]
) -> LocalFineTuner:
    """The trainer; `make_room` is awaited before each training."""
    if options.served_at is None:
        return LocalFineTuner(places, models, make_room)
    return LocalFineTuner(places, models, make_room, AdapterServer(options.served_at).tell)


def sentence_embedder(settings: ProviderSettings, options: LocalOptions, device: str) -> SentenceEmbedder | None:
    """A model of its own for embeddings, where one is named."""
    if options.embedding_model is None:
        return None
    return SentenceEmbedder(str((Path(settings.base_folder) / options.embedding_model).resolve()), device)
