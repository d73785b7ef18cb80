"""Read a multiple-choice answer: a letter in any dress, or an option's own words.

Letters are those the reader saw; the caller undoes a permutation. Knows nothing of prompts or of other kinds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WORD = (
    r"(?:answers?|ans|antwort|réponse|respuesta|risposta|resposta|antwoord|svar|odpowiedź|cevap|ответ|відповідь|"
    r"答案|答え|答|回答|정답|답|उत्तर|जवाब|الإجابة|الجواب|đáp án|trả lời)"
)
_DECORATION = r"[\s*_`~\"'#>]*"
"""Always taken whole (`+` behind it): two stretches side by side would be tried in every division."""
_COLON = re.compile(
    rf"(?<![a-z]){_WORD}{_DECORATION}+(?:is|lautet|是|は)?(?:{_DECORATION}+[:=]|\s*+(?<=\s)[-–—]\s)", re.IGNORECASE
)
_IS = re.compile(
    r"\banswer\s+(?:is|would\s+be|should\s+be|must\s+be)\b|\bantwort\s+(?:ist|lautet)\b|答案是|答えは",
    re.IGNORECASE,
)
_HEADING = re.compile(rf"^[^\w\n]*+(?:final\s++)?{_WORD}[^\w\n]*+$", re.IGNORECASE | re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_NEXT_EXAMPLE = re.compile(r"^[^\w\n]*+(?:Example\s+\d+|Question\s*+:)", re.IGNORECASE | re.MULTILINE)
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class AnswerText:
    """The text after the last answer marker; `marked` is False where the response has no marker at all."""

    text: str
    marked: bool


def find_answer(response: str) -> AnswerText | None:
    """The words that the response offers as its answer, or None for an empty one.

    The last `Answer:` wins, whatever stands before it. Questions that a base model goes on to invent after its
    answer (`Example 5`, `Question:`) do not count.
    """
    text = normalize(response)
    if not text:
        return None
    for marker in (_COLON, _BOXED, _IS, _HEADING):
        found = list(marker.finditer(_before_next_example(text, marker)))
        if found:
            last = found[-1]
            claim = last.group(1) if marker is _BOXED else _first_line(last.string[last.end() :])
            return AnswerText(undecorated(claim), marked=True)
    return AnswerText(text, marked=False)


def normalize(text: str) -> str:
    """NFKC (full-width letters and colons become plain), Unix line ends, outer space removed."""
    return unicodedata.normalize("NFKC", text).replace("\r\n", "\n").replace("\r", "\n").strip()


def undecorated(text: str) -> str:
    """One line without Markdown, quotes and LaTeX wrappers around it."""
    boxed = _BOXED.search(text)
    line = _LATEX_TEXT.sub(r"\1", boxed.group(1) if boxed else text)
    return " ".join(re.sub(r"[*_`~]{2,}|[*`]", "", line).split()).strip("\"'“”‘’«»„$#>_ ")


def comparable(text: str) -> str:
    """The form in which two pieces of text are compared: case, spacing and closing punctuation don't count."""
    return re.sub(r"[\s.,;:!?。、]+$", "", undecorated(normalize(text)).casefold())


def _before_next_example(text: str, marker: re.Pattern[str]) -> str:
    """The response up to the first question that it invents after having answered."""
    first = marker.search(text)
    if first is None:
        return text
    invented = _NEXT_EXAMPLE.search(text, first.end())
    return text[: invented.start()] if invented else text


def _first_line(rest: str) -> str:
    """The first line that says something."""
    for line in rest.split("\n"):
        if line.strip(" \t*_`~\"'#>"):
            return line
    return ""


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


_NEGATION = re.compile(r"\b(?:not|neither|nor|never|nicht|kein|pas|keine)\b|n't\b")


def read_label(response: str, labels: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    """The label that a response names, in its canonical spelling; None where it names none or several."""
    claim = find_answer(response)
    if claim is None:
        return None
    names = _names(labels, aliases)
    lines = [claim.text] if claim.marked or "\n" not in claim.text else claim.text.split("\n")
    found = {label for label in (_read_claim_of_label(comparable(line), names) for line in lines) if label}
    return found.pop() if len(found) == 1 else None


def exact_label(text: str, labels: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    """The label that a file's cell spells, in its canonical spelling; the whole cell must be the label."""
    return _names(labels, aliases).get(comparable(text))


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
