"""Guess what a user's own file holds: which column is what, and which kind of task it is.

A guess is shown to the user and written into a task file, never acted on silently. Knows nothing of how a task
or a config file is worded.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from semievol_api.data.chats import chat_columns, read_chat, shared_instruction
from semievol_api.data.examples import answer_cell, refuse_calls
from semievol_api.data.read_files import Table
from semievol_api.data.sources import read_source
from semievol_api.errors import DataError
from semievol_api.tasks import Columns
from semievol_api.tasks.kind import LETTERS
from semievol_api.tasks.kind_json import field_rules, read_object
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
    more: Mapping[str, object] = field(default_factory=dict[str, object])
    """Further keys of the task file, such as the fields of JSON answers."""


def understand(path: Path, *, question: str | None = None, answer: str | None = None) -> Understanding:
    """Guess kind, columns and labels of a file; its owner may name two columns.

    Raises:
        DataError: the file cannot be read, no column looks like a question, or a named one is not there.
    """
    table = read_source(path)
    for named in (question, answer):
        if named is not None and named not in table.columns:
            raise DataError(f"{table.source} has no column {named!r}. Its columns: {', '.join(table.columns)}.")
    chats = chat_columns(table)
    if chats is not None and question in (None, chats.messages):
        return _understand_chats(table, chats)
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
    if answer is None and options is None:
        columns = columns.model_copy(update={"indicators": _indicators(table, taken)})
    return _understood(table, columns, [answer_cell(table, row, columns) for row in range(len(table.rows))])


def _understand_chats(table: Table, columns: Columns) -> Understanding:
    """What a file of conversations holds: the reply is the answer, a system turn that all share the instruction."""
    refuse_calls(table, columns)
    chats = [read_chat(table, row, columns) for row in range(len(table.rows))]
    instruction, beginnings = shared_instruction(chats)
    found = _understood(table, columns, [(chat.reply or "").strip() for chat in chats])
    if instruction:
        why = "All conversations begin with the same system turn: it is the task's instruction."
    elif beginnings > 1 or chats[0].turns[0].role != "user":
        why = f"Conversations have {beginnings} different beginnings: each keeps its own, and the instruction is empty."
    else:
        why = "There is no system turn, so the instruction is empty."
    shown = (
        f"Column {columns.messages!r} holds conversations, which a model is shown as they are; the reply is the answer."
    )
    last = found.reasons[-1]
    if found.kind == "free_text":
        last += (
            " Free replies are ranked by how likely the model finds them (mode paper): no two are alike, so nothing "
            "is promised, and accuracy counts replies that match word for word."
        )
    return replace(found, reasons=(shown, why, last), more={"instruction": instruction, **found.more})


def _understood(table: Table, columns: Columns, cells: Sequence[str]) -> Understanding:
    """Kind and labels from the text of every row's answer, empty where there is none."""
    answers = [cell for cell in cells if cell]
    kind, why = _kind(answers, has_options=columns.options is not None)
    counts = Counter(answers).most_common()
    spelled: dict[str, str] = {}
    for label, _ in counts:  # the most frequent spelling stands for all
        spelled.setdefault(label.casefold(), label)
    labels = tuple(sorted(spelled.values())) if kind == "labels" else ()
    more: dict[str, object] = {}
    if kind == "json":
        objects = [found for answer in answers if (found := read_object(answer)) is not None]
        more["json"] = {"fields": field_rules(objects), **_style(answers)}
    elif kind == "label_set":
        separator, sets = label_sets(answers) or ("json", [])
        alone = {one[0] for one in sets if len(one) == 1} - {label for one in sets if len(one) > 1 for label in one}
        nothing = {"none"} & alone  # how a file says that no label fits
        labels = columns.indicators or tuple(sorted({label for one in sets for label in one} - nothing))
        more["label_set"] = {"separator": " | " if columns.indicators else separator}
    return Understanding(
        source=table.source,
        rows=len(table.rows),
        answered=len(answers),
        kind=kind,
        columns=columns,
        labels=labels,
        answer_counts=tuple(counts[:10]),
        first_option_digit=0 if kind == "multiple_choice" and "0" in dict(counts) else 1,
        reasons=(*_column_reasons(columns), why),
        more=more,
    )


def _style(answers: Sequence[str]) -> dict[str, str]:
    """How most of the JSON answers are written, where that is not the usual way."""
    indented = sum("\n" in answer for answer in answers)
    compact = sum(": " not in answer and ":" in answer for answer in answers)
    if 2 * indented > len(answers):
        return {"style": "indented"}
    return {"style": "compact"} if 2 * compact > len(answers) else {}


def label_sets(answers: Sequence[str]) -> tuple[str, list[list[str]]] | None:
    """How sets of labels are written, and the sets; None where the answers are none.

    They are JSON lists of texts, or texts with `|` or `;` between few pieces that come again and again.
    """
    lists = [_json_list(answer) for answer in answers]
    if answers and all(one is not None for one in lists):
        return "json", [one for one in lists if one is not None]
    for mark in ("|", ";"):
        sets = [[piece.strip() for piece in answer.split(mark)] for answer in answers]
        pieces = {piece for one in sets for piece in one}
        several = sum(len(one) > 1 for one in sets)
        if several and "" not in pieces and len(pieces) <= MAX_LABELS and len(answers) >= 2 * len(pieces):
            return Counter(re.findall(rf"\s*{re.escape(mark)}\s*", "\n".join(answers))).most_common(1)[0][0], sets
    return None


def _json_list(answer: str) -> list[str] | None:
    try:
        found = json.loads(answer)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) and one for one in found) else None


def _indicators(table: Table, taken: Container[str | None]) -> tuple[str, ...]:
    """Two columns or more that hold 0 and 1 and nothing else."""
    found = [
        column
        for column in table.columns
        if column not in taken
        and {str(row.get(column)).casefold() for row in table.rows if _filled(row.get(column))}
        in ({"0", "1"}, {"0.0", "1.0"}, {"true", "false"})
    ]
    return tuple(found) if len(found) > 1 else ()


def _kind(answers: Sequence[str], *, has_options: bool) -> tuple[str, str]:
    if has_options:
        return "multiple_choice", "There are options, so the task is multiple choice."
    objects = [read_object(answer) for answer in answers]
    if answers and all(found is not None for found in objects) and any(objects):
        rules = field_rules(found for found in objects if found)
        named = ", ".join(f"{name} ({rule})" for name, rule in rules.items())
        return "json", f"The answers are JSON objects; their fields and how they are compared: {named}."
    sets = label_sets(answers)
    if sets is not None:
        return "label_set", f"The answers are sets of {len({label for one in sets[1] for label in one})} labels."
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
        elif value:
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
    answer = _named(table, "answer", set())
    if named is not None:
        return f"{named}.text" if _mostly(table, named, _has_texts) else named
    folded = {column.casefold(): column for column in table.columns}
    for series in _OPTION_SERIES:
        found = [folded[name] for name in series if name in folded]
        if len(found) >= 2 and [name.casefold() for name in found] == list(series[: len(found)]):
            return tuple(found)
    return next((c for c in table.columns if c != answer and _mostly(table, c, _is_list)), None)


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


def _filled(value: object) -> bool:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return not missing and bool(str(value).strip())
