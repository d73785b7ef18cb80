"""Reads back what a person answered: a filled-in review queue, or the `review.jsonl` of `semievol review`.

Knows nothing of how the questions were chosen or what becomes of the answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from semievol_api.data.leaked_keys import mask_keys
from semievol_api.errors import DataError
from semievol_api.records import Example
from semievol_api.tasks import Task


def read_reviewed(path: Path, task: Task, unlabeled: Sequence[Example]) -> Mapping[str, str]:
    """Answers by example id, in the task's canonical form; rows whose answer is empty were left out by the person.

    Raises:
        DataError: the file cannot be read, or a line is no object, names no unlabelled example or no possible answer.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The reviewed file {str(path)!r} cannot be read: {error}.") from None
    standing = list(_standing(path, lines))
    named = {name for _, name, _ in standing}
    known = {e.id: e for e in unlabeled if e.id in named}
    answers: dict[str, str] = {}
    for number, name, cell in standing:
        answer = task.read_gold(cell, known[name]) if name in known else None
        if answer is None:
            raise DataError(
                f"{path.name}, line {number}: {cell!r} is no answer to the unlabelled example {name!r}. Take ids and "
                f"options from review_queue.jsonl, and leave `answer` empty where you do not know."
            )
        answers[name] = answer
    return answers


def _standing(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Line, id and answer of what holds in the end: a later line replaces an earlier one, an undo takes back one."""
    said: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, cell, action = _row(path, number, mask_keys(line))
        if action == "undo":
            said[name] = said.get(name, [])[:-1]
        elif cell or action:
            said.setdefault(name, []).append((number, cell))
    for name, stack in said.items():
        if stack and stack[-1][1]:
            yield stack[-1][0], name, stack[-1][1]


def _row(path: Path, number: int, line: str) -> tuple[str, str, str]:
    """Id, answer and, in a `review.jsonl`, what was done."""
    try:
        row = json.loads(line)
        name = row["example_id"] if "action" in row else row["id"]
        return str(name), str(row.get("answer") or "").strip(), str(row.get("action") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path.name}, line {number} is no JSON object with an `id` and an `answer`. Each line of the queue looks "
            f'like {{"id": "q1", "question": "...", "answer": ""}}.'
        ) from None
