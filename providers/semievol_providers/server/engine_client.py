"""The API's side of the engine process: starts it for the first question, asks it, restarts it when it dies.

A question that was under way when the engine died is asked once more (answers depend on the question alone);
one that kills the engine twice is refused. An engine that gives no sign of life for the stated time is started
again, and those who waited for it are told to ask again. Knows nothing of HTTP or torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from semievol_api.errors import UserError
from semievol_providers.local.children import Child, ChildProcesses
from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.background import BackgroundTasks
from semievol_providers.server.engine_wire import (
    LENGTH,
    Ask,
    BeatTell,
    ChatAsk,
    ChoicesTell,
    DeltaTell,
    DropAsk,
    EmbedAsk,
    ForgetAsk,
    ReadyTell,
    RefusalTell,
    Tell,
    TextAsk,
    VectorsTell,
    beat_every_s,
    frame,
)
from semievol_providers.server.settings import ServerSettings

_log = logging.getLogger(__name__)
_MAX_ATTEMPTS = 2
_RESTART_WAIT_S = 1.0
_PROGRAM = "semievol_providers.server.engine_process"
_LOADING_FACTOR = 5  # loading may hold every thread for a while
_ENGINE = "engine"
ENGINE_HUNG = "engine_hung"
"""The code of a refusal because the engine sent no heartbeat."""


class _EngineLostError(UserError):
    """The engine process has ended or is silent."""


@dataclass(slots=True)
class _Question:
    ask: ChatAsk | TextAsk | EmbedAsk
    answers: asyncio.Queue[Tell | ApiError] = field(default_factory=asyncio.Queue)
    attempts: int = 1
    answered: bool = False


class EngineClient:
    """`ask` or `stream`, and `close` in the end; the first question starts the process."""

    def __init__(self, settings: ServerSettings, background: BackgroundTasks, children: ChildProcesses) -> None:
        self._settings = settings
        self._background = background
        self._children = children
        self._process: Child | None = None
        self._to_engine: asyncio.WriteTransport | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._questions: dict[int, _Question] = {}
        self._number = 0
        self._closing = False
        self.ready = asyncio.Event()
        self.context_tokens = 0
        self.restarts = 0
        self._last_message_s = 0.0
        self._last_check_s = 0.0

    @property
    def silent_s(self) -> float | None:
        """Seconds since the engine's last message; None while no engine runs."""
        return time.monotonic() - self._last_message_s if self.pid is not None else None

    @property
    def in_flight(self) -> int:
        """How many requests wait for an answer."""
        return len(self._questions)

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._process.pid if self._process else None

    def next_number(self) -> int:
        """A fresh id for a question."""
        self._number += 1
        return self._number

    def start(self) -> None:
        """Start the engine process unless it runs; returns before it is ready."""
        if self._supervisor is None and not self._closing:
            self._supervisor = self._background.start(_ENGINE, self._supervise)

    def refuse_waiting(self) -> None:
        """The server stops: refuse new questions, and those that still wait for the engine to load."""
        self._closing = True
        if not self.ready.is_set():
            self._refuse(_stopping())

    async def close(self) -> None:
        """End the engine process, which has nothing to save."""
        self._closing = True
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    # --------------------------------------------------------------------------------------------- asking
    async def ask(self, ask: ChatAsk | TextAsk | EmbedAsk) -> ChoicesTell | VectorsTell:
        """Send a question and wait for its whole answer.

        Raises:
            ApiError: the engine refuses it, or died twice over it.
        """
        async with aclosing(self._conversation(ask)) as tells:
            async for tell in tells:
                if isinstance(tell, ChoicesTell | VectorsTell):
                    return tell
        raise ApiError("The engine stopped.", status=503, code="engine_stopped")

    async def stream(self, ask: ChatAsk | TextAsk) -> AsyncGenerator[DeltaTell | ChoicesTell]:
        """Send a question and give its pieces as they come; the last one is a `ChoicesTell`. Close it to stop early."""
        async with aclosing(self._conversation(ask)) as tells:
            async for tell in tells:
                if isinstance(tell, DeltaTell | ChoicesTell):
                    yield tell

    def asking(self, adapter: str) -> int:
        """How many questions to this adapter wait for their answers."""
        return sum(question.ask.adapter == adapter for question in self._questions.values())

    def forget(self, adapter: str) -> None:
        """Let the engine free an adapter's memory."""
        self._send(ForgetAsk(adapter))

    async def _conversation(self, ask: ChatAsk | TextAsk | EmbedAsk) -> AsyncGenerator[Tell]:
        free = self._settings.limits.requests_in_flight - len(self._questions)
        if free <= 0 or sum(question.ask.owner == ask.owner for question in self._questions.values()) > free:
            raise ApiError(
                "You have too many requests under way for what the server has room for. Try again in a moment.",
                status=429,
                code="rate_limit_exceeded",
                headers={"retry-after": "1"},
            )
        if self._closing:
            raise _stopping()
        self.start()
        question = self._questions[ask.id] = _Question(ask)
        done = False
        try:
            if self.ready.is_set():
                self._send(ask)
            while not done:
                tell = await question.answers.get()
                if isinstance(tell, ApiError):
                    done = True
                    raise tell
                done = isinstance(tell, ChoicesTell | VectorsTell)
                yield tell
        finally:
            self._questions.pop(ask.id, None)
            if not done:
                self._send(DropAsk(ask.id))

    def _send(self, ask: Ask) -> None:
        if self._to_engine is not None and self.ready.is_set():
            self._to_engine.write(frame(ask))

    # ---------------------------------------------------------------------------------------- supervising
    async def _supervise(self) -> None:
        while not self._closing:
            try:
                process = self._process = await asyncio.to_thread(self._spawn)
                self._to_engine, answers = await _connected(process)
            except OSError as error:
                self._refuse(_unavailable(error))
                raise
            self._last_message_s = self._last_check_s = time.monotonic()
            watch = asyncio.create_task(self._watch(process), name="engine-watch")
            try:
                await self._listen(answers)
            except BaseException:
                process.kill()  # it cannot be heard any more
                raise
            finally:
                watch.cancel()
                self.ready.clear()
                self._to_engine.close()
            status = await asyncio.to_thread(process.wait)
            if not self._closing:
                _log.error("the engine process ended with status %s; starting it again", status)
                self._background.report_problem(
                    _ENGINE, _EngineLostError(f"It ended with status {status} and is started again.")
                )
                self.restarts += 1
                self._review_questions()
                await asyncio.sleep(_RESTART_WAIT_S)

    async def _watch(self, process: Child) -> None:
        """Kill an engine that sends no heartbeat, and refuse the requests that it held."""
        every_s = beat_every_s(self._settings.limits.engine_silence_s)
        while True:
            await asyncio.sleep(every_s)
            now = time.monotonic()
            if now - self._last_check_s > 3 * every_s:  # it was this process that did not run
                self._last_message_s = now
            self._last_check_s = now
            silent_s, most_s = now - self._last_message_s, self._settings.limits.engine_silence_s
            if not self.ready.is_set():
                most_s *= _LOADING_FACTOR
            if silent_s > most_s / 2:
                self._background.report_problem(
                    _ENGINE, _EngineLostError(f"No sign of life for over {most_s / 2:.3g} s.")
                )
            if silent_s > most_s:
                _log.error("the engine gave no sign of life for %.0f s; it is ended", silent_s)
                self._refuse(_hung(most_s))
                process.kill()
                return

    def _refuse(self, error: ApiError) -> None:
        for question in self._questions.values():
            question.answers.put_nowait(error)

    def _spawn(self) -> Child:
        settings = self._settings
        options = {
            "folder": settings.model_folder,
            "threads": settings.threads,
            "device": settings.device,
            "dtype": settings.dtype,
            "beat_s": beat_every_s(settings.limits.engine_silence_s),
        }
        return self._children.start(_PROGRAM, [json.dumps(options)], settings.threads, answers=True)

    async def _listen(self, out: asyncio.StreamReader) -> None:
        decoder: msgspec.msgpack.Decoder[Tell] = msgspec.msgpack.Decoder(Tell)
        while True:
            try:
                head = await out.readexactly(LENGTH.size)
                body = await out.readexactly(LENGTH.unpack(head)[0])
            except asyncio.IncompleteReadError:
                return
            self._take(decoder.decode(body))

    def _take(self, tell: Tell) -> None:
        self._last_message_s = time.monotonic()
        if isinstance(tell, BeatTell):
            if self.ready.is_set():
                self._background.clear_problem(_ENGINE)
            return
        if isinstance(tell, ReadyTell):
            self._background.clear_problem(_ENGINE)
            self.context_tokens = tell.context_tokens
            self.ready.set()
            for question in self._questions.values():
                self._send(question.ask)
            return
        asked = self._questions.get(tell.id)
        if asked is not None:
            asked.answered = True
            asked.answers.put_nowait(_error(tell) if isinstance(tell, RefusalTell) else tell)

    def _review_questions(self) -> None:
        """Questions that may be asked again stay; the others are refused."""
        for question in self._questions.values():
            question.attempts += 1
            if question.answered or question.attempts > _MAX_ATTEMPTS:
                question.answers.put_nowait(
                    ApiError("The engine died over this request.", status=500, code="engine_died")
                )


async def _connected(process: Child) -> tuple[asyncio.WriteTransport, asyncio.StreamReader]:
    """The engine's input and output."""
    loop, answers = asyncio.get_running_loop(), asyncio.StreamReader()
    assert process.stdin is not None and process.stdout is not None
    to_engine, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(answers), process.stdout)
    return to_engine, answers


def _unavailable(error: OSError) -> ApiError:
    return ApiError(
        f"The engine could not be started: {error.strerror}. It is tried again: ask again in a moment.",
        status=503,
        code="engine_unavailable",
        headers={"retry-after": "5"},
    )


def _hung(silent_s: float) -> ApiError:
    return ApiError(
        f"The engine gave no sign of life for {silent_s:.3g} s and is started again. Nothing of this request was "
        "kept: ask again in a moment.",
        status=503,
        code=ENGINE_HUNG,
        headers={"retry-after": "5"},
    )


def _stopping() -> ApiError:
    return ApiError(
        "The server is stopping. Ask again when it is back.",
        status=503,
        code="server_stopping",
        headers={"retry-after": "1"},
    )


def _error(tell: RefusalTell) -> ApiError:
    param = "messages" if tell.code in ("context_length_exceeded", "invalid_prompt") else None
    return ApiError(tell.message, status=tell.status, code=tell.code, param=tell.param or param)
