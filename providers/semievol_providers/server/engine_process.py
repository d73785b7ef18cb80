"""The engine's own process: reads questions from standard input, writes answers to standard output.

Reading never waits for a text to be tokenised, nor for the model.
Ends when its input ends, so it never outlives the server. Heavy imports stand in `main`.
Knows nothing of HTTP, jobs or keys.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import IO, TYPE_CHECKING, Generic, TypeVar

import msgspec

from semievol_api.errors import UserError
from semievol_providers.local.chat_tokens import ChatTokens, fewest_tokens, most_bytes_of_a_token
from semievol_providers.local.fairness import TurnQueue
from semievol_providers.local.model_folder import quiet_known_warnings
from semievol_providers.local.requests import (
    ContextLengthError,
    Delta,
    Embedded,
    EmbedRequest,
    EngineSettings,
    Generated,
    GenerateRequest,
    SampleOutput,
)
from semievol_providers.local.tool_calls import (
    CallForm,
    CallReader,
    Pieces,
    ToolsError,
    call_form,
    calls_in,
)
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
    SharedPipe,
    Tell,
    TextAsk,
    TokenScore,
    VectorsTell,
    frame,
    read_ask,
    start_beating,
)

if TYPE_CHECKING:
    from semievol_providers.local.engine import Engine

T = TypeVar("T")
_LONG_CHARS = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class _Arrived(Generic[T]):
    """A question with its owner and its length in bytes, characters or token ids."""

    question: T
    owner: str
    size: int


class _Intake(Generic[T]):
    """`put` questions in; `prepare` is called with each, in one of two threads."""

    def __init__(self, prepare: Callable[[T], None]) -> None:
        self._short = _Line("intake", prepare)
        self._long = _Line("intake-long", prepare)

    def put(self, arrived: _Arrived[T]) -> None:
        """Queue a question."""
        self._line(arrived).put(arrived)

    def drop(self, arrived: _Arrived[T]) -> None:
        """Remove a question that is still queued."""
        self._line(arrived).drop(arrived)

    def _line(self, arrived: _Arrived[T]) -> _Line[T]:
        return self._long if arrived.size > _LONG_CHARS else self._short


class _Line(Generic[T]):
    def __init__(self, name: str, prepare: Callable[[T], None]) -> None:
        self._prepare = prepare
        self._queue: TurnQueue[_Arrived[T]] = TurnQueue()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, arrived: _Arrived[T]) -> None:
        with self._changed:
            self._queue.add(arrived.owner, arrived)
            self._changed.notify()

    def drop(self, arrived: _Arrived[T]) -> None:
        with self._changed:
            self._queue.remove(arrived.owner, arrived)

    def _run(self) -> None:
        while True:
            self._prepare(self._next())

    def _next(self) -> T:
        with self._changed:
            while not len(self._queue):
                self._changed.wait()
            owner = self._queue.next_owner()
            arrived = self._queue.first(owner)
            self._queue.remove(owner, arrived)
            self._queue.charge(owner, 1 + arrived.size)
            return arrived.question


_LEAST_LOGPROB = -9999.0
_PIPE_BYTES = 2**20
_Done = TypeVar("_Done", Generated, Embedded)


_Question = ChatAsk | TextAsk | EmbedAsk


class EngineService:
    """Turns messages into engine requests and results into messages.

    Whoever reads the messages never waits: texts are tokenised in other threads, or refused by their length alone.
    """

    def __init__(self, engine: Engine, out: IO[bytes] | SharedPipe) -> None:
        self._engine = engine
        self._out = out
        self._lock = threading.Lock()
        self._tokens = ChatTokens(engine.tokens.tokenizer, self._check_bytes)
        self._most_bytes = most_bytes_of_a_token(self._tokens.tokenizer)
        self._tokens.encode_text("a")  # sets the tokenizer up before two threads share it
        self._state = threading.Lock()
        self._arrived: dict[int, _Arrived[_Question]] = {}
        self._cancels: dict[int, Callable[[], bool]] = {}
        self._intake: _Intake[_Question] = _Intake(self._prepare)

    def tell(self, message: Tell) -> None:
        """Send one message; called from any thread."""
        data = frame(message)
        with self._lock:
            self._out.write(data)
            self._out.flush()

    def take(self, ask: Ask) -> None:
        """Start working on one message; returns at once."""
        if isinstance(ask, ForgetAsk):
            self._engine.forget(ask.adapter)
        elif isinstance(ask, DropAsk):
            with self._state:
                queued, cancel = self._arrived.pop(ask.id, None), self._cancels.pop(ask.id, None)
            if queued is not None:
                self._intake.drop(queued)
            if cancel is not None:
                cancel()
        else:
            arrived: _Arrived[_Question] = _Arrived(ask, ask.owner, _length(ask))
            with self._state:
                self._arrived[ask.id] = arrived
            self._intake.put(arrived)

    def _prepare(self, ask: _Question) -> None:
        """Start one question, in a thread of the intake; a failure is this question's alone."""
        try:
            self._start(ask)
        except ContextLengthError as error:
            self._refuse(RefusalTell(ask.id, str(error), "context_length_exceeded"))
        except ToolsError as error:
            param = "tools" if isinstance(ask, ChatAsk) and ask.tools is not None else "messages"
            self._refuse(RefusalTell(ask.id, str(error), "unsupported_parameter", param=param))
        except UserError as error:
            self._refuse(RefusalTell(ask.id, str(error), "invalid_prompt"))
        except Exception as error:  # noqa: BLE001 - told to whoever asked, and to the log
            traceback.print_exception(error, file=sys.stderr)
            self._refuse(RefusalTell(ask.id, f"The engine failed: {error}", "engine_failed", 500))

    def _refuse(self, tell: RefusalTell) -> None:
        with self._state:
            known = self._arrived.pop(tell.id, None)
        if known is not None:
            self.tell(tell)

    def _start(self, ask: _Question) -> None:
        if isinstance(ask, EmbedAsk):
            inputs: list[tuple[int, ...]] = []
            for given in ask.inputs:
                if ask.id not in self._arrived:  # dropped on the way
                    return
                inputs.append(
                    self._tokens.encode_for_embedding(given) if isinstance(given, str) else self._known(given)
                )
            request = EmbedRequest(tuple(inputs), ask.adapter, ask.owner)
            self._wait_for(ask.id, lambda: self._engine.embed(request), self._tell_vectors)
            return
        form: CallForm | None = None
        if isinstance(ask, ChatAsk):
            form = self._form_for(ask)
            prompt = self._chat_prompt(ask, with_tools=form is not None)
        else:
            prompt = self._tokens.encode_text(ask.prompt) if isinstance(ask.prompt, str) else self._known(ask.prompt)
        room = max(1, self._engine.facts.context_tokens - len(prompt))
        asked = _request(prompt, ask, room)
        if form is not None and isinstance(ask, ChatAsk) and ask.tools is not None:
            asked = replace(asked, grammar=form.grammar(ask.tools))
        sink = partial(self._tell_delta, ask.id, form, {}) if ask.stream else None
        self._wait_for(ask.id, lambda: self._engine.generate(asked, sink), partial(self._tell_choices, form))

    def _chat_prompt(self, ask: ChatAsk, with_tools: bool) -> tuple[int, ...]:
        text = self._tokens.render(
            ask.messages,
            reply_follows=ask.reply_follows,
            continue_last=ask.continue_last,
            tools=[function.shown() for function in ask.tools.functions] if with_tools and ask.tools else [],
        )
        return self._tokens.encode_rendered(text)

    def _form_for(self, ask: ChatAsk) -> CallForm | None:
        """How the answer to a chat writes its calls; None where it may have none.

        Raises:
            ToolsError: it offers tools or has calls in its turns, which the template does not show.
        """
        turns = any("tool_calls" in message or message.get("role") == "tool" for message in ask.messages)
        if ask.tools is None and not turns:
            return None
        form = self._call_form
        return form if ask.tools is not None and ask.tools.choice != "none" else None

    @cached_property
    def _call_form(self) -> CallForm:
        return call_form(self._tokens)

    def _wait_for(
        self, number: int, begin: Callable[[], Future[_Done]], tell: Callable[[int, Future[_Done]], None]
    ) -> None:
        """Begin unless it was dropped; from now on dropping it cancels the future."""
        with self._state:
            if number not in self._arrived:
                return
            future = begin()
            del self._arrived[number]
            self._cancels[number] = future.cancel
        future.add_done_callback(partial(tell, number))

    def _check_bytes(self, text: str) -> None:
        """Refuse a text that cannot fit before the time is spent to tokenise it."""
        context = self._engine.facts.context_tokens
        if self._most_bytes is not None and (least := fewest_tokens(text, self._most_bytes)) > context:
            raise ContextLengthError(
                f"This model's maximum context length is {context} tokens. However, your text has at least {least} "
                "tokens. Please reduce its length."
            )

    def _known(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        facts = self._engine.facts
        if len(ids) > facts.context_tokens:
            raise ContextLengthError(
                f"This model's maximum context length is {facts.context_tokens} tokens. However, you gave {len(ids)} "
                "token ids. Please reduce their number."
            )
        if any(token >= facts.vocab_size for token in ids):
            raise UserError(f"A token id is not in the model's vocabulary of {facts.vocab_size:,}.")
        return ids

    def _tell_vectors(self, number: int, future: Future[Embedded]) -> None:
        if self._still_wanted(number, future):
            done = future.result()
            data = done.vectors.astype("<f4").tobytes()
            self.tell(VectorsTell(number, data, done.vectors.shape[1], done.prompt_tokens))

    def _tell_choices(self, form: CallForm | None, number: int, future: Future[Generated]) -> None:
        if self._still_wanted(number, future):
            done = future.result()
            choices = tuple(_choice(sample, self._engine.tokens, form) for sample in done.samples)
            self.tell(ChoicesTell(number, done.prompt_tokens, choices))

    def _tell_delta(self, number: int, form: CallForm | None, readers: dict[int, CallReader], delta: Delta) -> None:
        tokens, pieces = self._engine.tokens, Pieces(delta.text)
        if form is not None:
            reader = readers.setdefault(delta.index, CallReader(form))
            pieces = reader.feed(delta.text, last=delta.output is not None)
        choice = _choice(delta.output, tokens, form) if delta.output is not None else None
        told = DeltaTell(number, delta.index, pieces.text, choice, _scores(delta, tokens), tuple(pieces.calls))
        self.tell(told)

    def _still_wanted(self, number: int, future: Future[Generated] | Future[Embedded]) -> bool:
        """Whether a result is to be sent: not for cancelled requests, nor after a failure was sent."""
        with self._state:
            self._cancels.pop(number, None)
        if future.cancelled():
            return False
        error = future.exception()
        if error is None:
            return True
        if isinstance(error, UserError):
            self.tell(RefusalTell(number, str(error), "model_unavailable", 500))
        else:
            traceback.print_exception(error, file=sys.stderr)
            self.tell(RefusalTell(number, f"The engine failed: {error}", "engine_failed", 500))
        return False


def _length(ask: _Question) -> int:
    """Bytes, characters or token ids."""
    if isinstance(ask, ChatAsk):
        return len(msgspec.msgpack.encode((ask.messages, ask.tools)))
    return len(ask.prompt) if isinstance(ask, TextAsk) else sum(len(given) for given in ask.inputs)


def _request(prompt: tuple[int, ...], ask: ChatAsk | TextAsk, room: int) -> GenerateRequest:
    sampling = msgspec.structs.asdict(ask.sampling)
    limit = min(room, sampling.pop("token_limit"))
    sampling["max_tokens"] = limit if sampling["max_tokens"] is None else sampling["max_tokens"]
    return GenerateRequest(prompt_ids=prompt, adapter=ask.adapter, owner=ask.owner, **sampling)


def _choice(sample: SampleOutput, tokens: ChatTokens, form: CallForm | None) -> Choice:
    pieces, called = Pieces(sample.text), False
    if form is not None:
        reader = CallReader(form)
        pieces = reader.feed(sample.text, last=True)
        called = reader.called and sample.finish == "stop"
    return Choice(
        index=sample.index,
        text=pieces.text,
        finish="tool_calls" if called else sample.finish,
        tokens=sample.counted_tokens,
        scores=_scores(sample, tokens),
        calls=tuple(calls_in(pieces)),
    )


def _scores(scored: SampleOutput | Delta, tokens: ChatTokens) -> tuple[TokenScore, ...] | None:
    if scored.logprobs is None:
        return None
    tops = scored.top if scored.top is not None else ((),) * len(scored.token_ids)
    return tuple(
        TokenScore(
            tokens.token_text(token),
            tokens.token_bytes(token),
            max(logprob, _LEAST_LOGPROB),
            tuple(
                (tokens.token_text(t.token_id), tokens.token_bytes(t.token_id), max(t.logprob, _LEAST_LOGPROB))
                for t in top
            ),
        )
        for token, logprob, top in zip(scored.token_ids, scored.logprobs, tops, strict=True)
    )


def _widen(pipe: int) -> None:
    """Let a long message come through in few reads, each of which waits for the interpreter; Linux only."""
    if sys.platform == "linux":
        import fcntl  # other systems have none

        with contextlib.suppress(OSError):  # the system allows less
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _end_with_input() -> None:
    """End as soon as nobody writes to standard input any more, whatever else is done or still to be read."""
    gone = select.poll()
    gone.register(0, select.POLLHUP)
    gone.poll()
    os._exit(1)


def main() -> None:
    """Serve the model named in the first argument (JSON: folder, threads, device, dtype, beat_s) until the input ends.

    Signs of life are given, and the server's end is noticed, while torch is still loading.
    """
    threading.Thread(target=_end_with_input, daemon=True).start()
    options = json.loads(sys.argv[1])
    out = SharedPipe(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever prints by accident goes to standard error
    start_beating(out, options["beat_s"])
    from semievol_providers.local.engine import Engine

    _widen(sys.stdin.fileno())
    quiet_known_warnings()
    chosen = {name: options[name] for name in ("threads", "device", "dtype")}
    engine = Engine(options["folder"], EngineSettings(**chosen))
    engine.start()
    service = EngineService(engine, out)
    service.tell(ReadyTell(engine.facts.context_tokens))
    decoder: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
    while (ask := read_ask(sys.stdin.buffer, decoder)) is not None:
        service.take(ask)
    os._exit(0)


if __name__ == "__main__":
    main()
