"""Removes what a killed server left half done: uploads, job and batch folders that nothing in the state names.

Only names of the server's own shape are removed, and no links. A job folder that holds more than its input is
somebody's work: it stays, and the log says so. Runs once at the start, when nobody else works in the folder.
Knows nothing of HTTP or of how jobs run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from semievol_providers.server.deletion import delete_expired, remove_orphaned_texts
from semievol_providers.server.state import State
from semievol_providers.server.state_folder import own_entries

_log = logging.getLogger(__name__)
_INPUTS = {"training_file", "validation_file"}


def sweep(state: State) -> int:
    """Remove strays and what expired; returns how many strays there were."""
    strays = list(_strays(state))
    for path in strays:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    delete_expired(state)
    remove_orphaned_texts(state)
    return len(strays)


def _strays(state: State) -> Iterator[Path]:
    yield from own_entries(state.folder, "tmp")
    files, batches, jobs = state.ids("files"), state.ids("batches"), state.ids("jobs")
    for path in own_entries(state.folder, "files"):
        if path.name not in files and path.is_file():
            yield path
    for path in own_entries(state.folder, "batches"):
        if path.name not in batches and path.is_dir():
            yield path
    for path in own_entries(state.folder, "jobs"):
        if path.name not in jobs and path.is_dir():
            if {inner.name for inner in path.iterdir()} <= _INPUTS:
                yield path
            else:
                _log.warning("%s is not in the database and was left alone; --recover takes it up", path)
