"""Task kind `multiple_choice`: every question has options of its own, answered by their letters.

Reads a letter in any dress, or an option's own words. Knows nothing of files, models or other kinds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from semievol_api.records import Example
from semievol_api.tasks.kind import LETTERS, TaskKind
from semievol_api.tasks.replies import comparable, find_answer, without_mathematics

if TYPE_CHECKING:
    from semievol_api.tasks.definition import TaskDefinition


class MultipleChoice(TaskKind):
    """The canonical answer is the letter of an option in the file's order, whatever order a reader saw."""

    opening = "You answer multiple-choice questions."
    instruction = "Answer the multiple-choice question."
    answer_word = "LETTER"
    lettered = True

    def listed(self, task: TaskDefinition, example: Example, order: Sequence[int] | None) -> str:
        """The options, a letter each."""
        return f"Options:\n{_option_lines(example.options, order)}"

    def listed_in_shot(self, task: TaskDefinition, example: Example) -> str:
        """The same in canonical order, unless the task shows demonstrations without options."""
        return self.listed(task, example, None) if task.shots_show_options else ""

    def labels(self, task: TaskDefinition, example: Example) -> tuple[str, ...]:
        """The letters of the example's options."""
        return tuple(LETTERS[: len(example.options)])

    def parse(self, task: TaskDefinition, text: str, example: Example, order: Sequence[int] | None) -> str | None:
        """The letter in canonical order; the response names those that the reader saw."""
        places = range(len(example.options)) if order is None else order
        place = _read_choice(text, [example.options[i] for i in places])
        return None if place is None else LETTERS[places[place]]

    def read_gold(self, task: TaskDefinition, cell: str, example: Example) -> str | None:
        """The letter that a cell names by letter, by position or by the option's text."""
        place = _exact_choice(cell, example.options, task.first_option_digit)
        return None if place is None else LETTERS[place]

    def why_refused(self, task: TaskDefinition, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        advice = "Write the letter of an option, its position or its exact text."
        if cell == "0" and task.first_option_digit == 1:
            advice = "If positions count from 0, set first_option_digit = 0 in the task."
        last = LETTERS[len(example.options) - 1]
        return f"is outside the options, which are A to {last}, or fits more than one of them. {advice}"


def _option_lines(options: Sequence[str], order: Sequence[int] | None) -> str:
    places = range(len(options)) if order is None else order
    return "\n".join([f"{LETTERS[place]}. {options[i]}" for place, i in enumerate(places)])


_CLOSED_LETTER = re.compile(r"^[(\[{<]?\s*([a-z])\s*(?:[)\]}>.:,;/|→⇒]|\s[-–—]\s|[-–—]\s|\s\(|$)")
_REASON = r"\s+(?:is|because|since|as|due|for|explanation|reason|reasoning|rationale)\b"
_OPEN_LETTER = re.compile(rf"^[(\[]?([a-z])[)\]]?{_REASON}")
_NAMED_LETTER = re.compile(
    rf"\b(?:option|choice|letter|answer(?:\s+is)?|is|ist|est|es)\s*:?\s*[(\[]?([a-z])(?:[)\].,:;]|$|\s\(|{_REASON})"
)
_SEVERAL = re.compile(
    r"^[(\[]?[a-z][)\]]?\s*(?:,|/|&|\+|and|or|und|oder|et|ou|y|o)\s*(?:option\s+)?[(\[]?[a-z](?:[)\]]|\b(?!['’]))"
    r"\s*(?:[,.;)/&+]|$|and|or|are|could|might)"
)


def _read_choice(response: str, options: Sequence[str]) -> int | None:
    """The place of the option that a response chooses, counted from 0; None where it chooses none or several."""
    claim = find_answer(response)
    if claim is None:
        return None
    if claim.marked:
        return _read_claim(claim.text, options, lenient=True)
    whole = _read_claim(claim.text, options, lenient="\n" not in claim.text)
    if whole is not None and "\n" not in claim.text:
        return whole
    places = {_read_claim(line, options, lenient=False) for line in claim.text.split("\n")} - {None}
    return places.pop() if len(places) == 1 else None


def _exact_choice(cell: str, options: Sequence[str], first_digit: int) -> int | None:
    """The place that a file's cell names: by letter, by position (`first_digit` is the first), or by its text.

    None where it names none, and where position and text name two different options.
    """
    text = comparable(cell)
    letter = _CLOSED_LETTER.fullmatch(text)
    if letter:
        place = ord(letter.group(1)) - ord("a")
        return place if place < len(options) else None
    by_text = _place_of_text(cell, options)
    position = int(text) - first_digit if text.isdecimal() else -1
    if 0 <= position < len(options):
        return position if by_text in (None, position) else None
    return by_text


def _place_of_text(text: str, options: Sequence[str]) -> int | None:
    """The place of the only option with this text; None where there is none, or more than one."""
    wanted = comparable(text)
    if not wanted:
        return None
    found = [i for i, option in enumerate(options) if comparable(option) == wanted]
    return found[0] if len(found) == 1 else None


def _read_claim(claim: str, options: Sequence[str], *, lenient: bool) -> int | None:
    text = comparable(claim)
    if len(text) != 1:
        place = _place_of_text(text, options)
        if place is not None:
            return place
    text = comparable(without_mathematics(text))
    if _SEVERAL.match(text):
        return None
    patterns = (_CLOSED_LETTER, _OPEN_LETTER, _NAMED_LETTER) if lenient else (_CLOSED_LETTER,)
    for pattern in patterns:
        found = pattern.search(text)
        if found:
            place = ord(found.group(1)) - ord("a")
            return place if place < len(options) else None
    return _letter_with_its_text(text, options) if lenient else None


def _letter_with_its_text(text: str, options: Sequence[str]) -> int | None:
    """`B Paris`, or the words of exactly one option inside a longer claim such as `it is Paris`."""
    letter, _, rest = text.partition(" ")
    if len(letter) == 1 and letter.isascii() and _place_of_text(rest, options) == ord(letter) - ord("a"):
        return ord(letter) - ord("a")
    named = [i for i, option in enumerate(options) if _names_option(text, comparable(option))]
    negated = re.search(r"\b(?:not|n't|neither|nor|never|except)\b|n't\b", text)
    return named[0] if len(named) == 1 and not negated else None


def _names_option(text: str, option: str) -> bool:
    return len(option) > 2 and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None
