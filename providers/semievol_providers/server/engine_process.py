"""The engine's own process: reads questions from standard input, writes answers to standard output.

Ends when its input ends, so it never outlives the server. Knows nothing of HTTP, jobs or keys.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from concurrent.futures import Future
from functools import partial
from typing import IO

import msgspec

from semievol_api.errors import UserError
from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.engine import ContextLengthError, Engine
from semievol_providers.local.model_folder import quiet_known_warnings
from semievol_providers.local.requests import (
    Delta,
    Embedded,
    EmbedRequest,
    EngineSettings,
    Generated,
    GenerateRequest,
    SampleOutput,
)
from semievol_providers.server.engine_pulse import SharedPipe
from semievol_providers.server.engine_wire import (
    Ask,
    ChatAsk,
    Choice,
    ChoicesTell,
    DeltaTell,
    DropAsk,
    EmbedAsk,
    ForgetAsk,
    ReadyTell,
    RefusalTell,
    Sampling,
    Tell,
    TextAsk,
    TokenScore,
    VectorsTell,
    frame,
    read_ask,
)

_LEAST_LOGPROB = -9999.0


class EngineService:
    """Turns messages into engine requests and results into messages."""

    def __init__(self, engine: Engine, out: IO[bytes] | SharedPipe) -> None:
        self._engine = engine
        self._out = out
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Generated]] = {}

    def tell(self, message: Tell) -> None:
        """Send one message; called from any thread."""
        data = frame(message)
        with self._lock:
            self._out.write(data)
            self._out.flush()

    def take(self, ask: Ask) -> None:
        """Start working on one message."""
        if isinstance(ask, ForgetAsk):
            self._engine.forget(ask.adapter)
        elif isinstance(ask, DropAsk):
            future = self._waiting.pop(ask.id, None)
            if future is not None:
                future.cancel()
        else:
            try:
                self._start(ask)
            except ContextLengthError as error:
                self.tell(RefusalTell(ask.id, str(error), "context_length_exceeded"))
            except UserError as error:
                self.tell(RefusalTell(ask.id, str(error), "invalid_prompt"))

    def _start(self, ask: ChatAsk | TextAsk | EmbedAsk) -> None:
        tokens = self._engine.tokens
        if isinstance(ask, EmbedAsk):
            inputs = tuple(tokens.encode_for_embedding(i) if isinstance(i, str) else self._known(i) for i in ask.inputs)
            future = self._engine.embed(EmbedRequest(inputs, ask.adapter))
            future.add_done_callback(partial(self._tell_vectors, ask.id))
            return
        if isinstance(ask, ChatAsk):
            prompt = tokens.encode_chat(ask.messages, reply_follows=ask.reply_follows, continue_last=ask.continue_last)
        else:
            prompt = tokens.encode_text(ask.prompt) if isinstance(ask.prompt, str) else self._known(ask.prompt)
        room = max(1, self._engine.facts.context_tokens - len(prompt))
        request = _request(prompt, ask.sampling, room, ask.adapter)
        sink = partial(self._tell_delta, ask.id) if ask.stream else None
        future_text = self._engine.generate(request, sink)
        self._waiting[ask.id] = future_text
        future_text.add_done_callback(partial(self._tell_choices, ask.id))

    def _known(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        size = self._engine.facts.vocab_size
        if any(token >= size for token in ids):
            raise UserError(f"A token id is not in the model's vocabulary of {size:,}.")
        return ids

    def _tell_vectors(self, number: int, future: Future[Embedded]) -> None:
        if not self._tell_failure(number, future):
            done = future.result()
            data = done.vectors.astype("<f4").tobytes()
            self.tell(VectorsTell(number, data, done.vectors.shape[1], done.prompt_tokens))

    def _tell_choices(self, number: int, future: Future[Generated]) -> None:
        self._waiting.pop(number, None)
        if not future.cancelled() and not self._tell_failure(number, future):
            done = future.result()
            choices = tuple(_choice(sample, self._engine.tokens) for sample in done.samples)
            self.tell(ChoicesTell(number, done.prompt_tokens, choices))

    def _tell_delta(self, number: int, delta: Delta) -> None:
        choice = _choice(delta.output, self._engine.tokens) if delta.output is not None else None
        self.tell(DeltaTell(number, delta.index, delta.text, choice))

    def _tell_failure(self, number: int, future: Future[Generated] | Future[Embedded]) -> bool:
        error = future.exception()
        if error is None:
            return False
        if isinstance(error, UserError):
            self.tell(RefusalTell(number, str(error), "model_unavailable", 500))
        else:
            traceback.print_exception(error, file=sys.stderr)
            self.tell(RefusalTell(number, f"The engine failed: {error}", "engine_failed", 500))
        return True


def _request(prompt: tuple[int, ...], sampling: Sampling, room: int, adapter: str | None) -> GenerateRequest:
    limit = sampling.max_tokens if sampling.max_tokens is not None else min(room, sampling.token_limit)
    return GenerateRequest(
        prompt_ids=prompt,
        max_tokens=limit,
        seed=sampling.seed,
        adapter=adapter,
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=sampling.stop,
        top_logprobs=sampling.top_logprobs,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
    )


def _choice(sample: SampleOutput, tokens: ChatTokens) -> Choice:
    scores: tuple[TokenScore, ...] | None = None
    if sample.logprobs is not None:
        tops = sample.top if sample.top is not None else ((),) * len(sample.token_ids)
        scores = tuple(
            TokenScore(
                tokens.token_text(token),
                tokens.token_bytes(token),
                max(logprob, _LEAST_LOGPROB),
                tuple(
                    (tokens.token_text(t.token_id), tokens.token_bytes(t.token_id), max(t.logprob, _LEAST_LOGPROB))
                    for t in top
                ),
            )
            for token, logprob, top in zip(sample.token_ids, sample.logprobs, tops, strict=True)
        )
    return Choice(
        index=sample.index,
        text=sample.text,
        finish=sample.finish,
        tokens=sample.counted_tokens,
        scores=scores,
    )


def main(out: SharedPipe) -> None:
    """Serve the model named in the first argument (JSON: folder, threads, device) until the input ends."""
    options = json.loads(sys.argv[1])
    quiet_known_warnings()
    engine = Engine(options["folder"], EngineSettings(threads=options["threads"], device=options["device"]))
    engine.start()
    service = EngineService(engine, out)
    service.tell(ReadyTell(engine.facts.context_tokens))
    decoder: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
    while (ask := read_ask(sys.stdin.buffer, decoder)) is not None:
        service.take(ask)
    os._exit(0)
