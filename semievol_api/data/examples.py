"""Turn rows into examples: question, options, canonical answer, id.

Ids come from content where the file names none. The unlabelled file's answers become `hidden_answer`, which no
stage but the oracle report reads. Knows nothing of file formats, hygiene or splits.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from semievol_api.cassettes.scrub import replace_key_shapes
from semievol_api.config.settings import parse_settings
from semievol_api.data.chats import ends_with_calls, read_chat, without_instruction
from semievol_api.data.read_files import Row, Table
from semievol_api.data.schemas import HIDDEN, as_examples, examples_table
from semievol_api.data.table import ChunkedTable, Scratch, free_memory, hash_of, repeated
from semievol_api.errors import DataError
from semievol_api.records import Example
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks import Columns, Task
from semievol_api.tasks.kind import LETTERS

KEYS_REMOVED = "what looks like an API key was taken out; if it is one, revoke it: it stands in the file in clear"


def without_keys(table: Table) -> Table:
    """The same rows without keys; the very same table where it holds none."""
    rows = tuple(_row(row) for row in table.rows)
    held = frozenset(i for i, (new, old) in enumerate(zip(rows, table.rows, strict=True)) if new is not old)
    return replace(table, rows=rows, held_keys=held) if held else table


def mask_keys(text: str) -> str:
    """The text with a marker in the place of each key; the very same text where there is none."""
    if not text.isascii():
        return replace_key_shapes(text.encode("utf-8", "surrogatepass"), _marker).decode("utf-8", "surrogatepass")
    return replace_key_shapes(text.encode("ascii"), _marker).decode("ascii")


def _row(row: Row) -> Row:
    cells = {name: _cell(value) for name, value in row.items()}
    return row if all(cells[name] is row[name] or cells[name] == row[name] for name in row) else cells


def _cell(value: object) -> object:
    if isinstance(value, str):
        return mask_keys(value)
    if isinstance(value, Mapping):
        return {name: _cell(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(part) for part in value]
    return value


def _marker(key: bytes) -> bytes:
    """Keys without a digit are words, such as `sk-learn-some-long-name`."""
    if not any(48 <= byte <= 57 for byte in key):
        return key
    return b"[removed-key-" + hashlib.blake2b(key, digest_size=3).hexdigest().encode() + b"]"


DataRole: TypeAlias = Literal["labeled", "unlabeled", "test"]


@fingerprinted("source", "what", "example_ids", "rows")
@dataclass(frozen=True, slots=True)
class Note:
    """Something about a file that was put right and that its owner should know; `rows` says where it stood."""

    source: str
    what: str
    example_ids: tuple[str, ...]
    rows: str = ""

    @property
    def sentence(self) -> str:
        """For a person."""
        return f"{self.source}{', ' if self.rows else ''}{self.rows}: {self.what}."

    def as_json(self) -> dict[str, object]:
        """JSON values for the report."""
        return {"source": self.source, "what": self.what, "example_ids": list(self.example_ids), "rows": self.rows}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one file gave."""

    examples: ChunkedTable[Example]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row's example, whose id may be one that another has too, and what its owner should know."""

    example: Example
    line: int
    remarks: tuple[str, ...]


LINE = "line"
STORED_ROWS = 4096
"""Rows that are held before they are stored, and read together."""
DIGIT_ANSWER = "answers given by position were read as letters"
NULL_OPTION = "empty options were read as the word None, which some libraries write as NaN"
SAME_OPTIONS = "two options have the same text"
MOST_ROWS_NAMED = 8
HIDDEN_UNREADABLE = "answers of the unlabelled file are no possible answers and were ignored"


def columns_of(task: Task, overrides: Mapping[str, str]) -> Columns:
    """The task's columns with the config's overrides; an empty text takes a column away."""
    tree = task.definition.columns.model_dump()
    tree.update((key, value or None) for key, value in overrides.items())
    return parse_settings(Columns, tree, where="data.columns")


def read_examples(
    source: Table | Iterable[Table], task: Task, role: DataRole, columns: Columns | None = None
) -> Reading:
    """The examples of a file's rows, in its order; those of several tables, with the same columns, lie on disk.

    Raises:
        DataError: a column is missing, or a row's question, options, answer or id cannot be used.
    """
    columns = columns or task.definition.columns
    tables, scratch = ((source,), None) if isinstance(source, Table) else (source, Scratch())
    store, where = _Store(scratch), ("", "")
    remarks: dict[str, array[int]] = {}
    for table in tables:
        where = (table.source, table.unit)
        _require_columns(table, task, role, columns)
        for row in range(len(table.rows)):
            draft = _draft_of(table, row, task, role, columns)
            for remark in draft.remarks:
                remarks.setdefault(remark, array("q")).append(len(store.keys))
            store.add(draft.example, draft.line)
    examples = _with_own_ids(store.table(), np.frombuffer(store.keys, np.uint64), where, columns)
    notes = (_note(where, kind, examples, np.frombuffer(rows, np.int64)) for kind, rows in remarks.items())
    return Reading(examples, tuple(notes))


class _Store:
    """Examples as they come, in memory or in a scratch folder; `keys` are their ids' hashes."""

    def __init__(self, scratch: Scratch | None) -> None:
        self.keys = array("Q")
        self._scratch = scratch
        self._hash = hashlib.blake2b(digest_size=20)
        self._paths: list[Path] = []
        self._waiting: list[tuple[Example, int]] = []

    def add(self, example: Example, line: int) -> None:
        """One more example, and where it stands in the file."""
        self.keys.append(hash_of(example.id))
        self._waiting.append((example, line))
        if self._scratch is not None and len(self._waiting) >= STORED_ROWS:
            self._store(self._scratch)

    def table(self) -> ChunkedTable[Example]:
        """Everything that was added, with the columns `hidden_answer` and `line`."""
        if self._scratch is None:
            return ChunkedTable.of(self._taken()[1]).typed(as_examples)
        if self._waiting:
            self._store(self._scratch)
        stored = ChunkedTable.stored(self._paths).typed(as_examples)
        return replace(stored, content=self._hash.hexdigest(), scratch=self._scratch)

    def _taken(self) -> tuple[pa.Table, pa.Table]:
        """What is waiting, without and with the columns that enter no fingerprint."""
        table = examples_table([example for example, _ in self._waiting])
        hidden = pa.array([example.hidden_answer for example, _ in self._waiting], pa.string())
        lines = pa.array([line for _, line in self._waiting], pa.int64())
        self._waiting.clear()
        return table, table.append_column(HIDDEN, hidden).append_column(LINE, lines)

    def _store(self, scratch: Scratch) -> None:
        table, whole = self._taken()
        for batch in table.to_batches():
            self._hash.update(batch.serialize())
        path = scratch.path / f"rows-{len(self._paths):05d}.parquet"
        with scratch.writing():
            pq.write_table(whole, path, compression="lz4")
        self._paths.append(path)
        free_memory()


def _with_own_ids(
    examples: ChunkedTable[Example], keys: NDArray[np.uint64], where: tuple[str, str], columns: Columns
) -> ChunkedTable[Example]:
    """An id for each: a repeated question's gets a number, one of the file's own that is repeated is a fault."""
    seen: dict[str, int] = {}
    renamed: dict[int, str] = {}
    again = repeated(keys)
    places = iter(np.flatnonzero(again).tolist())
    for table in examples.where(again).tables(["id", LINE]):
        for key, line, place in zip(table["id"].to_pylist(), table[LINE].to_pylist(), places, strict=False):
            if columns.id is not None and key in seen:
                source, unit = where
                raise DataError(
                    f"{source}: the id {key!r} stands in {unit} {seen[key]} and again in {unit} {line}. "
                    f"Make ids unique, or name no id column; then they come from the content."
                )
            seen[key] = seen.get(key, 0) + 1 if columns.id is None else line
            if columns.id is None and seen[key] > 1:
                renamed[place] = f"{key}-{seen[key]}"
    return examples.with_values("id", renamed)


def _note(where: tuple[str, str], kind: str, examples: ChunkedTable[Example], places: NDArray[np.int64]) -> Note:
    """A remark about some examples; `where` is the file's name and what it is counted in."""
    concerned = np.zeros(len(examples), dtype=np.bool_)
    concerned[places] = True
    ids, lines = list[str](), list[int]()
    for table in examples.where(concerned).tables(["id", LINE]):
        ids += table["id"].to_pylist()
        lines += table[LINE].to_pylist()
    source, unit = where
    named = ", ".join(str(line) for line in lines[:MOST_ROWS_NAMED])
    more = f" and {len(ids) - MOST_ROWS_NAMED} more" if len(ids) > MOST_ROWS_NAMED else ""
    return Note(source, kind, tuple(ids), f"{unit} {named}{more}")


def content_id(question: str, options: Sequence[str]) -> str:
    """A short hash of what is asked; the answer is no part of it."""
    content = json.dumps([question, *options], ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _require_columns(table: Table, task: Task, role: DataRole, columns: Columns) -> None:
    """Refuse a table that lacks a column."""
    table.require(columns.messages or columns.question, "conversation" if columns.messages else "question")
    for column in columns.indicators:
        table.require(column, "indicator of a label")
    if columns.messages is not None:
        refuse_calls(table, columns)
    for column in _option_columns(table, task, columns):
        table.require(column, "options")
    if role != "unlabeled" and not columns.messages and not columns.indicators:
        if columns.answer is None:
            raise DataError(f"The task names no answer column, and {table.source} is the {role} file. Name one.")
        table.require(columns.answer, "answer")
    optional = {"id": columns.id, "context": columns.context, "group": columns.group, "category": columns.category}
    for purpose, named in optional.items():
        if named is not None:
            table.require(named, purpose)


def refuse_calls(table: Table, columns: Columns) -> None:
    """Refuse a table of conversations of which some end with a tool call."""
    lines = ends_with_calls(table, columns)
    if lines:
        named = ", ".join(map(str, lines[:MOST_ROWS_NAMED])) + (", ..." if len(lines) > MOST_ROWS_NAMED else "")
        raise DataError(
            f"{table.source}: {len(lines)} of {len(table.rows)} conversations end with a tool call ({table.unit} "
            f"{named}). An answer is a text here; calls in earlier turns and the tools' results are kept as they are. "
            f"Take the rows that end with a call out of the file."
        )


def _option_columns(table: Table, task: Task, columns: Columns) -> tuple[str, ...]:
    """The columns that hold options; none where the task's labels stand in for them."""
    if not task.lettered:
        return ()
    if columns.options is None:
        if task.definition.labels:
            return ()
        raise DataError(f"The task {task.name!r} has options; name their column under [columns] as options.")
    names = (columns.options,) if isinstance(columns.options, str) else columns.options
    if len(names) == 1 and names[0] not in table.columns and "," in names[0]:
        names = tuple(name.strip() for name in names[0].split(","))
    missing = all(name.split(".")[0] not in table.columns and name not in table.columns for name in names)
    return () if missing and task.definition.labels else names


def _draft_of(table: Table, row: int, task: Task, role: DataRole, columns: Columns) -> _Draft:
    """A row as an example."""
    if columns.messages is not None:
        return _draft_of_chat(table, row, task, role, columns)
    question = _text(table.cell(row, columns.question))
    if not question:
        raise DataError(f"{table.where(row)}: the question (column {columns.question!r}) is empty.")
    context = _passage(table.cell(row, columns.context)) if columns.context else ""
    names = _option_columns(table, task, columns)
    options, remarks = _options(table, row, names) if names else (task.definition.labels, [])
    group = _text(table.cell(row, columns.group)) if columns.group else ""
    whole = f"{context}\n\n{question}" if context else question
    options = options if task.lettered else ()
    bare = Example(
        id=_text(table.cell(row, columns.id)) if columns.id else content_id(whole, options),
        question=whole,
        options=options,
        group=group or (content_id(context, ()) if context else None),
        category=(_text(table.cell(row, columns.category)) or None) if columns.category else None,
    )
    if columns.id and not bare.id:
        raise DataError(f"{table.where(row)}: the id (column {columns.id!r}) is empty.")
    answered, remark = _with_answer(
        table, row, bare, task, (role, answer_cell(table, row, columns), f"answer (column {columns.answer!r})")
    )
    held_key = [KEYS_REMOVED] if row in table.held_keys else []
    return _Draft(answered, table.lines[row], (*remarks, *remark, *held_key))


def _draft_of_chat(table: Table, row: int, task: Task, role: DataRole, columns: Columns) -> _Draft:
    """A conversation as an example: its turns without the reply, which only a labelled row keeps word for word."""
    whole = without_instruction(read_chat(table, row, columns), task.definition.instruction)
    asked = replace(whole, reply=None)
    bare = Example(
        id=_text(table.cell(row, columns.id)) if columns.id else content_id(asked.text, ()),
        question=asked.question,
        group=(_text(table.cell(row, columns.group)) or None) if columns.group else None,
        category=(_text(table.cell(row, columns.category)) or None) if columns.category else None,
        chat=asked.text,
    )
    if not bare.id:
        raise DataError(f"{table.where(row)}: the id (column {columns.id!r}) is empty.")
    answered, remark = _with_answer(table, row, bare, task, (role, (whole.reply or "").strip(), "reply"))
    if role != "unlabeled":
        answered = replace(answered, chat=whole.text)
    held_key = [KEYS_REMOVED] if row in table.held_keys else []
    return _Draft(answered, table.lines[row], (*remark, *held_key))


def answer_cell(table: Table, row: int, columns: Columns) -> str:
    """The text of a row's answer, wherever its table keeps it; empty where there is none."""
    if columns.messages is not None:
        return (read_chat(table, row, columns).reply or "").strip()
    if columns.indicators:
        marks = {name: _text(table.cell(row, name)).casefold() for name in columns.indicators}
        odd = next((name for name, mark in marks.items() if mark not in INDICATED), None)
        if odd is not None:
            raise DataError(f"{table.where(row)}: the column {odd!r} holds {marks[odd][:40]!r}, neither 0 nor 1.")
        chosen = [name for name, mark in marks.items() if INDICATED[mark]]
        return json.dumps(chosen, ensure_ascii=False) if any(marks.values()) else ""
    return _text(table.cell(row, columns.answer)) if columns.answer else ""


INDICATED = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""What a cell of an indicator column says."""


def _with_answer(
    table: Table, row: int, example: Example, task: Task, place: tuple[DataRole, str, str]
) -> tuple[Example, list[str]]:
    """The example with its answer; `place` is the file's role, the answer's text and what that is called."""
    role, cell, what = place
    if not cell:
        if role == "unlabeled":
            return example, []
        raise DataError(
            f"{table.where(row)}: the {what} is empty. Rows without an answer belong into the unlabelled file."
        )
    gold = task.read_gold(cell, example)
    remarks = [DIGIT_ANSWER] if task.lettered and cell.isdecimal() and gold else []
    if role == "unlabeled":
        return replace(example, hidden_answer=gold), remarks if gold else [HIDDEN_UNREADABLE]
    if gold is None:
        raise DataError(f"{table.where(row)}: the answer {cell[:80]!r} {task.why_refused(cell, example)}")
    return replace(example, answer=gold), remarks


def _options(table: Table, row: int, names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    if len(names) > 1:
        cells = [table.cell(row, name) for name in names]
        while cells and not _text(cells[-1]):
            cells.pop()
    else:
        cells = _list_cell(table, row, names[0])
    remarks = [NULL_OPTION] if any(_is_null(cell) for cell in cells) else []
    options = tuple("None" if _is_null(cell) else _text(cell) for cell in cells)
    where = f"{table.where(row)}: the options (column {', '.join(names)})"
    if len(options) < 2:
        raise DataError(f"{where} are fewer than two.")
    if len(options) > len(LETTERS):
        raise DataError(f"{where} are {len(options)}; there are letters for {len(LETTERS)}.")
    if not all(options):
        raise DataError(f"{where} hold an empty text.")
    return options, remarks + ([SAME_OPTIONS] if len(set(options)) < len(options) else [])


def _list_cell(table: Table, row: int, column: str) -> list[object]:
    """A list, a JSON list, a Python list, or a mapping of letters to texts."""
    value = table.cell(row, column)
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        value = value["text"] if "text" in value else [value[key] for key in sorted(value) if value[key] is not None]
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{table.where(row)}: the options (column {column!r}) are not a list but "
            f"{_text(table.cell(row, column))[:60]!r}. "
            'Write them as a JSON list, such as ["yes", "no"], or name one column per option.'
        )
    return list(value)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: object) -> str:
    """A cell as text: outer space removed, Unix line ends, nothing for a missing value."""
    if _is_null(value):
        return ""
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value).replace("\r\n", "\n").strip()


def _passage(value: object) -> str:
    """A context that may come as a list of paragraphs."""
    if isinstance(value, list | tuple):
        return "\n".join(_text(part) for part in value)
    return _text(value)
