"""Queues and carriers: the only module that starts tasks.

Every key and model has a station: a queue of pieces, a gate, and as many carriers as the gate has room for. A
carrier takes a piece, has it asked, and hands it to the journal's writer; it does not wait for the commit. Knows
nothing of where pieces come from, nor of how one is asked.
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import Coroutine
from typing import Any

from semievol_api.config import Limits
from semievol_api.engine.asking import Asker, Load
from semievol_api.engine.gate import Gate
from semievol_api.engine.work import AnyPiece, Customer
from semievol_api.engine.writer import GroupCommit
from semievol_api.errors import ModelNotFoundError, RefusedError, SemievolError, TransientError
from semievol_api.transport.clock import Clock

SPARE_FILES = 64
"""File descriptors that connections leave to the rest of the process."""
REFUSALS_OF_ALL = 8
"""So many refusals in a row that speak of the key or the model (401, 403, 404) stop the stage."""


class Station:
    """The pieces that wait for one key and model, and who carries them."""

    __slots__ = ("answered", "carriers", "gate", "queue", "refusals")

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.queue: deque[AnyPiece] = deque()
        self.carriers: dict[asyncio.Task[None], Load] = {}
        self.refusals = 0
        self.answered = False


class Dispatcher:
    """Sends pieces for all streams of an engine, one request each."""

    mode = "direct"
    price_share = 1.0

    def __init__(self, limits: Limits, asker: Asker, writer: GroupCommit, clock: Clock) -> None:
        self._limits = limits
        self._asker = asker
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

    def settle(self, piece: AnyPiece) -> None:
        """A piece is paid and stored."""
        self._asker.settle(piece)
        if piece.on_stored is not None:
            piece.on_stored()

    def no_more(self, customer: Customer[Any, Any]) -> None:
        """Nothing to do: a piece is sent as soon as there is room."""

    def submit(self, piece: AnyPiece) -> None:
        """Send a piece in its turn."""
        owner = piece.owner
        station = self._station(owner.provider.identity, owner.kind.model(piece.request))
        piece.on_stored = station.gate.saved
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

    async def close(self) -> None:
        """Break off everything that still runs."""
        self._closing = True
        self._asker.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _loads(self, customer: Customer[Any, Any]) -> list[tuple[asyncio.Task[None], Load]]:
        return [
            (task, load)
            for station in self._stations.values()
            for task, load in station.carriers.items()
            if load.piece is not None and load.piece.owner is customer
        ]

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
                await self._asker.send(station.gate, load, piece)
            except (RefusedError, TransientError) as error:
                load.piece = None
                self._stop_if_hopeless(station, piece, error)
                piece.owner.fail(piece, error)
            except SemievolError as error:
                load.piece = None
                piece.owner.stop(error)
                piece.owner.abandon(piece)
            else:
                load.piece = None
                station.refusals = 0
                station.answered = True
                self._writer.put(piece)

    def _stop_if_hopeless(self, station: Station, piece: AnyPiece, error: SemievolError) -> None:
        """Stop a stage whose key or model is refused, before every row has been tried.

        A model that never answered and is said not to be there is refused for good: a probe of one question must not
        take it for a model that gives no log-probabilities.
        """
        if isinstance(error, ModelNotFoundError) and not station.answered:
            piece.owner.stop(error)
        elif isinstance(error, RefusedError) and error.status in (401, 403, 404):
            station.refusals += 1
            if error.status == 401 or station.refusals >= REFUSALS_OF_ALL:
                piece.owner.stop(error)


def _open_files() -> int:
    """Connections that the operating system lets this process open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(1, soft - SPARE_FILES)
