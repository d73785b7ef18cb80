"""Tables that may be larger than memory: in parts, read one at a time.

    parts = Parts.stored(paths)           # or Parts.of(table)
    for table in parts.tables(): ...
    examples = Rows(parts, as_example)    # a sequence that holds one part at a time

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
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload

from semievol_api.errors import RunFolderError

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 16_384
"""Rows of a part, at most about: what the stages hold in memory at a time."""
RowT_co = TypeVar("RowT_co", covariant=True)
ValueT_co = TypeVar("ValueT_co", covariant=True)
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Parts:
    """A table in parts: `sizes[i]` rows in part i, in a Parquet file, in memory, or made when it is read.

    Looks like one table to who wants one: `parts["column"]` is a whole column, `len(parts)` its rows.
    """

    sizes: tuple[int, ...]
    paths: tuple[Path, ...] = ()
    held: tuple[pa.Table, ...] = ()
    make: Callable[[int], pa.Table] | None = None

    @classmethod
    def of(cls, *tables: pa.Table) -> Parts:
        """Parts that are in memory."""
        return cls(tuple(len(table) for table in tables), held=tables)

    @classmethod
    def stored(cls, paths: Sequence[Path]) -> Parts:
        """Parts in Parquet files; only their footers are read now."""
        import pyarrow.parquet as pq

        return cls(tuple(pq.read_metadata(path).num_rows for path in paths), paths=tuple(paths))

    @property
    def count(self) -> int:
        """How many parts there are."""
        return len(self.sizes)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return self.whole([column])[column]

    @property
    def column_names(self) -> list[str]:
        """The names of the first part's columns."""
        return self.names(0)

    def names(self, place: int) -> list[str]:
        """The names of a part's columns."""
        if not self.paths:
            return list(self.read(place).column_names)
        import pyarrow.parquet as pq

        return list(pq.read_schema(self.paths[place]).names)

    def read(self, place: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One part, or some of its columns."""
        if not self.paths:
            table = self.held[place] if self.make is None else self.make(place)
            return table if columns is None else table.select(list(columns))
        import pyarrow.parquet as pq

        return pq.read_table(self.paths[place], columns=None if columns is None else list(columns))

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts, one after the other."""
        return (self.read(place, columns) for place in range(self.count))

    def whole(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All parts as one table in memory."""
        tables = list(self.tables(columns))
        if len(tables) == 1:
            return tables[0]
        import pyarrow as pa

        return pa.concat_tables(tables, promote_options="default")

    def to_pandas(self) -> Any:
        """All parts as a data frame."""
        return self.whole().to_pandas()


Tabular: TypeAlias = "Parts | AsyncIterator[pa.Table]"
"""What can be stored as a table: one in parts (a small one is one part), or its parts while they are being made."""


class Rows(Sequence[RowT_co], Generic[RowT_co]):
    """A table's rows as values, made when they are asked for; one part is held at a time."""

    def __init__(self, parts: Parts, make: Callable[[pa.Table], Iterable[RowT_co]]) -> None:
        self.parts = parts
        self.make = make
        self._held: tuple[int, tuple[RowT_co, ...]] = (-1, ())

    def __reduce__(self) -> tuple[type[Rows[RowT_co]], tuple[Parts, Callable[[pa.Table], Iterable[RowT_co]]]]:
        return Rows, (self.parts, self.make)

    @property
    def identity(self) -> str:
        """A hash of the content; enters fingerprints."""
        return content_of(self.parts)

    def part(self, place: int) -> tuple[RowT_co, ...]:
        """The rows of one part."""
        if self._held[0] != place:
            self._held = (-1, ())
            free_memory()
            self._held = (place, tuple(self.make(self.parts.read(place))))
        return self._held[1]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[RowT_co]:
        for place in range(self.parts.count):
            yield from self.part(place)

    @overload
    def __getitem__(self, place: int) -> RowT_co: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[RowT_co]: ...
    def __getitem__(self, place: int | slice) -> RowT_co | Sequence[RowT_co]:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        at = place + len(self) if place < 0 else place
        for number, size in enumerate(self.parts.sizes):
            if 0 <= at < size:
                return self.part(number)[at]
            at -= size
        raise IndexError(place)


@dataclass(frozen=True)
class ByPart(Mapping[str, ValueT_co], Generic[ValueT_co]):
    """A mapping of ids that lies in parts: part i holds the ids of that part, the last one everything `beside` them.

    `make` gives the mapping of one part's table; two of them are held at a time.
    """

    parts: Parts
    make: Callable[[pa.Table], Mapping[str, ValueT_co]]
    _held: dict[int, Mapping[str, ValueT_co]] = field(default_factory=dict[int, Any], compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ByPart, (self.parts, self.make)

    def _part(self, place: int) -> Mapping[str, ValueT_co]:
        if place not in self._held:
            last = self.parts.count - 1
            for other in [p for p in self._held if p != last]:
                del self._held[other]
            self._held[place] = self.make(self.parts.read(place))
        return self._held[place]

    def __getitem__(self, key: str) -> ValueT_co:
        last = self.parts.count - 1
        beside = self._part(last)
        return beside[key] if key in beside else self._part(part_of(key, last))[key]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[str]:
        for place in range(self.parts.count):
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


def spread(tables: Iterable[pa.Table], rows: int) -> Parts:
    """Rows as parts by the ids in their column `id`, in their order; they lie in a scratch folder meanwhile.

    `rows` is how many there are: it gives the number of parts.
    """
    import numpy as np
    import pyarrow as pa

    scratch, count = Scratch(), parts_for(rows)
    sizes, schema = [0] * count, None

    def path(place: int) -> Path:
        return scratch.path / f"part-{place:05d}.arrows"

    options = pa.ipc.IpcWriteOptions(compression="lz4")
    for table in tables:
        schema = table.schema
        places = np.array([part_of(name, count) for name in table["id"].to_pylist()], dtype=np.int64)
        ordered = table.take(pa.array(np.argsort(places, kind="stable")))
        edges = np.searchsorted(np.sort(places), np.arange(count + 1)).tolist()
        for place, (start, end) in enumerate(itertools.pairwise(edges)):
            if start < end:
                some = ordered.slice(start, end - start)
                with (
                    scratch.writing(),
                    path(place).open("ab") as file,
                    pa.ipc.new_stream(file, schema, options=options) as writer,
                ):
                    writer.write_table(some)
                sizes[place] += end - start
        del table, ordered  # before the next one is read
        free_memory()

    def read(place: int) -> pa.Table:
        found = list(_streams(path(place)))
        assert schema is not None
        return pa.concat_tables(found).combine_chunks() if found else schema.empty_table()

    return Parts(tuple(sizes), make=read)


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
    return _first_bits(key) >> (64 - count.bit_length() + 1) if count > 1 else 0


def shard_of(key: str, count: int, shards: int) -> int:
    """Which of its part's shards an id is in: the next bits of its hash; both counts are powers of two."""
    return part_of(key, count * shards) % shards


def _first_bits(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def content_of(parts: Parts) -> str:
    """A hash of stored parts' bytes, or of what parts in memory hold."""
    state = hashlib.blake2b(digest_size=20)
    for path in parts.paths:
        for chunk in file_chunks(path):
            state.update(chunk)
    for table in () if parts.paths else parts.tables():
        for batch in table.to_batches():
            state.update(batch.serialize())
    return state.hexdigest()


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
