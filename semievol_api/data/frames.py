"""Data frames as files: what a notebook holds becomes a JSONL file that a run reads like any other.

    path = write_frame(df, folder / "labeled.jsonl")

pandas, polars and Arrow tables, Hugging Face datasets and lists of mappings; none of their packages is imported. A file
is replaced only where its rows differ, so that a rerun of the same frame finds the same file. Knows nothing of tasks.
"""

from __future__ import annotations

import datetime
import filecmp
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from semievol_api.errors import DataError


@runtime_checkable
class ArrowTable(Protocol):
    """A pyarrow table."""

    def to_batches(self) -> Iterable[Any]: ...


@runtime_checkable
class PolarsFrame(Protocol):
    """A polars data frame."""

    def to_dicts(self) -> list[dict[str, Any]]: ...


@runtime_checkable
class PandasFrame(Protocol):
    """A pandas data frame."""

    def itertuples(self, index: bool = True, name: str | None = "Pandas") -> Iterable[Any]: ...

    @property
    def columns(self) -> Any: ...


Frame: TypeAlias = ArrowTable | PolarsFrame | PandasFrame | Iterable[Mapping[str, Any]]
"""Rows with named columns."""


def write_frame(frame: Frame, path: Path) -> Path:
    """Write a frame's rows as JSONL, one object a line, and return the path; an equal file is left alone.

    Raises:
        DataError: it is no frame, holds no row, or its file cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the run's folder is its owner's alone
        with draft.open("w", encoding="utf-8") as file:
            rows = 0
            for row in rows_of(frame, path.stem):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows += 1
        if path.is_file() and filecmp.cmp(draft, path, shallow=False):
            draft.unlink()
        elif rows:
            draft.replace(path)
    except OSError as error:
        raise DataError(f"The rows of {path.stem!r} cannot be written to {str(path)!r}: {error.strerror}.") from None
    finally:
        draft.unlink(missing_ok=True)
    if not rows:
        raise DataError(f"The frame {path.stem!r} is empty: it holds no row of data.")
    return path


def rows_of(frame: object, name: str) -> Iterator[dict[str, object]]:
    """The rows with plain JSON values; missing ones are None, integers that pandas made floats are integers again.

    Raises:
        DataError: it is no frame.
    """
    if isinstance(frame, ArrowTable):
        rows: Iterable[Any] = (row for batch in frame.to_batches() for row in batch.to_pylist())
    elif isinstance(frame, PolarsFrame):
        rows = frame.to_dicts()
    elif isinstance(frame, PandasFrame):
        rows = _pandas_rows(frame)
    elif isinstance(frame, str | bytes | Mapping) or not isinstance(frame, Iterable):
        raise _no_frame(frame, name)
    else:
        rows = frame
    for row in rows:
        if not isinstance(row, Mapping):
            raise _no_frame(row, name)
        yield {str(column): plain(value) for column, value in row.items()}


def _no_frame(given: object, name: str) -> DataError:
    return DataError(
        f"{name!r} is {type(given).__name__}, {str(given)[:40]!r}; rows come as a data frame (pandas, polars, "
        f'pyarrow) or a list of mappings, such as [{{"question": "...", "answer": "..."}}].'
    )


def _pandas_rows(frame: PandasFrame) -> Iterator[dict[str, Any]]:
    columns = [str(name) for name in frame.columns]
    rows = [dict(zip(columns, row, strict=True)) for row in frame.itertuples(index=False, name=None)]
    for column in columns:
        values = [row[column] for row in rows]
        numbers = [value for value in values if isinstance(value, float) and not math.isnan(value)]
        floats = sum(isinstance(value, float) for value in values)
        if floats == len(values) > len(numbers) and all(value.is_integer() for value in numbers):
            for row in rows:
                row[column] = None if math.isnan(row[column]) else int(row[column])
    yield from rows


def plain(value: object) -> object:
    """A cell as JSON knows it; None for what is missing."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | np.ndarray):
        return [plain(part) for part in value]
    if type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, datetime.date | datetime.time | Decimal):
        return str(value)
    raise DataError(f"A cell holds {type(value).__name__}, {str(value)[:40]!r}; cells are texts, numbers and lists.")


def write_task(task: Mapping[str, Any], path: Path) -> Path:
    """Write a task that is given as a mapping as the TOML file that a run reads."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = "\n".join(toml_lines({"name": path.stem, **task}, ""))
    if not path.is_file() or path.read_text("utf-8") != f"{text}\n":
        path.write_text(f"{text}\n", "utf-8")
    return path


def toml_lines(table: Mapping[str, Any], place: str) -> Iterator[str]:
    """The lines of a table: its values, then its inner tables."""
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            yield f"{_key(key)} = {json.dumps(plain(value), ensure_ascii=False)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            where = f"{place}{_key(key)}"
            yield from (f"[{where}]", *toml_lines(value, f"{where}."))


def _key(name: object) -> str:
    """A bare key where TOML takes one."""
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", str(name))
    return str(name) if bare else json.dumps(str(name), ensure_ascii=False)
