"""One engine for all requests: paced, retried, journaled, budgeted; nothing is paid for twice.

    async with RequestEngine.open(Path("journal.sqlite"), limits) as engine:
        async for answer in engine.chat(provider, asks, stage="annotate"):
            ...

Knows nothing of stages, prompts, vendors or what an answer means.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semievol_api.capabilities import ChatRequest, EmbedRequest, OptionReply, OptionRequest, Provider, Reply, require
from semievol_api.cassettes.clock import Clock, RealClock
from semievol_api.config.settings import Limits
from semievol_api.engine.batch import BatchSender, BatchTools, set_aside
from semievol_api.engine.budget import Budget, Ledger, Spend, StageBill
from semievol_api.engine.journal import Found, GroupCommit, Journal
from semievol_api.engine.requests import Answer, Ask, ChatKind, EmbedKind, Kind, OptionKind, Progress, ReplyT, RequestT
from semievol_api.engine.sending import Attempts, Dispatcher, Leases
from semievol_api.engine.stream import EngineState, Sender, Stream
from semievol_api.errors import JournalError, StageError
from semievol_api.records import FloatMatrix

_THRESHOLDS = (20_000, 20, 20)


@contextmanager
def _rare_collections() -> Generator[None]:
    """Collect garbage less often inside the block; settings that collect even less often stay as they are."""
    before = gc.get_threshold()
    if 0 < before[0] < _THRESHOLDS[0]:
        gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class WithOthers(Journal):
    """The first journal for everything; the others are only read."""

    def __init__(self, own: Journal, others: Sequence[Path]) -> None:
        super().__init__(own.connection, own.path)
        self.others = [Journal.read_only(path) for path in others]

    def fetch(self, keys: Sequence[bytes]) -> dict[bytes, list[Found]]:
        """The stored samples of each key that has any, from the first journal that has them."""
        found = super().fetch(keys)
        for other in self.others:
            missing = [key for key in keys if key not in found]
            if not missing:
                break
            found |= other.fetch(missing)
        return found

    def close(self) -> None:
        """Close all of them."""
        for other in self.others:
            other.close()
        super().close()


_Asks = Iterable[Ask[RequestT]] | AsyncIterable[Ask[RequestT]]


@dataclass(frozen=True)
class Fleet:
    """The other engines of a run: their journals, which are read, and who holds quotas and budget for all.

    Without leases an engine is alone: what the journals say was spent is its own budget's.
    """

    journals: Sequence[Path] = ()
    leases: Leases | None = None

    def open_journals(self, own: Path, run: str) -> tuple[WithOthers, Spend]:
        """The engine's own journal with the others beside it, and what counts as spent by this engine."""
        journal = WithOthers(Journal.create(own), [path for path in self.journals if path.is_file()])
        spent = _spent(journal, run)
        for other in journal.others if self.leases is None else ():
            spent = spent.plus(_spent(other, run))
        return journal, spent


class RequestEngine:
    """Made by `open`; see there. `ledger` tells what each stage sent, was served and paid."""

    def __init__(
        self, state: EngineState, limits: Limits, dispatcher: Dispatcher, writer: GroupCommit, clock: Clock
    ) -> None:
        self.ledger: Ledger = state.ledger
        self._state = state
        self._limits = limits
        self._dispatcher = dispatcher
        self._batches = BatchSender(
            BatchTools(
                run=state.run,
                limits=limits,
                journal=state.journal,
                writer=writer,
                budget=state.budget,
                clock=clock,
                start=dispatcher.start,
            )
        )
        self._streams: set[Stream[Any, Any]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        journal_path: Path,
        limits: Limits,
        *,
        clock: Clock | None = None,
        run: str = "",
        on_progress: Callable[[Progress], None] | None = None,
        fleet: Fleet | None = None,
    ) -> AsyncGenerator[RequestEngine, None]:
        """An engine on a journal, which is made if it is missing.

        `run` names whose budget counts: the caps hold for everything that this run ever paid into the journal.
        `fleet` are the other engines of the same run, where there are any. `on_progress` is called for every finished
        row.

        Raises:
            JournalError: the journal cannot be opened or written.
        """
        clock, leases = clock or RealClock(), None if fleet is None else fleet.leases
        reader, spent = (fleet or Fleet()).open_journals(journal_path, run)
        lease = reader.open_lease(run)
        writer = GroupCommit(Journal.create(journal_path), lambda error: engine._broke(error))

        async def persist(amount: Spend) -> None:
            await writer.step(lambda journal: journal.set_lease(lease, amount.usd, amount.tokens))

        budget = Budget(limits, spent, persist, None if leases is None else leases.more)
        if leases is not None:
            await leases.opened(spent)
        budget.adopt(set_aside(reader, run))
        shared: dict[str, Any] = {"run": run, "journal": reader, "budget": budget, "on_progress": on_progress}
        state = EngineState(**shared, under_way={}, ledger=Ledger(clock.now_s), now_s=clock.now_s)
        dispatcher = Dispatcher(limits, Attempts(limits, budget, clock, leases), writer, clock)
        engine = cls(state, limits, dispatcher, writer, clock)
        try:
            with _rare_collections():
                yield engine
        finally:
            await engine._close()
            await writer.close()
            if not writer.broken:
                reader.end_lease(lease, budget.lost.usd, budget.lost.tokens)
            reader.close()
            if leases is not None:
                await leases.closed(budget.spent)

    def chat(self, provider: Provider, asks: _Asks[ChatRequest], *, stage: str) -> AsyncGenerator[Answer[Reply], None]:
        """Answers in the order in which they are done, each on disk already.

        A row that failed is an answer with its reason. `n` samples are kept one by one: a later call with a
        greater `n` asks for the missing ones only.

        Raises:
            BudgetError: a cap is reached; what was in flight has been waited for and kept.
            RefusedError: the key or the model is refused.
            RateLimitError: the server answers nothing but 429 for a quarter of an hour.
            JournalError: the journal cannot be written any more.
            MissingAbilityError: the provider cannot chat, or cannot give log-probabilities and was asked to.
        """
        if self._limits.mode == "batch":
            require(provider.batch, "batches", provider)
        plain, scored = provider.chat or provider.scored, provider.scored

        def complete(request: ChatRequest) -> Awaitable[Reply]:
            if request.logprobs:
                return require(scored, "log-probabilities", provider).complete(request)
            return require(plain, "chat", provider).complete(request)

        # A probe's question is waited for: it goes directly in batch mode too.
        sender = self._batches if self._limits.mode == "batch" and stage != "probe" else self._dispatcher
        return self._run(ChatKind(complete), provider, asks, sender, stage)

    def read_options(
        self, provider: Provider, asks: _Asks[OptionRequest], *, stage: str
    ) -> AsyncGenerator[Answer[OptionReply], None]:
        """Like `chat`, for the exact log-probabilities of given labels."""
        reader = require(provider.option_reader, "option reading", provider)
        return self._run(OptionKind(reader.read), provider, asks, self._dispatcher, stage)

    async def embed(
        self, provider: Provider, model: str, texts: Sequence[str], *, stage: str, batch_size: int
    ) -> FloatMatrix:
        """One vector per text, in the texts' order: float32, shape (len(texts), dimensions).

        Every text is journaled by itself, and asked once however often it occurs.

        Raises:
            StageError: a text got no vector; the message says which and why.
        """
        embedder = require(provider.embedder, "embeddings", provider)
        asks = (Ask(str(i), EmbedRequest(model=model, texts=(text,))) for i, text in enumerate(texts))
        kind = EmbedKind(embedder.embed, batch_size)
        vectors: FloatMatrix | None = None
        async with aclosing(self._run(kind, provider, asks, self._dispatcher, stage)) as answers:
            async for answer in answers:
                if answer.reply is None:
                    text = texts[int(answer.id)]
                    raise StageError(
                        f"The text {text[:60]!r} (number {int(answer.id) + 1}) got no embedding from {model!r}: "
                        f"{answer.failure} What was embedded is kept; run again to go on."
                    )
                vector = answer.reply.vectors[0]
                if vectors is None:
                    vectors = np.empty((len(texts), len(vector)), np.float32)
                vectors[int(answer.id)] = vector
        return np.empty((0, 0), np.float32) if vectors is None else vectors

    def charge(self, usd: float, tokens: int) -> None:
        """Other engines of the run have spent something."""
        self._state.budget.add(Spend(usd, tokens))

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run something beside the requests until the engine closes."""
        return self._dispatcher.start(work)

    def took_over(self, bills: Mapping[str, StageBill]) -> None:
        """What another engine of the run did, for this one's ledger."""
        for stage, bill in bills.items():
            self.ledger.tally(stage).add(bill)

    def tell(self, progress: Progress) -> None:
        """A row that another engine of the run finished, for this one's bars."""
        if self._state.on_progress is not None:
            self._state.on_progress(progress)

    @property
    def spent(self) -> Spend:
        """Everything that is charged to the run so far."""
        return self._state.budget.spent

    async def cancel_batches(self, provider: Provider) -> int:
        """Cancel all open batches of a provider, whoever started them; what they gave by then is stored.

        Returns how many there were.
        """
        return await self._batches.cancel_open(provider)

    async def _run(
        self, kind: Kind[RequestT, ReplyT], provider: Provider, asks: _Asks[RequestT], sender: Sender, stage: str
    ) -> AsyncGenerator[Answer[ReplyT], None]:
        stream = Stream(self._state, kind, provider, sender, stage)
        self._streams.add(stream)
        stream.tally.begin(self._state.now_s())
        feeder = self._dispatcher.start(stream.feed(asks))
        feeder.add_done_callback(lambda task: stream.fed(None if task.cancelled() else task.exception()))
        try:
            async for answer in stream.answers():
                yield answer
        except asyncio.CancelledError:
            stream.break_off()
            raise
        finally:
            stream.stop(asyncio.CancelledError())
            feeder.cancel()
            await stream.drained()
            stream.tally.end(self._state.now_s())
            self._streams.discard(stream)

    def _broke(self, error: JournalError) -> None:
        for stream in list(self._streams):
            stream.stop(error)

    async def _close(self) -> None:
        """Break off what callers left open, and wait until nothing is in flight."""
        for stream in list(self._streams):
            stream.break_off()
        await self._dispatcher.close()


def spent_in(path: Path, run: str) -> Spend:
    """What a run has paid into a journal that nobody has to have open."""
    journal = Journal.read_only(path)
    try:
        return _spent(journal, run)
    finally:
        journal.close()


def _spent(journal: Journal, run: str) -> Spend:
    """What a run has paid into the journal so far, replies that never came home among it."""
    usd, tokens = journal.leased(run)
    for total in journal.totals():
        if total.source.run == run:
            usd += total.usd
            tokens += total.prompt_tokens + total.completion_tokens
    return Spend(usd, tokens)
