"""The inference engine: requests from any thread go in, futures come out, one thread runs the model.

What arrives is sorted by kind: samples and looks at the next token go to the batcher, embeddings take turns with its
steps, a pass at a time. Knows nothing of HTTP, processes, training or how samples share their steps.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from semievol_providers.local.adapters import AdapterShelf
from semievol_providers.local.batcher import FAILURES, Batcher, CachePlan
from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.constrained import Grammars
from semievol_providers.local.decoding import NextTokens, ReadRow, Row, Transcript
from semievol_providers.local.fairness import TurnQueue
from semievol_providers.local.machine import fast_in_bfloat16, free_memory_bytes
from semievol_providers.local.model_folder import ModelFacts, end_of_turn_ids, load_model, load_tokenizer, read_facts
from semievol_providers.local.packed import PackedModel, Prompt, embed_pass, passes
from semievol_providers.local.requests import (
    ContextLengthError,
    DeltaSink,
    Embedded,
    EmbedRequest,
    EngineSettings,
    Generated,
    GenerateRequest,
    Read,
    ReadRequest,
    SampleOutput,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Embed:
    """Texts on their way to vectors, pass by pass."""

    def __init__(self, request: EmbedRequest, pass_tokens: int) -> None:
        self.request = request
        self.future: Future[Embedded] = Future()
        self.left = deque(passes(request.inputs, pass_tokens))
        self.vectors: list[NDArray[np.float32]] = []

    def finish(self) -> None:
        """All passes are done."""
        tokens = sum(len(ids) for ids in self.request.inputs)
        done = Embedded(np.stack(self.vectors), tokens)
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(done)

    def fail(self, error: Exception) -> None:
        """The texts cannot be embedded."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Forget:
    adapter: str


_Work = Row | ReadRow | _Embed | _Forget | None
_IDLE_CACHE_S = 10.0
_CPU_CACHE_BYTES = 4 * 2**30
_CPU_CACHE_SHARE = 0.25
_ACCELERATOR_CACHE_SHARE = 0.6
_PREFIX_SHARE = 0.25
_EXACT_ROWS = 64
_ROWS = (16, 256)
_USUAL_TOKENS = 1024


class Engine:
    """One base model and its adapters. `load` it, `generate` and `embed`, `close` it."""

    def __init__(self, folder: str, settings: EngineSettings) -> None:
        self.facts: ModelFacts = read_facts(folder)
        self.settings = settings
        self.tokens = ChatTokens(load_tokenizer(folder))
        self._inbox: queue.Queue[_Work] = queue.Queue()  # not a SimpleQueue, see decision 0006
        self._embeds: TurnQueue[_Embed] = TurnQueue()
        self._leaving: set[str] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        torch.set_num_threads(settings.threads)
        self.exact = _is_exact(self.facts, settings)
        self._packed = self._make_ready(folder)
        self._shelf = AdapterShelf(self._packed, lambda: self._load(folder), settings.adapter_cache_bytes)
        end_ids = end_of_turn_ids(folder, self.tokens.tokenizer)
        self._grammars = Grammars(self.tokens.tokenizer, self.facts.vocab_size, end_ids)
        next_tokens = NextTokens(self.tokens, end_ids, self._grammars)
        token_bytes = self.facts.cache_values * self._packed.base.dtype.itemsize
        room = _cache_bytes(settings)
        prefix_bytes = 0 if self.exact else int(room * _PREFIX_SHARE)
        plan = CachePlan(room - prefix_bytes, token_bytes, prefix_bytes)
        rows = settings.decode_rows or (_EXACT_ROWS if self.exact else _rows_that_fit(plan.limit_bytes, token_bytes))
        self.batcher = Batcher(self._shelf, self._packed, next_tokens, plan, rows, settings.prefill_s)
        """What the engine's thread runs; others look, and run it by hand where the engine was not started."""

    def _make_ready(self, folder: str) -> PackedModel:
        pad = self.tokens.tokenizer.pad_token_id
        return PackedModel(self._load(folder), pad if isinstance(pad, int) else 0, exact=self.exact)

    def _load(self, folder: str) -> PreTrainedModel:
        dtype = self.settings.dtype
        if dtype == "auto":
            dtype = "bfloat16" if not self.exact and fast_in_bfloat16(self.settings.device) else "float32"
        return load_model(folder, self.settings.device, dtype=dtype)

    def start(self) -> None:
        """Start the thread that runs the model."""
        self._thread.start()

    def close(self) -> None:
        """Let running work end, then stop the thread."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    # --------------------------------------------------------------------------------------------- asking
    def generate(self, request: GenerateRequest, sink: DeltaSink | None = None) -> Future[Generated]:
        """Queue one request; the future's result holds all its samples. Cancel it to stop the work.

        Raises:
            ContextLengthError: the prompt and `max_tokens` are longer than the model's context.
            SchemaError: no answer can be held to the schema.
        """
        length = len(request.prompt_ids) + request.max_tokens
        if not request.prompt_ids or length > self.facts.context_tokens:
            raise ContextLengthError(
                f"This model's maximum context length is {self.facts.context_tokens} tokens. However, you "
                f"requested {length} tokens ({len(request.prompt_ids)} in the messages, {request.max_tokens} "
                "in the completion). Please reduce the length of the messages or completion."
            )
        if request.schema is not None:
            self._grammars.start(request.schema)  # made in the asking thread, since the first takes a while
        collector = _Collector(request, sink)
        for sample in range(request.n):
            self._inbox.put(Row(request, sample, collector))
        return collector.future

    def embed(self, request: EmbedRequest) -> Future[Embedded]:
        """Queue texts to be embedded. Cancel the future to stop the work.

        Raises:
            ContextLengthError: a text is longer than the model's context, or empty.
        """
        for ids in request.inputs:
            self._check_length(len(ids), "Please reduce your input.")
        work = _Embed(request, self._packed.pass_tokens)
        self._inbox.put(work)
        return work.future

    def read(self, request: ReadRequest) -> Future[Read]:
        """Queue one look at the next token's distribution.

        Raises:
            ContextLengthError: the prompt is longer than the model's context, or empty.
        """
        self._check_length(len(request.prompt_ids), "Please reduce the length of the messages.")
        future: Future[Read] = Future()
        self._inbox.put(ReadRow(request, future))
        return future

    def forget(self, adapter: str) -> None:
        """Free an adapter's memory once what is queued before has run."""
        self._inbox.put(_Forget(adapter))

    def _check_length(self, length: int, advice: str) -> None:
        if not 0 < length <= self.facts.context_tokens:
            raise ContextLengthError(
                f"This model's maximum context length is {self.facts.context_tokens} tokens, however you "
                f"requested {length} tokens. {advice}"
            )

    # -------------------------------------------------------------------------------------------- running
    def _run(self) -> None:
        with torch.inference_mode():
            while not (self._closed and not self._busy()):
                self._receive()
                self.batcher.step()
                if len(self._embeds):
                    self._embed_some()
                for adapter in [name for name in self._leaving if not self._uses(name)]:
                    self._leaving.discard(adapter)
                    self.batcher.forget(adapter)

    def _uses(self, adapter: str) -> bool:
        """Whether samples or texts need this adapter."""
        return self.batcher.uses(adapter) or any(work.request.adapter == adapter for work in self._embeds)

    def _busy(self) -> bool:
        return bool(self.batcher.busy or len(self._embeds))

    def _receive(self) -> None:
        """Take what has arrived; wait when idle, then a moment more for what arrives together."""
        if not self._busy() and not self._closed:
            self._sort(self._first())
            deadline = time.monotonic() + 4 * self.settings.gather_s
            while time.monotonic() < deadline:
                try:
                    self._sort(self._inbox.get(timeout=self.settings.gather_s))
                except queue.Empty:
                    break
        while True:
            try:
                self._sort(self._inbox.get_nowait())
            except queue.Empty:
                return

    def _first(self) -> _Work:
        """Wait for work; caches that nobody needed for a while are given back."""
        try:
            return self._inbox.get(timeout=_IDLE_CACHE_S)
        except queue.Empty:
            self.batcher.free()
            return self._inbox.get()

    def _sort(self, work: _Work) -> None:
        if work is None:
            self._closed = True
        elif isinstance(work, _Embed):
            self._embeds.add(work.request.owner, work)
        elif isinstance(work, _Forget):
            self._leaving.add(work.adapter)
        else:
            self.batcher.add(work)

    def _embed_some(self) -> None:
        """One pass for the owner whose turn it is."""
        owner = self._embeds.next_owner()
        work = self._embeds.first(owner)
        inputs = work.request.inputs
        members = work.left.popleft() if work.left and not work.future.cancelled() else []
        self._embeds.charge(owner, sum(len(inputs[i]) for i in members))
        try:
            if members:
                adapter = work.request.adapter
                prompts = [Prompt(inputs[i], adapter) for i in members]
                work.vectors += embed_pass(self._packed, self._shelf.ready(adapter), prompts)
                self._shelf.trim()
            if not work.left:
                work.finish()
        except FAILURES as error:
            work.fail(error)
            work.left.clear()
        if not work.left or work.future.cancelled():
            self._embeds.remove(owner, work)


def _is_exact(facts: ModelFacts, settings: EngineSettings) -> bool:
    """Whether a model owes equal bits: a small one in float32 on a CPU."""
    small = facts.weight_bytes <= settings.exact_limit_bytes
    return small and settings.device == "cpu" and settings.dtype != "bfloat16"


def _rows_that_fit(limit_bytes: int, token_bytes: int) -> int:
    """How many samples of the usual length share the memory for keys and values."""
    least, most = _ROWS
    return min(most, max(least, limit_bytes // max(1, token_bytes * _USUAL_TOKENS)))


def _cache_bytes(settings: EngineSettings) -> int:
    """What keys and values may take: a share of the memory that is free once the model is loaded."""
    if settings.cache_bytes is not None:
        return settings.cache_bytes
    if settings.device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(settings.device)[0] * _ACCELERATOR_CACHE_SHARE)
    free = free_memory_bytes()
    return _CPU_CACHE_BYTES if free is None else min(_CPU_CACHE_BYTES, int(free * _CPU_CACHE_SHARE))


class _Collector:
    """Gathers the samples of one request and completes its future; works on the engine's thread only."""

    def __init__(self, request: GenerateRequest, sink: DeltaSink | None) -> None:
        self.future: Future[Generated] = Future()
        self._request = request
        self._sink = sink
        self._samples: dict[int, SampleOutput] = {}

    @property
    def dropped(self) -> bool:
        return self.future.done()

    def progress(self, transcript: Transcript, output: SampleOutput | None) -> None:
        if self._sink is not None:
            delta = transcript.delta(output)
            if delta is not None:
                self._sink(delta)
        if output is None:
            return
        self._samples[output.index] = output
        if len(self._samples) == self._request.n and self.future.set_running_or_notify_cancel():
            samples = tuple(self._samples[i] for i in range(self._request.n))
            self.future.set_result(Generated(len(self._request.prompt_ids), samples))

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
