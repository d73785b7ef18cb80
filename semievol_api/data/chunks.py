"""A large file's rows a few thousand at a time: CSV, TSV, JSONL, Parquet.

    for table in read_chunks(path): ...         # tables of `CHUNK_ROWS` rows, all with the file's columns

The tables together are what `read_table` gives, faults too; a kind of file that cannot be cut comes whole. Knows
nothing of tasks: a cell is what the file holds.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from semievol_api import parts
from semievol_api.data.table import Row, Table, csv_header, csv_records, csv_row, json_line, read_table, refuse_no_utf8
from semievol_api.errors import DataError

LARGE_BYTES = 8 * 2**20
"""Text files up to here are read whole: that takes some five times as much memory."""
CHUNK_ROWS = 4096
ItemT = TypeVar("ItemT")


def is_large(path: Path) -> bool:
    """Whether a file is read in chunks."""
    kind = path.suffix.lower()
    if not path.is_file() or kind not in _CHUNKS:
        return False
    return _many_rows(path) if kind == ".parquet" else path.stat().st_size > LARGE_BYTES


def read_chunks(path: Path) -> Iterator[Table]:
    """The rows of a file in tables of at most `CHUNK_ROWS`.

    Raises:
        DataError: as `read_table`, but when the fault's place is reached.
    """
    chunks = _CHUNKS.get(path.suffix.lower())
    if chunks is None or not path.is_file():
        yield read_table(path)
        return
    empty = True
    try:
        for table in chunks(path):
            empty = False
            yield table
    except UnicodeDecodeError:
        refuse_no_utf8(path)
    except OSError as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error.strerror or error}.") from None
    if empty:
        raise DataError(f"The file {str(path)!r} is empty: it holds no row of data.")


def _csv(path: Path) -> Iterator[Table]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        csv.field_size_limit(2**31 - 1)
        records = csv_records(path, file, header)
        columns = csv_header(path, next(records, None))
        for some in _batches(records):
            rows = tuple(csv_row(path, columns, record) for record in some)
            yield Table(path.name, "line", columns, rows, tuple(line for line, _ in some))


def _jsonl(path: Path) -> Iterator[Table]:
    columns = tuple(dict.fromkeys(name for _, row in _json_rows(path) for name in row))
    for some in _batches(_json_rows(path)):
        yield Table(path.name, "line", columns, tuple(row for _, row in some), tuple(line for line, _ in some))


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, json_line(path, number, line.removesuffix("\n"))


def _parquet(path: Path) -> Iterator[Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns, at = tuple(file.schema_arrow.names), 1
            for batch in file.iter_batches(CHUNK_ROWS):
                if batch.num_rows:
                    rows: tuple[Row, ...] = tuple(batch.to_pylist())
                    yield Table(path.name, "row", columns, rows, tuple(range(at, at + len(rows))))
                    at += len(rows)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path.name} is no Parquet file, or a damaged one: {str(error).splitlines()[0]}") from None


def _many_rows(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_metadata(path).num_rows > parts.PART_ROWS)
    except (pa.ArrowInvalid, OSError):
        return False  # whoever reads it says what is wrong with it


def _batches(items: Iterator[ItemT]) -> Iterator[list[ItemT]]:
    while some := list(itertools.islice(items, CHUNK_ROWS)):
        yield some


_CHUNKS: dict[str, Callable[[Path], Iterator[Table]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
