"""A provider for the engine's tests: it answers from the prompt, counts what is sent, and fails on demand.

Knows nothing of the engine.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterator

import numpy as np

from semievol_api.capabilities import (
    ChatRequest,
    EmbedReply,
    EmbedRequest,
    ModelLimits,
    OptionReply,
    OptionRequest,
    Pace,
    Provider,
    Reply,
)
from semievol_api.engine import Ask
from semievol_api.records import Completion, Message, Prompt, Usage

MODEL = "fake-1"
BeforeAnswer = Callable[[int, ChatRequest], Awaitable[None]]
"""Called with the number of the call (from 0) and the request; may wait or raise."""


def question(request: ChatRequest | OptionRequest) -> str:
    """The last turn's text."""
    return request.prompt.messages[-1].content


def chat_ask(name: str, *, text: str | None = None, **settings: object) -> Ask[ChatRequest]:
    """An ask whose question is its id, unless a text is given."""
    prompt = Prompt((Message("user", text or name),))
    values: dict[str, object] = {"model": MODEL, "max_tokens": 8, **settings}
    return Ask(name, ChatRequest(prompt=prompt, **values))  # type: ignore[arg-type]


def asks(count: int, **settings: object) -> Iterator[Ask[ChatRequest]]:
    """Asks q0, q1, ..."""
    return (chat_ask(f"q{i}", **settings) for i in range(count))


def completion(request: ChatRequest, sample: int) -> Completion:
    """A completion that tells its question, seed and sample, with log-probabilities that depend on them."""
    text = f"{question(request)}/{request.seed}/{sample}"
    size = 3 + len(text) % 5
    logprobs = -np.arange(1, size + 1, dtype=np.float32) / 7 if request.logprobs else None
    tokens = tuple(f"t{i}é" for i in range(size)) if request.top_logprobs else None
    top = tuple(((f"t{i}", -0.1 * i - 1 / 3), ("x", -9.87)) for i in range(size)) if request.top_logprobs else None
    return Completion(text=text, finish="stop", token_logprobs=logprobs, tokens=tokens, top=top)


class FakeServer:
    """Answers all kinds of request and remembers them."""

    def __init__(self, before: BeforeAnswer | None = None, *, most_n: int = 100, pace: Pace | None = None) -> None:
        self.chats: list[ChatRequest] = []
        self.texts: list[str] = []
        self.embed_calls = 0
        self.reads = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.billed = Usage()
        self._before = before
        self._most_n = most_n
        self._pace = pace or Pace()

    async def complete(self, request: ChatRequest) -> Reply:
        """One chat request."""
        number = len(self.chats)
        self.chats.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._before is None:
                await asyncio.sleep(0)
            else:
                await self._before(number, request)
        finally:
            self.in_flight -= 1
        n = min(request.n, self._most_n)
        usage = Usage(len(question(request)), 4 * n, 1)
        self.billed += usage
        completions = tuple(completion(request, sample) for sample in range(n))
        return Reply(completions=completions, usage=usage, pace=self._pace)

    async def read(self, request: OptionRequest) -> OptionReply:
        """One option reading; the second label is not shown."""
        self.reads += 1
        await asyncio.sleep(0)
        shown = tuple(None if i == 1 else -0.1 * i - len(question(request)) / 3 for i in range(len(request.labels)))
        return OptionReply(logprobs=shown, usage=Usage(5, 1, 0))

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """One batch of embeddings."""
        self.embed_calls += 1
        self.texts += request.texts
        await asyncio.sleep(0)
        vectors = np.array([[len(text), ord(text[0]) / 3, 1.0] for text in request.texts], np.float32)
        return EmbedReply(vectors=vectors, usage=Usage(len(request.texts), 0, 0))


def provider(
    server: FakeServer, *, identity: str = "http://fake/v1", limits: ModelLimits | None = None, scored: bool = True
) -> Provider:
    """A provider over a fake server."""
    return Provider(
        name="fake",
        identity=identity,
        limits={} if limits is None else {MODEL: limits},
        chat=server,
        scored=server if scored else None,
        option_reader=server,
        embedder=server,
    )


class PatientClock:
    """A clock that jumps to the next wake-up time after everyone had many turns: long enough for a commit.

    `VirtualClock` jumps after one turn, which is too early where a turn makes another task runnable.
    """

    def __init__(self, turns: int = 30) -> None:
        self._turns = turns
        self._now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._ticking = False

    def now_s(self) -> float:
        """All that was slept so far."""
        return self._now_s

    async def sleep(self, wait_s: float) -> None:
        """Come back when everyone whose time is earlier has come back."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now_s + max(0.0, wait_s), self._count, woken))
        self._tick(self._turns)
        await woken

    def _tick(self, turns: int, *, own: bool = False) -> None:
        if self._ticking and not own:
            return
        loop = asyncio.get_running_loop()
        self._ticking = True
        if turns > 0:
            loop.call_soon(lambda: self._tick(turns - 1, own=True))
            return
        while self._sleepers:
            wake_s, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self._now_s = max(self._now_s, wake_s)
                woken.set_result(None)
                break
        self._ticking = False
        if self._sleepers:
            self._tick(self._turns)
