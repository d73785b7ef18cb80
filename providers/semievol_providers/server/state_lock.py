"""One server per state folder: a lock that the operating system frees when its holder dies.

Knows nothing of what is in the folder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from semievol_api.errors import UserError

_WAIT_S = 2.0


class StateInUseError(UserError):
    """Another server works in this state folder."""


@contextmanager
def hold_state(folder: Path) -> Generator[None]:
    """Hold the folder's lock.

    Raises:
        StateInUseError: another process holds it, even after a few seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / "lock").open("a") as lock:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StateInUseError(
                        f"The state folder {str(folder)!r} is in use by another server. Stop it, or give "
                        "this one a folder of its own with --state."
                    ) from error
                time.sleep(0.1)
        yield
