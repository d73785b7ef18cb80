"""Read one label of a closed set. The longest label wins where one begins another; several labels are none.

Knows nothing of prompts or of other kinds of task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from semievol_api.tasks.answer_line import comparable, find_answer

_NEGATION = re.compile(r"\b(?:not|neither|nor|never|nicht|kein|pas|keine)\b|n't\b")


def read_label(response: str, labels: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    """The label that a response names, in its canonical spelling; None where it names none or several."""
    claim = find_answer(response)
    if claim is None:
        return None
    names = _names(labels, aliases)
    lines = [claim.text] if claim.marked or "\n" not in claim.text else claim.text.split("\n")
    found = {label for label in (_read_claim(comparable(line), names) for line in lines) if label}
    return found.pop() if len(found) == 1 else None


def exact_label(text: str, labels: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    """The label that a file's cell spells, in its canonical spelling; the whole cell must be the label."""
    return _names(labels, aliases).get(comparable(text))


def _names(labels: Sequence[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Comparable spelling to canonical label."""
    return {**{comparable(k): v for k, v in aliases.items()}, **{comparable(x): x for x in labels}}


def _read_claim(text: str, names: Mapping[str, str]) -> str | None:
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
