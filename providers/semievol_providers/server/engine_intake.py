"""Turns questions into token ids beside the loop that reads them: short ones in one thread, long ones in another.

In each thread owners take turns, and what was dropped meanwhile is never begun. Knows nothing of what a question says,
of pipes or of models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from semievol_providers.local.turns import TurnQueue

T = TypeVar("T")
_LONG_CHARS = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class Arrived(Generic[T]):
    """A question with its owner and its length in characters or token ids."""

    question: T
    owner: str
    size: int


class Intake(Generic[T]):
    """`put` questions in; `prepare` is called with each, in one of two threads."""

    def __init__(self, prepare: Callable[[T], None]) -> None:
        self._short = _Line("intake", prepare)
        self._long = _Line("intake-long", prepare)

    def put(self, arrived: Arrived[T]) -> None:
        """Queue a question."""
        self._line(arrived).put(arrived)

    def drop(self, arrived: Arrived[T]) -> None:
        """Take a question out, unless its turn has come."""
        self._line(arrived).drop(arrived)

    def _line(self, arrived: Arrived[T]) -> _Line[T]:
        return self._long if arrived.size > _LONG_CHARS else self._short


class _Line(Generic[T]):
    def __init__(self, name: str, prepare: Callable[[T], None]) -> None:
        self._prepare = prepare
        self._queue: TurnQueue[Arrived[T]] = TurnQueue()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, arrived: Arrived[T]) -> None:
        with self._changed:
            self._queue.add(arrived.owner, arrived)
            self._changed.notify()

    def drop(self, arrived: Arrived[T]) -> None:
        with self._changed:
            self._queue.remove(arrived.owner, arrived)

    def _run(self) -> None:
        while True:
            self._prepare(self._next())

    def _next(self) -> T:
        with self._changed:
            while not len(self._queue):
                self._changed.wait()
            owner = self._queue.next_owner()
            arrived = self._queue.first(owner)
            self._queue.remove(owner, arrived)
            self._queue.charge(owner, 1 + arrived.size)
            return arrived.question
