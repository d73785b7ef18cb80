"""Where memory or disk ends: recognising it, whoever says so, and telling it in one paragraph.

Imports no torch. Knows nothing of what was computed or saved.
"""

from __future__ import annotations

import errno
from pathlib import Path

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
