"""Removes what a killed server left half done: uploads, job and batch folders that nothing in the state names.

Runs once at the start, when nobody else works in the folder. Knows nothing of HTTP or jobs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from semievol_providers.server.state import State


def sweep(state: State) -> int:
    """Remove strays; returns how many there were."""
    strays = list((state.folder / "tmp").iterdir())
    tables: tuple[Literal["files"], Literal["jobs"], Literal["batches"]] = ("files", "jobs", "batches")
    for table in tables:
        known = state.ids(table)
        strays += [path for path in (state.folder / table).iterdir() if path.name not in known]
    for path in strays:
        _remove(path)
    return len(strays)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
