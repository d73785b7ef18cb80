"""Task kind `label_set`: every question is given any number of labels of a fixed set.

Each label is a field that is there or not, so agreement and confidence are told label by label. Knows nothing of
files, models or other kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from semievol_api.config.method import Settings
from semievol_api.records import Example
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks.kind import TaskKind
from semievol_api.tasks.kind_labels import Labels
from semievol_api.tasks.replies import find_answer

if TYPE_CHECKING:
    from semievol_api.tasks.definition import TaskDefinition

_NOBODY = Example(id="", question="")
_CHOSEN = "yes"
_MARKER = re.compile(r"(?<![a-z])answer[\s*_]*:", re.IGNORECASE)


@fingerprinted("separator", "none", "pool")
class LabelSetSettings(Settings):
    """`[label_set]`: how several labels are written."""

    separator: str = Field(default=" | ", min_length=1)
    """Stands between two labels; `json` for a JSON list."""
    none: str = Field(default="none", min_length=1)
    """Says that no label fits."""
    pool: Literal["weakest", "product"] = "weakest"
    """The confidence of an answer: that of its least certain label, or the product over all labels."""


class LabelSet(Labels):
    """The canonical answer is the labels in the task's order, joined by its separator."""

    instruction = "Choose all labels that fit the text."
    answer_word = "LABELS"
    fixed_labels = False

    def fault(self, task: TaskDefinition) -> str | None:
        """A task file with too few labels, or with one that could not be told from several, is refused."""
        separator = task.label_set.separator.strip() or task.label_set.separator
        if not task.labels:
            return "a task of kind 'label_set' needs at least one label"
        torn = next((label for label in task.labels if separator in label and separator != "json"), None)
        if torn is not None:
            return f"the label {torn!r} holds the separator {separator!r}; set another one: [label_set] separator"
        if task.label_set.none in task.labels:
            return f"{task.label_set.none!r} is a label and also says that no label fits: set [label_set] none"
        alone = {label: self.joined(task, {label: _CHOSEN}) for label in task.labels}
        unread = next((label for label in alone if self._read(task, alone[label], _NOBODY) != alone[label]), None)
        return None if unread is None else f"the label {unread!r} cannot be read back from a reply; write it in words"

    def listed(self, task: TaskDefinition, example: Example, order: Sequence[int] | None) -> str:
        """The labels on one line, and how several are written."""
        how = (
            "as a JSON list" if task.label_set.separator == "json" else f"as in: {task.label_set.separator.join('AB')}"
        )
        return f"{super().listed(task, example, order)}\n\nSeveral may fit: write them {how}. None fits: {_none(task)}"

    def labels(self, task: TaskDefinition, example: Example) -> tuple[str, ...] | None:
        """None: sets of labels are no short list of answers."""
        return None

    def parse(self, task: TaskDefinition, text: str, example: Example, order: Sequence[int] | None) -> str | None:
        """The labels that a response names; None where it names anything else."""
        last = _MARKER.split(text)[-1].strip()
        found = find_answer(text)
        claims = (last.partition("\n")[0], found.text if found else "")
        return next((answer for claim in claims if (answer := self._read(task, claim, example))), None)

    def read_gold(self, task: TaskDefinition, cell: str, example: Example) -> str | None:
        """The labels of a cell."""
        return self._read(task, cell, example)

    def why_refused(self, task: TaskDefinition, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        return f"names something beside the task's labels: {', '.join(task.labels)}. Add it there, or as an alias."

    def equal(self, task: TaskDefinition, answer: str, gold: str) -> bool:
        """The same labels."""
        return answer == gold

    def fields(self, task: TaskDefinition) -> tuple[str, ...]:
        """The labels."""
        return task.labels

    def parts(self, task: TaskDefinition, answer: str) -> Mapping[str, str]:
        """The chosen labels."""
        if answer == _none(task):
            return {}
        separator = task.label_set.separator
        return dict.fromkeys(json.loads(answer) if separator == "json" else answer.split(separator), _CHOSEN)

    def joined(self, task: TaskDefinition, parts: Mapping[str, str]) -> str:
        """Such labels in the task's order."""
        chosen = [label for label in task.labels if label in parts]
        if not chosen:
            return _none(task)
        separator = task.label_set.separator
        return json.dumps(chosen, ensure_ascii=False) if separator == "json" else separator.join(chosen)

    def values(self, task: TaskDefinition, field: str) -> tuple[str, ...]:
        """A label is there or not."""
        return (_CHOSEN, TaskKind.absent)

    def weakest(self, task: TaskDefinition) -> bool:
        """As `[label_set] pool` says."""
        return task.label_set.pool == "weakest"

    def spans(self, task: TaskDefinition, text: str) -> Mapping[str, tuple[int, int]]:
        """Where each label stands in a response, the last time; a label inside a longer one is none."""
        free, found = text, dict[str, tuple[int, int]]()
        for label in sorted(task.labels, key=len, reverse=True):
            at = free.rfind(label)
            if at >= 0:
                found[label] = (at, at + len(label))
                free = free[:at] + "\x00" * len(label) + free[at + len(label) :]
        return found

    def _read(self, task: TaskDefinition, text: str, example: Example) -> str | None:
        """The canonical answer that a text is: a JSON list, one label, or several with the task's separator."""
        if text.strip() in (task.label_set.none, _none(task), "[]"):
            return _none(task)
        pieces = _listed(text)
        separator = task.label_set.separator.strip() or task.label_set.separator
        if pieces is None:
            whole = super().read_gold(task, text, example)
            pieces = [whole] if whole else text.split("," if separator == "json" else separator)
        chosen = [super(LabelSet, self).read_gold(task, piece.strip(), example) for piece in pieces]
        known = [label for label in chosen if label]
        return self.joined(task, dict.fromkeys(known, _CHOSEN)) if known and len(known) == len(chosen) else None


def _none(task: TaskDefinition) -> str:
    return "[]" if task.label_set.separator == "json" else task.label_set.none


def _listed(text: str) -> list[str] | None:
    """The members of a JSON list of texts; None for any other text."""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return [str(one) for one in found] if isinstance(found, list) else None
