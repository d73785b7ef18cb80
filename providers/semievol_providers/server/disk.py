"""How the server writes to disk, each write complete or undone, and how full disks are recognised and reported.

One object, so that a test can let any single step fail as a disk would. Knows nothing of what is kept, nor of HTTP
beyond the refusal of a full disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from semievol_api.errors import UserError
from semievol_providers.local.disk import append_whole, is_out_of_space, write_all, write_whole
from semievol_providers.server.api_errors import ApiError

_FULL_DATABASE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMOPEN,
)
_PASSING = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE,
    errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT,
)  # fmt: skip
_PIECE_BYTES = 2**20


class Disk:
    """The operating system's own calls; the methods below the line are made of them."""

    def connect(self, path: Path) -> sqlite3.Connection:
        """Open a database that commits each statement unless told otherwise."""
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the bytes; returns how many."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Wait until what was written cannot be lost."""
        os.fsync(descriptor)

    def make_folder(self, path: Path) -> None:
        """Make a new folder."""
        path.mkdir(parents=True)

    def allocate(self, path: Path, size: int) -> None:
        """A file that takes so much room and says nothing."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        os.link(source, target)

    # ------------------------------------------------------------------------------------------ whole or undone
    def append(self, path: Path, data: bytes) -> None:
        """Append to a file that nobody else writes."""
        append_whole(path, data, self.write)

    def write_whole(self, path: Path, data: bytes) -> None:
        """Write a small file."""
        write_whole(path, data, self.write)

    def copy_in(self, source: IO[bytes], target: Path) -> int:
        """Write all of an open file to a new place, past the reach of a power cut; returns its size."""
        partial = target.with_name(target.name + ".partial")
        try:
            with partial.open("wb", buffering=0) as out:
                for piece in _pieces(source):
                    write_all(out.fileno(), piece, self.write)
                self.sync(out.fileno())
                size = out.tell()
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return size

    def second_name(self, source: Path, target: Path) -> None:
        """A second name for a file, or a copy where the file system has no such names."""
        try:
            self.link(source, target)
        except OSError as error:
            if will_pass(error):
                raise
            with source.open("rb") as whole:
                self.copy_in(whole, target)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder of ours; errors are ignored."""
        shutil.rmtree(path, ignore_errors=True)


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(_PIECE_BYTES):
        yield piece


def is_full(error: BaseException) -> bool:
    """True for every way in which the system, Python or SQLite says that there is no room."""
    if isinstance(error, sqlite3.OperationalError):
        return _code(error) in _FULL_DATABASE or "disk is full" in str(error)
    return is_out_of_space(error)


def will_pass(error: BaseException) -> bool:
    """Whether the same step may succeed later, since the machine is short of something."""
    if isinstance(error, sqlite3.OperationalError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def _code(error: sqlite3.OperationalError) -> int:
    try:
        return error.sqlite_errorcode
    except AttributeError:  # raised by Python itself, not by SQLite
        return -1


def reason_of(error: BaseException) -> str:
    """The error in one sentence without paths."""
    if isinstance(error, ApiError):
        return error.message
    if isinstance(error, UserError):
        return str(error)
    if is_full(error):
        return "The disk of the state folder is full: free some space there, and it goes on by itself."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    return f"{type(error).__name__}: {error}"


def disk_full() -> ApiError:
    """The refusal for a full disk."""
    return ApiError(
        "The server's disk is full and nothing of this request was kept: free some space in its state folder, then "
        "ask again.",
        status=507,
        code="disk_full",
        headers={"x-should-retry": "false"},
    )


def unwritable() -> ApiError:
    """The refusal where the state folder cannot be used for another reason."""
    return ApiError(
        "The server could not use its state folder and nothing of this request was kept. Its log says why; ask again "
        "when that is mended.",
        status=500,
        code="storage_failed",
    )


def causes(error: BaseException) -> list[BaseException]:
    """The single errors of a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for inner in error.exceptions for cause in causes(inner)]
    return [error]
