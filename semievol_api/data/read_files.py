"""Rows of a file, with the line each came from: CSV, TSV, JSON, JSONL, Parquet.

Every fault names the file, the line and what to try. Knows nothing of tasks: a cell is what the file holds.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from semievol_api.config.settings import nearest
from semievol_api.data import table as tables
from semievol_api.errors import DataError

Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """The rows of one source; `lines[i]` is where row i begins (a line of text files, a row number elsewhere)."""

    source: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[int, ...]
    held_keys: frozenset[int] = frozenset()
    """The rows from which `leaked_keys.py` took something."""

    def where(self, row: int) -> str:
        """Names a row for a message."""
        return f"{self.source}, {self.unit} {self.lines[row]}"

    def require(self, column: str, purpose: str) -> None:
        """Refuse a column that is not there; a dotted name needs its first part."""
        if column in self.columns or column.split(".")[0] in self.columns:
            return
        raise DataError(
            f"{self.source} has no column {column!r}, which is to hold the {purpose}. "
            f"{nearest(column, self.columns)} Its columns: {', '.join(self.columns)}. "
            f"Name the right one under [columns] of the task, or [data.columns] of the config."
        )

    def cell(self, row: int, column: str) -> object:
        """The value of a cell; a dot reaches into a nested column."""
        value = self.rows[row].get(column)
        if column in self.rows[row]:
            return value
        here: object = self.rows[row]
        for part in column.split("."):
            here = here.get(part) if isinstance(here, Mapping) else None
        return here


LARGE_BYTES = 8 * 2**20
"""Text files up to here are read whole: that takes some five times as much memory."""
CHUNK_ROWS = 4096
ItemT = TypeVar("ItemT")


def read_table(path: Path) -> Table:
    """The rows of a file, by its ending.

    Raises:
        DataError: the file is missing, unreadable, of an unknown kind, empty or malformed.
    """
    kind = path.suffix.lower()
    if path.is_file() and kind in _READERS and kind != ".parquet":
        with _faults_told(path):
            _refuse_no_utf8(path)
    tables = list(read_chunks(path))
    first = tables[0]
    rows = tuple(row for table in tables for row in table.rows)
    return Table(first.source, first.unit, first.columns, rows, tuple(line for table in tables for line in table.lines))


def is_large(path: Path) -> bool:
    """Whether a file is read in chunks."""
    kind = path.suffix.lower()
    if not path.is_file() or kind not in _READERS or kind == ".json":
        return False
    return _many_rows(path) if kind == ".parquet" else path.stat().st_size > LARGE_BYTES


def read_chunks(path: Path) -> Iterator[Table]:
    """The rows of a file in tables of at most `CHUNK_ROWS`; a JSON file is one list, and one table.

    Raises:
        DataError: as `read_table`, but when the fault's place is reached.
    """
    reader = _READERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError(
            f"There is no data file {str(path)!r}. Check the path; relative ones start at the config's folder."
        )
    if reader is None:
        raise DataError(
            f"The file {str(path)!r} is of an unknown kind. Known endings: {', '.join(_READERS)}. A spreadsheet is "
            f"saved as 'CSV UTF-8' first, a compressed file is unpacked."
        )
    empty = True
    with _faults_told(path):
        for table in reader(path):
            empty = empty and not table.rows
            yield table
    if empty:
        raise DataError(f"The file {str(path)!r} is empty: it holds no row of data.")


@contextmanager
def _faults_told(path: Path) -> Generator[None]:
    """Inside the block the file is read; what cannot be read is told."""
    try:
        yield
    except UnicodeDecodeError:
        _refuse_no_utf8(path)
        raise
    except OSError as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error.strerror or error}.") from None


def _refuse_no_utf8(path: Path) -> None:
    """Says where a file stops being UTF-8, looking at it line by line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"The file {str(path)!r} is not UTF-8: line {number} holds the byte 0x{line[error.start]:02x}. "
                    "Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8') and try again."
                ) from None


def _read_csv(path: Path) -> Iterator[Table]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        csv.field_size_limit(2**31 - 1)
        records = _csv_records(path, file, header)
        columns = _csv_header(path, next(records, None))
        for some in _batches(records):
            rows = tuple(_csv_row(path, columns, record) for record in some)
            yield Table(path.name, "line", columns, rows, tuple(line for line, _ in some))


def _csv_header(path: Path, record: tuple[int, list[str]] | None) -> tuple[str, ...]:
    """The columns that a file's first record names."""
    if record is None:
        raise DataError(f"The file {str(path)!r} is empty: it has not even a header line.")
    columns = tuple(name.strip() for name in record[1])
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{path.name} names the column {twice[0]!r} twice in its header. Rename one of them.")
    return columns


def _csv_row(path: Path, columns: Sequence[str], record: tuple[int, list[str]]) -> Row:
    """A record's fields by their columns."""
    line, fields = record
    if len(fields) != len(columns):
        raise DataError(
            f"{path.name}, line {line}: {len(fields)} fields where the header has {len(columns)} columns. "
            "A comma or a line break inside a value needs double quotes around the value."
        )
    return dict(zip(columns, fields, strict=True))


def _csv_records(path: Path, text: Iterable[str], header: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line where it begins; empty lines are passed over. `header` tells the delimiter."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max((",", ";", "\t"), key=header.count)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path.name}, line {line}: the CSV is broken there ({error}). "
            "Look for a double quote that is opened and never closed."
        ) from None


def _read_jsonl(path: Path) -> Iterator[Table]:
    columns = tuple(dict.fromkeys(name for _, row in _json_rows(path) for name in row))
    for some in _batches(_json_rows(path)):
        yield Table(path.name, "line", columns, tuple(row for _, row in some), tuple(line for line, _ in some))


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_line(path, number, line.removesuffix("\n"))


def _json_line(path: Path, number: int, line: str) -> Row:
    """The object in a line of a JSONL file."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {number}: this is not JSON ({error.msg}, column {error.colno}). "
            "Each line of a JSONL file is one JSON object."
        ) from None
    return _object(value, f"{path.name}, line {number}")


def _read_json(path: Path) -> Iterator[Table]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = " If each line is one object, name the file .jsonl." if error.msg == "Extra data" else ""
        raise DataError(f"{path.name}, line {error.lineno}: this is not JSON ({error.msg}).{hint}") from None
    if not isinstance(value, list):
        raise DataError(f"{path.name} holds no list. A JSON file is a list of objects, one per example.")
    rows = [_object(item, f"{path.name}, item {i}") for i, item in enumerate(value, 1)]
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    yield Table(path.name, "item", columns, tuple(rows), tuple(range(1, len(rows) + 1)))


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        hint = " A file that is one list is named .json." if isinstance(value, list) else ""
        raise DataError(f"{where}: this is a {type(value).__name__}, not an object with named values.{hint}")
    return value


def _read_parquet(path: Path) -> Iterator[Table]:
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
        return bool(pq.read_metadata(path).num_rows > tables.PART_ROWS)
    except (pa.ArrowInvalid, OSError):
        return False  # whoever reads it says what is wrong with it


def _batches(items: Iterator[ItemT]) -> Iterator[list[ItemT]]:
    while some := list(itertools.islice(items, CHUNK_ROWS)):
        yield some


_READERS: dict[str, Callable[[Path], Iterator[Table]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
