"""Task kind `labels`: every question is given one label of a fixed set.

Knows nothing of files, models or other kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from semievol_api.records import Example
from semievol_api.tasks.kind import TaskKind
from semievol_api.tasks.replies import comparable, find_answer

if TYPE_CHECKING:
    from semievol_api.tasks.definition import TaskDefinition


class Labels(TaskKind):
    """The canonical answer is a label as the task spells it."""

    opening = "You assign labels."
    instruction = "Choose the label that fits the text."
    answer_word = "LABEL"
    fixed_labels = True

    def fault(self, task: TaskDefinition) -> str | None:
        """A task file without labels is refused."""
        return "a task of kind 'labels' needs at least two labels" if len(task.labels) < 2 else None

    def listed(self, task: TaskDefinition, example: Example, order: Sequence[int] | None) -> str:
        """The labels on one line, in the task's order."""
        return f"Labels: {', '.join(task.labels)}"

    def labels(self, task: TaskDefinition, example: Example) -> tuple[str, ...] | None:
        """The task's labels."""
        return task.labels

    def parse(self, task: TaskDefinition, text: str, example: Example, order: Sequence[int] | None) -> str | None:
        """The label that a response names."""
        return _read_label(text, task.labels, task.aliases)

    def read_gold(self, task: TaskDefinition, cell: str, example: Example) -> str | None:
        """The label that a cell spells, in the task's spelling; the whole cell must be the label."""
        return _names(task.labels, task.aliases).get(comparable(cell))

    def why_refused(self, task: TaskDefinition, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        return f"is none of the task's labels: {', '.join(task.labels)}. Add it there, or as an alias."


_NEGATION = re.compile(r"\b(?:not|neither|nor|never|nicht|kein|pas|keine)\b|n't\b")


def _read_label(response: str, labels: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    """The label that a response names, in its canonical spelling; None where it names none or several."""
    claim = find_answer(response)
    if claim is None:
        return None
    names = _names(labels, aliases)
    lines = [claim.text] if claim.marked or "\n" not in claim.text else claim.text.split("\n")
    found = {label for label in (_read_claim_of_label(comparable(line), names) for line in lines) if label}
    return found.pop() if len(found) == 1 else None


def _names(labels: Sequence[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Comparable spelling to canonical label."""
    return {**{comparable(k): v for k, v in aliases.items()}, **{comparable(x): x for x in labels}}


def _read_claim_of_label(text: str, names: Mapping[str, str]) -> str | None:
    if text in names:
        return names[text]
    rest = text
    mentioned: list[str] = []
    for name in sorted(names, key=len, reverse=True):
        rest, count = re.subn(_whole(name), " \x00 ", rest)
        mentioned += [names[name]] * bool(count)
    if len(set(mentioned)) != 1 or _NEGATION.search(rest):
        return None
    return mentioned[0]


def _whole(name: str) -> str:
    """A pattern for the name as a whole word; scripts without spaces between words need no boundary."""
    if not name.isascii():
        return re.escape(name)
    return rf"(?<![\w.+\-]){re.escape(name)}(?![\w%]|[.,]\d|-\w)"
