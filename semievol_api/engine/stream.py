"""One stage's asks on their way through the engine: plan, send what is missing, answer.

Asks are taken in chunks as the consumer takes answers, so memory stays flat however long the input is. Each
chunk is looked up in the journal at once; an ask is answered from there, joins an identical one that is under
way, or becomes a work of its own. Knows nothing of gates, retries or files.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from semievol_api.capabilities import Provider
from semievol_api.engine.budget import Budget, Spend, price
from semievol_api.engine.journal import Found, Journal, Source
from semievol_api.engine.requests import Answer, Ask, Kind, Progress, ReplyT, RequestT
from semievol_api.engine.work import AnyRequestChunk, AnyWork, Ledger, RequestChunk, ResultSink, Work
from semievol_api.errors import ContextLengthError, ProviderError
from semievol_api.records import Usage

_log = logging.getLogger(__name__)

_CHUNK = 256
"""Asks that are looked up in the journal together."""
_WINDOW = 1024
"""Asks under way and answers not taken yet, at least; more where the gate has room for more."""


class Sender(Protocol):
    """What carries pieces to a provider: one by one, or in batches."""

    mode: str
    price_share: float

    def submit(self, piece: AnyRequestChunk) -> None:
        """Send a piece in its turn."""
        ...

    def settle(self, piece: AnyRequestChunk) -> None:
        """A piece is paid and stored."""
        ...

    def no_more(self, sink: ResultSink[Any, Any]) -> None:
        """The sink has no more pieces to submit, until one of its own is submitted anew."""
        ...

    def window(self, identity: str, model: str) -> int:
        """How many asks a stream may have open for this key and model."""
        ...

    def recall(self, sink: ResultSink[Any, Any]) -> None:
        """Send nothing more for a sink; what is in flight may come home."""
        ...

    def cancel(self, sink: ResultSink[Any, Any]) -> None:
        """Break off what is in flight for a sink; lost replies stay charged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What all streams of an engine share."""

    run: str
    journal: Journal
    under_way: dict[bytes, AnyWork]
    budget: Budget
    ledger: Ledger
    now_s: Callable[[], float]
    on_progress: Callable[[Progress], None] | None
    estimated: set[str] = field(default_factory=set[str])
    """Models whose usage is not believed; each is told of once."""


class Stream(ResultSink[RequestT, ReplyT], Generic[RequestT, ReplyT]):
    """One call of the engine: asks in, answers out, in the order in which they are done."""

    def __init__(
        self, state: EngineState, kind: Kind[RequestT, ReplyT], provider: Provider, sender: Sender, stage: str
    ) -> None:
        self.kind = kind
        self.provider = provider
        self.tally = state.ledger.tally(stage)
        self.stopped = False
        self._state = state
        self._sender = sender
        self.stage = stage
        self._sources: dict[str, Source] = {}
        self._group: list[Work[RequestT, ReplyT]] = []
        self._ready: deque[Answer[ReplyT]] = deque()
        self._open_asks = 0
        self._open_pieces = 0
        self._window = _WINDOW
        self._models: set[str] = set()
        self._fed = False
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._space = asyncio.Event()

    # ------------------------------------------------------------------------------------------ the consumer
    async def answers(self) -> AsyncIterator[Answer[ReplyT]]:
        """The answers, as they are done; raises what stopped the stream, after the last of them."""
        while True:
            while self._ready:
                self._open_asks -= 1
                if self._open_asks <= self._window - _CHUNK:
                    self._space.set()
                yield self._ready.popleft()
            if self.stopped and self._open_pieces == 0:
                if not self._ready:
                    break
            elif self._fed and self._open_asks == 0:
                break
            else:
                self._wake.clear()
                if not self._ready:
                    await self._wake.wait()
        if self._error is not None:
            raise self._error

    async def drained(self) -> None:
        """Come back when nothing is in flight any more."""
        while self._open_pieces:
            self._wake.clear()
            await self._wake.wait()

    def break_off(self) -> None:
        """Cancel what is in flight."""
        self.stop(asyncio.CancelledError())
        self._sender.cancel(self)

    # --------------------------------------------------------------------------------------------- the feeder
    async def feed(self, asks: Iterable[Ask[RequestT]] | AsyncIterable[Ask[RequestT]]) -> None:
        """Take asks as there is room for them; what a slow source has given so far goes without waiting."""
        waiting: list[Ask[RequestT]] = []
        flush: asyncio.Handle | None = None
        loop = asyncio.get_running_loop()

        def admit() -> None:
            chunk = waiting[:]
            waiting.clear()
            self._admit_guarded(chunk)

        async for ask in _each(asks):
            waiting.append(ask)
            if len(waiting) >= _CHUNK:
                admit()
                await asyncio.sleep(0)
            elif len(waiting) == 1:
                flush = loop.call_soon(admit)
            while self._open_asks + len(waiting) >= self._window and not self.stopped:
                self._space.clear()
                await self._space.wait()
            if self.stopped:
                break
        if flush is not None:
            flush.cancel()
        if not self.stopped:
            admit()

    def fed(self, error: BaseException | None) -> None:
        """The feeder is done, or failed."""
        if error is not None:
            self.stop(error)
        self._fed = True
        self._sender.no_more(self)
        self._wake.set()

    def _admit_guarded(self, chunk: Sequence[Ask[RequestT]]) -> None:
        if chunk and not self.stopped:
            self._open_asks += len(chunk)
            self.tally.asks += len(chunk)
            self._admit(chunk)

    def _admit(self, chunk: Sequence[Ask[RequestT]]) -> None:
        identity = self.provider.identity
        keys = [self.kind.key(identity, ask.request) for ask in chunk]
        stored = self._state.journal.fetch(keys)
        for key, ask in zip(keys, chunk, strict=True):
            self._plan(key, ask, stored.get(key, []))
        if self._group:
            self._submit_group()
        self._window = max(_WINDOW, *(self._sender.window(identity, model) for model in self._models), 0)

    def _plan(self, key: bytes, ask: Ask[RequestT], stored: list[Found]) -> None:
        n = self.kind.samples(ask.request)
        known = self._state.under_way.get(key)
        if known is not None:
            known.wait(self, ask)
            return
        if len(stored) >= n and stored[n - 1].sample == n - 1:
            self.deliver(Answer(ask.id, self.kind.build(stored[:n]), None, True))
            return
        if self._state.budget.capped:
            model = self.kind.model(ask.request)
            self._state.budget.check_price(model, self.provider.limits.get(model))
        work: Work[RequestT, ReplyT] = Work(key, ask, n, [found for found in stored if found.sample < n])
        work.wait(self, ask)
        self._state.under_way[key] = work
        if self.kind.group > 1:
            self._group.append(work)
            if len(self._group) >= self.kind.group:
                self._submit_group()
            return
        for first, count in work.missing():
            self._submit_parts(work, first, count)

    def _submit_group(self) -> None:
        works, self._group = self._group, []
        self._submit(RequestChunk(self, works, 0, 1))

    def _submit_parts(self, work: Work[RequestT, ReplyT], first: int, count: int) -> None:
        limits = self.provider.limits.get(self.kind.model(work.request))
        longest = (limits.max_n if limits is not None else None) or count
        for start in range(first, first + count, longest):
            self._submit(RequestChunk(self, [work], start, min(longest, first + count - start)))

    def _submit(self, piece: RequestChunk[RequestT, ReplyT]) -> None:
        self._open_pieces += 1
        model = self.kind.model(piece.request)
        self._models.add(model)
        self._sender.submit(piece)

    # ------------------------------------------------------------------------------- what becomes of the pieces
    def arrived(self, piece: RequestChunk[RequestT, ReplyT], usage: Usage) -> None:
        """Price a reply and make its rows; the sender hands the piece to the writer."""
        model, said = self.kind.model(piece.request), usage
        usage = piece.charged(said)
        if usage.prompt > said.prompt or usage.completion > said.completion:
            self._tell_of_estimates(model)
        limits = self.provider.limits.get(model)
        usd = price(usage, limits, share=self._sender.price_share)
        self.tally.paid(usage, usd, priced=limits is not None and limits.input_usd is not None)
        if self._state.budget.capped:
            piece.actual = Spend(usd, usage.prompt + usage.completion)
        source = self._sources.get(model)
        if source is None:
            name = self.provider.identity
            source = Source(self._state.run, name, model, self.kind.name, self.stage, self._sender.mode)
            self._sources[model] = source
        piece.make_rows(source, usage, usd)

    def _tell_of_estimates(self, model: str) -> None:
        told = self._state.estimated
        if model not in told:
            told.add(model)
            _log.warning(
                "%s reports no usage for %s, or less than what was sent: its tokens are charged as estimated.",
                self.provider.name,
                model,
            )

    def stored(self, piece: RequestChunk[RequestT, ReplyT]) -> None:
        """Settle a piece whose rows are on disk, and answer what it completes."""
        self._sender.settle(piece)
        piece.hand_over()
        short = piece.n - len(piece.contents) if self.kind.group == 1 else 0
        if short > 0 and not self.stopped:  # the server gave fewer samples than asked for
            self._submit(RequestChunk(self, piece.works, piece.first + len(piece.contents), short))
            if self._fed:
                self._sender.no_more(self)
        elif short > 0:
            self._give_up(piece.works)
        self._end(piece)

    def fail(self, piece: RequestChunk[RequestT, ReplyT], error: ProviderError) -> None:
        """Every row of the piece gets the reason; none is journaled."""
        for work in piece.works:
            work.failure = str(error)
            work.too_long = isinstance(error, ContextLengthError)
        self._end(piece)

    def abandon(self, piece: RequestChunk[RequestT, ReplyT]) -> None:
        """Drop the piece's rows; other sinks that wait for them ask for themselves."""
        self._give_up(piece.works)
        self._end(piece)

    def _give_up(self, works: Sequence[Work[RequestT, ReplyT]]) -> None:
        for work in works:
            work.given_up = True

    def _end(self, piece: RequestChunk[RequestT, ReplyT]) -> None:
        for work in piece.works:
            work.pieces -= 1
            if work.pieces == 0:
                del self._state.under_way[work.key]
                work.conclude()
        self._open_pieces -= 1
        if self._open_pieces == 0:
            self._wake.set()

    # -------------------------------------------------------------------------------------- what a work tells us
    def deliver(self, answer: Answer[ReplyT]) -> None:
        """One ask is answered."""
        self.tally.cached += answer.cached
        self.tally.failed += answer.failure is not None
        if self._state.on_progress is not None:
            self._state.on_progress(Progress(self.stage, answer.id, answer.cached, answer.failure is not None))
        self._ready.append(answer)
        if not self._wake.is_set():
            self._wake.set()

    def admit_again(self, ask: Ask[RequestT]) -> None:
        """An ask that waited for somebody else's work is planned anew."""
        if self.stopped:
            return
        self._admit([ask])
        if self._fed:
            self._sender.no_more(self)

    def stop(self, error: BaseException) -> None:
        """Send nothing more; what is in flight comes home first."""
        if not self.stopped:
            self.stopped = True
            self._error = error
            self._sender.recall(self)
            self._space.set()
            self._wake.set()


async def _each(asks: Iterable[Ask[RequestT]] | AsyncIterable[Ask[RequestT]]) -> AsyncIterator[Ask[RequestT]]:
    if isinstance(asks, AsyncIterable):
        async for ask in asks:
            yield ask
    else:
        for ask in asks:
            yield ask
