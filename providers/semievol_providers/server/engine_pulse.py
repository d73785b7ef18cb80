"""A sign of life from the engine process, from a thread of its own beside whatever is computed.

A stopped, swapped-out or deadlocked process sends none; a busy one does, since computing lets other threads run.
Knows nothing of what is computed.
"""

from __future__ import annotations

import threading
import time
from typing import IO

from semievol_providers.server.engine_wire import BeatTell, frame

BEATS_PER_SILENCE = 6
_MOST_S = 5.0


class SharedPipe:
    """A pipe that several threads write whole messages to."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """One whole message, sent at once."""
        with self._lock:
            self._out.write(data)
            self._out.flush()

    def flush(self) -> None:
        """Nothing waits."""


def beat_every_s(silence_s: float) -> float:
    """How often to give a sign, for a reader that takes so long a silence for the end."""
    return min(_MOST_S, silence_s / BEATS_PER_SILENCE)


def start_beating(pipe: SharedPipe, every_s: float) -> None:
    """Give signs until the process ends."""
    threading.Thread(target=_beat, args=(pipe, every_s), name="engine-pulse", daemon=True).start()


def _beat(pipe: SharedPipe, every_s: float) -> None:
    message = frame(BeatTell())
    while True:
        pipe.write(message)
        time.sleep(every_s)
