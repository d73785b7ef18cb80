"""Read a multiple-choice answer: a letter in any dress, or an option's own words.

Letters are those the reader saw; the caller undoes a permutation. Knows nothing of prompts or of other kinds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from semievol_api.tasks.answer_line import comparable, find_answer

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


def read_choice(response: str, options: Sequence[str]) -> int | None:
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


def exact_choice(cell: str, options: Sequence[str], first_digit: int) -> int | None:
    """The place that a file's cell names: by letter, by position (`first_digit` is the first), or by its text.

    None where it names none, and where position and text name two different options.
    """
    text = comparable(cell)
    letter = _CLOSED_LETTER.fullmatch(text)
    if letter:
        place = ord(letter.group(1)) - ord("a")
        return place if place < len(options) else None
    by_text = place_of_text(cell, options)
    position = int(text) - first_digit if text.isdecimal() else -1
    if 0 <= position < len(options):
        return position if by_text in (None, position) else None
    return by_text


def place_of_text(text: str, options: Sequence[str]) -> int | None:
    """The place of the only option with this text; None where there is none, or more than one."""
    wanted = comparable(text)
    if not wanted:
        return None
    found = [i for i, option in enumerate(options) if comparable(option) == wanted]
    return found[0] if len(found) == 1 else None


def _read_claim(claim: str, options: Sequence[str], *, lenient: bool) -> int | None:
    text = comparable(claim)
    if len(text) != 1:
        place = place_of_text(text, options)
        if place is not None:
            return place
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
    if len(letter) == 1 and letter.isascii() and place_of_text(rest, options) == ord(letter) - ord("a"):
        return ord(letter) - ord("a")
    said = [i for i, option in enumerate(options) if _says(text, comparable(option))]
    negated = re.search(r"\b(?:not|n't|neither|nor|never|except)\b|n't\b", text)
    return said[0] if len(said) == 1 and not negated else None


def _says(text: str, option: str) -> bool:
    return len(option) > 2 and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None
