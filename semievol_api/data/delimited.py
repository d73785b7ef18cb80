"""Rows of delimited text: the separator, the quoting and the header of a file, and its records with their lines.

Reads a file as it is written (TSV without quotes, semicolons, empty columns at the right) and refuses what can be read
in two ways. Knows nothing of tasks: a cell is what the file holds.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from semievol_api.errors import DataError

_SEPARATORS = (",", ";", "\t", "|")
_LOOKED_AT = 1000
"""Records from which the separator is told."""
_NAMES_OF_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


@dataclass(frozen=True, slots=True)
class FileFormat:
    """What a file's owner says of it, since the file itself does not.

    `names` are the columns of a file without a header line.
    """

    encoding: str = "utf-8-sig"
    names: tuple[str, ...] = ()


PLAIN = FileFormat()


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How records are told apart in a file; without `quoted` a double quote is a character like any other."""

    separator: str
    quoted: bool

    def records(self, path: Path, how: FileFormat) -> Iterator[tuple[int, list[str]]]:
        """Each record with the line where it begins; empty lines are passed over.

        Raises:
            DataError: a quote is opened and never closed.
        """
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        line = 1
        with path.open(encoding=how.encoding, newline="") as file:
            reader = csv.reader(file, delimiter=self.separator, strict=True, quoting=quoting)
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


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a dialect makes of a whole file: `fault` is the first line with another number of columns, if any.

    `joined` are the first record of several lines with a separator inside a value: where it begins and ends.
    """

    records: int
    fault: int | None
    joined: tuple[int, int] | None


def records_of(path: Path, how: FileFormat) -> tuple[tuple[str, ...], Iterator[tuple[int, dict[str, str]]]]:
    """The columns of a delimited file, and its rows with the line where each begins.

    Raises:
        DataError: the file is empty, can be read in two ways, or (in the rows) a record has too few or too many fields.
    """
    csv.field_size_limit(2**31 - 1)
    dialect = _dialect_of(path, how)
    records = dialect.records(path, how)
    first = next(records, None)
    if first is None:
        raise DataError(f"The file {str(path)!r} is empty: it has not even a header line.")
    if how.names:
        columns = how.names
        records = itertools.chain([first], records)
        kept = tuple(range(len(columns)))
    else:
        columns = tuple(name.strip() for name in first[1])
        kept = _kept(path, how, dialect, columns)
        columns = tuple(name or f"column {place}" for place, name in enumerate(columns, 1))
    named = tuple(columns[place] for place in kept)
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise DataError(f"{path.name} names the column {twice[0]!r} twice in its header. Rename one of them.")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        for line, fields in records:
            _refuse_other_length(path, line, fields, columns, header=not how.names)
            yield line, {columns[place]: fields[place] for place in kept}

    return named, rows()


def _refuse_other_length(path: Path, line: int, fields: Sequence[str], columns: Sequence[str], *, header: bool) -> None:
    if len(fields) != len(columns):
        named = f"the header has {len(columns)} columns" if header else f"--names names {len(columns)} columns"
        raise DataError(
            f"{path.name}, line {line}: {len(fields)} fields where {named}. "
            "A comma or a line break inside a value needs double quotes around the value."
        )


def _kept(path: Path, how: FileFormat, dialect: _Dialect, columns: Sequence[str]) -> tuple[int, ...]:
    """The places of the columns that hold something: spreadsheets write unnamed, empty ones at the right."""
    unnamed = {place for place, name in enumerate(columns) if not name}
    empty = set(unnamed)
    if unnamed:
        for _, fields in itertools.islice(dialect.records(path, how), 1, None):
            empty -= {place for place in empty if place < len(fields) and fields[place].strip()}
    return tuple(place for place in range(len(columns)) if place not in empty)


def _dialect_of(path: Path, how: FileFormat) -> _Dialect:
    """The separator with which the first records have equally many fields, and whether quotes enclose values."""
    head = _head(path, how)
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator_of(path, head)
    if not _holds_quotes(path):
        return _Dialect(separator, quoted=True)
    tabs = separator == "\t"
    quoted, plain = (_read_through(path, how, _Dialect(separator, quoted=which)) for which in (True, False))
    if plain is None or plain.fault is not None:
        whole = quoted is not None and quoted.fault is None
        return _Dialect(separator, quoted=whole or not tabs or quoted is not None)
    if quoted is None or quoted.fault is not None:
        return _Dialect(separator, quoted=not tabs)
    if tabs:
        return _Dialect(separator, quoted=_quotes_enclose(head, alike=quoted.records == plain.records))
    if quoted.joined is not None:
        start, end = quoted.joined
        raise DataError(
            f"{path.name}, lines {start} to {end} can be read in two ways: a double quote opens in line {start} and "
            f"closes in line {end}, so they are one value, yet each of them has all columns of the file. Write a quote "
            f'that belongs to the text twice, within quotes ("a 5"" screen"), or save the file as JSONL.'
        )
    return _Dialect(separator, quoted=True)


def _head(path: Path, how: FileFormat) -> list[str]:
    """The first lines of a file."""
    with path.open(encoding=how.encoding, newline="") as file:
        lines = list(itertools.islice(file, _LOOKED_AT))
    if any("\0" in line for line in lines[:1]):
        raise DataError(
            f"The file {str(path)!r} holds zero bytes in its first line, as a file in UTF-16 does. "
            "Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8') and try again."
        )
    return lines


def _separator_of(path: Path, head: Sequence[str]) -> str:
    """The separator by which the most records have as many fields as the first; a comma where none divides it."""
    shares = {separator: share for separator in _SEPARATORS if (share := _share_of_equal(head, separator)) > 0}
    if not shares:
        return ","
    whole = [separator for separator, share in shares.items() if share == 1.0]
    if len(whole) > 1 and len(head) > 1:
        both = " and ".join(_NAMES_OF_SEPARATORS[separator] for separator in whole[:2])
        raise DataError(
            f"{path.name} can be read in two ways: {both} both divide every line into equally many columns. Take the "
            f"one that separates nothing out of the header line, or save the file as JSONL."
        )
    return max(shares, key=lambda separator: (shares[separator], head[0].count(separator)))


def _share_of_equal(head: Sequence[str], separator: str) -> float:
    """The share of records with as many fields as the first; 0 where the separator divides nothing."""
    best = 0.0
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        records: list[int] = []
        try:
            for fields in csv.reader(head, delimiter=separator, strict=True, quoting=quoting):
                records += [len(fields)] if fields else []
        except csv.Error:
            records += [] if len(head) == _LOOKED_AT else [0]  # the last record may be cut
        if records and records[0] > 1:
            best = max(best, records.count(records[0]) / len(records))
    return best


def _holds_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        return any(b'"' in chunk for chunk in iter(lambda: file.read(2**20), b""))


def _read_through(path: Path, how: FileFormat, dialect: _Dialect) -> _Reading | None:
    """What the dialect makes of the file; None where it cannot read it to its end."""
    count, width, began = 0, len(how.names), 0
    before: list[str] = []
    fault: int | None = None
    joined: tuple[int, int] | None = None
    try:
        for line, fields in dialect.records(path, how):
            count += 1
            width = width or len(fields)
            joined = joined or _joined(before, began, dialect.separator)
            if len(fields) != width:
                fault = fault or line
            before, began = fields, line
        joined = joined or _joined(before, began, dialect.separator)
    except DataError:
        return None
    return _Reading(count, fault, joined)


def _joined(fields: Sequence[str], start: int, separator: str) -> tuple[int, int] | None:
    """The lines of a record with a value of several lines that holds a separator."""
    if not any(("\n" in field or "\r" in field) and separator in field for field in fields):
        return None
    return start, start + sum(len(field.splitlines()) - 1 for field in fields if field)


def _quotes_enclose(head: Sequence[str], *, alike: bool) -> bool:
    """Whether the quotes of a tab-separated file enclose values: all of its header's do, or doubled ones stand inside.

    Programs that write TSV without quoting leave a text's own quotes as they are. `alike`: both readings have equally
    many records.
    """
    lines = [line.rstrip("\r\n").split("\t") for line in head]
    if all(map(_enclosed, lines[0])):
        return True
    held = [cell for line in lines for cell in line if '"' in cell]
    return alike and bool(held) and all(_enclosed(cell) and '""' in cell[1:-1] for cell in held)


def _enclosed(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'
