"""One stage's asks on their way through the engine: plan, send what is missing, answer.

Asks are taken in chunks as the consumer takes answers, so memory stays flat however long the input is. Each
chunk is looked up in the journal at once; an ask is answered from there, joins an identical one that is under
way, or becomes a `Work` of its own. A `RequestChunk` is one request that is really sent: a work whose samples do not
fit one request is cut into several, and one of a grouped kind (embeddings) carries many works. Knows nothing of pacing,
retries or files.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from semievol_api.capabilities import Provider
from semievol_api.engine.budget import NOTHING, Budget, Ledger, Spend, price
from semievol_api.engine.journal import Content, Found, Journal, Row, Source
from semievol_api.engine.requests import Answer, Ask, Kind, Progress, ReplyT, RequestT
from semievol_api.errors import ContextLengthError, ProviderError, TransientError
from semievol_api.records import Usage

_log = logging.getLogger(__name__)

_CHUNK = 256
"""Asks that are looked up in the journal together."""
_WINDOW = 1024
"""Asks under way and answers not taken yet, at least; more where the pacer has room for more."""
_GROUP_BYTES = 2**15
"""Of the texts of one request, more only where one text has more: about 8,000 tokens, which a CPU embeds in time."""
_MOST_BYTES_OF_A_TOKEN = 64
"""On the average of a text; a usage with fewer tokens than this is not believed."""


class Work(Generic[RequestT, ReplyT]):
    """One distinct request under way: the samples it has, the pieces it lacks, and who waits for it."""

    __slots__ = (
        "ask",
        "failure",
        "found",
        "given_up",
        "key",
        "late",
        "n",
        "pieces",
        "reply",
        "request",
        "rows",
        "too_long",
        "waiters",
    )

    def __init__(self, key: bytes, ask: Ask[RequestT], n: int, found: Sequence[Found]) -> None:
        self.key = key
        self.ask = ask
        self.request = ask.request
        self.n = n
        self.found = found
        self.pieces = 0
        self.reply: ReplyT | None = None
        self.failure: str | None = None
        self.too_long = False
        self.given_up = False
        self.rows: list[Row] = []
        self.late: Sequence[tuple[Stream[RequestT, ReplyT], Ask[RequestT]]] = ()
        self.waiters: Sequence[tuple[Stream[RequestT, ReplyT], Ask[RequestT]]] = ()

    def wait(self, stream: Stream[RequestT, ReplyT], ask: Ask[RequestT]) -> None:
        """Another ask for the same; one that wants more samples is planned again when these are here."""
        if stream.kind.samples(ask.request) > self.n:
            self.late = (*self.late, (stream, ask))
        else:
            self.waiters = (*self.waiters, (stream, ask))

    def missing(self) -> list[tuple[int, int]]:
        """Runs of samples that are not there, as (first, count)."""
        if not self.found:
            return [(0, self.n)]
        have = {found.sample for found in self.found}
        runs: list[tuple[int, int]] = []
        for sample in range(self.n):
            if sample in have:
                continue
            if runs and sum(runs[-1]) == sample:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((sample, 1))
        return runs

    def conclude(self) -> None:
        """Answer everyone who waits; whoever came later than the first was served without sending.

        Where the work was given up, everyone who has not stopped plans anew.
        """
        for place, (stream, ask) in enumerate(self.waiters):
            if self.failure is not None:
                stream.deliver(Answer(ask.id, None, self.failure, False, self.too_long))
            elif not self.given_up:
                stream.deliver(Answer(ask.id, self._reply_for(stream.kind, ask.request), None, place > 0))
            else:
                stream.admit_again(ask)
        for stream, ask in self.late:
            stream.admit_again(ask)

    def _reply_for(self, kind: Kind[RequestT, ReplyT], request: RequestT) -> ReplyT:
        n = kind.samples(request)
        if self.reply is not None and n == self.n:
            return self.reply
        fresh = [_found(row) for row in self.rows]
        return kind.build(sorted([*self.found, *fresh])[:n])


class RequestChunk(Generic[RequestT, ReplyT]):
    """One request to be sent: samples first..first+n-1 of one work, or one sample each of a group of works."""

    __slots__ = (
        "actual",
        "answer_tokens",
        "contents",
        "first",
        "late",
        "n",
        "need",
        "on_stored",
        "owner",
        "prompt_bytes",
        "reply",
        "request",
        "rows",
        "works",
    )

    def __init__(
        self,
        owner: Stream[RequestT, ReplyT],
        works: Sequence[Work[RequestT, ReplyT]],
        first: int,
        n: int,
    ) -> None:
        self.owner = owner
        self.works = works
        self.first = first
        self.n = n
        self.request = owner.kind.part([work.request for work in works], first, n)
        self.prompt_bytes, self.answer_tokens = owner.kind.size(self.request)
        self.late = 0
        self.need = NOTHING
        self.actual = NOTHING
        self.on_stored: Callable[[], None] | None = None
        self.reply: ReplyT | None = None
        self.contents: Sequence[Content] = ()
        self.rows: Sequence[Row] = ()
        for work in works:
            work.pieces += 1

    @property
    def tokens(self) -> float:
        """The estimate for pacing: four bytes a token, as servers estimate."""
        return self.prompt_bytes / 4 + self.answer_tokens

    @property
    def bound(self) -> Usage:
        """An upper bound of the request's usage: one token per byte of the prompt."""
        return Usage(self.prompt_bytes, self.answer_tokens)

    def take(self, reply: ReplyT) -> None:
        """Read a reply's samples.

        Raises:
            TransientError: it holds none, or not one for each of a group, or its usage is negative.
        """
        if min(reply.usage.prompt, reply.usage.completion, reply.usage.cached) < 0:
            raise TransientError(f"The server bills a negative number of tokens ({reply.usage}): check base_url.")
        contents = self.owner.kind.contents(reply)
        wanted = self.owner.kind.samples(self.request) if len(self.works) == 1 else len(self.works)
        if not contents or (self.owner.kind.group > 1 and len(contents) != len(self.works)):
            raise TransientError(f"The reply holds {len(contents)} answers where {wanted} were asked for.")
        self.reply = reply
        self.contents = contents if len(contents) <= wanted else contents[:wanted]

    def charged(self, usage: Usage) -> Usage:
        """The usage that is charged: the server's, or estimated where it says nothing or less than what was sent."""
        answered = sum(len(content.text.encode()) for content in self.contents if content.text)
        prompt = _at_least(usage.prompt, self.prompt_bytes)
        return Usage(prompt, _at_least(usage.completion, answered), min(usage.cached, prompt))

    def make_rows(self, source: Source, usage: Usage, usd: float) -> None:
        """Rows for the journal; the first carries the usage and the cost."""
        work, first = self.works[0], self.first
        counts = (1, usage.prompt, usage.cached, usage.completion, usd)
        rows = [Row(work.key, first, source, work.ask.id, *counts, self.contents[0])]
        grouped = self.owner.kind.group > 1
        for index in range(1, len(self.contents)):
            work, sample = (self.works[index], 0) if grouped else (work, first + index)
            rows.append(Row(work.key, sample, source, work.ask.id, 0, 0, 0, 0, 0.0, self.contents[index]))
        self.rows = rows

    def stored(self) -> None:
        """The rows are on disk: called by the journal's writer."""
        self.owner.stored(self)

    def unstored(self) -> None:
        """The rows could not be written: called by the journal's writer."""
        self.owner.abandon(self)

    def hand_over(self) -> None:
        """Give the works what is stored now."""
        if len(self.works) == 1:
            work = self.works[0]
            work.rows += self.rows
            if self.request is work.request and len(self.rows) == work.n:
                work.reply = self.reply
            return
        for work, row in zip(self.works, self.rows, strict=True):
            work.rows.append(row)


def _found(row: Row) -> Found:
    return Found(row.sample, row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.content)


def _at_least(tokens: int, text_bytes: int) -> int:
    """A count that a text of this size can have, as it is; else a token for every four bytes, as servers estimate."""
    return tokens if tokens * _MOST_BYTES_OF_A_TOKEN >= text_bytes else -(-text_bytes // 4)


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

    def no_more(self, stream: AnyStream) -> None:
        """The stream has no more pieces to submit, until one of its own is submitted anew."""
        ...

    def window(self, identity: str, model: str) -> int:
        """How many asks a stream may have open for this key and model."""
        ...

    def recall(self, stream: AnyStream) -> None:
        """Send nothing more for a stream; what is in flight may come home."""
        ...

    def cancel(self, stream: AnyStream) -> None:
        """Break off what is in flight for a stream; lost replies stay charged."""
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


class Stream(Generic[RequestT, ReplyT]):
    """One call of the engine: asks in, answers out, in the order in which they are done."""

    def __init__(
        self, state: EngineState, kind: Kind[RequestT, ReplyT], provider: Provider, sender: Sender, stage: str
    ) -> None:
        self.kind = kind
        self.provider = provider
        self.tally = state.ledger.tally(stage)
        self.stopped = False
        self._refused = ""
        self._state = state
        self._sender = sender
        self.stage = stage
        self._sources: dict[str, Source] = {}
        self._group: list[Work[RequestT, ReplyT]] = []
        self._group_bytes = 0
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
            self._add_to_group(work)
            return
        for first, count in work.missing():
            self._submit_parts(work, first, count)

    def _add_to_group(self, work: Work[RequestT, ReplyT]) -> None:
        """One more for the next request, which ends at the group's number or at as many bytes as one text may have."""
        size = self.kind.size(work.request)[0]
        if self._group and self._group_bytes + size > _GROUP_BYTES:
            self._submit_group()
        self._group.append(work)
        self._group_bytes += size
        if len(self._group) >= self.kind.group:
            self._submit_group()

    def _submit_group(self) -> None:
        works, self._group, self._group_bytes = self._group, [], 0
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
        model, reported = self.kind.model(piece.request), usage
        usage = piece.charged(reported)
        if usage.prompt > reported.prompt or usage.completion > reported.completion:
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
        """Drop the piece's rows; other streams that wait for them ask for themselves."""
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

    def refuses_again(self, reason: str) -> bool:
        """Whether the refusal before this one had the same reason."""
        again, self._refused = reason == self._refused, reason
        return again

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


AnyStream = Stream[Any, Any]
AnyRequestChunk = RequestChunk[Any, Any]
AnyWork = Work[Any, Any]
