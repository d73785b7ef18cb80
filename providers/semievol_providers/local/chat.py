"""Chat, scored chat, option reading and embeddings on the engine of this process.

The engine is loaded when first asked, lives as long as the provider, and gives its accelerator back while a model
is trained on it. Knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from semievol_api.capabilities import ChatRequest, EmbedReply, EmbedRequest, OptionReply, OptionRequest, Reply
from semievol_api.errors import RefusedError, UserError
from semievol_api.records import Completion, FloatMatrix, Prompt, Usage
from semievol_providers.local.chat_tokens import ChatTokens, PromptError, label_token_ids
from semievol_providers.local.disk import is_out_of_memory
from semievol_providers.local.requests import EmbedRequest as EmbedIds
from semievol_providers.local.requests import GenerateRequest, ReadRequest, SampleOutput

if TYPE_CHECKING:
    from semievol_providers.local.engine import Engine

Embed: TypeAlias = Callable[[list[str]], tuple[FloatMatrix, int]]
Answer = TypeVar("Answer")
AdapterOf: TypeAlias = Callable[[str], str | None]


class EngineHolder:
    """`engine()` loads it once; `release()` frees its memory until it is asked for again."""

    def __init__(self, folder: str, device: str, threads: int) -> None:
        self._folder = folder
        self._device = device
        self._threads = threads
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
        if self._device != "cpu":
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
        if engine is not None and self._device.startswith("cuda"):
            import gc

            import torch

            del engine
            gc.collect()
            torch.cuda.empty_cache()

    def _load(self) -> Engine:
        from semievol_providers.local.engine import Engine
        from semievol_providers.local.model_folder import quiet_known_warnings
        from semievol_providers.local.requests import EngineSettings

        quiet_known_warnings()
        engine = Engine(self._folder, EngineSettings(threads=self._threads, device=self._device))
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
    if sample.top is None:
        return Completion(sample.text, sample.finish, logprobs)
    top = tuple([tuple([(tokens.token_text(t.token_id), t.logprob) for t in place]) for place in sample.top])
    texts = tuple([tokens.token_text(token) for token in sample.token_ids])
    return Completion(sample.text, sample.finish, logprobs, texts, top)


class SentenceEmbedder:
    """`Embedder` by a sentence-transformers model of its own."""

    def __init__(self, folder: str, device: str) -> None:
        self._folder = folder
        self._device = device
        self._lock = asyncio.Lock()
        self._embed: Embed | None = None

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Vectors of unit length, as the model's own recipe makes them."""
        async with self._lock:
            vectors, tokens = await asyncio.to_thread(self._run, list(request.texts))
        return EmbedReply(vectors=vectors, usage=Usage(prompt=tokens))

    def _run(self, texts: list[str]) -> tuple[FloatMatrix, int]:
        if self._embed is None:
            self._embed = _load_sentence_model(self._folder, self._device)
        return self._embed(texts)


def _load_sentence_model(folder: str, device: str) -> Embed:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise UserError(
            "embedding_model needs the package 'sentence-transformers', which is not installed. Install it with: "
            "pip install sentence-transformers; or leave embedding_model out to embed with the model itself."
        ) from error
    model = SentenceTransformer(folder, device=device, local_files_only=True)

    def embed(texts: list[str]) -> tuple[FloatMatrix, int]:
        vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        count = sum(len(model.tokenizer.encode(text)) for text in texts)
        return np.asarray(vectors, dtype=np.float32), count

    return embed
