"""Guess what a user's own file holds: which column is what, and which kind of task it is.

A guess is shown to the user and written into a task file, never acted on silently. Knows nothing of how a task
or a config file is worded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from semievol_api.data.cells import plain_text
from semievol_api.data.chats import chat_columns, read_chat, shared_instruction
from semievol_api.data.column_roles import roles_of
from semievol_api.data.doubts import NOTHING_TOLD, Told, refuse_no_header, without_placeholders
from semievol_api.data.examples import answer_cell, refuse_calls
from semievol_api.data.read_files import Table
from semievol_api.data.sources import read_source
from semievol_api.errors import DataError
from semievol_api.tasks import Columns
from semievol_api.tasks.kind_json import field_rules, read_object
from semievol_api.tasks.kind_number import NumberSettings, read_gold_number
from semievol_api.tasks.replies import comparable, exact

MAX_LABELS = 150
_NAMED_AT_MOST = 5
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
_COMMA = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+,\d+|\d+,(?:\d{1,2}|\d{4,})|(?:0|\d{4,}),\d+)(?![\d.,])")
_POINT = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+\.\d+|\d*\.(?:\d{1,2}|\d{4,})|\d{4,}\.\d+|0\.\d+)(?![\d.,])")
_UNCLEAR = re.compile(r"(?<![\d.,])\d{1,3}[.,]\d{3}(?![\d.,])")
_ONE_CLASS = {
    "yes": frozenset(("yes", "y", "true", "t", "1", "1.0")),
    "no": frozenset(("no", "n", "false", "f", "0", "0.0")),
}


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
    """Further keys of the task file, such as the template of the question or the fields of JSON answers."""


def understand(path: Path, *, question: str | None = None, answer: str | None = None) -> Understanding:
    """Guess kind, columns and labels of a file; its owner may name two columns.

    Raises:
        DataError: the file cannot be read, no column looks like a question, or a named one is not there.
    """
    return understood(read_source(path), question=question, answer=answer)[0]


def understood(
    table: Table, *, question: str | None = None, answer: str | None = None, told: Told = NOTHING_TOLD
) -> tuple[Understanding, Table]:
    """What a table holds, and the table with empty answers where the owner has said that a cell means no label.

    Raises:
        DataError: as `understand`; or only its owner can say something of it.
    """
    refuse_no_header(table, told)
    chats = chat_columns(table)
    if chats is not None and question in (None, chats.messages):
        return _understand_chats(table, chats), table
    roles = roles_of(table, question=question, answer=answer)
    columns, reasons = roles.columns, roles.reasons
    table, emptied = without_placeholders(table, columns.answer, told)
    if columns.answer is None and columns.options is None and (marks := _indicators(table, columns)):
        columns = columns.model_copy(update={"indicators": marks})
        reasons = (
            *(reason for reason in reasons if not reason.startswith("Not used: ")),
            f"Columns {', '.join(map(repr, marks))} hold 0 and 1: each is a label that a row has or has not.",
        )
    cells = _whole_numbers([answer_cell(table, row, columns) for row in range(len(table.rows))])
    found = _of_answers(table, columns, cells, reasons=(*reasons, *emptied))
    digit = roles.first_option_digit if found.kind == "multiple_choice" else 1
    template = {"prompt": roles.template} if roles.template else {}
    return replace(found, first_option_digit=digit, more={**template, **found.more}), table


def _whole_numbers(cells: Sequence[str]) -> list[str]:
    """The answers; whole numbers that a table writes as 1.0 are whole numbers."""
    whole = [_WHOLE_FLOAT.fullmatch(cell) for cell in cells if cell]
    return [match.group(1) if (match := _WHOLE_FLOAT.fullmatch(c)) else c for c in cells] if all(whole) else [*cells]


def _understand_chats(table: Table, columns: Columns) -> Understanding:
    """What a file of conversations holds: the reply is the answer, a system turn that all share the instruction."""
    refuse_calls(table, columns)
    chats = [read_chat(table, row, columns) for row in range(len(table.rows))]
    instruction, beginnings = shared_instruction(chats)
    found = _of_answers(table, columns, [(chat.reply or "").strip() for chat in chats])
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


def _of_answers(table: Table, columns: Columns, cells: Sequence[str], reasons: Sequence[str] = ()) -> Understanding:
    """Kind and labels from the text of every row's answer, empty where there is none."""
    answers = [cell for cell in cells if cell]
    kind, why = _kind(answers, has_options=columns.options is not None)
    labels, joined = joined_labels(answers) if kind == "labels" else ((), ())
    seen: tuple[str, ...] = ()
    more: dict[str, object] = {}
    if kind == "number":
        number, seen = _number_rules(table.source, answers)
        more |= {"number": number} if number else {}
    elif kind == "json":
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
        answer_counts=tuple(Counter(answers).most_common(10)),
        first_option_digit=1,
        reasons=(*reasons, why, *joined, *seen),
        more=more,
    )


def joined_labels(answers: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels that answers spell, each in its most frequent spelling, and sentences that say what was joined."""
    spelled: dict[str, dict[str, None]] = {}
    for label, _ in Counter(answers).most_common():  # the most frequent spelling stands for all
        spelled.setdefault(exact(label).casefold(), {})[label] = None
    several = [list(forms) for forms in spelled.values() if len(forms) > 1]
    unseen = [forms for forms in several if len({exact(form) for form in forms}) < len(forms)]
    cased = [forms for forms in several if len({exact(form) for form in forms}) > 1]
    told: list[str] = []
    if unseen:
        told.append(
            f"{len(unseen)} labels are written in several ways that look the same (bytes of accents, kinds of space), "
            f"such as {unseen[0][0]!r}: each is one label."
        )
    if cased:
        told.append(f"Spellings that differ by case are one label: {', '.join(map(repr, cased[0][:_NAMED_AT_MOST]))}.")
    labels = tuple(sorted(exact(next(iter(forms))) for forms in spelled.values()))
    return labels, (*told, *_alike(labels))


def _alike(labels: Sequence[str]) -> Iterator[str]:
    """One sentence per group of labels that may be one, with the lines that would join them."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        key = next((name for name, words in _ONE_CLASS.items() if label.casefold() in words), comparable(label))
        groups.setdefault(key, []).append(label)
    for group in groups.values():
        if len(group) > 1:
            first, *others = sorted(
                group, key=lambda label: (label not in _ONE_CLASS, not label.isalpha(), -len(label))
            )
            lines = "; ".join(
                f"{json.dumps(other, ensure_ascii=False)} = {json.dumps(first, ensure_ascii=False)}" for other in others
            )
            yield (
                f"Labels that may be one: {', '.join(map(repr, group))}. If so, take the others out of `labels` in "
                f"task.toml and write under [aliases]: {lines}"
            )


def _number_rules(source: str, answers: Sequence[str]) -> tuple[dict[str, object], tuple[str, ...]]:
    """What the numbers of a column show of how they are written, and sentences that tell it.

    Raises:
        DataError: some have a decimal comma, others a decimal point.
    """
    behind = sum("####" in cell for cell in answers)
    answers = [cell.rpartition("####")[2].strip() for cell in answers]
    comma = next((cell for cell in answers if _COMMA.search(cell)), None)
    point = next((cell for cell in answers if _POINT.search(cell)), None)
    if comma is not None and point is not None:
        raise DataError(
            f"{source}: the answer {comma!r} has a decimal comma and {point!r} a decimal point, so that a number such "
            f"as 1,234 could be either. Write all answers in one way."
        )
    told = [f"Answers such as {comma!r} have a decimal comma: see [number] in task.toml."] if comma is not None else []
    if comma is None and point is None:
        unclear = next((cell for cell in answers if _UNCLEAR.search(cell)), None)
        if unclear is not None:
            read = read_gold_number(unclear, NumberSettings())
            told.append(f'{unclear!r} is read as {read}. If it is not, set decimal = "," under [number] in task.toml.')
    told += [f"{behind} answers end with #### and a number: that number is the answer."] if behind else []
    percents = sum("%" in cell for cell in answers)
    told += ['15% is read as 0.15: see `percent` in task.toml ("points": 15).'] if percents else []
    return ({"decimal": ","} if comma is not None else {}), tuple(told)


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


def _indicators(table: Table, columns: Columns) -> tuple[str, ...]:
    """Two columns or more that hold 0 and 1 and nothing else, and have no other role."""
    taken = {value for value in columns.model_dump().values() if isinstance(value, str)}
    held = {
        column: {plain_text(row.get(column)).casefold() for row in table.rows} - {""}
        for column in table.columns
        if column not in taken
    }
    found = [column for column, cells in held.items() if cells in ({"0", "1"}, {"0.0", "1.0"}, {"true", "false"})]
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
    if sum("####" in answer for answer in answers) > 0.5 * len(answers):
        return "number", "The answers end with #### and a number, so answers count as right within 1 %."
    numeric = sum(read_gold_number(a, NumberSettings()) is not None for a in answers) / len(answers)
    worded = all(any(c.isalpha() for c in a) for a in distinct)
    if few and (numeric < 0.95 or worded or all(a.lstrip("+-").isdecimal() for a in distinct)):
        why = f"The answers are {len(distinct)} repeated values, so they are labels."
        if all(a.lstrip("+-").isdecimal() for a in distinct):
            why += " They are numbers: write into the task's instruction what each of them means."
        return "labels", why
    if numeric >= 0.95:
        return "number", "Nearly all answers are numbers, so answers count as right within 1 %."
    return (
        "free_text",
        f"There are {len(distinct)} different answers in {len(answers)} rows, so the task is free text.",
    )
