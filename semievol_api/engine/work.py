"""What is under way: a `Work` per distinct request, and the `RequestChunk`s that are really sent for it.

Identical asks share one work. A work whose samples do not fit one request is cut into pieces; a piece of a
grouped kind (embeddings) carries many works. Knows nothing of gates, retries, files or the order of things.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from semievol_api.capabilities import Provider
from semievol_api.engine.budget import NOTHING
from semievol_api.engine.journal import Content, Found, Row, Source
from semievol_api.engine.requests import Answer, Ask, Kind, ReplyT, RequestT
from semievol_api.errors import ProviderError, TransientError
from semievol_api.records import Usage

_MOST_BYTES_OF_A_TOKEN = 64
"""On the average of a text; a usage with fewer tokens than this is not believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBill:
    """One stage's bill in this process.

    `requests` counts replies paid for, `attempts` everything that was sent, `cached` the asks served without
    sending. `lost_usd` and `lost_tokens` are upper bounds for replies that never arrived; they are not in
    `usd` and `usage`. `unpriced` counts requests to models whose price nobody knows. `seconds` is the time in
    which the stage had asks open.
    """

    asks: int = 0
    requests: int = 0
    attempts: int = 0
    cached: int = 0
    failed: int = 0
    rate_limited: int = 0
    usage: Usage = field(default_factory=Usage)
    usd: float = 0.0
    unpriced: int = 0
    lost_usd: float = 0.0
    lost_tokens: int = 0
    seconds: float = 0.0


class Tally:
    """The running counts behind one bill."""

    def __init__(self) -> None:
        self.asks = 0
        self.requests = 0
        self.attempts = 0
        self.cached = 0
        self.failed = 0
        self.rate_limited = 0
        self.prompt = 0
        self.completion = 0
        self.cached_tokens = 0
        self.usd = 0.0
        self.unpriced = 0
        self.lost_usd = 0.0
        self.lost_tokens = 0
        self.seconds = 0.0
        self._open = 0
        self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """A stream of asks opens."""
        if self._open == 0:
            self._since_s = now_s
        self._open += 1

    def end(self, now_s: float) -> None:
        """A stream of asks is done."""
        self._open -= 1
        if self._open == 0:
            self.seconds += now_s - self._since_s

    def paid(self, usage: Usage, usd: float, *, priced: bool) -> None:
        """A reply arrived."""
        self.requests += 1
        self.prompt += usage.prompt
        self.completion += usage.completion
        self.cached_tokens += usage.cached
        self.usd += usd
        self.unpriced += not priced

    def add(self, bill: StageBill) -> None:
        """What another engine of the run did for the stage."""
        self.asks += bill.asks
        self.requests += bill.requests
        self.attempts += bill.attempts
        self.cached += bill.cached
        self.failed += bill.failed
        self.rate_limited += bill.rate_limited
        self.prompt += bill.usage.prompt
        self.completion += bill.usage.completion
        self.cached_tokens += bill.usage.cached
        self.usd += bill.usd
        self.unpriced += bill.unpriced
        self.lost_usd += bill.lost_usd
        self.lost_tokens += bill.lost_tokens

    def bill(self, now_s: float) -> StageBill:
        """The counts as of now."""
        return StageBill(
            asks=self.asks,
            requests=self.requests,
            attempts=self.attempts,
            cached=self.cached,
            failed=self.failed,
            rate_limited=self.rate_limited,
            usage=Usage(self.prompt, self.completion, self.cached_tokens),
            usd=self.usd,
            unpriced=self.unpriced,
            lost_usd=self.lost_usd,
            lost_tokens=self.lost_tokens,
            seconds=self.seconds + (now_s - self._since_s if self._open else 0.0),
        )


class Ledger:
    """The bills of all stages."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._tallies: dict[str, Tally] = {}

    def tally(self, stage: str) -> Tally:
        """The running counts of a stage."""
        return self._tallies.setdefault(stage, Tally())

    @property
    def stages(self) -> Mapping[str, StageBill]:
        """One bill per stage, in the order of their first ask."""
        now_s = self._now_s()
        return {stage: tally.bill(now_s) for stage, tally in self._tallies.items()}

    @property
    def usd(self) -> float:
        """What this process paid, lost replies not counted."""
        return sum(tally.usd for tally in self._tallies.values())


class ResultSink(Protocol[RequestT, ReplyT]):
    """Who waits for works and owns pieces: a stream."""

    kind: Kind[RequestT, ReplyT]
    provider: Provider
    tally: Tally
    stage: str
    stopped: bool

    def deliver(self, answer: Answer[ReplyT]) -> None:
        """One of the sink's asks is answered."""
        ...

    def admit_again(self, ask: Ask[RequestT]) -> None:
        """Whoever was asking this for the sink has given up."""
        ...

    def arrived(self, piece: RequestChunk[RequestT, ReplyT], usage: Usage) -> None:
        """A piece's reply is here and is to be stored."""
        ...

    def stored(self, piece: RequestChunk[RequestT, ReplyT]) -> None:
        """A piece's reply is on disk."""
        ...

    def fail(self, piece: RequestChunk[RequestT, ReplyT], error: ProviderError) -> None:
        """A piece will get no reply, for a reason that lies in its rows."""
        ...

    def abandon(self, piece: RequestChunk[RequestT, ReplyT]) -> None:
        """A piece was not sent, or its reply was lost, and it will not be sent again."""
        ...

    def stop(self, error: BaseException) -> None:
        """Send nothing more; what is in flight may come home."""
        ...


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
        self.late: Sequence[tuple[ResultSink[RequestT, ReplyT], Ask[RequestT]]] = ()
        self.waiters: Sequence[tuple[ResultSink[RequestT, ReplyT], Ask[RequestT]]] = ()

    def wait(self, sink: ResultSink[RequestT, ReplyT], ask: Ask[RequestT]) -> None:
        """Another ask for the same; one that wants more samples is planned again when these are here."""
        if sink.kind.samples(ask.request) > self.n:
            self.late = (*self.late, (sink, ask))
        else:
            self.waiters = (*self.waiters, (sink, ask))

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
        for place, (sink, ask) in enumerate(self.waiters):
            if self.failure is not None:
                sink.deliver(Answer(ask.id, None, self.failure, False, self.too_long))
            elif not self.given_up:
                sink.deliver(Answer(ask.id, self._reply_for(sink.kind, ask.request), None, place > 0))
            else:
                sink.admit_again(ask)
        for sink, ask in self.late:
            sink.admit_again(ask)

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
        owner: ResultSink[RequestT, ReplyT],
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


AnyRequestChunk = RequestChunk[Any, Any]
AnyWork = Work[Any, Any]


def _at_least(tokens: int, text_bytes: int) -> int:
    """A count that a text of this size can have, as it is; else a token for every four bytes, as servers estimate."""
    return tokens if tokens * _MOST_BYTES_OF_A_TOKEN >= text_bytes else -(-text_bytes // 4)
