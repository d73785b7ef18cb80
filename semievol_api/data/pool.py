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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from semievol_api.parts import Parts, Scratch, free_memory
from semievol_api.records import Example
from semievol_api.tables import EXAMPLE_SCHEMA, as_examples, examples_table

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
