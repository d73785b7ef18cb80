"""The provider `local`: a model folder of this machine that answers and is trained; and what `vllm` shares with it.

Keys of `[providers.NAME]` are checked here, paths resolved, and the table put together. The engine is loaded when first
asked, lives as long as the provider, and gives its accelerator back while a model is trained on it. Importing this
imports no torch. Knows nothing of how a training goes.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, cast

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semievol_api.capabilities import (
    ChatRequest,
    Embedder,
    EmbedReply,
    EmbedRequest,
    FineTuner,
    ModelLimits,
    OptionReply,
    OptionRequest,
    Provider,
    ProviderSettings,
    Reply,
    TrainSpec,
)
from semievol_api.errors import ConfigError, MissingAbilityError, MissingExtraError, RefusedError, UserError
from semievol_api.records import Completion, Prompt, Usage
from semievol_providers.local.chat_tokens import ChatTokens, PromptError, label_token_ids
from semievol_providers.local.disk import is_out_of_memory
from semievol_providers.local.jobs import AdapterServer, LocalFineTuner, LocalPlaces, TunedModels
from semievol_providers.local.machine import idle_threads
from semievol_providers.local.model_folder import check_model_folder, read_facts
from semievol_providers.local.requests import DtypeName, EngineSettings, GenerateRequest, ReadRequest, SampleOutput
from semievol_providers.local.requests import EmbedRequest as EmbedIds
from semievol_providers.local.sentence_embedder import NamedEmbedder, SentenceEmbedder, sentence_model
from semievol_providers.local.training_job import NO_BITSANDBYTES, TrainDefaults, can_quantize, read_train_defaults

if TYPE_CHECKING:
    from semievol_providers.local.engine import Engine


PACKAGES = ("torch", "transformers", "peft", "safetensors")

_MAX_N = 128

_MAX_TOP_LOGPROBS = 20

_OWN_MACHINE = "semievol"
"""The vendor by which the catalogue knows that tokens cost nothing here."""


class LocalOptions(BaseModel):
    """Keys of a provider that runs models here; paths are relative to the config's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str | None = None
    """Folder of the base model, in the Hugging Face format; a provider of kind `local` without one only embeds."""
    name: str | None = None
    """What roles call the base model; the folder's name if left out."""
    state: str = "semievol-local"
    """Folder for jobs and the adapters that they train."""
    identity: str | None = Field(default=None, min_length=1)
    """Names the model in caches; made from its files if left out."""
    embedding_model: str | None = None
    """Folder in the sentence-transformers format, or "minilm"; takes all embeddings, whatever the role names."""
    device: str | None = Field(default=None, pattern=r"^(cpu|mps|cuda(:\d+)?)$")
    served_at: str | None = Field(default=None, pattern=r"^https?://")
    """A vLLM server that is told of every finished adapter, such as http://127.0.0.1:8000/v1."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the engine; one for every idle core if left out, and one for a small model."""
    dtype: str = Field(default="auto", pattern="^(auto|float32|bfloat16)$")
    """What the engine computes in; "auto" takes bfloat16 for models above 64 MB where the machine is fast at it."""
    train: dict[str, object] = Field(default_factory=dict[str, object])
    """Overrides of the training defaults, such as `train = { rank = 32 }`."""


_OptionsT = TypeVar("_OptionsT", bound=LocalOptions)


def connect(settings: ProviderSettings) -> Provider:
    """The table of a provider that runs a model folder here.

    Raises:
        ConfigError: an unknown or wrong key.
        ModelFolderError: the model folder is missing, incomplete or cannot chat.
        MissingExtraError: torch, transformers or peft is not installed.
    """
    need_packages(PACKAGES, "local", f"[providers.{settings.name}]")
    options = read_options(settings, LocalOptions)
    if options.model is None:
        return _embeddings_only(settings, options)
    places = read_places(settings, options, "local")
    models = TunedModels(places)
    holder = EngineHolder(places.base_folder, engine_settings(options, places, options.dtype))
    chat = LocalChat(holder, models.adapter_of)
    tuner = finetuner_of(options, places, models, holder.make_room)
    named = NamedEmbedder(chat, Path(settings.base_folder), places.device, options.threads or 1)

    async def aclose() -> None:
        await tuner.aclose()
        await holder.release()
        await named.aclose()

    parts = Parts(
        answers=chat,
        embedder=sentence_embedder(settings, options, places.device) or named,
        finetuner=tuner,
        context_tokens=read_facts(places.base_folder).context_tokens,
        aclose=aclose,
    )
    return provider_of(settings.name, places, parts)


def read_options(settings: ProviderSettings, kind: type[_OptionsT]) -> _OptionsT:
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
    if options.model is None:
        raise ConfigError(f"[providers.{settings.name}]: the key 'model' is missing: the folder of the model to run.")
    root = Path(settings.base_folder)
    folder = str((root / options.model).resolve())
    check_model_folder(folder)
    name = options.name or Path(folder).name
    return LocalPlaces(
        base_folder=folder,
        base_name=name,
        jobs=(root / options.state).resolve() / "jobs",
        identity=options.identity or f"{kind}:{name}:{_digest(Path(folder))}{_own_dtype(options, kind)}",
        device=options.device or _default_device(),
        train=_train_defaults(settings.name, folder, options.train),
    )


def _own_dtype(options: LocalOptions, kind: str) -> str:
    """A dtype that was asked for gives other answers than the usual one; vLLM's has never been told apart."""
    return "" if kind == "vllm" or options.dtype == "auto" else f":{options.dtype}"


def engine_settings(options: LocalOptions, places: LocalPlaces, dtype: str) -> EngineSettings:
    """How the engine runs in this process."""
    threads = options.threads or idle_threads(read_facts(places.base_folder).weight_bytes)
    return EngineSettings(threads=threads, device=places.device, dtype=cast("DtypeName", dtype))


def _default_device() -> str:
    """`cuda` where an NVIDIA driver is loaded, else `cpu`."""
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def _digest(folder: Path) -> str:
    """Tells models apart without reading their weights: names and sizes of all files, and the config's bytes."""
    sizes = [(file.name, file.stat().st_size) for file in sorted(folder.iterdir()) if file.is_file()]
    digest = hashlib.sha256(json.dumps(sizes).encode())
    digest.update((folder / "config.json").read_bytes())
    return digest.hexdigest()[:12]


def _train_defaults(name: str, folder: str, overrides: Mapping[str, object]) -> TrainDefaults:
    defaults = read_train_defaults(Path(folder), None)
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
    limits = ModelLimits(context_tokens=parts.context_tokens, max_n=_MAX_N, max_top_logprobs=_MAX_TOP_LOGPROBS)
    return Provider(
        name=name,
        identity=places.identity,
        vendor=_OWN_MACHINE,
        limits={places.base_name: limits},
        chat=parts.answers,
        scored=parts.answers,
        option_reader=parts.answers,
        embedder=parts.embedder,
        finetuner=parts.finetuner,
        train_keys=tuple(key for key in TrainSpec.model_fields if key not in refused),
        nearby=True,
        auto_epochs=lambda spec, examples: places.train.resolve(spec, examples).n_epochs or 1,
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
    base = Path(settings.base_folder)
    named = sentence_model(options.embedding_model, base) or str((base / options.embedding_model).resolve())
    return SentenceEmbedder(named, device, options.threads or 1)


def _embeddings_only(settings: ProviderSettings, options: LocalOptions) -> Provider:
    """The table of a provider without a chat model: `[providers.NAME]` with `kind = "local"` and no `model`."""
    device = options.device or "cpu"
    embedder = NamedEmbedder(None, Path(settings.base_folder), device, options.threads or 1)
    lacks = f"[providers.{settings.name}]: the key 'model' is missing: the folder of the model to run"
    return Provider(
        name=settings.name,
        identity=options.identity or "local",
        vendor=_OWN_MACHINE,
        embedder=sentence_embedder(settings, options, device) or embedder,
        refusals={"chat": lacks, "fine-tuning": lacks},
        aclose=embedder.aclose,
    )


Answer = TypeVar("Answer")
AdapterOf: TypeAlias = Callable[[str], str | None]


class EngineHolder:
    """`engine()` loads it once; `release()` frees its memory until it is asked for again."""

    def __init__(self, folder: str, settings: EngineSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._engine: Engine | None = None
        self._loading: asyncio.Task[Engine] | None = None
        self._lock = asyncio.Lock()
        self.starts = 0

    async def engine(self) -> Engine:
        """The running engine, loaded by whoever asks first; loading goes on where that one gives up waiting."""
        if self._engine is not None:
            return self._engine
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._make_ready(), name="engine-load")
        return await asyncio.shield(self._loading)

    async def _make_ready(self) -> Engine:
        async with self._lock:
            if self._engine is None:
                try:
                    self._engine = await asyncio.to_thread(self._load)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    raise _no_memory(f"loading the model {self._folder!r}", error) from error
                self.starts += 1
            return self._engine

    async def make_room(self) -> None:
        """Free the accelerator for a training; a model in main memory stays where it is."""
        if self._settings.device != "cpu":
            await self.release()

    async def release(self) -> None:
        """End the engine once what is queued has run."""
        loading = self._loading
        if loading is not None:
            await asyncio.gather(loading, return_exceptions=True)
            self._loading = None if self._loading is loading else self._loading  # its loop may be over by the next call
        async with self._lock:
            engine, self._engine = self._engine, None
            if engine is not None:
                await asyncio.to_thread(engine.close)
        if engine is not None and self._settings.device.startswith("cuda"):
            import gc

            import torch

            del engine
            gc.collect()
            torch.cuda.empty_cache()

    def _load(self) -> Engine:
        from semievol_providers.local.engine import Engine
        from semievol_providers.local.model_folder import quiet_known_warnings

        quiet_known_warnings()
        engine = Engine(self._folder, self._settings)
        engine.start()
        return engine


class LocalChat:
    """`Chat`, `ScoredChat`, `OptionReader` and `Embedder` on one engine."""

    def __init__(self, holder: EngineHolder, adapter_of: AdapterOf) -> None:
        self._holder = holder
        self._adapter_of = adapter_of

    async def complete(self, request: ChatRequest) -> Reply:
        """All `n` samples in one go; the prompt is prefilled once.

        Raises:
            RefusedError: an unknown model, a prompt that doesn't fit or that the chat template refuses.
        """
        if request.schema:
            raise MissingAbilityError("Models that run here cannot be held to a JSON schema. Ask without one.")
        engine = await self._holder.engine()
        asked = GenerateRequest(
            prompt_ids=prompt_ids(engine.tokens, request.prompt),
            max_tokens=request.max_tokens,
            seed=request.seed if request.seed is not None else secrets.randbits(63),
            adapter=self._adapter_of(request.model),
            n=request.n,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=request.stop,
            top_logprobs=request.top_logprobs if request.logprobs else None,
        )
        done = await _answered(lambda: engine.generate(asked), request.model)
        return Reply(
            completions=tuple([completion_of(sample, engine.tokens) for sample in done.samples]),
            usage=Usage(prompt=done.prompt_tokens, completion=sum(s.counted_tokens for s in done.samples)),
        )

    async def read(self, request: OptionRequest) -> OptionReply:
        """Exact, from one prefill; a label that is no single token is None.

        Raises:
            RefusedError: an unknown model, a prompt that doesn't fit or that the chat template refuses.
        """
        engine = await self._holder.engine()
        tokens = engine.tokens
        groups = tuple([label_token_ids(label, tokens.encode_rendered, tokens.decode) for label in request.labels])
        asked = ReadRequest(prompt_ids(tokens, request.prompt), groups, self._adapter_of(request.model))
        done = await _answered(lambda: engine.read(asked), request.model)
        return OptionReply(logprobs=done.logprobs, usage=Usage(prompt=done.prompt_tokens))

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """The last token's final hidden state, at unit length.

        Raises:
            RefusedError: an unknown model, or a text that is empty or doesn't fit.
        """
        engine = await self._holder.engine()
        ids = tuple([engine.tokens.encode_for_embedding(text) for text in request.texts])
        asked = EmbedIds(ids, self._adapter_of(request.model))
        done = await _answered(lambda: engine.embed(asked), request.model)
        return EmbedReply(vectors=done.vectors, usage=Usage(prompt=done.prompt_tokens))


def prompt_ids(tokens: ChatTokens, prompt: Prompt) -> tuple[int, ...]:
    """The prompt as token ids, its prefill as an assistant's turn that stays open.

    Raises:
        RefusedError: the chat template refuses it.
    """
    if prompt.tools or any("tool_calls" in turn.more for turn in prompt.messages):
        raise RefusedError(
            "This conversation offers or calls tools, and models that run here are not shown tools. Use a vendor's "
            "model, or take these rows out.",
            status=400,
            code="invalid_prompt",
        )
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    if prompt.prefill is not None:
        messages.append({"role": "assistant", "content": prompt.prefill})
    try:
        return tokens.encode_chat(messages, continue_last=prompt.prefill is not None)
    except PromptError as error:
        raise RefusedError(str(error), status=400, code="invalid_prompt") from error


async def _answered(ask: Callable[[], Future[Answer]], model: str) -> Answer:
    """What the engine answers.

    Raises:
        RefusedError: the prompt does not fit the model's context.
        UserError: the machine's memory does not hold what was asked.
    """
    try:
        return await asyncio.wrap_future(ask())
    except ValueError as error:
        raise RefusedError(str(error), status=400, code="context_length_exceeded") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _no_memory(f"answering as {model!r}", error) from error


def _no_memory(doing: str, error: BaseException) -> UserError:
    return UserError(
        f"The machine ran out of memory while {doing}: {str(error).splitlines()[0][:300]}. End other programs on this "
        'GPU, ask shorter questions or with fewer demonstrations, or choose a smaller model; kind = "vllm" spreads '
        "one over several GPUs (tensor_parallel). What was answered is kept: the run goes on where it stopped."
    )


def completion_of(sample: SampleOutput, tokens: ChatTokens) -> Completion:
    if sample.logprobs is None:
        return Completion(sample.text, sample.finish)
    logprobs = np.array(sample.logprobs, dtype=np.float32)
    texts = tuple([tokens.token_text(token) for token in sample.token_ids])
    if sample.top is None:
        return Completion(sample.text, sample.finish, logprobs, texts)
    top = tuple([tuple([(tokens.token_text(t.token_id), t.logprob) for t in place]) for place in sample.top])
    return Completion(sample.text, sample.finish, logprobs, texts, top)
