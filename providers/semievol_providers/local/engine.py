"""The inference engine: requests from any thread go in, futures come out, one thread runs the model.

Requests that wait together are gathered by adapter and cache bucket into groups; several groups advance in
turns, one token each. Knows nothing of HTTP, processes or training.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from semievol_api.errors import UserError
from semievol_providers.local.adapters import AdapterShelf
from semievol_providers.local.batch_group import BatchGroup, Frame, Row, cache_bucket
from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.embedding import embed_ids
from semievol_providers.local.model_folder import (
    ModelFacts,
    end_of_turn_ids,
    load_model,
    load_tokenizer,
    read_facts,
)
from semievol_providers.local.option_scores import read_next
from semievol_providers.local.requests import (
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
from semievol_providers.local.transcript import Transcript


class ContextLengthError(ValueError):
    """A prompt and its answer do not fit the model's context."""


@dataclass(frozen=True, slots=True)
class _Embed:
    request: EmbedRequest
    future: Future[Embedded]


@dataclass(frozen=True, slots=True)
class _Read:
    request: ReadRequest
    future: Future[Read]


@dataclass(frozen=True, slots=True)
class _Forget:
    adapter: str


_Work = Row | _Embed | _Read | _Forget | None
_Key = tuple[str | None, int]


class Engine:
    """One base model and its adapters. `load` it, `generate` and `embed`, `close` it."""

    def __init__(self, folder: str, settings: EngineSettings) -> None:
        self.facts: ModelFacts = read_facts(folder)
        self.settings = settings
        self.tokens = ChatTokens(load_tokenizer(folder))
        self._inbox: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._pending: OrderedDict[_Key, deque[tuple[float, Row]]] = OrderedDict()
        self._embeds: deque[_Embed] = deque()
        self._reads: deque[_Read] = deque()
        self._groups: list[BatchGroup] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        torch.set_num_threads(settings.threads)
        self._shelf = AdapterShelf(load_model(folder, settings.device), settings)
        self._end_ids = end_of_turn_ids(folder, self.tokens.tokenizer)
        pad = self.tokens.tokenizer.pad_token_id
        self._pad_id = pad if isinstance(pad, int) else 0

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
        """
        length = len(request.prompt_ids) + request.max_tokens
        if not request.prompt_ids or length > self.facts.context_tokens:
            raise ContextLengthError(
                f"This model's maximum context length is {self.facts.context_tokens} tokens. However, you "
                f"requested {length} tokens ({len(request.prompt_ids)} in the messages, {request.max_tokens} "
                "in the completion). Please reduce the length of the messages or completion."
            )
        collector = _Collector(request, sink)
        for sample in range(request.n):
            self._inbox.put(Row(request, sample, collector))
        return collector.future

    def embed(self, request: EmbedRequest) -> Future[Embedded]:
        """Queue texts to be embedded.

        Raises:
            ContextLengthError: a text is longer than the model's context, or empty.
        """
        for ids in request.inputs:
            self._check_length(len(ids), "Please reduce your input.")
        future: Future[Embedded] = Future()
        self._inbox.put(_Embed(request, future))
        return future

    def read(self, request: ReadRequest) -> Future[Read]:
        """Queue one look at the next token's distribution.

        Raises:
            ContextLengthError: the prompt is longer than the model's context, or empty.
        """
        self._check_length(len(request.prompt_ids), "Please reduce the length of the messages.")
        future: Future[Read] = Future()
        self._inbox.put(_Read(request, future))
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
                self._admit()
                self._groups = [group for group in self._groups if self._advance(group)]
                if self._embeds:
                    self._embed_some()
                if self._reads:
                    self._read_some()

    def _advance(self, group: BatchGroup) -> bool:
        """One step of a group; False when it is over. A failure ends this group's requests, not the engine."""
        try:
            group.step()
        except (RuntimeError, ValueError, MemoryError) as error:
            _fail(group.rows, error)
            return False
        return not group.finished

    def _busy(self) -> bool:
        return bool(self._groups or self._pending or self._embeds or self._reads)

    def _receive(self) -> None:
        """Take what has arrived; wait when idle, then a moment more for what arrives together."""
        if not self._busy() and not self._closed:
            self._sort(self._inbox.get())
            deadline = time.monotonic() + 5 * self.settings.gather_s
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

    def _sort(self, work: _Work) -> None:
        if work is None:
            self._closed = True
        elif isinstance(work, _Embed):
            self._embeds.append(work)
        elif isinstance(work, _Read):
            self._reads.append(work)
        elif isinstance(work, _Forget):
            self._shelf.forget(work.adapter)
        else:
            key = (work.request.adapter, cache_bucket(len(work.request.prompt_ids), self.settings))
            self._pending.setdefault(key, deque()).append((time.monotonic(), work))

    def _admit(self) -> None:
        """Start groups: full ones first, else the one that has waited longest if the engine has room."""
        while self._pending and len(self._groups) < self.settings.max_groups:
            key = self._next_key()
            if key is None:
                return
            waiting = self._pending[key]
            rows = [waiting.popleft()[1] for _ in range(min(len(waiting), self.settings.decode_rows))]
            if not waiting:
                del self._pending[key]
            self._start_group(key[0], rows)

    def _next_key(self) -> _Key | None:
        for key, waiting in self._pending.items():
            if len(waiting) >= self.settings.decode_rows:
                return key
        oldest = min(self._pending, key=lambda key: self._pending[key][0][0])
        patience_s = 0.0 if not self._groups else 0.05
        waited_s = time.monotonic() - self._pending[oldest][0][0]
        blocked = not self._shelf.merges and any(group.rows[0].request.adapter != oldest[0] for group in self._groups)
        return oldest if waited_s >= patience_s and not blocked else None

    def _start_group(self, adapter: str | None, rows: list[Row]) -> None:
        rows = [row for row in rows if not row.listener.dropped]
        if not rows:
            return
        try:
            model = self._shelf.model_for(adapter)
            frame = Frame(model, self.tokens, self._end_ids, self._pad_id, self.settings)
            self._groups.append(BatchGroup(rows, frame))
        except (RuntimeError, ValueError, OSError, MemoryError, UserError) as error:
            _fail(rows, error)

    def _embed_some(self) -> None:
        work = self._embeds.popleft()
        if not work.future.set_running_or_notify_cancel():
            return
        try:
            model = self._shelf.model_for(work.request.adapter)
            vectors = embed_ids(model, work.request.inputs, self._pad_id, self.settings)
        except (RuntimeError, ValueError, OSError, MemoryError, UserError) as error:
            work.future.set_exception(error)
        else:
            work.future.set_result(Embedded(vectors, sum(len(ids) for ids in work.request.inputs)))

    def _read_some(self) -> None:
        """Answer the oldest look, and with it what waits for the same adapter, a few prefills' worth."""
        adapter, most = self._reads[0].request.adapter, 4 * self.settings.prefill_rows
        taken = [work for work in self._reads if work.request.adapter == adapter][:most]
        self._reads = deque(work for work in self._reads if work not in taken)
        taken = [work for work in taken if work.future.set_running_or_notify_cancel()]
        try:
            model = self._shelf.model_for(adapter)
            read = read_next(model, [work.request for work in taken], self._pad_id, self.settings)
        except (RuntimeError, ValueError, OSError, MemoryError, UserError) as error:
            for work in taken:
                work.future.set_exception(error)
        else:
            for work, logprobs in zip(taken, read, strict=True):
                work.future.set_result(Read(logprobs, len(work.request.prompt_ids)))


def _fail(rows: list[Row], error: Exception) -> None:
    for row in rows:
        row.listener.fail(error)


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
