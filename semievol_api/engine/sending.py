"""Queues and workers: the only module that starts tasks.

Every key and model has a queue of request chunks, a pacer, and as many workers as the pacer allows. A worker takes
a chunk, sends it with retries and hands it to the journal's writer without waiting for the commit. Knows nothing of
where chunks come from.
"""

from __future__ import annotations

import asyncio
import errno
import resource
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Protocol, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from semievol_api.cassettes.clock import Clock
from semievol_api.cassettes.http import Deadlines
from semievol_api.config.settings import Limits
from semievol_api.engine.budget import Budget, Spend, price
from semievol_api.engine.journal import GroupCommit
from semievol_api.engine.pacing import Pacer, Pass
from semievol_api.engine.stream import AnyRequestChunk, AnyStream
from semievol_api.errors import (
    ModelNotFoundError,
    RateLimitError,
    RefusedError,
    SemievolError,
    SettingRefusedError,
    TransientError,
)


class Leases(Protocol):
    """Quotas and the budget of all engines of a run."""

    async def opened(self, spent: Spend) -> None:
        """An engine is open whose journal says that so much is charged; what it leased before it died is void."""
        ...

    async def pace(self, tokens: float) -> None:
        """Comes back when one more request of about so many tokens may go."""
        ...

    async def more(self, need: Spend) -> Spend:
        """What may be spent beyond what was leased, at least `need`; nothing where the caps leave no room."""
        ...

    async def closed(self, spent: Spend) -> None:
        """The engine is done, and so much is charged to its journal; the rest of its leases is free again."""
        ...


_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_ValueT = TypeVar("_ValueT")


async def _after_failure(
    first: TransientError, attempt: Callable[[], Awaitable[None]], attempts: int, clock: Clock
) -> None:
    """Go on after a first failed attempt, which counts as one of `attempts`; waits grow and are random.

    Raises:
        TransientError: the last attempt's.
    """
    known = [first]

    async def next_attempt() -> None:
        if known:
            raise known.pop()
        await attempt()

    await _retrying(attempts, clock, TransientError)(next_attempt)


async def until_it_works(attempt: Callable[[], Awaitable[_ValueT]], attempts: int, clock: Clock) -> _ValueT:
    """The value of the first attempt that neither fails on the way nor meets a 429."""

    async def once() -> _ValueT:  # tenacity awaits coroutine functions only
        return await attempt()

    return await _retrying(attempts, clock, TransientError, RateLimitError)(once)


def _retrying(attempts: int, clock: Clock, *kinds: type[Exception]) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(kinds),
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        sleep=clock.sleep,
        reraise=True,
    )


PATIENCE_S = 900.0
"""How long a server may answer nothing but 429 before the stage is stopped."""
_NEVER_SENT = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMFILE, errno.ENFILE}


class _WorkerState:
    """The chunk that a worker sends now, and whether it is in flight."""

    __slots__ = ("piece", "sent")

    def __init__(self) -> None:
        self.piece: AnyRequestChunk | None = None
        self.sent = False


class Attempts:
    """Sends chunks for all workers of an engine: paced, within the budget, and retried."""

    def __init__(self, limits: Limits, budget: Budget, clock: Clock, leases: Leases | None = None) -> None:
        self._leases = leases
        self._limits = limits
        self._budget = budget
        self._clock = clock
        self._deadlines = Deadlines()

    def close(self) -> None:
        """No request is broken off any more."""
        self._deadlines.close()

    async def send(self, pacer: Pacer, state: _WorkerState, piece: AnyRequestChunk) -> None:
        """Come back when the piece has its reply. The first attempt goes without tenacity's overhead.

        Raises:
            RefusedError, TransientError: there will be none, for a reason that lies in this piece.
            BudgetError, JournalError, RateLimitError: nothing more can be sent.
        """
        if self._budget.capped:
            piece.need = _most(piece)
        try:
            await self._attempt(pacer, state, piece)
        except TransientError as error:
            again = partial(self._attempt, pacer, state, piece)
            await _after_failure(error, again, self._limits.max_attempts, self._clock)

    async def _attempt(self, pacer: Pacer, state: _WorkerState, piece: AnyRequestChunk) -> None:
        """One attempt, and as many 429s as the server likes."""
        owner = piece.owner
        while True:
            if owner.provider.awake is not None:
                await owner.provider.awake(owner.kind.model(piece.request))
            if self._budget.capped:
                await self._budget.reserve(piece.need)
            passed: Pass | None = None
            billed = True
            try:
                if self._leases is not None:
                    await self._leases.pace(piece.tokens)
                passed = pacer.enter_now(piece.tokens) or await pacer.enter(piece.tokens)
                await self._ask(pacer, passed, state, piece)
                return
            except RateLimitError as error:
                billed = False
                piece.owner.tally.rate_limited += 1
                if passed is None or pacer.pause(passed, error.retry_after_s) > PATIENCE_S:
                    raise
            except (TransientError, RefusedError) as error:
                billed = _may_be_billed(error)
                raise
            finally:
                if piece.reply is None:
                    self._charge(piece, lost=billed and passed is not None)

    async def _ask(self, pacer: Pacer, passed: Pass, state: _WorkerState, piece: AnyRequestChunk) -> None:
        owner = piece.owner
        owner.tally.attempts += 1
        timeout_s, nearby = self._limits.timeout_s * 2.0 ** min(piece.late, 2), owner.provider.nearby
        deadline = self._deadlines.begin(timeout_s, lambda: pacer.more_s(passed, timeout_s, nearby=nearby))
        state.sent = True
        try:
            reply = await owner.kind.call(piece.request)
            piece.take(reply)
        except asyncio.CancelledError:
            if not self._deadlines.passed(deadline):
                raise
            pacer.failed()
            piece.late += 1
            raise TransientError(f"There was no answer within {timeout_s:g} s.") from None
        except TransientError:
            pacer.failed()
            raise
        else:
            pacer.replied(passed, reply.pace)
        finally:
            self._deadlines.end(deadline)
            state.sent = False
            pacer.leave()
        owner.arrived(piece, reply.usage)

    def settle(self, piece: AnyRequestChunk) -> None:
        """A piece is paid and stored: its reservation becomes its price."""
        if self._budget.capped:
            self._budget.settle(piece.need, piece.actual)

    def _charge(self, piece: AnyRequestChunk, *, lost: bool) -> None:
        """What becomes of a reservation whose reply did not come."""
        if lost:
            most = _most(piece)
            piece.owner.tally.lost_usd += most.usd
            piece.owner.tally.lost_tokens += most.tokens
        if self._budget.capped:
            (self._budget.lose if lost else self._budget.release)(piece.need)


def _most(piece: AnyRequestChunk) -> Spend:
    """An upper bound of what a piece can cost."""
    limits = piece.owner.provider.limits.get(piece.owner.kind.model(piece.request))
    return Spend(price(piece.bound, limits), piece.bound.prompt + piece.bound.completion)


def _may_be_billed(error: RefusedError | TransientError) -> bool:
    """False where the server answered with an error, or was never reached."""
    if isinstance(error, RefusedError) or (error.status is not None and error.status >= 400):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno >= 0 and cause.errno not in _NEVER_SENT  # negative: the host's name is unknown
        cause = cause.__cause__
    return True


_SPARE_FILES = 64
"""File descriptors that connections leave to the rest of the process."""
_REFUSALS_OF_ALL = 8
"""So many refusals in a row that speak of the key or the model (401, 403, 404) stop the stage."""


class _ModelQueue:
    """The pieces that wait for one key and model, and who carries them."""

    __slots__ = ("answered", "pacer", "queue", "refusals", "workers")

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.queue: deque[AnyRequestChunk] = deque()
        self.workers: dict[asyncio.Task[None], _WorkerState] = {}
        self.refusals = 0
        self.answered = False


class Dispatcher:
    """Sends pieces for all streams of an engine, one request each."""

    mode = "direct"
    price_share = 1.0

    def __init__(self, limits: Limits, attempts: Attempts, writer: GroupCommit, clock: Clock) -> None:
        self._limits = limits
        self._attempts = attempts
        self._writer = writer
        self._clock = clock
        self._model_queues: dict[tuple[str, str], _ModelQueue] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ceiling = limits.concurrency or _open_files()
        self._closing = False

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run something in the background until the engine closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def window(self, identity: str, model: str) -> int:
        """How many asks a stream may have open for this key and model: four times what may be in flight."""
        return 4 * self._model_queue(identity, model).pacer.room

    def settle(self, piece: AnyRequestChunk) -> None:
        """A piece is paid and stored."""
        self._attempts.settle(piece)
        if piece.on_stored is not None:
            piece.on_stored()

    def no_more(self, stream: AnyStream) -> None:
        """Nothing to do: a piece is sent as soon as there is room."""

    def submit(self, piece: AnyRequestChunk) -> None:
        """Send a piece in its turn."""
        owner = piece.owner
        model_queue = self._model_queue(owner.provider.identity, owner.kind.model(piece.request))
        piece.on_stored = model_queue.pacer.saved
        model_queue.queue.append(piece)
        if len(model_queue.workers) < model_queue.pacer.room:
            self._add_worker(model_queue)

    def recall(self, stream: AnyStream) -> None:
        """Send nothing more for a stream; what is in flight may come home."""
        for task, state in self._workers_of(stream):
            if not state.sent:
                task.cancel()

    def cancel(self, stream: AnyStream) -> None:
        """Break off what is in flight for a stream; the lost replies stay charged."""
        for task, _ in self._workers_of(stream):
            task.cancel()

    async def close(self) -> None:
        """Break off everything that still runs."""
        self._closing = True
        self._attempts.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _workers_of(self, stream: AnyStream) -> list[tuple[asyncio.Task[None], _WorkerState]]:
        return [
            (task, state)
            for model_queue in self._model_queues.values()
            for task, state in model_queue.workers.items()
            if state.piece is not None and state.piece.owner is stream
        ]

    def _model_queue(self, identity: str, model: str) -> _ModelQueue:
        model_queue = self._model_queues.get((identity, model))
        if model_queue is None:
            model_queue = _ModelQueue(Pacer(self._limits, self._ceiling, self._clock, self.start))
            self._model_queues[identity, model] = model_queue
        return model_queue

    def _add_worker(self, model_queue: _ModelQueue) -> None:
        state = _WorkerState()
        task = self.start(self._work(model_queue, state))
        model_queue.workers[task] = state
        task.add_done_callback(lambda task: self._worker_ended(model_queue, task))

    def _worker_ended(self, model_queue: _ModelQueue, task: asyncio.Task[None]) -> None:
        piece = model_queue.workers.pop(task).piece
        error = None if task.cancelled() else task.exception()
        if piece is not None:
            if error is not None:
                piece.owner.stop(error)
            piece.owner.abandon(piece)
        if model_queue.queue and not model_queue.workers and not self._closing:
            self._add_worker(model_queue)

    async def _work(self, model_queue: _ModelQueue, state: _WorkerState) -> None:
        """Send pieces until none is left, or the pacer has room for fewer workers."""
        while model_queue.queue and len(model_queue.workers) <= model_queue.pacer.room:
            piece = model_queue.queue.popleft()
            if piece.owner.stopped:
                piece.owner.abandon(piece)
                continue
            if model_queue.queue and len(model_queue.workers) < model_queue.pacer.room:
                self._add_worker(model_queue)
            state.piece = piece
            try:
                await self._attempts.send(model_queue.pacer, state, piece)
            except (RefusedError, TransientError) as error:
                state.piece = None
                self._stop_if_hopeless(model_queue, piece, error)
                piece.owner.fail(piece, error)
            except SemievolError as error:
                state.piece = None
                piece.owner.stop(error)
                piece.owner.abandon(piece)
            else:
                state.piece = None
                model_queue.refusals = 0
                model_queue.answered = True
                self._writer.put(piece)

    def _stop_if_hopeless(self, model_queue: _ModelQueue, piece: AnyRequestChunk, error: SemievolError) -> None:
        """Stop a stage whose key or model is refused, before every row has been tried.

        A model that never answered and is said not to be there is refused for good: a probe of one question must not
        take it for a model that gives no log-probabilities.
        """
        no_model = isinstance(error, ModelNotFoundError) and not model_queue.answered
        if isinstance(error, SettingRefusedError):
            if piece.owner.refuses_again(str(error)):
                piece.owner.stop(error)
        elif no_model:
            piece.owner.stop(error)
        elif isinstance(error, RefusedError) and error.status in (401, 403, 404):
            model_queue.refusals += 1
            if error.status == 401 or model_queue.refusals >= _REFUSALS_OF_ALL:
                piece.owner.stop(error)


def _open_files() -> int:
    """Connections that the operating system lets this process open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(1, soft - _SPARE_FILES)
