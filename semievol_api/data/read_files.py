"""Rows of a file, with the line each came from: CSV, TSV, JSON, JSONL, Parquet.

Every fault names the file, the line and what to try. Knows nothing of tasks: a cell is what the file holds.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from semievol_api.config.settings import nearest
from semievol_api.data import table as tables
from semievol_api.data.delimited import PLAIN, FileFormat, records_of
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


def read_table(path: Path, how: FileFormat = PLAIN) -> Table:
    """The rows of a file, by its ending; `how` is what its owner says of a text file.

    Raises:
        DataError: the file is missing, unreadable, of an unknown kind, empty or malformed.
    """
    kind = path.suffix.lower()
    if path.is_file() and kind in _READERS and kind != ".parquet":
        with _faults_told(path, how):
            _refuse_undecodable(path, how)
    tables = list(read_chunks(path, how))
    first = tables[0]
    rows = tuple(row for table in tables for row in table.rows)
    return Table(first.source, first.unit, first.columns, rows, tuple(line for table in tables for line in table.lines))


def is_large(path: Path) -> bool:
    """Whether a file is read in chunks."""
    kind = path.suffix.lower()
    if not path.is_file() or kind not in _READERS or kind == ".json":
        return False
    return _many_rows(path) if kind == ".parquet" else path.stat().st_size > LARGE_BYTES


def read_chunks(path: Path, how: FileFormat = PLAIN) -> Iterator[Table]:
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
    with _faults_told(path, how):
        for table in reader(path, how):
            empty = empty and not table.rows
            yield table
    if empty:
        raise DataError(f"The file {str(path)!r} is empty: it holds no row of data.")


@contextmanager
def _faults_told(path: Path, how: FileFormat) -> Generator[None]:
    """Inside the block the file is read; what cannot be read is told."""
    try:
        yield
    except UnicodeError:
        _refuse_undecodable(path, how)
        raise
    except LookupError:
        raise DataError(f"There is no encoding {how.encoding!r}. Usual ones: utf-8, gbk, cp1252, utf-16.") from None
    except OSError as error:
        raise DataError(f"The file {str(path)!r} cannot be read: {error.strerror or error}.") from None


def _refuse_undecodable(path: Path, how: FileFormat) -> None:
    """Says where a file stops being text in its encoding, and how that line reads in others."""
    if how.encoding != PLAIN.encoding:
        _refuse_other_encoding(path, how)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"The file {str(path)!r} is not UTF-8: line {number} holds the byte 0x{line[error.start]:02x}. "
                    f"{_readings_of(path, line)}Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8') and try again, or "
                    f"name its encoding, such as: semievol init {path.name} --encoding gbk."
                ) from None


def _refuse_other_encoding(path: Path, how: FileFormat) -> None:
    """Refuse a file that is not in the encoding that its owner names, or that is UTF-8 beyond doubt."""
    try:
        with path.open(encoding=how.encoding) as file:
            for _ in file:
                pass
    except UnicodeError as error:
        raise DataError(
            f"The file {str(path)!r} is not in the encoding {how.encoding!r} ({error}). Name another."
        ) from None
    try:
        with path.open("rb") as raw:
            beyond_ascii = [line for line in raw if not line.isascii() and line.decode("utf-8")]
    except UnicodeDecodeError:
        return
    if beyond_ascii:
        raise DataError(
            f"The file {str(path)!r} is UTF-8: {beyond_ascii[0].decode('utf-8').strip()[:40]!r}. Leave the encoding "
            f"{how.encoding!r} out."
        )


def _readings_of(path: Path, line: bytes) -> str:
    """How a line reads in the encodings that spreadsheets write; empty where none fits."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "It begins as UTF-16 does. "
    found: list[str] = []
    for encoding in ("gbk", "cp1252", "shift_jis", "cp1251"):
        try:
            text = line.decode(encoding).strip()
        except UnicodeDecodeError:
            continue
        found += [f"{text[:40]!r} in {encoding}"] if text.isprintable() else []
    return f"That line reads {'; '.join(found[:3])}. " if found else ""


def _read_csv(path: Path, how: FileFormat) -> Iterator[Table]:
    columns, rows = records_of(path, how)
    for some in _batches(rows):
        yield Table(path.name, "line", columns, tuple(row for _, row in some), tuple(line for line, _ in some))


def _read_jsonl(path: Path, how: FileFormat) -> Iterator[Table]:
    if _begins_with(path, how, "["):
        yield from _read_json(path, how)
        return
    columns = tuple(dict.fromkeys(name for _, row in _json_rows(path, how) for name in row))
    for some in _batches(_json_rows(path, how)):
        yield Table(path.name, "line", columns, tuple(row for _, row in some), tuple(line for line, _ in some))


def _begins_with(path: Path, how: FileFormat, sign: str) -> bool:
    with path.open(encoding=how.encoding) as file:
        return next((line.lstrip() for line in file if line.strip()), "").startswith(sign)


def _json_rows(path: Path, how: FileFormat) -> Iterator[tuple[int, Row]]:
    with io.TextIOWrapper(path.open("rb"), encoding=how.encoding, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_line(path, number, line.removesuffix("\n"))


def _json_line(path: Path, number: int, line: str) -> Row:
    """The object in a line of a JSONL file."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        hint = (
            " This line ends with a comma: take the commas at the line ends out."
            if line.endswith(("},", "},\r"))
            else ""
        )
        raise DataError(
            f"{path.name}, line {number}: this is not JSON ({error.msg}, column {error.colno}). "
            f"Each line of a JSONL file is one JSON object.{hint}"
        ) from None
    return _object(value, f"{path.name}, line {number}")


def _read_json(path: Path, how: FileFormat) -> Iterator[Table]:
    try:
        value = json.loads(path.read_bytes().decode(how.encoding))
    except json.JSONDecodeError as error:
        several = path.suffix.lower() == ".json" and error.msg == "Extra data"
        hint = " If each line is one object, name the file .jsonl." if several else ""
        raise DataError(f"{path.name}, line {error.lineno}: this is not JSON ({error.msg}).{hint}") from None
    value = _only_list(path, value) if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise DataError(f"{path.name} holds no list. A JSON file is a list of objects, one per example.")
    rows = [_object(item, f"{path.name}, item {i}") for i, item in enumerate(value, 1)]
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    yield Table(path.name, "item", columns, tuple(rows), tuple(range(1, len(rows) + 1)))


def _only_list(path: Path, value: Mapping[str, object]) -> object:
    """The examples in an object such as `{"version": 1, "examples": [...]}`."""
    lists = {
        name: part for name, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)
    }
    if len(lists) > 1:
        raise DataError(
            f"{path.name} holds several lists of objects: {', '.join(lists)}. Save the one with the examples as a file "
            f"of its own."
        )
    return next(iter(lists.values()), None)


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: this is a {type(value).__name__}, not an object with named values.")
    return value


def _read_parquet(path: Path, how: FileFormat) -> Iterator[Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns, at = tuple(file.schema_arrow.names), 1
            names = _class_names(file.schema_arrow.metadata or {})
            for batch in file.iter_batches(CHUNK_ROWS):
                if batch.num_rows:
                    rows: tuple[Row, ...] = tuple(with_class_names(row, names) for row in batch.to_pylist())
                    yield Table(path.name, "row", columns, rows, tuple(range(at, at + len(rows))))
                    at += len(rows)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path.name} is no Parquet file, or a damaged one: {str(error).splitlines()[0]}") from None


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the classes in a column of numbers, which `datasets` writes beside a Parquet file's schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: feature["names"] for column, feature in features.items() if feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def with_class_names(row: Row, names: Mapping[str, Sequence[str]]) -> Row:
    """The row with its class numbers as names; -1 is how the `datasets` library writes an unknown class."""
    if not names:
        return row
    return {column: _class_name(value, names[column]) if column in names else value for column, value in row.items()}


def _class_name(value: object, names: Sequence[str]) -> object:
    if not isinstance(value, int):
        return value
    return None if value == -1 else names[value] if 0 <= value < len(names) else value


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


_READERS: dict[str, Callable[[Path, FileFormat], Iterator[Table]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
