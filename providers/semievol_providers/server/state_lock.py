"""One server per state folder: a lock that the operating system frees when its holder dies.

Knows nothing of what is in the folder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from semievol_api.errors import UserError
from semievol_providers.server.state_folder import unusable

_WAIT_S = 2.0


class StateInUseError(UserError):
    """Another server works in this state folder."""


@contextmanager
def hold_state(folder: Path) -> Generator[None]:
    """Hold the folder's lock; the folder is made if it is missing.

    Raises:
        StateInUseError: another process holds it, even after a few seconds.
        StateFolderError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise unusable(folder, error) from error
    with lock:
        _wait_for(lock, folder)
        yield


def _wait_for(lock: IO[str], folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StateInUseError(
                    f"The state folder {str(folder)!r} is in use by another server. Stop it, or give "
                    "this one a folder of its own with --state."
                ) from error
            time.sleep(0.1)
