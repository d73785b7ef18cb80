"""Find the words that a response offers as its answer, whatever kind of answer they are.

Knows nothing of prompts or of kinds of task.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
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
_QUOTED_LINE = re.compile(r"^(?:#+|>+)\s+")
_MATH = re.compile(r"^\$+([^$]+)\$+$")
_OPENED = re.compile(r"[*_`~]+$")
_EMPHASIS = re.compile(r"(?<![\w*`~])(\*{1,3}|_{2,3}|`{1,3}|~~)(?=\S)([^\n*`]*[^\s*`])\1(?![\w*`~])")
"""Markdown around words. A sign inside an answer, such as that of `ls *.py`, is the answer's own."""
_ENDS = re.compile(r"^\s*(?:[*_`~]{2,}|[*`](?=\s))|(?:[*_`~]{2,}|[*`])\s*$")
_LONG = 200
"""Characters of a line from which on no signs are taken off one by one."""
_OUTER = "*_`~\"'“”‘’«»„ "
_CLOSING = ".,;:!?。、"
_LATEX_SPACE = r"\\(?:(?:q?quad|blacksquare|square|checkmark|hfill|newline)(?![a-z])|end\{\w+\*?\}|[,;:!\\])"
_LATEX_AROUND = re.compile(rf"^(?:\s|{_LATEX_SPACE})++|(?:\s|{_LATEX_SPACE}|\\\((?:\s|{_LATEX_SPACE})*+\\\))++$")
"""Spacing, closing marks and the end of an environment, which say nothing."""
_MATHEMATICS = ((r"\(", r"\)"), (r"\[", r"\]"))
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
    text = _normalize(response)
    if not text:
        return None
    for marker in (_COLON, _BOXED, _IS, _HEADING):
        found = list(marker.finditer(_before_next_example(text, marker)))
        if found:
            last = found[-1]
            claim = last.group(1) if marker is _BOXED else _without_latex(_first_line(last.string[last.end() :]))
            return AnswerText(_undecorated(claim), marked=True)
    return AnswerText(text, marked=False)


def _without_latex(claim: str) -> str:
    """Without LaTeX spacing around, and without the end of mathematics that began before the answer."""
    claim = _LATEX_AROUND.sub("", claim.strip())
    if claim.startswith("}") and claim.count("}") > claim.count("{"):  # of \text{Answer: }
        claim = claim[1:]
    for opening, closing in _MATHEMATICS:
        if closing in claim and opening not in claim:
            claim = claim.replace(closing, "")
    return _LATEX_AROUND.sub("", claim)


def without_mathematics(text: str) -> str:
    """Without the marks that set mathematics off from text, such as those around `\\(B\\)`."""
    for mark in itertools.chain(*_MATHEMATICS):
        text = text.replace(mark, " ")
    return text.strip()


def _normalize(text: str) -> str:
    """NFKC (full-width letters and colons become plain), Unix line ends, outer space removed."""
    return unicodedata.normalize("NFKC", text).replace("\r\n", "\n").replace("\r", "\n").strip()


def _undecorated(text: str) -> str:
    """One line without Markdown, quotes and LaTeX wrappers around it."""
    boxed = _BOXED.search(text)
    line = _LATEX_TEXT.sub(r"\1", boxed.group(1) if boxed else text)
    opened_before = next((mark for mark in ("**", "__", "~~") if line.rstrip().endswith(mark)), "")
    if opened_before and line.count(opened_before) % 2:
        line = line.rstrip().removesuffix(opened_before)
    line = _QUOTED_LINE.sub("", " ".join(_ENDS.sub("", _EMPHASIS.sub(r"\2", line)).split()))
    line = line.strip("\"'“”‘’«»„_ ")
    math = _MATH.match(line)
    return math.group(1).strip("\"'“”‘’«»„_ ") if math else line


def exact(text: str) -> str:
    """The form in which two labels are the same: composed letters (NFC), single spaces, no invisible ends."""
    return " ".join(unicodedata.normalize("NFC", text).split()).strip("\ufeff\u200b ")


def as_written(response: str) -> Iterator[frozenset[str]]:
    """What a response may offer as its answer, letter by letter: its last answer line, with ever fewer outer signs.

    Each set has the texts that are left when one more quote, Markdown sign or closing mark is taken off an end.
    """
    text = exact_lines(response)
    line, marked = text, False
    for marker in (_COLON, _BOXED, _IS, _HEADING):
        found = list(marker.finditer(_before_next_example(text, marker)))
        if found:
            last, marked = found[-1], True
            opened = _OPENED.search(text[: last.start()])
            rest = last.string[last.end() :].lstrip()
            rest = last.group(1) if marker is _BOXED else rest.removeprefix(opened.group() if opened else "")
            line = rest.lstrip().partition("\n")[0]
            break
    if not marked and "\n" in line:
        return
    forms = frozenset({exact(line)})
    while any(forms):
        yield forms
        if max(map(len, forms)) > _LONG:
            return
        forms = frozenset(peeled for form in forms for peeled in _peeled(form))


def exact_lines(text: str) -> str:
    """NFC with Unix line ends and without outer space."""
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").strip()


def _peeled(form: str) -> Iterator[str]:
    if form and form[0] in _OUTER:
        yield form[1:].strip()
    if form and form[-1] in _OUTER + _CLOSING:
        yield form[:-1].strip()
    if len(form) > 1 and form[0] == form[-1] and form[0] in _OUTER:
        yield form[1:-1].strip()


def comparable(text: str) -> str:
    """The form in which two pieces of text are compared: case, spacing and closing punctuation don't count."""
    return re.sub(rf"[\s{_CLOSING}]+$", "", _undecorated(_normalize(text)).casefold())


THOUGHTS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What opens and closes the thoughts that models write before an answer."""


def without_thoughts(response: str, marks: Sequence[tuple[str, str]] = THOUGHTS) -> str:
    """What stands behind the last thought; empty where one is opened and never closed.

    Some chat templates open the thought in the prompt, so that a response may only close it.
    """
    for opening, closing in marks:
        _, closed, after = response.rpartition(closing)
        response = after if closed else response
        if opening in response:
            return ""
    return response


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
