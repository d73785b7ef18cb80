"""Reading an unlabelled file that is too large to be held, with the ids, notes and faults of one that is read whole.

    reading = read_large(read_chunks(path), task, columns)      # its examples are a `Pool`

Holds 16 bytes a row and one chunk. Knows nothing of hygiene.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from semievol_api.data.examples import (
    MOST_ROWS_NAMED,
    Note,
    Reading,
    content_id,
    draft_of,
    note_of,
    require_columns,
    same_id,
)
from semievol_api.data.pool import LINE, BoolArray, Pool, PoolWriter
from semievol_api.data.table import Table
from semievol_api.records import Example
from semievol_api.tasks import Columns, Task

SAME_ID = "ids that another file gives to another question got the suffix of their file"


@dataclass
class _Concerned:
    """The rows that a remark is about."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    lines: list[int] = field(default_factory=list[int])

    def add(self, row: int, line: int) -> None:
        self.rows.append(row)
        if len(self.lines) < MOST_ROWS_NAMED:
            self.lines.append(line)


def read_large(tables: Iterable[Table], task: Task, columns: Columns) -> Reading:
    """The examples of a file's tables, which have the same columns.

    Raises:
        DataError: see `read_examples`.
    """
    writer, ids = PoolWriter(), array("Q")
    remarks: dict[str, _Concerned] = {}
    source, unit = "", ""
    for table in tables:
        source, unit = table.source, table.unit
        require_columns(table, task, "unlabeled", columns)
        for row in range(len(table.rows)):
            draft = draft_of(table, row, task, "unlabeled", columns)
            example = draft.example
            if columns.id is None:
                example = replace(example, id=content_id(example.question, example.options))
            for remark in draft.remarks:
                remarks.setdefault(remark, _Concerned()).add(writer.rows, draft.line)
            ids.append(hash_of(example.id))
            writer.add(example, draft.line)
    pool = _with_ids(writer.pool(), ids, (source, unit), from_column=columns.id is not None)
    notes = [
        note_of(source, kind, _names(pool, concerned.rows), (unit, concerned.lines))
        for kind, concerned in remarks.items()
    ]
    return Reading(pool, tuple(notes))


def hash_of(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def repeated(keys: np.ndarray) -> BoolArray:
    """Where a key stands that occurs more than once; bool, shape of `keys`."""
    ordered = np.sort(keys)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.isin(keys, twice) if twice.size else np.zeros(keys.shape, dtype=np.bool_)


def with_other_ids(
    pool: Pool, taken: Mapping[str, tuple[str, tuple[str, ...]]], part: str
) -> tuple[Pool, tuple[Note, ...]]:
    """The pool in which ids mean one thing: those that `taken` gives to another question are renamed."""
    same = np.zeros_like(pool.kept)
    same[[row for row, name in pool.ids() if name in taken]] = True
    renamed = {row: f"{e.id}@{part}" for row, e in pool.numbered(same) if taken[e.id] != (e.question, e.options)}
    return pool.renaming(renamed), (Note(part, SAME_ID, tuple(renamed.values())),) if renamed else ()


def _with_ids(pool: Pool, ids: array[int], where: tuple[str, str], *, from_column: bool) -> Pool:
    """The pool whose ids are unique: a repeated question's id gets a number, a repeated id of the file is a fault."""
    seen: dict[str, int] = {}
    renamed: dict[int, str] = {}
    for rows, table in pool.tables(repeated(np.frombuffer(ids, np.uint64))):
        for row, key, line in zip(rows.tolist(), table["id"].to_pylist(), table[LINE].to_pylist(), strict=True):
            if from_column and key in seen:
                raise same_id(where, key, seen[key], line)
            seen[key] = line if from_column else seen.get(key, 0) + 1
            if not from_column and seen[key] > 1:
                renamed[row] = f"{key}-{seen[key]}"
    return pool.renaming(renamed)


def _names(pool: Pool, rows: array[int]) -> tuple[str, ...]:
    """The ids of some rows."""
    wanted = np.zeros_like(pool.kept)
    wanted[np.frombuffer(rows, np.int64)] = True
    return tuple(name for row, name in pool.ids() if wanted[row])


def held(pool: Pool, most: int) -> Pool | tuple[Example, ...]:
    """The examples themselves where they are few."""
    return tuple(pool) if len(pool) <= most else pool
