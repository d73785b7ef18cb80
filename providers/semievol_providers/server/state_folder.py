"""Whose a state folder is. Nothing is started in, written to or removed from a folder that is not a server's.

A state folder carries a marker, or it is empty, or it is an older server's (its database has our tables). Looking
changes no byte. Knows nothing of what jobs, files and batches are about.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from semievol_api.errors import UserError
from semievol_api.store.database_header import DamagedDatabaseError, read_header
from semievol_providers.server.state import APPLICATION_ID, DATABASE, FORMAT, TABLES

MARKER = "semievol-state.json"
_MADE_BY = "semievol serve"
_FOLDERS = ("files", "jobs", "batches", "tmp")
_DATABASE_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")
_OURS = {*_FOLDERS, *_DATABASE_FILES, MARKER, "lock"}
_NOT_COUNTED = {"lock", "lost+found", "ready.json", "server.log"}
"""What may lie in a folder before its first server: a refused start's lock, what a volume brings, a parent's files."""

OWN_NAMES = {
    "files": re.compile(r"file-[A-Za-z0-9]{24}(\.partial)?"),
    "jobs": re.compile(r"ftjob-[A-Za-z0-9]{24}"),
    "batches": re.compile(r"batch_[A-Za-z0-9]{24}"),
    "tmp": re.compile(r"(tmp|pymp-)[a-z0-9_]{8}"),
}
"""What the server itself, and Python for it, names in each of its folders; nothing else is ever removed."""


class StateFolderError(UserError):
    """This folder cannot be the state of this server."""


@dataclass(frozen=True, slots=True)
class FolderCondition:
    """`new` may be filled, `whole` may be used; a `lost` one has objects of ours but no database that names them."""

    kind: Literal["new", "whole", "lost"]
    why: str = ""


def check_folder(folder: Path) -> FolderCondition:
    """How this folder stands.

    Raises:
        StateFolderError: it is not a server's, was written by a newer version, or cannot be read or written.
    """
    try:
        return _check(folder)
    except OSError as error:
        raise unusable(folder, error) from error


def own_entries(folder: Path, table: str) -> list[Path]:
    """What the server put into one of its folders: names of its own shape, and no links."""
    place = folder / table
    if place.is_symlink() or not place.is_dir():
        return []
    shape = OWN_NAMES[table]
    return sorted(path for path in place.iterdir() if shape.fullmatch(path.name) and not path.is_symlink())


def claim(folder: Path) -> None:
    """Put the marker into a folder that was found to be ours, whole or not at all."""
    marker = folder / MARKER
    if marker.exists():
        return
    partial = folder / f"{MARKER}.partial"
    text = json.dumps({"made_by": _MADE_BY, "format": FORMAT, "note": "A folder of `semievol serve`."})
    try:
        partial.write_text(f"{text}\n", encoding="utf-8")
        partial.replace(marker)
    except OSError as error:
        raise unusable(folder, error) from error


def put_database_aside(folder: Path) -> Path | None:
    """Rename a database that cannot be used, so that a new one has its place; returns its new name."""
    aside: Path | None = None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for name in _DATABASE_FILES:
        path = folder / name
        if path.exists():
            target = path.with_name(f"{name.replace(DATABASE, f'{DATABASE}.damaged-{stamp}')}")
            path.replace(target)
            aside = aside or target
    return aside


def unusable(folder: Path, error: OSError | sqlite3.Error) -> StateFolderError:
    """The refusal for a folder that the operating system does not give."""
    reason = error.strerror if isinstance(error, OSError) else None
    return StateFolderError(
        f"The state folder {str(folder)!r} cannot be used: {reason or error}. Make it a folder that this user "
        "can read and write, or name another one with --state."
    )


def _check(folder: Path) -> FolderCondition:
    if not folder.exists():
        return FolderCondition("new")
    names = {path.name for path in folder.iterdir()} - _NOT_COUNTED
    if not names:
        _check_access([folder])
        return FolderCondition("new")
    marked = MARKER in names
    if marked:
        _check_marker(folder)
    condition = _check_database(folder, names, marked)
    _check_kinds(folder)
    _check_access([folder, *(folder / name for name in (*_FOLDERS, *_DATABASE_FILES, "lock"))])
    return condition


def _check_marker(folder: Path) -> None:
    path = folder / MARKER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        made_by, written = found["made_by"], int(found["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateFolderError(
            f"The marker {str(path)!r} of a state folder is damaged ({error}). Nothing was touched. If this folder is "
            "a server's, delete the marker alone and start again; else name another folder with --state."
        ) from error
    if made_by != _MADE_BY:
        raise StateFolderError(f"The folder {str(folder)!r} belongs to {made_by!r}. Name another one with --state.")
    if written > FORMAT:
        raise _newer(folder, written)


def _check_database(folder: Path, names: set[str], marked: bool) -> FolderCondition:
    """What the database says of the folder, and what the folder says without one."""
    path = folder / DATABASE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StateFolderError(f"{str(path)!r} is no file of its own. Nothing was touched. Name another --state.")
    try:
        header = read_header(path)
        if header is not None and header.user_version > FORMAT and header.application_id == APPLICATION_ID:
            raise _newer(folder, header.user_version)
        tables = _tables(path) if header is not None else set[str]()
    except (DamagedDatabaseError, sqlite3.DatabaseError) as error:
        if not marked and not _looks_ours(folder, names):
            raise _not_ours(folder, names) from error
        return FolderCondition("lost", f"its database {DATABASE} is damaged ({error})")
    foreign = header is not None and header.application_id not in (0, APPLICATION_ID)
    if foreign or (tables and not tables >= TABLES):
        raise _not_ours(folder, names)
    if tables:
        return FolderCondition("whole")
    if any(own_entries(folder, table) for table in ("jobs", "files", "batches")) and (
        marked or _looks_ours(folder, names)
    ):
        return FolderCondition("lost", f"its database {DATABASE} is missing or empty")
    if not marked and names - set(_DATABASE_FILES):
        raise _not_ours(folder, names)
    return FolderCondition("new")


def _looks_ours(folder: Path, names: Iterable[str]) -> bool:
    """An older server's folder without a usable database: nothing but our names, and a job among them."""
    return set(names) <= _OURS and bool(own_entries(folder, "jobs") or own_entries(folder, "files"))


def _tables(path: Path) -> set[str]:
    """The tables of a database that is whole, read without leaving a trace beside it."""
    log = path.with_name(path.name + "-wal")
    if not log.exists() or log.stat().st_size == 0:
        return _tables_of(path)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(log.name))
        return _tables_of(copy, "mode=ro")


def _tables_of(path: Path, options: str = "mode=ro&immutable=1") -> set[str]:
    database = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True)
    try:
        (finding,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise sqlite3.DatabaseError(str(finding))
        return {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    finally:
        database.close()


def _check_kinds(folder: Path) -> None:
    """Our folders are folders: a link would lead sweeping and writing to somebody else's files."""
    for name in _FOLDERS:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise StateFolderError(
                f"{str(path)!r} is {'a link' if path.is_symlink() else 'no folder'}, and a state's folders must be "
                "real ones: the server removes what it left half done there. Nothing was touched. To keep the state "
                "elsewhere, name that place with --state."
            )


def _check_access(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists() and not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            raise StateFolderError(
                f"{str(path)!r} cannot be written by this user. Nothing was touched. Give the server's user the right "
                "to write there, or name another folder with --state."
            )


def _newer(folder: Path, written: int) -> StateFolderError:
    return StateFolderError(
        f"The state folder {str(folder)!r} was written by a newer version (format {written}; this one reads up to "
        f"{FORMAT}). Nothing was touched. Start the version that wrote it, or name another folder with --state."
    )


def _not_ours(folder: Path, names: Iterable[str]) -> StateFolderError:
    shown = sorted(names)
    more = f" and {len(shown) - 3:,} more" if len(shown) > 3 else ""
    listed = ", ".join(repr(name) for name in shown[:3])
    return StateFolderError(
        f"The folder {str(folder)!r} is not the state of a server: it holds {listed}{more}. The server removes files "
        "in its state folder, so it takes only an empty one or its own. Nothing was touched. Name another folder with "
        "--state."
    )


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
