"""Turn rows into examples: question, options, canonical answer, id.

Ids come from content where the file names none. The unlabelled file's answers become `hidden_answer`, which no
stage but the oracle report reads. Knows nothing of file formats, hygiene or splits.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from semievol_api.cassettes.scrub import replace_key_shapes
from semievol_api.config.settings import parse_settings
from semievol_api.data.read_files import Row, Table
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

    examples: Sequence[Example]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A row's example, without an id of its own where the file names none, and what is to be said of it."""

    example: Example
    line: int
    remarks: tuple[str, ...]


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


def read_examples(table: Table, task: Task, role: DataRole, columns: Columns | None = None) -> Reading:
    """The examples of a table.

    Raises:
        DataError: a column is missing, or a row's question, options, answer or id cannot be used.
    """
    columns = columns or task.definition.columns
    require_columns(table, task, role, columns)
    drafts = [draft_of(table, row, task, role, columns) for row in range(len(table.rows))]
    examples = _with_ids(table, drafts, from_column=columns.id is not None)
    return Reading(examples, _notes(table, examples, drafts))


def content_id(question: str, options: Sequence[str]) -> str:
    """A short hash of what is asked; the answer is no part of it."""
    content = json.dumps([question, *options], ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def require_columns(table: Table, task: Task, role: DataRole, columns: Columns) -> None:
    """Refuse a table that lacks a column."""
    table.require(columns.question, "question")
    for column in _option_columns(table, task, columns):
        table.require(column, "options")
    if role != "unlabeled":
        if columns.answer is None:
            raise DataError(f"The task names no answer column, and {table.source} is the {role} file. Name one.")
        table.require(columns.answer, "answer")
    optional = {"id": columns.id, "context": columns.context, "group": columns.group, "category": columns.category}
    for purpose, named in optional.items():
        if named is not None:
            table.require(named, purpose)


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


def draft_of(table: Table, row: int, task: Task, role: DataRole, columns: Columns) -> Draft:
    """A row as an example."""
    question = _text(table.cell(row, columns.question))
    if not question:
        raise DataError(f"{table.where(row)}: the question (column {columns.question!r}) is empty.")
    context = _passage(table.cell(row, columns.context)) if columns.context else ""
    names = _option_columns(table, task, columns)
    options, remarks = _options(table, row, names) if names else (task.definition.labels, [])
    group = _text(table.cell(row, columns.group)) if columns.group else ""
    bare = Example(
        id=_text(table.cell(row, columns.id)) if columns.id else "",
        question=f"{context}\n\n{question}" if context else question,
        options=options if task.lettered else (),
        group=group or (content_id(context, ()) if context else None),
        category=(_text(table.cell(row, columns.category)) or None) if columns.category else None,
    )
    if columns.id and not bare.id:
        raise DataError(f"{table.where(row)}: the id (column {columns.id!r}) is empty.")
    answered, remark = _with_answer(table, row, bare, task, (role, columns.answer))
    held_key = [KEYS_REMOVED] if row in table.held_keys else []
    return Draft(answered, table.lines[row], (*remarks, *remark, *held_key))


def _with_answer(
    table: Table, row: int, example: Example, task: Task, place: tuple[DataRole, str | None]
) -> tuple[Example, list[str]]:
    role, column = place
    cell = _text(table.cell(row, column)) if column else ""
    if not cell:
        if role == "unlabeled":
            return example, []
        raise DataError(
            f"{table.where(row)}: the answer (column {column!r}) is empty. "
            "Rows without an answer belong into the unlabelled file."
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


def same_id(where: tuple[str, str], key: str, first: int, again: int) -> DataError:
    """The fault of a file, given by its name and what it is counted in, that names an id twice."""
    source, unit = where
    return DataError(
        f"{source}: the id {key!r} stands in {unit} {first} and again in {unit} {again}. "
        f"Make ids unique, or name no id column; then they come from the content."
    )


def note_of(source: str, kind: str, example_ids: tuple[str, ...], where: tuple[str, Sequence[int]]) -> Note:
    """A remark about some examples; `where` is what the file is counted in, and where the first of them stand."""
    unit, lines = where
    named = ", ".join(str(line) for line in lines[:MOST_ROWS_NAMED])
    more = f" and {len(example_ids) - MOST_ROWS_NAMED} more" if len(example_ids) > MOST_ROWS_NAMED else ""
    return Note(source, kind, example_ids, f"{unit} {named}{more}")


def _with_ids(table: Table, drafts: Sequence[Draft], *, from_column: bool) -> tuple[Example, ...]:
    seen: dict[str, int] = {}
    examples: list[Example] = []
    for draft in drafts:
        if from_column:
            key = draft.example.id
            if key in seen:
                raise same_id((table.source, table.unit), key, seen[key], draft.line)
            seen[key] = draft.line
            examples.append(draft.example)
        else:
            key = content_id(draft.example.question, draft.example.options)
            seen[key] = seen.get(key, 0) + 1
            examples.append(replace(draft.example, id=key if seen[key] == 1 else f"{key}-{seen[key]}"))
    return tuple(examples)


def _notes(table: Table, examples: Sequence[Example], drafts: Sequence[Draft]) -> tuple[Note, ...]:
    kinds = dict.fromkeys(remark for draft in drafts for remark in draft.remarks)
    notes: list[Note] = []
    for kind in kinds:
        concerned = [(e.id, d.line) for e, d in zip(examples, drafts, strict=True) if kind in d.remarks]
        ids, lines = tuple(i for i, _ in concerned), [line for _, line in concerned]
        notes.append(note_of(table.source, kind, ids, (table.unit, lines)))
    return tuple(notes)


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: object) -> str:
    """A cell as text: outer space removed, Unix line ends, nothing for a missing value."""
    if _is_null(value):
        return ""
    return str(value).replace("\r\n", "\n").strip()


def _passage(value: object) -> str:
    """A context that may come as a list of paragraphs."""
    if isinstance(value, list | tuple):
        return "\n".join(_text(part) for part in value)
    return _text(value)
