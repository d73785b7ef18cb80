"""Writes that are whole or undone: what could not be written to its end leaves nothing behind.

`write` is the system call that takes the bytes; it may take fewer than it is given, as a full disk does. Knows
nothing of what is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("no space left", "(os error 28)", "(os error 27)", "(os error 122)", "disk quota exceeded")


def is_out_of_memory(error: BaseException) -> bool:
    """True for every way in which torch or Python says so."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def is_out_of_space(error: BaseException) -> bool:
    """True for every way in which Python, torch or safetensors says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(word in str(error).lower() for word in _FULL_WORDS)


def full_disk(folder: Path | str, lost: str) -> str:
    """What to tell; `lost` says what could not be saved and what is left."""
    return (
        f"The disk of {str(folder)!r} is full: {lost} Free some space there (adapters of jobs no longer needed are "
        "whole folders of their own), or point `state` at another disk, and run again: everything goes on where "
        "it stopped."
    )


Write: TypeAlias = Callable[[int, memoryview], int]


def write_all(descriptor: int, data: bytes, write: Write = os.write) -> None:
    """All of the bytes, in as many calls as it takes.

    Raises:
        OSError: the rest finds no place.
    """
    left = memoryview(data)
    while left:
        left = left[write(descriptor, left) :]


def append_whole(path: Path, data: bytes, write: Write = os.write) -> None:
    """Append to a file that only this process writes; after a failure it is as long as before.

    Raises:
        OSError: the bytes find no place.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, data, write)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, write: Write = os.write) -> None:
    """Write a file under its name only when it is complete; after a failure there is none, or the older one.

    Raises:
        OSError: the bytes find no place.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, data, write)
        finally:
            os.close(descriptor)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def cut_torn_line(path: Path) -> None:
    """End a file of lines at its last whole one, after a kill in the middle of a write."""
    if not path.exists():
        return
    with path.open("r+b") as lines:
        end = start = lines.seek(0, os.SEEK_END)
        while start > 0:
            start = max(0, start - 2**16)
            lines.seek(start)
            found = lines.read(2**16).rfind(b"\n")
            if found >= 0:
                start += found + 1
                break
        if start < end:
            lines.truncate(start)
