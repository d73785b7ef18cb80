"""Whose an SQLite file is and which format it has, read from its bytes: nothing is opened, locked or changed.

SQLite itself writes beside, and sometimes into, whatever it opens. This looks at the first page, or at its newest
committed copy in the write-ahead log. Knows nothing of tables or of who asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"SQLite format 3\x00"
_HEADER = 100
_WAL_HEADER = 32
_FRAME_HEADER = 24
_INTERIOR_PAGE = 5


class DamagedDatabaseError(ValueError):
    """The file is no SQLite database, or a part of one."""


@dataclass(frozen=True, slots=True)
class DatabaseHeader:
    """`application_id` and `user_version` as their pragmas give them; `is_empty` where there is no table."""

    application_id: int
    user_version: int
    is_empty: bool


def read_header(path: Path) -> DatabaseHeader | None:
    """The header of a database file; None where there is no file, or one of no bytes.

    Raises:
        DamagedDatabaseError: the file is no SQLite database, or shorter than it says.
        OSError: it cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        page = file.read(_HEADER + 8)
    if len(page) < _HEADER + 8 or not page.startswith(_MAGIC):
        raise DamagedDatabaseError("file is not a database")
    page_size = _number(page, 16, 2)
    page_size = 65536 if page_size == 1 else page_size
    newer = _page_in_log(path.with_name(path.name + "-wal"), page_size)
    counted = page[24:28] == page[92:96]  # else the page count was written by a version that knew none
    if newer is None and counted and size < _number(page, 28, 4) * page_size:
        raise DamagedDatabaseError("database disk image is malformed: it was cut off")
    page = newer or page
    return DatabaseHeader(
        application_id=_number(page, 68, 4),
        user_version=_number(page, 60, 4),
        is_empty=page[_HEADER] != _INTERIOR_PAGE and _number(page, _HEADER + 3, 2) == 0,
    )


def _page_in_log(log: Path, page_size: int) -> bytes | None:
    """The start of the newest committed first page in a write-ahead log; None where there is none."""
    if not log.exists():
        return None
    committed: bytes | None = None
    found: bytes | None = None
    with log.open("rb") as file:
        head = file.read(_WAL_HEADER)
        while len(head) == _WAL_HEADER:
            frame = file.read(_FRAME_HEADER + page_size)
            if len(frame) < _FRAME_HEADER + page_size or frame[8:16] != head[16:24]:
                break
            if _number(frame, 0, 4) == 1:
                found = frame[_FRAME_HEADER : _FRAME_HEADER + _HEADER + 8]
            if _number(frame, 4, 4):  # the last frame of a transaction
                committed = found
    return committed


def _number(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")
