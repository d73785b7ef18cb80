"""Task kind `labels`: every question is given one label of a fixed set.

Knows nothing of files, models or other kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from semievol_api.records import Example
from semievol_api.tasks.kind import TaskKind
from semievol_api.tasks.replies import as_written, comparable, exact, find_answer

if TYPE_CHECKING:
    from semievol_api.tasks.definition import TaskDefinition


class Labels(TaskKind):
    """The canonical answer is a label as the task spells it."""

    opening = "You assign labels."
    instruction = "Choose the label that fits the text."
    answer_word = "LABEL"
    fixed_labels = True

    def fault(self, task: TaskDefinition) -> str | None:
        """A task file without labels is refused, and one with a label that is read as another or not at all."""
        if len(task.labels) < 2:
            return "a task of kind 'labels' needs at least two labels"
        return _fault_of_labels(task.labels, tuple(task.aliases.items()))

    def listed(self, task: TaskDefinition, example: Example, order: Sequence[int] | None) -> str:
        """The labels on one line, in the task's order."""
        return f"Labels: {', '.join(task.labels)}"

    def labels(self, task: TaskDefinition, example: Example) -> tuple[str, ...] | None:
        """The task's labels."""
        return task.labels

    def parse(self, task: TaskDefinition, text: str, example: Example, order: Sequence[int] | None) -> str | None:
        """The label that a response names."""
        return _read_label(text, task.labels, tuple(task.aliases.items()))

    def read_gold(self, task: TaskDefinition, cell: str, example: Example) -> str | None:
        """The label that a cell spells, in the task's spelling; the whole cell must be the label."""
        return _spellings(task.labels, tuple(task.aliases.items())).label_of(cell)

    def why_refused(self, task: TaskDefinition, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        return f"is none of the task's labels: {', '.join(task.labels)}. Add it there, or as an alias."


_NEGATION = re.compile(
    r"\b(?:not|neither|nor|never|nicht|kein|pas|keine)\b|n't\b|\b(?:no|non|without|zero)\b[\s-]+(?:\w+\s+)?\x00"
)
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
_Aliases: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Spellings:
    """What spells which label: letter by letter, but for case, and in the form that replies are compared in.

    A key of the last two that several labels share stands there with all of them.
    """

    exact: Mapping[str, str]
    cased: Mapping[str, frozenset[str]]
    loose: Mapping[str, frozenset[str]]

    def label_of(self, text: str) -> str | None:
        """The label that the whole text spells: exactly, else by the first folding that leaves one."""
        written = exact(text)
        if written in self.exact:
            return self.exact[written]
        whole = _WHOLE_FLOAT.fullmatch(written)
        if whole and whole.group(1) in self.exact:  # 1.0 is how tables write a 1 beside an empty cell
            return self.exact[whole.group(1)]
        return self._folded(written.casefold(), comparable(written))

    def _folded(self, cased: str, loose: str) -> str | None:
        for table, key in ((self.cased, cased), (self.loose, loose)):
            found = table.get(key, frozenset())
            if found:
                return next(iter(found)) if len(found) == 1 else None
        return None


@lru_cache(maxsize=64)
def _spellings(labels: tuple[str, ...], aliases: _Aliases) -> _Spellings:
    names = {**{exact(name): label for name, label in aliases}, **{exact(label): label for label in labels}}
    cased: dict[str, frozenset[str]] = {}
    loose: dict[str, frozenset[str]] = {}
    for name, label in names.items():
        for table, key in ((cased, name.casefold()), (loose, comparable(name))):
            if key:
                table[key] = table.get(key, frozenset()) | {label}
    return _Spellings(names, cased, loose)


@lru_cache(maxsize=64)
def _fault_of_labels(labels: tuple[str, ...], aliases: _Aliases) -> str | None:
    """The first two labels that a reply cannot tell apart, as a sentence without its full stop."""
    seen: dict[str, str] = {}
    for label in labels:
        twin = seen.setdefault(exact(label), label)
        if twin != label:
            return (
                f"the labels {twin!r} and {label!r} differ only in bytes or spaces that nobody sees; keep one of them"
            )
    for label in labels:
        read = _read_label(f"Answer: {label}", labels, aliases)
        if read is None:
            return f"the label {label!r} cannot be read back from the reply 'Answer: {label}'; write it in words"
        if read != label:
            return (
                f"the labels {label!r} and {read!r} cannot be told apart: the reply 'Answer: {label}' is read as "
                f"{read!r}; write them in words"
            )
    return None


def _read_label(response: str, labels: tuple[str, ...], aliases: _Aliases) -> str | None:
    """The label that a response names, in its canonical spelling; None where it names none or several."""
    names = _spellings(labels, aliases)
    for forms in as_written(response):
        found = {names.exact[form] for form in forms if form in names.exact}
        if found:
            return found.pop() if len(found) == 1 else None
    claim = find_answer(response)
    if claim is None:
        return None
    lines = [claim.text] if claim.marked or "\n" not in claim.text else claim.text.split("\n")
    read = {label for label in (_read_claim_of_label(line, names) for line in lines) if label}
    return read.pop() if len(read) == 1 else None


def _read_claim_of_label(line: str, names: _Spellings) -> str | None:
    whole = names.label_of(line)
    rest = comparable(line)
    if whole is not None or rest in names.loose:
        return whole
    mentioned: set[str] = set()
    for name in sorted(names.loose, key=len, reverse=True):
        rest, count = re.subn(_whole(name), " \x00 ", rest)
        mentioned |= names.loose[name] if count else set()
    if len(mentioned) != 1 or _NEGATION.search(rest):
        return None
    return mentioned.pop()


@lru_cache(maxsize=4096)
def _whole(name: str) -> str:
    """A pattern for the name as a whole word; scripts without spaces between words need no boundary."""
    if not name.isascii():
        return re.escape(name)
    first, last = (re.escape(sign) if not sign.isalnum() else r"\w" for sign in (name[0], name[-1]))
    return rf"(?<![\w.+\-])(?<!{first}){re.escape(name)}(?![\w%#+]|{last}|[.,]\d|-\w)"
