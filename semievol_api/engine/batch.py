"""Batch mode: the same requests with the same keys, sent in files, answered later, at half the price.

Pieces are gathered per stream and model and go as one batch when the stream has no more, or when a batch is
full. What a batch does not answer (expired, failed in a way that another attempt may mend) goes into the next
one. Batches that an earlier process left open are collected first. Knows nothing of files and HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from semievol_api.capabilities import BatchAnswer, BatchChat, BatchState, ChatRequest, Provider, Reply, require
from semievol_api.cassettes.clock import Clock
from semievol_api.config.settings import Limits
from semievol_api.engine.budget import BATCH_SHARE, NOTHING, Budget, Spend, price
from semievol_api.engine.journal import GroupCommit, Journal, Row, Source
from semievol_api.engine.requests import ChatKind
from semievol_api.engine.sending import until_it_works
from semievol_api.engine.stream import AnyRequestChunk, AnyStream
from semievol_api.errors import RefusedError, TransientError


class BatchLine(NamedTuple):
    """One request of a batch: the journal key and the first sample that it asks for."""

    key: bytes
    first: int
    ask_id: str

    @property
    def custom_id(self) -> str:
        """The name of the line in the batch's files."""
        return f"{self.key.hex()}-{self.first}"


class OpenBatch(NamedTuple):
    """A batch that has not been collected. `batch_id` is None where its submission was not confirmed."""

    id: int
    run: str
    run_key: str
    provider: str
    model: str
    stage: str
    batch_id: str | None
    need: Spend


class _NewBatch(NamedTuple):
    """A batch about to be submitted."""

    run: str
    content_hash: str
    provider: str
    model: str
    stage: str
    need: Spend
    lines: Sequence[BatchLine]


_COLUMNS = "id, run, run_key, provider, model, stage, batch_id, usd, tokens"


def _write_down(journal: Journal, new: _NewBatch) -> OpenBatch:
    """Store a batch before it is submitted; its run key differs from every earlier batch with the same lines."""
    execute = journal.connection.execute
    execute("BEGIN IMMEDIATE")
    try:
        (earlier,) = execute("SELECT count(*) FROM batches WHERE run_key LIKE ?", (f"{new.content_hash}-%",)).fetchone()
        run_key = f"{new.content_hash}-{earlier}"
        values = (run_key, new.provider, new.model, new.stage, new.run, *new.need, int(time.time()))
        cursor = execute(
            "INSERT INTO batches (run_key, provider, model, stage, run, usd, tokens, at) VALUES (?,?,?,?,?,?,?,?)",
            values,
        )
        number = int(cursor.lastrowid or 0)
        journal.connection.executemany(
            "INSERT INTO batch_lines (batch, key, first, ask_id) VALUES (?, ?, ?, ?)",
            ((number, *line) for line in new.lines),
        )
        execute("COMMIT")
    except BaseException:
        execute("ROLLBACK")
        raise
    return OpenBatch(number, new.run, run_key, new.provider, new.model, new.stage, None, new.need)


def _set_batch_id(journal: Journal, batch: int, batch_id: str) -> None:
    """The vendor has accepted the batch."""
    journal.connection.execute("UPDATE batches SET batch_id = ? WHERE id = ?", (batch_id, batch))


def _close_batch(journal: Journal, batch: int) -> None:
    """Everything the batch gave is stored; its lines are forgotten."""
    execute = journal.connection.execute
    execute("BEGIN IMMEDIATE")
    execute("UPDATE batches SET open = 0 WHERE id = ?", (batch,))
    execute("DELETE FROM batch_lines WHERE batch = ?", (batch,))
    execute("COMMIT")


def _open_batches(journal: Journal, provider: str) -> list[OpenBatch]:
    """What earlier processes submitted, or were about to, and did not collect."""
    query = f"SELECT {_COLUMNS} FROM batches WHERE open = 1 AND provider = ? ORDER BY id"
    found: list[OpenBatch] = []
    for row in journal.connection.execute(query, (provider,)):
        number, run, run_key, name, model, stage, batch_id, usd, tokens = row
        found.append(OpenBatch(number, run, run_key, name, model, stage, batch_id, Spend(usd, tokens)))
    return found


def _lines_of(journal: Journal, batch: int) -> list[BatchLine]:
    """The lines of an open batch."""
    query = "SELECT key, first, ask_id FROM batch_lines WHERE batch = ?"
    return [BatchLine(*row) for row in journal.connection.execute(query, (batch,))]


def set_aside(journal: Journal, run: str) -> Spend:
    """The sum of what a run's open batches may cost."""
    usd, tokens = journal.connection.execute(
        "SELECT coalesce(sum(usd), 0.0), coalesce(sum(tokens), 0) FROM batches WHERE open = 1 AND run = ?", (run,)
    ).fetchone()
    return Spend(usd, tokens)


@dataclass(slots=True, eq=False)
class BatchRun:
    """A batch under way: its lines, the pieces that it answers, and those that wait for it from outside.

    `waiting` are pieces of a later ask for the same lines; they are planned anew once the batch is stored.
    """

    provider: Provider
    batch: OpenBatch
    lines: dict[str, BatchLine]
    pieces: dict[str, AnyRequestChunk] = field(default_factory=dict[str, AnyRequestChunk])
    waiting: list[AnyRequestChunk] = field(default_factory=list[AnyRequestChunk])
    failures: dict[str, str] = field(default_factory=dict[str, str])


class _Vendor:
    """The vendor's side of batches, with retries; `writer` stores what must not be forgotten."""

    def __init__(self, limits: Limits, writer: GroupCommit, clock: Clock) -> None:
        self._limits = limits
        self._writer = writer
        self._clock = clock

    async def submit(self, chat: BatchChat, batch: OpenBatch, requests: Mapping[str, ChatRequest]) -> str:
        """Submit once: after a lost answer, look for the batch before submitting again. The id is on disk."""
        submitted = False

        async def once() -> str:
            nonlocal submitted
            found = await chat.find(batch.run_key) if submitted else None
            submitted = True
            return found or await chat.submit(requests, batch.run_key)

        batch_id = await until_it_works(once, self._limits.max_attempts, self._clock)
        await self._remember(batch, batch_id)
        return batch_id

    async def find(self, chat: BatchChat, batch: OpenBatch) -> str | None:
        """The id of a batch whose submission an earlier process did not see confirmed."""
        if batch.batch_id is not None:
            return batch.batch_id
        batch_id = await until_it_works(lambda: chat.find(batch.run_key), self._limits.max_attempts, self._clock)
        if batch_id is not None:
            await self._remember(batch, batch_id)
        return batch_id

    async def wait(self, chat: BatchChat, batch_id: str) -> BatchState:
        """The state of the batch once it has ended."""
        while True:
            state = await until_it_works(lambda: chat.poll(batch_id), self._limits.max_attempts, self._clock)
            if state.status != "running":
                return state
            await self._clock.sleep(self._limits.batch_poll_s)

    async def collect(self, chat: BatchChat, batch_id: str) -> Sequence[BatchAnswer]:
        """All lines that were answered."""
        return await until_it_works(lambda: chat.collect(batch_id), self._limits.max_attempts, self._clock)

    async def close(self, batch: OpenBatch) -> None:
        """Everything handed to the writer before is on disk; forget the batch."""
        await self._writer.step(lambda journal: _close_batch(journal, batch.id))

    async def _remember(self, batch: OpenBatch, batch_id: str) -> None:
        await self._writer.step(lambda journal: _set_batch_id(journal, batch.id, batch_id))


_MOST_LINES = 50_000
MOST_BYTES = 200_000_000
_LINE_BYTES = 700
"""Room for the parts of a line that are not prompt text."""
_BATCHES_AHEAD = 4
"""So many full batches' asks may be open in one stream."""
_Queue = tuple[AnyStream, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTools:
    """What batch mode works with."""

    run: str
    limits: Limits
    journal: Journal
    writer: GroupCommit
    budget: Budget
    clock: Clock
    start: Callable[[Coroutine[object, object, None]], asyncio.Task[None]]


@dataclass(slots=True)
class _Gathering:
    """Pieces that wait for a batch, and the bytes they will take in its file."""

    pieces: list[AnyRequestChunk]
    size: int = 0


class _Stored:
    """Rows of a batch that nobody in this process asked for: paid, and kept."""

    def __init__(self, rows: list[Row], paid: Callable[[], None]) -> None:
        self.rows = rows
        self._paid = paid

    def stored(self) -> None:
        """The rows are on disk."""
        self._paid()

    def unstored(self) -> None:
        """The next run collects them again."""


class BatchSender:
    """Sends pieces in batches."""

    mode = "batch"
    price_share = BATCH_SHARE

    def __init__(self, tools: BatchTools) -> None:
        self._tools = tools
        self._vendor = _Vendor(tools.limits, tools.writer, tools.clock)
        self._gathered: dict[_Queue, _Gathering] = {}
        self._runs: dict[BatchRun, asyncio.Task[None]] = {}
        self._lines: dict[str, BatchRun] = {}
        self._rounds: dict[str, int] = {}
        self._providers: set[str] = set()
        self._added = 0
        self._idle_watch: asyncio.Task[None] | None = None

    def window(self, identity: str, model: str) -> int:
        """How many asks a stream may have open."""
        return _BATCHES_AHEAD * _MOST_LINES

    def submit(self, piece: AnyRequestChunk) -> None:
        """Put a piece into the next batch, unless one that is open already asks for it."""
        provider = piece.owner.provider
        if provider.identity not in self._providers:
            self._providers.add(provider.identity)
            self.resume(provider)
        run = self._lines.get(_custom_id(piece))
        if run is not None:
            run.waiting.append(piece)
            return
        size = len(msgspec.json.encode(piece.request.prompt)) + _LINE_BYTES
        queue = (piece.owner, piece.request.model)
        gathering = self._gathered.setdefault(queue, _Gathering([]))
        if len(gathering.pieces) >= _MOST_LINES or gathering.size + size > MOST_BYTES:
            self._launch(queue)
            gathering = self._gathered.setdefault(queue, _Gathering([]))
        gathering.pieces.append(piece)
        gathering.size += size
        self._added += 1
        if self._idle_watch is None:
            self._idle_watch = self._tools.start(self._launch_when_idle())

    def no_more(self, stream: AnyStream) -> None:
        """Send the stream's last batch; at the end of this turn, since more may be on its way."""
        asyncio.get_running_loop().call_soon(self._launch_all, stream)

    def settle(self, piece: AnyRequestChunk) -> None:
        """A piece is paid and stored; the batch's reservation is settled as a whole."""
        self._tools.budget.add(piece.actual)

    def recall(self, stream: AnyStream) -> None:
        """Let go of a stream's pieces. Batches at the vendor go on: what they give is stored, now or later."""
        gone: list[AnyRequestChunk] = []
        for queue in [queue for queue in self._gathered if queue[0] is stream]:
            gone += self._gathered.pop(queue).pieces
        for run in self._runs:
            theirs = [name for name, piece in run.pieces.items() if piece.owner is stream]
            gone += [run.pieces.pop(name) for name in theirs]
            gone += [piece for piece in run.waiting if piece.owner is stream]
            run.waiting = [piece for piece in run.waiting if piece.owner is not stream]
        for piece in gone:
            piece.owner.abandon(piece)

    cancel = recall

    def resume(self, provider: Provider) -> list[BatchRun]:
        """Take over what earlier processes left open at a provider."""
        runs: list[BatchRun] = []
        known = {run.batch.id for run in self._runs}
        for batch in _open_batches(self._tools.journal, provider.identity):
            if batch.id not in known:
                lines = {line.custom_id: line for line in _lines_of(self._tools.journal, batch.id)}
                run = BatchRun(provider, batch, lines)
                self._begin(run, self._collect_again(run))
                runs.append(run)
        return runs

    async def cancel_open(self, provider: Provider) -> int:
        """Cancel every open batch of a provider and store what was done by then; returns how many there were.

        Raises:
            ProviderError: the vendor did not accept it.
        """
        chat = require(provider.batch, "batches", provider)
        self.resume(provider)
        open_runs = {run: task for run, task in self._runs.items() if run.provider.identity == provider.identity}
        for run in open_runs:
            batch_id = await self._vendor.find(chat, run.batch)
            if batch_id is not None:
                await chat.cancel(batch_id)
        await asyncio.gather(*open_runs.values(), return_exceptions=True)
        return len(open_runs)

    # ------------------------------------------------------------------------------------------- launching
    async def _launch_when_idle(self) -> None:
        """A stream that waits for answers before it gives more asks gets its batch as well."""
        seen = -1
        while self._gathered:
            if seen == self._added:
                self._launch_all(None)
            seen = self._added
            await self._tools.clock.sleep(self._tools.limits.batch_poll_s)
        self._idle_watch = None

    def _launch_all(self, stream: AnyStream | None) -> None:
        for queue in list(self._gathered):
            if stream is None or queue[0] is stream:
                self._launch(queue)

    def _launch(self, queue: _Queue) -> None:
        """One batch of what is gathered, as far as the budget reaches; the rest waits for a batch to end."""
        owner, model = queue
        gathered = self._gathered.pop(queue, _Gathering([])).pieces
        limits = owner.provider.limits.get(model)
        pieces: list[AnyRequestChunk] = []
        need = NOTHING
        for piece in gathered:
            more = need.plus(Spend(price(piece.bound, limits, share=BATCH_SHARE), _sum_tokens(piece)))
            if self._tools.budget.capped and not self._tools.budget.could_take(more):
                break
            need = more
            pieces.append(piece)
        rest = gathered[len(pieces) :]
        if rest:
            self._gathered[queue] = _Gathering(rest, sum(piece.prompt_bytes + _LINE_BYTES for piece in rest))
        if pieces:
            self._tools.budget.adopt(need)
            lines = {_custom_id(piece): _line(piece) for piece in pieces}
            unnamed = OpenBatch(0, self._tools.run, "", owner.provider.identity, model, owner.stage, None, need)
            run = BatchRun(owner.provider, unnamed, lines, {_custom_id(piece): piece for piece in pieces})
            self._begin(run, self._send(run))
        elif rest and not self._runs:
            owner.stop(self._tools.budget.exhausted(Spend(price(rest[0].bound, limits), _sum_tokens(rest[0]))))

    def _begin(self, run: BatchRun, work: Coroutine[object, object, None]) -> None:
        self._lines.update(dict.fromkeys(run.lines, run))
        self._runs[run] = self._tools.start(work)
        self._runs[run].add_done_callback(lambda task: self._ended(run, task))

    def _ended(self, run: BatchRun, task: asyncio.Task[None]) -> None:
        """Whatever is left without an answer goes on: into the next batch, to a new plan, or back with an error."""
        del self._runs[run]
        for name in run.lines:
            self._lines.pop(name, None)
        error = None if task.cancelled() else task.exception()
        left = [*run.pieces.values(), *run.waiting]
        if error is not None:
            for piece in left:
                piece.owner.stop(error)
        for piece in run.waiting:
            failure = run.failures.get(_custom_id(piece))
            piece.owner.abandon(piece) if failure is None else piece.owner.fail(piece, RefusedError(failure))
        for name, piece in run.pieces.items():
            self._again(name, piece)
        asyncio.get_running_loop().call_soon(self._launch_all, None)

    def _again(self, name: str, piece: AnyRequestChunk) -> None:
        self._rounds[name] = self._rounds.get(name, 1) + 1
        if piece.owner.stopped:
            piece.owner.abandon(piece)
        elif self._rounds[name] > self._tools.limits.max_attempts:
            piece.owner.fail(piece, RefusedError(f"There was no answer in {self._tools.limits.max_attempts} batches."))
        else:
            self.submit(piece)

    # ---------------------------------------------------------------------------------------- one batch's way
    async def _send(self, run: BatchRun) -> None:
        chat = require(run.provider.batch, "batches", run.provider)
        requests = {name: piece.request for name, piece in run.pieces.items()}
        batch = run.batch
        new = _NewBatch(
            self._tools.run, _content_hash(run), batch.provider, batch.model, batch.stage, batch.need,
            list(run.lines.values()),
        )  # fmt: skip

        def write(journal: Journal) -> None:
            run.batch = _write_down(journal, new)

        await self._tools.writer.step(write)
        try:
            batch_id = await self._vendor.submit(chat, run.batch, requests)
        except RefusedError:
            await self._close(run)
            raise
        for piece in run.pieces.values():
            piece.owner.tally.attempts += 1
        await self._finish(run, batch_id, await self._vendor.wait(chat, batch_id))

    async def _collect_again(self, run: BatchRun) -> None:
        chat = require(run.provider.batch, "batches", run.provider)
        batch_id = await self._vendor.find(chat, run.batch)
        if batch_id is None:  # the crash came before the submission
            await self._close(run)
            return
        await self._finish(run, batch_id, await self._vendor.wait(chat, batch_id))

    async def _finish(self, run: BatchRun, batch_id: str, state: BatchState) -> None:
        chat = require(run.provider.batch, "batches", run.provider)
        answers = await self._vendor.collect(chat, batch_id)
        stored = self._tools.journal.fetch([line.key for line in run.lines.values()])
        for answer in answers:
            line = run.lines.get(answer.custom_id)
            if line is not None and all(found.sample != line.first for found in stored.get(line.key, ())):
                self._take(run, line, answer)
        await self._close(run)
        if state.status in ("failed", "cancelled"):
            reason = state.reason or f"Its state is {state.raw_status!r}."
            raise RefusedError(f"The batch {batch_id!r} ended without all of its answers. {reason}")

    async def _close(self, run: BatchRun) -> None:
        await self._vendor.close(run.batch)
        if run.batch.run == self._tools.run:
            self._tools.budget.settle_written(run.batch.need)

    def _take(self, run: BatchRun, line: BatchLine, answer: BatchAnswer) -> None:
        name = answer.custom_id
        if answer.reply is None:
            failure = answer.error or "The vendor gave no reason."
            if not answer.retryable:
                run.failures[name] = failure
                piece = run.pieces.pop(name, None)
                if piece is not None:
                    piece.owner.fail(piece, RefusedError(failure))
            return
        piece = run.pieces.get(name)
        if piece is None:
            self._keep(run, line, answer.reply)
            return
        try:
            piece.take(_as_asked(answer.reply, piece))
        except TransientError:
            return  # paid for nothing: asked again
        del run.pieces[name]
        piece.owner.arrived(piece, answer.reply.usage)
        self._tools.writer.put(piece)

    def _keep(self, run: BatchRun, line: BatchLine, reply: Reply) -> None:
        """Store an answer that no piece waits for."""
        batch, usage = run.batch, reply.usage
        source = Source(self._tools.run, batch.provider, batch.model, ChatKind.name, batch.stage, self.mode)
        usd = price(usage, run.provider.limits.get(batch.model), share=BATCH_SHARE)
        rows: list[Row] = []
        for index, content in enumerate(ChatKind.contents_of(reply)):
            counts = (0, 0, 0, 0, 0.0) if index else (1, usage.prompt, usage.cached, usage.completion, usd)
            rows.append(Row(line.key, line.first + index, source, line.ask_id, *counts, content))
        paid = Spend(usd, usage.prompt + usage.completion)
        if rows:
            self._tools.writer.put(_Stored(rows, lambda: self._tools.budget.add(paid)))


def _sum_tokens(piece: AnyRequestChunk) -> int:
    """An upper bound of a piece's tokens."""
    return piece.prompt_bytes + piece.answer_tokens


def _line(piece: AnyRequestChunk) -> BatchLine:
    (work,) = piece.works
    return BatchLine(work.key, piece.first, work.ask.id)


def _custom_id(piece: AnyRequestChunk) -> str:
    return _line(piece).custom_id


def _content_hash(run: BatchRun) -> str:
    return hashlib.blake2b("\n".join(sorted(run.lines)).encode(), digest_size=12).hexdigest()


def _as_asked(reply: Reply, piece: AnyRequestChunk) -> Reply:
    """The reply without the alternatives that a batch's reader finds although nobody asked for them."""
    if piece.request.top_logprobs:
        return reply
    plain = tuple(replace(completion, top=None) for completion in reply.completions)
    return replace(reply, completions=plain)
