"""Guess what a user's own file holds: which column is what, and which kind of task it is.

A guess is shown to the user and written into a task file, never acted on silently. Knows nothing of how a task
or a config file is worded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semievol_api.data.read_files import Table
from semievol_api.data.sources import read_source
from semievol_api.errors import DataError
from semievol_api.tasks import Columns
from semievol_api.tasks.kind import LETTERS
from semievol_api.tasks.kind_number import NumberSettings, read_number

_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "uid", "qid", "question_id", "example_id", "row_id", "guid"),
    "question": (
        "question", "query", "text", "sentence", "input", "prompt", "review", "content", "message", "title",
    ),
    "answer": (
        "answer", "label", "gold", "target", "output", "class", "sentiment", "answerkey", "answer_idx", "correct",
        "gold_answer", "final_decision", "response", "y",
    ),
    "context": ("context", "passage", "article", "abstract", "document", "background"),
    "options": ("options", "choices", "candidates", "alternatives", "endings"),
    "group": ("group", "article_id", "conversation_id", "dialogue_id", "passage_id", "document_id"),
    "category": ("category", "subject", "topic", "domain", "field"),
}  # fmt: skip
_OPTION_SERIES = tuple(
    tuple(f"{stem}{mark}" for mark in marks)
    for stem in (
        "",
        "option_",
        "option",
        "option ",
        "choice_",
        "choice",
        "choice ",
        "opt_",
        "opt",
        "answer_",
        "answer",
    )
    for marks in (LETTERS.lower(), "123456789", "0123456789")
    if stem or marks == LETTERS.lower()
)
MAX_LABELS = 150


@dataclass(frozen=True, slots=True)
class Understanding:
    """What a file seems to hold. `reasons` are sentences for its owner."""

    source: str
    rows: int
    answered: int
    kind: str
    columns: Columns
    labels: tuple[str, ...]
    answer_counts: tuple[tuple[str, int], ...]
    """The most frequent answers as the file writes them, most frequent first, at most ten."""
    first_option_digit: int
    reasons: tuple[str, ...]


def understand(path: Path, *, question: str | None = None, answer: str | None = None) -> Understanding:
    """Guess kind, columns and labels of a file; its owner may name two columns.

    Raises:
        DataError: the file cannot be read, no column looks like a question, or a named one is not there.
    """
    table = read_source(path)
    for named in (question, answer):
        if named is not None and named not in table.columns:
            raise DataError(f"{table.source} has no column {named!r}. Its columns: {', '.join(table.columns)}.")
    options = _options(table)
    taken: set[str | None] = {options} if isinstance(options, str) else set(options or ())
    answer = answer or _named(table, "answer", taken | {question})
    question = question or _question(table, taken | {answer})
    taken |= {answer, question}
    columns = Columns(
        question=question,
        options=options,
        answer=answer,
        context=_named(table, "context", taken),
        id=_unique(table, _named(table, "id", taken)),
        group=_named(table, "group", taken),
        category=_named(table, "category", taken),
    )
    answers = _answers(table, answer)
    kind, why = _kind(answers, has_options=options is not None)
    counts = Counter(answers).most_common()
    spelled: dict[str, str] = {}
    for label, _ in counts:  # the most frequent spelling stands for all
        spelled.setdefault(label.casefold(), label)
    return Understanding(
        source=table.source,
        rows=len(table.rows),
        answered=len(answers),
        kind=kind,
        columns=columns,
        labels=tuple(sorted(spelled.values())) if kind == "labels" else (),
        answer_counts=tuple(counts[:10]),
        first_option_digit=0 if kind == "multiple_choice" and "0" in dict(counts) else 1,
        reasons=(*_column_reasons(columns), why),
    )


def is_answered(table: Table, row: int, column: str | None) -> bool:
    """Whether a row has an answer."""
    return bool(column and _filled(table.cell(row, column)))


def _kind(answers: Sequence[str], *, has_options: bool) -> tuple[str, str]:
    if has_options:
        return "multiple_choice", "There are options, so the task is multiple choice."
    distinct = Counter(answer.casefold() for answer in answers)
    if not distinct:
        return "free_text", "No row has an answer, so the task could not be told: free text is only a default."
    if len(distinct) == 1 < len(answers):
        return "free_text", f"All {len(answers)} answers are {answers[0]!r}: is it the right column? (--answer COLUMN)"
    few = 2 <= len(distinct) <= MAX_LABELS and len(answers) >= 3 * len(distinct)
    numeric = sum(read_number(f"Answer: {a}", NumberSettings()) is not None for a in answers) / len(answers)
    worded = all(any(c.isalpha() for c in a) for a in distinct)
    if few and (numeric < 0.95 or worded or all(a.lstrip("-").isdecimal() for a in distinct)):
        why = f"The answers are {len(distinct)} repeated values, so they are labels."
        if all(a.lstrip("-").isdecimal() for a in distinct):
            why += " They are numbers: write into the task's instruction what each of them means."
        return "labels", why
    if numeric >= 0.95:
        return "number", "Nearly all answers are numbers, so answers count as right within 1 %."
    return (
        "free_text",
        f"There are {len(distinct)} different answers in {len(answers)} rows, so the task is free text.",
    )


def _column_reasons(columns: Columns) -> tuple[str, ...]:
    reasons: list[str] = []
    for role, value in columns.model_dump().items():
        if isinstance(value, str):
            reasons.append(f"Column {value!r} holds the {role}.")
        elif value is not None:
            reasons.append(f"Columns {', '.join(map(repr, value))} hold the {role}.")
    return tuple(reasons)


def _named(table: Table, role: str, taken: Container[str | None]) -> str | None:
    """The first column with one of the role's usual names."""
    by_name = {column.strip().casefold().replace(" ", "_"): column for column in table.columns}
    return next((by_name[n] for n in _NAMES[role] if n in by_name and by_name[n] not in taken), None)


def _question(table: Table, taken: Container[str | None]) -> str:
    """The column with a usual name, else the one with the longest texts."""
    named = _named(table, "question", taken)
    if named is not None:
        return named
    lengths = {
        column: sum(len(str(row.get(column) or "")) for row in table.rows)
        for column in table.columns
        if column not in taken and any(isinstance(row.get(column), str) for row in table.rows)
    }
    if not lengths:
        raise DataError(
            f"{table.source} has no column that looks like a question. Its columns: {', '.join(table.columns)}. "
            "Rename one to 'question', or write a task file by hand (docs/tasks.md)."
        )
    return max(lengths, key=lambda column: lengths[column])


def _options(table: Table) -> str | tuple[str, ...] | None:
    named = _named(table, "options", set())
    if named is not None:
        return f"{named}.text" if _mostly(table, named, _has_texts) else named
    folded = {column.casefold(): column for column in table.columns}
    for series in _OPTION_SERIES:
        found = [folded[name] for name in series if name in folded]
        if len(found) >= 2 and [name.casefold() for name in found] == list(series[: len(found)]):
            return tuple(found)
    return next((c for c in table.columns if _mostly(table, c, _is_list)), None)


def _mostly(table: Table, column: str, test: Callable[[object], bool]) -> bool:
    sample = [row.get(column) for row in table.rows[:50]]
    return sum(map(test, sample)) > 0.8 * len(sample)


def _has_texts(value: object) -> bool:
    return isinstance(value, Mapping) and "text" in value


def _is_list(value: object) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return False
    return isinstance(value, list) and len(value) > 1


def _unique(table: Table, column: str | None) -> str | None:
    """An id column whose values repeat is none."""
    values = [row.get(column) for row in table.rows] if column else []
    return column if column and all(map(_filled, values)) and len(set(map(str, values))) == len(values) else None


def _answers(table: Table, column: str | None) -> list[str]:
    rows = range(len(table.rows))
    return [str(table.cell(row, column)).strip() for row in rows if column and is_answered(table, row, column)]


def _filled(value: object) -> bool:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return not missing and bool(str(value).strip())
