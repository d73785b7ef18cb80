"""Send pieces: the only module that starts tasks, and the only one that retries.

Every key and model has a station: a queue of pieces, a gate, and as many carriers as the gate has room for. A
carrier takes a piece, reserves its budget, passes the gate, asks the provider and hands the reply to the
journal's writer; it does not wait for the commit. Knows nothing of where pieces come from.
"""

from __future__ import annotations

import asyncio
import errno
import resource
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from semievol_api.config import Limits
from semievol_api.engine.budget import Budget, Spend, price
from semievol_api.engine.gate import Gate, Pass
from semievol_api.engine.work import AnyPiece, Customer
from semievol_api.engine.writer import GroupCommit
from semievol_api.errors import (
    RateLimitError,
    RefusedError,
    SemievolError,
    TransientError,
)
from semievol_api.transport.clock import Clock

PATIENCE_S = 900.0
"""How long a server may answer nothing but 429 before the stage is stopped."""
SPARE_FILES = 64
"""File descriptors that connections leave to the rest of the process."""
REFUSALS_OF_ALL = 8
"""So many refusals in a row that speak of the key or the model (401, 403, 404) stop the stage."""
_NEVER_SENT = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMFILE, errno.ENFILE}


class Station:
    """The pieces that wait for one key and model, and who carries them."""

    __slots__ = ("carriers", "gate", "queue", "refusals")

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.queue: deque[AnyPiece] = deque()
        self.carriers: dict[asyncio.Task[None], Load] = {}
        self.refusals = 0


class Load:
    """What a carrier has in its hands, and whether it is on the wire."""

    __slots__ = ("piece", "sent")

    def __init__(self) -> None:
        self.piece: AnyPiece | None = None
        self.sent = False


class Dispatcher:
    """Sends pieces for all streams of an engine, one request each."""

    mode = "direct"
    price_share = 1.0

    def __init__(self, limits: Limits, budget: Budget, writer: GroupCommit, clock: Clock) -> None:
        self._limits = limits
        self._budget = budget
        self._writer = writer
        self._clock = clock
        self._stations: dict[tuple[str, str], Station] = {}
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
        return 4 * self._station(identity, model).gate.room

    def no_more(self, customer: Customer[Any, Any]) -> None:
        """Nothing to do: a piece is sent as soon as there is room."""

    def submit(self, piece: AnyPiece) -> None:
        """Send a piece in its turn."""
        owner = piece.owner
        station = self._station(owner.provider.identity, owner.kind.model(piece.request))
        station.queue.append(piece)
        if len(station.carriers) < station.gate.room:
            self._add_carrier(station)

    def recall(self, customer: Customer[Any, Any]) -> None:
        """Send nothing more for a customer; what is in flight may come home."""
        for task, load in self._loads(customer):
            if not load.sent:
                task.cancel()

    def cancel(self, customer: Customer[Any, Any]) -> None:
        """Break off what is in flight for a customer; the lost replies stay charged."""
        for task, _ in self._loads(customer):
            task.cancel()

    def _loads(self, customer: Customer[Any, Any]) -> list[tuple[asyncio.Task[None], Load]]:
        return [
            (task, load)
            for station in self._stations.values()
            for task, load in station.carriers.items()
            if load.piece is not None and load.piece.owner is customer
        ]

    async def close(self) -> None:
        """Break off everything that still runs."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _station(self, identity: str, model: str) -> Station:
        station = self._stations.get((identity, model))
        if station is None:
            station = Station(Gate(self._limits, self._ceiling, self._clock, self.start))
            self._stations[identity, model] = station
        return station

    def _add_carrier(self, station: Station) -> None:
        load = Load()
        task = self.start(self._carry(station, load))
        station.carriers[task] = load
        task.add_done_callback(lambda task: self._carrier_ended(station, task))

    def _carrier_ended(self, station: Station, task: asyncio.Task[None]) -> None:
        piece = station.carriers.pop(task).piece
        error = None if task.cancelled() else task.exception()
        if piece is not None:
            if error is not None:
                piece.owner.stop(error)
            piece.owner.abandon(piece)
        if station.queue and not station.carriers and not self._closing:
            self._add_carrier(station)

    async def _carry(self, station: Station, load: Load) -> None:
        """Send pieces until none is left, or the gate has room for fewer carriers."""
        while station.queue and len(station.carriers) <= station.gate.room:
            piece = station.queue.popleft()
            if piece.owner.stopped:
                piece.owner.abandon(piece)
                continue
            if station.queue and len(station.carriers) < station.gate.room:
                self._add_carrier(station)
            load.piece = piece
            try:
                await self._send(station, load, piece)
            except (RefusedError, TransientError) as error:
                load.piece = None
                self._stop_if_hopeless(station, piece, error)
                piece.owner.fail(piece, str(error))
            except SemievolError as error:
                load.piece = None
                piece.owner.stop(error)
                piece.owner.abandon(piece)
            else:
                load.piece = None
                station.refusals = 0
                self._writer.put(piece)

    def _stop_if_hopeless(self, station: Station, piece: AnyPiece, error: SemievolError) -> None:
        """Stop a stage whose key or model is refused, before every row has been tried."""
        if isinstance(error, RefusedError) and error.status in (401, 403, 404):
            station.refusals += 1
            if error.status == 401 or station.refusals >= REFUSALS_OF_ALL:
                piece.owner.stop(error)

    async def _send(self, station: Station, load: Load, piece: AnyPiece) -> None:
        """Ask until there is a reply, or no more attempts. The first attempt goes without tenacity's overhead."""
        if self._budget.capped:
            piece.need = _most(piece)
        try:
            await self._attempt(station.gate, load, piece)
        except TransientError as error:
            await self._retry(error, lambda: self._attempt(station.gate, load, piece))

    async def _retry(self, first: TransientError, attempt: Callable[[], Awaitable[None]]) -> None:
        known = [first]

        async def next_attempt() -> None:
            if known:
                raise known.pop()
            await attempt()

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(self._limits.max_attempts),
            wait=wait_random_exponential(multiplier=0.5, max=30.0),
            sleep=self._clock.sleep,
            reraise=True,
        )
        await retrying(next_attempt)

    async def _attempt(self, gate: Gate, load: Load, piece: AnyPiece) -> None:
        """One attempt; a 429 costs none: everyone waits, and this piece goes again."""
        while True:
            if self._budget.capped:
                await self._budget.reserve(piece.need)
            billed = False
            try:
                passed = await gate.enter(piece.tokens)
                billed = load.sent = True
                try:
                    await self._ask(gate, passed, piece)
                    return
                except RateLimitError as error:
                    billed = False
                    piece.owner.tally.rate_limited += 1
                    if gate.pause(passed, error.retry_after_s) > PATIENCE_S:
                        raise
                except (TransientError, RefusedError) as error:
                    billed = _may_be_billed(error)
                    raise
            finally:
                load.sent = False
                if piece.reply is None:
                    self._charge(piece, lost=billed)

    async def _ask(self, gate: Gate, passed: Pass, piece: AnyPiece) -> None:
        owner = piece.owner
        owner.tally.attempts += 1
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                reply = await owner.kind.call(piece.request)
            piece.take(reply)
        except TimeoutError:
            gate.failed()
            raise TransientError(f"There was no answer within {self._limits.timeout_s:g} s.") from None
        except TransientError:
            gate.failed()
            raise
        finally:
            gate.leave()
        gate.replied(passed, reply.pace)
        owner.arrived(piece, reply.usage)

    def _charge(self, piece: AnyPiece, *, lost: bool) -> None:
        """What becomes of a reservation whose reply did not come."""
        if lost:
            most = _most(piece)
            piece.owner.tally.lost_usd += most.usd
            piece.owner.tally.lost_tokens += most.tokens
        if self._budget.capped:
            (self._budget.lose if lost else self._budget.release)(piece.need)


def _most(piece: AnyPiece) -> Spend:
    """An upper bound of what a piece can cost."""
    limits = piece.owner.provider.limits.get(piece.owner.kind.model(piece.request))
    return Spend(price(piece.bound, limits), piece.bound.prompt + piece.bound.completion)


def _may_be_billed(error: RefusedError | TransientError) -> bool:
    """False where the server answered with an error, or was never reached."""
    if isinstance(error, RefusedError) or (error.status is not None and error.status >= 400):
        return False
    cause = error.__cause__
    never_sent = isinstance(cause, OSError) and cause.errno is not None and cause.errno in _NEVER_SENT
    unknown_host = isinstance(cause, OSError) and cause.errno is not None and cause.errno < 0
    return not (never_sent or unknown_host)


def _open_files() -> int:
    """Connections that the operating system lets this process open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(1, soft - SPARE_FILES)
