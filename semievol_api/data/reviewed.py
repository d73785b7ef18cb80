"""Reads back what a person answered to the questions of a review queue.

Knows nothing of how the questions were chosen or what becomes of the answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    known = {e.id: e for e in unlabeled}
    answers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, cell = _row(path, number, mask_keys(line))
        if not cell:
            continue
        answer = task.read_gold(cell, known[name]) if name in known else None
        if answer is None:
            raise DataError(
                f"{path.name}, line {number}: {cell!r} is no answer to the unlabelled example {name!r}. Take ids and "
                f"options from review_queue.jsonl, and leave `answer` empty where you do not know."
            )
        answers[name] = answer
    return answers


def _row(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        return str(row["id"]), str(row.get("answer") or "").strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path.name}, line {number} is no JSON object with an `id` and an `answer`. Each line of the queue looks "
            f'like {{"id": "q1", "question": "...", "answer": ""}}.'
        ) from None
