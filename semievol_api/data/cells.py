"""What the cells of a row say: a text, a template filled in, the options of a question and the keys that name them.

A cell that holds more than one value is opened where its shape is known and refused elsewhere; nothing is printed as
Python. Knows nothing of examples or of kinds of task.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semievol_api.data.read_files import Table
from semievol_api.errors import DataError
from semievol_api.tasks.kind import LETTERS

NULL_OPTION = "empty options were read as the word None, which some libraries write as NaN"
SAME_OPTIONS = "two options have the same text"
PREFIXED_OPTIONS = "letters in front of the options' texts were taken off, since a prompt writes its own"
_TEXT_KEYS = ("text", "value", "content", "option", "choice", "answer")
_NAME_KEYS = ("label", "key", "id", "letter", "index")
_FIELD = re.compile(r"\{([^{}]+)\}")
_PREFIX = re.compile(r"[(\[]?([A-Za-z])[)\].:]\s+")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a question; `keys[i]` is the file's own name of option i, where it gives names."""

    texts: tuple[str, ...]
    keys: tuple[str, ...] | None
    remarks: tuple[str, ...]

    def place_of_key(self, cell: str) -> int | None:
        """The place of the option that the file names so."""
        keys = [key.casefold() for key in self.keys or ()]
        return keys.index(cell.casefold()) if keys.count(cell.casefold()) == 1 else None


def fields_of(template: str) -> tuple[str, ...]:
    """The columns that a template names in braces."""
    return tuple(_FIELD.findall(template))


def filled(table: Table, row: int, template: str) -> str:
    """A template with a row's cells in it."""
    return _FIELD.sub(lambda field: text_of(table, row, field.group(1)), template).strip()


def text_of(table: Table, row: int, column: str) -> str:
    """A cell as text: outer space removed, Unix line ends, nothing for a missing value.

    Raises:
        DataError: it holds several values.
    """
    value = table.cell(row, column)
    if not isinstance(value, Mapping | list | tuple | bytes):
        return plain_text(value)
    parts = ", ".join(f"{column}.{key}" for key in value) if isinstance(value, Mapping) else ""
    raise DataError(
        f"{table.where(row)}: the column {column!r} holds {_shape(value)}, {str(value)[:60]!r}, not one text. "
        + (f"Name one of its parts as the column: {parts}." if parts else "Write each value into a column of its own.")
    )


def plain_text(value: object) -> str:
    """A plain value as text."""
    return "" if is_missing(value) else str(value).replace("\r\n", "\n").strip()


def passage_of(table: Table, row: int, column: str) -> str:
    """A context that may come as a list of paragraphs."""
    value = table.cell(row, column)
    if isinstance(value, list | tuple) and not any(isinstance(part, Mapping | list | tuple) for part in value):
        return "\n".join(map(plain_text, value))
    return text_of(table, row, column)


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def options_of(table: Table, row: int, names: Sequence[str]) -> Options:
    """The options in several columns, or in one with a list, a mapping or a list of mappings.

    Raises:
        DataError: they are fewer than two, too many, hold an empty text, or are no list.
    """
    keys: tuple[str, ...] | None = None
    if len(names) > 1:
        cells = [table.cell(row, name) for name in names]
        while cells and not plain_text(cells[-1]):
            cells.pop()
    else:
        cells, keys = _list_cell(table, row, names[0])
    remarks = [NULL_OPTION] if any(is_missing(cell) for cell in cells) else []
    where = f"{table.where(row)}: the options (column {', '.join(names)})"
    if any(isinstance(cell, Mapping | list | tuple) for cell in cells):
        raise DataError(f"{where} hold lists or mappings where texts are wanted.")
    texts = tuple("None" if is_missing(cell) else plain_text(cell) for cell in cells)
    if len(texts) < 2:
        raise DataError(f"{where} are fewer than two.")
    if len(texts) > len(LETTERS):
        raise DataError(f"{where} are {len(texts)}; there are letters for {len(LETTERS)}.")
    if not all(texts):
        raise DataError(f"{where} hold an empty text.")
    bare = _without_letters(texts)
    remarks += [PREFIXED_OPTIONS] if bare != texts else []
    remarks += [SAME_OPTIONS] if len(set(bare)) < len(bare) else []
    return Options(bare, keys, tuple(remarks))


def _without_letters(texts: tuple[str, ...]) -> tuple[str, ...]:
    """`A. red`, `B. blue` without their letters, where all options have theirs."""
    found = [_PREFIX.match(text) for text in texts]
    named = "".join(match.group(1).upper() for match in found if match)
    if named != LETTERS[: len(texts)]:
        return texts
    return tuple(_PREFIX.sub("", text, count=1) for text in texts)


def _list_cell(table: Table, row: int, column: str) -> tuple[list[object], tuple[str, ...] | None]:
    """The values of a list, a JSON list, a Python list, a mapping of names to texts; and their names, if any."""
    value = table.cell(row, column)
    if isinstance(value, str):
        value = _parsed(table, row, column, value)
    outer, _, last = column.rpartition(".")
    if isinstance(value, list | tuple) and outer and last == "text":
        names = table.cell(row, f"{outer}.label")
        named = isinstance(names, list | tuple) and len(names) == len(value)
        return list(value), tuple(map(plain_text, names)) if named and isinstance(names, list | tuple) else None
    if isinstance(value, Mapping):
        return _mapped(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return _listed([item for item in value if isinstance(item, Mapping)])
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{table.where(row)}: the options (column {column!r}) are not a list but "
            f"{plain_text(table.cell(row, column))[:60]!r}. "
            'Write them as a JSON list, such as ["yes", "no"], or name one column per option.'
        )
    return list(value), None


def _mapped(value: Mapping[object, object]) -> tuple[list[object], tuple[str, ...] | None]:
    """`{"text": [...], "label": [...]}`, or `{"A": "red", "B": "blue"}`."""
    texts, names = value.get("text"), value.get("label")
    if isinstance(texts, list | tuple):
        named = isinstance(names, list | tuple) and len(names) == len(texts)
        return list(texts), tuple(map(plain_text, names)) if named and isinstance(names, list | tuple) else None
    keys = sorted((str(key) for key, part in value.items() if part is not None), key=lambda key: (len(key), key))
    by_name = {str(key): part for key, part in value.items()}
    return [by_name[key] for key in keys], tuple(keys)


def _listed(items: Sequence[Mapping[object, object]]) -> tuple[list[object], tuple[str, ...] | None]:
    """`[{"label": "A", "text": "red"}, ...]`."""
    text_key = next((key for key in _TEXT_KEYS if all(key in item for item in items)), None)
    if text_key is None:
        return list(items), None
    name_key = next((key for key in _NAME_KEYS if key != text_key and all(key in item for item in items)), None)
    keys = tuple(plain_text(item[name_key]) for item in items) if name_key else None
    return [item[text_key] for item in items], keys


def _parsed(table: Table, row: int, column: str, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    if _glued(text.strip()):
        raise DataError(
            f"{table.where(row)}: the options (column {column!r}) have no commas between them: {text[:60]!r}. "
            f'NumPy prints lists so; write them as a JSON list, such as ["yes", "no"].'
        )
    return value


def _glued(text: str) -> bool:
    """Whether two strings stand side by side, which Python reads as one."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
    return any(a == b == tokenize.STRING for a, b in itertools.pairwise(kinds))


def _shape(value: object) -> str:
    return "bytes" if isinstance(value, bytes) else "named values" if isinstance(value, Mapping) else "a list"
