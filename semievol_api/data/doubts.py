"""What a file does not say by itself, and its owner must: whether it has a header, and which cells mean "no label".

Each doubt is refused with the flag of `semievol init` that settles it. Knows nothing of kinds of task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semievol_api.data.cells import plain_text
from semievol_api.data.delimited import PLAIN, FileFormat
from semievol_api.data.read_files import Table
from semievol_api.errors import DataError

_PLACEHOLDERS = ("-1", "-1.0", "nan", "null", "unlabelled", "unlabeled", "?", "todo", "<na>", "nat")
_CODE = ("-1", "-1.0")
_MOSTLY = 0.4
"""The share of rows from which on a -1 beside 0 and 1 is asked about; below, it is a class, as in -1, 0, 1."""
_COMMON_NAMES = frozenset(
    (
        "id",
        "text",
        "label",
        "labels",
        "question",
        "answer",
        "query",
        "sentence",
        "review",
        "input",
        "output",
        "prompt",
        "completion",
        "title",
        "body",
        "content",
        "message",
        "class",
        "category",
        "target",
        "gold",
        "score",
        "rating",
        "options",
        "choices",
        "premise",
        "hypothesis",
        "context",
        "passage",
    )
)


@dataclass(frozen=True, slots=True)
class Told:
    """What the owner says of a file: how its text is written, whether it has a header, what stands for no label.

    `placeholder` is None where nothing was told, and empty where nothing stands for it.
    """

    format: FileFormat = PLAIN
    header: bool = False
    placeholder: str | None = None


NOTHING_TOLD = Told()


class PlaceholderError(DataError):
    """Cells that may mean that a row has no label; `value` is what they hold."""

    def __init__(self, message: str, value: str) -> None:
        super().__init__(message)
        self.value = value


def refuse_no_header(table: Table, told: Told) -> None:
    """Refuse a delimited file whose first line looks like the lines below it.

    Raises:
        DataError: it does.
    """
    delimited = Path(table.source).suffix.lower() in (".csv", ".tsv")
    if not delimited or told.header or told.format.names or not table.rows:
        return
    if any(name.strip().casefold().replace(" ", "_") in _COMMON_NAMES for name in table.columns):
        return
    alike = next((name for name in table.columns if _is_value_of(table, name)), None)
    if alike is not None:
        names = ",".join(f"name{place}" for place in range(1, len(table.columns) + 1))
        raise DataError(
            f"{table.source}: the first line looks like data and not like a header: {alike!r} stands among the values "
            f"of its column. Name the columns with --names {names}, such as --names question,A,B,C,D,answer; or add "
            f"--header if the first line does name them."
        )


def _is_value_of(table: Table, name: str) -> bool:
    """Whether a column's name is one of its few values, or a number above numbers."""
    cells = [plain_text(row[name]) for row in table.rows]
    known = Counter(cells)
    if known[name] and (len(known) <= 20 or 3 * len(known) <= len(cells)):
        return True
    return _is_number(name) and sum(map(_is_number, cells)) > 0.9 * len(cells)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def without_placeholders(table: Table, answer: str | None, told: Told) -> tuple[Table, tuple[str, ...]]:
    """The table with empty cells where the answer says that there is none, and sentences that tell it.

    Raises:
        PlaceholderError: some cells may mean that, and the owner has not said whether they do.
    """
    if answer is None or told.placeholder == "":
        return table, ()
    cells = [plain_text(_cell(table, row, answer)) for row in range(len(table.rows))]
    counts = Counter(cell for cell in cells if cell)
    if told.placeholder is not None:
        return _emptied(table, answer, cells, told.placeholder)
    for value, count in counts.items():
        if value.casefold() not in _PLACEHOLDERS or len(counts) < 3 or (value in _CODE and _signed(counts)):
            continue
        if _rather_a_class(value, counts, len(cells)):
            remark = f"{value!r} is taken for a class. If it means that a row has no label: --placeholder {value}"
            return table, (remark,)
        raise PlaceholderError(
            f"{table.source}: {count} of {len(cells)} answers (column {answer!r}) are {value!r}, which often means "
            f"that a row has no label. Say --placeholder {value} if it does (those rows are the unlabelled part), or "
            f"--no-placeholder if it is a class like the others.",
            value,
        )
    return table, ()


def _rather_a_class(value: str, counts: Counter[str], rows: int) -> bool:
    """-1, 0, 1 in like shares are a sentiment; a question mark among other signs is one of them."""
    others = set(counts) - {value}
    if value in _CODE:
        return others <= {"0", "1", "0.0", "1.0"} and counts[value] < _MOSTLY * rows
    return value == "?" and not any(sign.isalnum() for other in others for sign in other)


def _signed(counts: Counter[str]) -> bool:
    """Whether other codes carry a sign: then -1 is one of them."""
    return any(cell[0] in "-+" and cell not in _CODE and _is_number(cell) for cell in counts)


def _emptied(table: Table, answer: str, cells: Sequence[str], value: str) -> tuple[Table, tuple[str, ...]]:
    if value not in cells:
        raise DataError(f"{table.source}: no answer (column {answer!r}) is {value!r}, which --placeholder names.")
    if answer not in table.columns:
        raise DataError(f"{table.source}: --placeholder needs a column of its own for the answer, not {answer!r}.")
    rows = tuple({**row, answer: None} if cell == value else row for row, cell in zip(table.rows, cells, strict=True))
    count = sum(cell == value for cell in cells)
    return replace(table, rows=rows), (f"{count} answers are {value!r}: those rows have no label.",)


def _cell(table: Table, row: int, column: str) -> object:
    value = table.cell(row, column)
    return None if isinstance(value, list | dict) else value
