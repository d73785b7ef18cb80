"""An unlabelled pool that is too large to be held: its examples lie in a scratch folder, in the order of the file.

    writer = PoolWriter()
    writer.add(example, line) ...
    for example in writer.pool(): ...       # one part in memory at a time

A pool is a sequence of examples like any other. What is left out, renamed or grouped later is kept beside the stored
rows. Knows nothing of file formats, hygiene or the method.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
from semievol_api.data.hygiene import BANDS, CleanData, band_keys, clean, normalized, whole_text
from semievol_api.data.parts import Parts, Scratch, free_memory
from semievol_api.data.read_files import Table
from semievol_api.data.tables import EXAMPLE_SCHEMA, as_examples, examples_table
from semievol_api.records import Example
from semievol_api.tasks import Columns, Task

HIDDEN = "hidden_answer"
LINE = "line"
STORED_ROWS = 4096
"""Rows that are held before they are stored, and read together."""
BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pool(Sequence[Example]):
    """Examples in the order of their file; `rows` numbers in the arguments are places in the stored table.

    `content` is a hash of the stored examples without their hidden answers. `kept` bool (rows,): those that are still
    there. `renamed` and `grouped` hold new ids and groups by row.
    """

    stored: Parts
    scratch: Scratch = field(repr=False)
    content: str
    kept: BoolArray
    renamed: Mapping[int, str] = field(default_factory=dict[int, str])
    grouped: Mapping[int, str] = field(default_factory=dict[int, str])

    @cached_property
    def identity(self) -> str:
        """A hash of the examples; enters fingerprints. Hidden answers are no part of it."""
        state = hashlib.blake2b(self.content.encode(), digest_size=20)
        state.update(np.packbits(self.kept).tobytes())
        state.update(repr((sorted(self.renamed.items()), sorted(self.grouped.items()))).encode())
        return state.hexdigest()

    def __len__(self) -> int:
        return int(np.count_nonzero(self.kept))

    def __iter__(self) -> Iterator[Example]:
        for _, example in self.numbered():
            yield example

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return tuple(itertools.islice(self, start, stop, step)) if step > 0 else tuple(self)[place]
        at = place + len(self) if place < 0 else place
        if not 0 <= at < len(self):
            raise IndexError(place)
        return next(itertools.islice(self, at, None))

    def numbered(self, among: BoolArray | None = None) -> Iterator[tuple[int, Example]]:
        """The examples with their rows' numbers: all, or those of the rows `among`."""
        for rows, table in self.tables(among):
            hidden = table[HIDDEN].to_pylist()
            for row, example, gold in zip(rows.tolist(), as_examples(table), hidden, strict=True):
                yield row, example if gold is None else replace(example, hidden_answer=gold)

    def tables(self, among: BoolArray | None = None) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The same as tables with the column `hidden_answer`, each with its rows' numbers, int64."""
        wanted = self.kept if among is None else self.kept & among
        for first, place in self._places():
            mask = wanted[first : first + self.stored.sizes[place]]
            if mask.any():
                rows = first + np.flatnonzero(mask)
                table = self.stored.read(place)
                table = table if mask.all() else table.filter(pa.array(mask))
                yield rows, _changed(_changed(table, "id", rows, self.renamed), "group", rows, self.grouped)
                free_memory()

    def ids(self) -> Iterator[tuple[int, str]]:
        """Every row's number and id; nothing else is read."""
        for first, place in self._places():
            for row, name in enumerate(self.stored.read(place, ["id"])["id"].to_pylist(), first):
                if self.kept[row]:
                    yield row, self.renamed.get(row, name)

    @cached_property
    def gold(self) -> Mapping[str, str]:
        """The hidden answers by id."""
        found: dict[str, str] = {}
        for first, place in self._places():
            table = self.stored.read(place, ["id", HIDDEN])
            for row, (name, gold) in enumerate(
                zip(table["id"].to_pylist(), table[HIDDEN].to_pylist(), strict=True), first
            ):
                if gold is not None and self.kept[row]:
                    found[self.renamed.get(row, name)] = gold
        return found

    def known(self, names: Collection[str]) -> frozenset[str]:
        """Which of some names are ids of the pool."""
        return frozenset(name for _, name in self.ids() if name in names) if names else frozenset()

    def without(self, rows: Collection[int]) -> Pool:
        """The pool without some rows."""
        kept = self.kept.copy()
        kept[list(rows)] = False
        return replace(self, kept=kept)

    def renaming(self, names: Mapping[int, str]) -> Pool:
        """Some rows under other ids."""
        return replace(self, renamed={**self.renamed, **names}) if names else self

    def grouping(self, groups: Mapping[int, str]) -> Pool:
        """Some rows in groups."""
        return replace(self, grouped={**self.grouped, **groups}) if groups else self

    def sampled(self, size: int, order: Callable[[str], bytes]) -> Pool:
        """The `size` examples that come first in the order of their ids, in the order of the file."""
        if size >= len(self):
            return self
        rows, keys = array("q"), array("Q")
        for row, name in self.ids():
            rows.append(row)
            keys.append(int.from_bytes(order(name)[:8], "big"))
        chosen = np.argsort(np.frombuffer(keys, np.uint64), kind="stable")[:size]
        kept = np.zeros_like(self.kept)
        kept[np.frombuffer(rows, np.int64)[chosen]] = True
        return replace(self, kept=kept)

    def _places(self) -> Iterator[tuple[int, int]]:
        """The first row's number of each stored part."""
        first = 0
        for place, size in enumerate(self.stored.sizes):
            yield first, place
            first += size


class PoolWriter:
    """Stores examples as they come."""

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._paths: list[Path] = []
        self._waiting: list[tuple[Example, int]] = []
        self._hash = hashlib.blake2b(digest_size=20)
        self.rows = 0

    def add(self, example: Example, line: int) -> None:
        """One more example, and where it stands in the file."""
        self._waiting.append((example, line))
        self.rows += 1
        if len(self._waiting) >= STORED_ROWS:
            self._store()

    def pool(self) -> Pool:
        """Everything that was added."""
        if self._waiting:
            self._store()
        kept = np.ones(self.rows, dtype=np.bool_)
        return Pool(Parts.stored(self._paths), self._scratch, self._hash.hexdigest(), kept)

    def _store(self) -> None:
        table = examples_table([example for example, _ in self._waiting])
        for batch in table.to_batches():
            self._hash.update(batch.serialize())
        hidden = pa.array([example.hidden_answer for example, _ in self._waiting], pa.string())
        lines = pa.array([line for _, line in self._waiting], pa.int64())
        path = self._scratch.path / f"rows-{len(self._paths):05d}.parquet"
        with self._scratch.writing():
            pq.write_table(table.append_column(HIDDEN, hidden).append_column(LINE, lines), path, compression="lz4")
        self._paths.append(path)
        self._waiting.clear()
        free_memory()


def _changed(table: pa.Table, name: str, rows: np.ndarray, changes: Mapping[int, str]) -> pa.Table:
    """The table with some values of a column replaced."""
    here = [(at, changes[row]) for at, row in enumerate(rows.tolist()) if row in changes] if changes else []
    if not here:
        return table
    values = table[name].to_pylist()
    for at, value in here:
        values[at] = value
    place = table.column_names.index(name)
    return table.set_column(place, EXAMPLE_SCHEMA.field(name), pa.array(values, pa.string()))


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


AT_ONCE = 2048
"""Texts whose signatures are computed together."""


def clean_pool(labeled: Sequence[Example], pool: Pool, test: Sequence[Example], *, near: bool) -> CleanData:
    """See `hygiene.clean`; the unlabelled part stays a pool."""
    others = (*test, *labeled)
    marked = _same_questions(others, pool)
    if near:
        marked |= _near(others, pool)
    suspects = dict(pool.numbered(_rows(pool, marked)))
    cleaned = clean(labeled, tuple(suspects.values()), test, near=near)
    left = {e.id: e.group for e in cleaned.unlabeled}
    gone = [row for row, e in suspects.items() if e.id not in left]
    groups = {row: group for row, e in suspects.items() if (group := left.get(e.id)) is not None and group != e.group}
    return CleanData(cleaned.labeled, pool.without(gone).grouping(groups), cleaned.test, cleaned.report)


def _rows(pool: Pool, marked: BoolArray) -> BoolArray:
    """Marks of the kept rows as marks of all stored ones."""
    rows = np.zeros_like(pool.kept)
    rows[np.flatnonzero(pool.kept)[marked]] = True
    return rows


def _same_questions(others: Sequence[Example], pool: Pool) -> BoolArray:
    """bool (len(pool),): the rows whose question occurs elsewhere too."""
    keys = array("Q", (hash_of(normalized(e.question)) for e in itertools.chain(others, pool)))
    return repeated(np.frombuffer(keys, np.uint64))[len(others) :]


def _near(others: Sequence[Example], pool: Pool) -> BoolArray:
    """bool (len(pool),): the rows that `near_pairs` would compare with another, as a whole or by their questions."""
    scratch = Scratch()
    paths = [scratch.path / f"band-{number}" for number in range(2 * BANDS)]
    for some in _batches(itertools.chain(others, pool)):
        keys = np.hstack([band_keys([whole_text(e) for e in some]), band_keys([normalized(e.question) for e in some])])
        for path, column in zip(paths, keys.T, strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(column).tobytes())
    marked = np.zeros(len(others) + len(pool), dtype=np.bool_)
    for path in paths:
        marked |= repeated(np.fromfile(path, np.uint64))
    return marked[len(others) :]


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    coming = iter(examples)
    while some := list(itertools.islice(coming, AT_ONCE)):
        yield some
