"""One table of any size: in parts, read one at a time, and a sequence of its rows.

    table = ChunkedTable.stored(paths).typed(as_examples)     # or ChunkedTable.of(arrow_table)
    for example in table: ...                           # one part is in memory at a time
    table["answer"]                                     # a whole column

A table of at most `PART_ROWS` rows is one part. A larger one is cut by the first bits of its ids' hashes, so that a
row's part follows from its id and from the number of parts, not from where the row stood. Knows nothing of what
stands in a table, or of who writes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import sys
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import RunFolderError

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 16_384
"""Rows of a part, at most about: what the stages hold in memory at a time."""
RowT = TypeVar("RowT")
RowT_co = TypeVar("RowT_co", covariant=True)
ValueT_co = TypeVar("ValueT_co", covariant=True)
BoolArray: TypeAlias = NDArray[np.bool_]
AsRows: TypeAlias = "Callable[[pa.Table], Iterable[RowT]]"
Source: TypeAlias = "Path | pa.Table | Callable[[], pa.Table]"
"""Where a part is: in a Parquet file, in memory, or made when it is read."""
_CHUNK_BYTES = 2**20


def as_mappings(table: pa.Table) -> list[Mapping[str, Any]]:
    """A table's rows as mappings of its columns."""
    return cast("list[Mapping[str, Any]]", table.to_pylist())


def _values_of(name: str, table: pa.Table) -> list[Any]:
    return cast("list[Any]", table[name].to_pylist())


@dataclass(frozen=True, eq=False)
class ChunkedTable(Sequence[RowT_co], Generic[RowT_co]):
    """A table in parts, and a sequence of its rows, made by `as_rows` when they are asked for.

    Part i has `lengths[i]` rows and lies at `sources[i]`. Rows that are left out and values that are replaced later
    stand beside the parts, which stay as they are: `kept` bool (rows,), None = all; `changed` holds new texts by column
    and by the row's number in the parts. `content` is a hash of the rows, where it is known; `scratch` is the folder
    that goes with the table.
    """

    lengths: tuple[int, ...]
    sources: tuple[Source, ...]
    as_rows: AsRows[RowT_co]
    kept: BoolArray | None = None
    changed: Mapping[str, Mapping[int, str]] = field(default_factory=dict[str, Mapping[int, str]])
    content: str = ""
    scratch: Scratch | None = field(default=None, repr=False)
    _rows: dict[int, tuple[RowT_co, ...]] = field(default_factory=dict[int, Any], init=False, repr=False)

    @classmethod
    def of(cls, *tables: pa.Table) -> ChunkedTable[Mapping[str, Any]]:
        """Parts that are in memory."""
        return ChunkedTable(tuple(len(table) for table in tables), tables, as_mappings)

    @classmethod
    def stored(cls, paths: Sequence[Path]) -> ChunkedTable[Mapping[str, Any]]:
        """Parts in Parquet files; only their footers are read now."""
        import pyarrow.parquet as pq

        return ChunkedTable(tuple(pq.read_metadata(path).num_rows for path in paths), tuple(paths), as_mappings)

    @classmethod
    def made(cls, lengths: Sequence[int], make: Callable[[int], pa.Table]) -> ChunkedTable[Mapping[str, Any]]:
        """Parts that are made when they are read."""
        return ChunkedTable(tuple(lengths), tuple(partial(make, place) for place in range(len(lengths))), as_mappings)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many rows each part has."""
        if self.kept is None:
            return self.lengths
        return tuple(int(np.count_nonzero(self.kept[rows])) for rows in self._numbers)

    @property
    def n_parts(self) -> int:
        """How many parts there are."""
        return len(self.sources)

    @property
    def identity(self) -> str:
        """A hash that stands for the rows in fingerprints; empty where they stand there themselves."""
        state = hashlib.blake2b(digest_size=20)
        if self.content:
            kept = np.ones(sum(self.lengths), dtype=np.bool_) if self.kept is None else self.kept
            state.update(self.content.encode())
            state.update(np.packbits(kept).tobytes())
            state.update(repr(tuple(sorted(self.changed.get(name, {}).items()) for name in ("id", "group"))).encode())
            return state.hexdigest()
        paths = [source for source in self.sources if isinstance(source, Path)]
        if len(paths) != self.n_parts or len(paths) == 1 or self.kept is not None or self.changed:
            return ""
        for chunk in itertools.chain.from_iterable(map(file_chunks, paths)):
            state.update(chunk)
        return state.hexdigest()

    def typed(self, as_rows: AsRows[RowT]) -> ChunkedTable[RowT]:
        """The same table with other values for its rows."""
        return cast("ChunkedTable[RowT]", replace(self, as_rows=as_rows))  # type: ignore[arg-type]

    def values(self, column: str) -> ChunkedTable[Any]:
        """One column as a sequence; nothing else is read."""
        sources = tuple(partial(self.read, place, (column,)) for place in range(self.n_parts))
        return ChunkedTable(self.sizes, sources, partial(_values_of, column))

    def names(self, place: int) -> list[str]:
        """The names of a part's columns."""
        source = self.sources[place]
        if not isinstance(source, Path):
            return list(self.read(place).column_names)
        import pyarrow.parquet as pq

        return list(pq.read_schema(source).names)

    def read(self, place: int, columns: Collection[str] | None = None) -> pa.Table:
        """One part, or some of its columns; names of columns that it does not have are passed over."""
        source = self.sources[place]
        if isinstance(source, Path):
            import pyarrow.parquet as pq

            names = None if columns is None else [name for name in columns if name in self.names(place)]
            table = pq.read_table(source, columns=names)
        else:
            table = cast("pa.Table", source() if callable(source) else source)
            if columns is not None:
                table = table.select([name for name in columns if name in table.column_names])
        return self._as_it_is_now(place, table)

    def tables(self, columns: Collection[str] | None = None) -> Iterator[pa.Table]:
        """The parts, one after the other."""
        for place in range(self.n_parts):
            yield self.read(place, columns)
            if self.n_parts > 1:
                free_memory()

    def whole(self, columns: Collection[str] | None = None) -> pa.Table:
        """All parts as one table in memory."""
        tables = [self.read(place, columns) for place in range(self.n_parts)]
        if len(tables) == 1:
            return tables[0]
        import pyarrow as pa

        return pa.concat_tables(tables, promote_options="default")

    def part(self, place: int) -> tuple[RowT_co, ...]:
        """The rows of one part; they are held until another part's are asked for."""
        if place not in self._rows:
            if self._rows:
                self._rows.clear()
                free_memory()
            self._rows[place] = tuple(self.as_rows(self.read(place)))
        return self._rows[place]

    def places(self) -> Iterator[tuple[int, slice]]:
        """Every part, and where its rows are among all rows."""
        ends = tuple(itertools.accumulate(self.sizes, initial=0))
        return enumerate(itertools.starmap(slice, itertools.pairwise(ends)))

    def where(self, mask: BoolArray) -> ChunkedTable[RowT_co]:
        """The table with some of its rows; `mask` bool (rows,)."""
        if self.kept is None:
            return replace(self, kept=mask)
        kept = self.kept.copy()
        kept[kept] = mask
        return replace(self, kept=kept)

    def with_values(self, column: str, values: Mapping[int, str]) -> ChunkedTable[RowT_co]:
        """The table with other texts in a column, given by the places of their rows."""
        if not values:
            return self
        numbers = np.arange(len(self)) if self.kept is None else np.flatnonzero(self.kept)
        here = {int(numbers[place]): value for place, value in values.items()}
        return replace(self, changed={**self.changed, column: {**self.changed.get(column, {}), **here}})

    def followed_by(self, others: pa.Table) -> ChunkedTable[RowT_co]:
        """The table and other rows: behind those of the only part, or in a part of their own."""
        if self.n_parts > 1:
            assert self.kept is None and not self.changed
            return replace(self, lengths=(*self.lengths, len(others)), sources=(*self.sources, others))
        import pyarrow as pa

        return ChunkedTable.of(pa.concat_tables([self.read(0), others], promote_options="default")).typed(self.as_rows)

    def by_key(self, key: str, value: str) -> Mapping[str, Any]:
        """A column of lists as a mapping of the ids in another one.

        Of several parts the last is about ids that are in no part, as `followed_by` makes it.
        """
        return _ByKey(self, key, value)

    def in_memory(self) -> ChunkedTable[RowT_co]:
        """The same rows in one part."""
        return ChunkedTable.of(self.whole().combine_chunks()).typed(self.as_rows)

    def to_pandas(self) -> Any:
        """All parts as a data frame."""
        return self.whole().to_pandas()

    def __len__(self) -> int:
        return sum(self.sizes)

    def __iter__(self) -> Iterator[RowT_co]:
        for place in range(self.n_parts):
            yield from self.part(place)

    @overload
    def __getitem__(self, place: int) -> RowT_co: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[RowT_co]: ...
    @overload
    def __getitem__(self, place: str) -> pa.ChunkedArray: ...
    def __getitem__(self, place: int | slice | str) -> RowT_co | Sequence[RowT_co] | pa.ChunkedArray:
        if isinstance(place, str):
            return self.whole([place])[place]
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        at = place + len(self) if place < 0 else place
        if not 0 <= at < len(self):
            raise IndexError(place)
        part = bisect_right(self._ends, at)
        return self.part(part)[at - (self._ends[part] - self.sizes[part])]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_rows": {}}

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate(self.sizes))

    @property
    def _numbers(self) -> Iterator[slice]:
        """The rows' numbers of each part, left out ones among them."""
        return itertools.starmap(slice, itertools.pairwise(itertools.accumulate(self.lengths, initial=0)))

    def _as_it_is_now(self, place: int, table: pa.Table) -> pa.Table:
        """A part without the rows that were left out, with the values that were replaced."""
        if self.kept is None and not self.changed:
            return table
        import pyarrow as pa

        first = sum(self.lengths[:place])
        for name, values in self.changed.items():
            here = [at for at in range(len(table)) if first + at in values] if name in table.column_names else []
            if here:
                column = table[name].to_pylist()
                for at in here:
                    column[at] = values[first + at]
                table = table.set_column(table.column_names.index(name), name, pa.array(column, pa.string()))
        if self.kept is None:
            return table
        mask = self.kept[first : first + len(table)]
        return table if mask.all() else table.filter(pa.array(mask))


Tabular: TypeAlias = "ChunkedTable[Any] | AsyncIterator[pa.Table]"
"""What can be stored as a table: one in parts (a small one is one part), or its parts while they are being made."""


@dataclass(frozen=True)
class _ByKey(Mapping[str, ValueT_co], Generic[ValueT_co]):
    """See `ChunkedTable.by_key`; the last part and one other are held at a time."""

    table: ChunkedTable[Any]
    key: str
    value: str
    _held: dict[int, Mapping[str, ValueT_co]] = field(default_factory=dict[int, Any], compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": {}}

    def _part(self, place: int) -> Mapping[str, ValueT_co]:
        if place not in self._held:
            last = self.table.n_parts - 1
            for other in [p for p in self._held if p != last]:
                del self._held[other]
            columns = self.table.read(place, [self.key, self.value])
            keys, values = columns[self.key].to_pylist(), columns[self.value].to_pylist()
            self._held[place] = {key: cast("ValueT_co", tuple(value)) for key, value in zip(keys, values, strict=True)}
        return self._held[place]

    def __getitem__(self, key: str) -> ValueT_co:
        last = self.table.n_parts - 1
        in_no_part = self._part(last)
        return in_no_part[key] if key in in_no_part else self._part(part_of(key, last))[key]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        for place in range(self.table.n_parts):
            yield from self._part(place)


class Scratch:
    """A folder for what is too large for memory; it goes when nobody holds it any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="semievol-"))
        self._end = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    @contextmanager
    def writing(self) -> Generator[None]:
        """Inside the block files of the folder are written.

        Raises:
            RunFolderError: there is no room.
        """
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"The scratch folder {str(self.path)!r} cannot be written: {error.strerror or error}. Name a folder "
                f"with more room, about twice the unlabelled file, in the variable TMPDIR."
            ) from None


def cut_in_parts(tables: Iterable[pa.Table], rows: int, schema: pa.Schema, as_rows: AsRows[RowT]) -> ChunkedTable[RowT]:
    """Rows as parts by the ids in their column `id`, in their order; more than one part lie in a scratch folder.

    `rows` is how many there are: it gives the number of parts.
    """
    import pyarrow as pa

    count = parts_for(rows)
    if count == 1:
        return ChunkedTable.of(pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()).typed(as_rows)
    scratch, lengths = Scratch(), [0] * count

    def path(place: int) -> Path:
        return scratch.path / f"part-{place:05d}.arrows"

    def read(place: int) -> pa.Table:
        return pa.concat_tables([schema.empty_table(), *_streams(path(place))]).combine_chunks()

    options = pa.ipc.IpcWriteOptions(compression="lz4")
    for table in tables:
        places = np.array([part_of(name, count) for name in table["id"].to_pylist()], dtype=np.int64)
        ordered = table.take(pa.array(np.argsort(places, kind="stable")))
        edges = np.searchsorted(np.sort(places), np.arange(count + 1)).tolist()
        for place, (start, end) in enumerate(itertools.pairwise(edges)):
            if start < end:
                with (
                    scratch.writing(),
                    path(place).open("ab") as file,
                    pa.ipc.new_stream(file, schema, options=options) as writer,
                ):
                    writer.write_table(ordered.slice(start, end - start))
                lengths[place] += end - start
        del table, ordered  # before the next one is read
        free_memory()
    return ChunkedTable.made(lengths, read).typed(as_rows)


def _streams(path: Path) -> Iterator[pa.Table]:
    """The Arrow streams that were appended to a file."""
    import pyarrow as pa

    if not path.is_file():
        return
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        while file.tell() < end:
            with pa.ipc.open_stream(file) as reader:
                yield reader.read_all()


def parts_for(rows: int) -> int:
    """In how many parts a table of so many rows lies: 1, or a power of two."""
    count = 1
    while count * PART_ROWS < rows:
        count *= 2
    return count


def part_of(key: str, count: int) -> int:
    """The part of an id: the first bits of its hash; `count` is a power of two."""
    return hash_of(key) >> (64 - count.bit_length() + 1) if count > 1 else 0


def shard_of(key: str, count: int, shards: int) -> int:
    """Which of its part's shards an id is in: the next bits of its hash; both counts are powers of two."""
    return part_of(key, count * shards) % shards


def hash_of(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def repeated(keys: NDArray[np.uint64]) -> BoolArray:
    """Where a key stands that occurs more than once; bool, shape of `keys`."""
    ordered = np.sort(keys)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.isin(keys, twice) if twice.size else np.zeros(keys.shape, dtype=np.bool_)


def free_memory() -> None:
    """Give back what Arrow and the C library keep for later: parts are of one size, but not of the same columns."""
    import ctypes

    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # glibc has it, other C libraries need none
            ctypes.CDLL(None).malloc_trim(0)


def file_chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a little at a time."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
