"""Task kind `number`: every answer is a number, as people write it.

Reads separators, units, percent, currency and negative numbers in parentheses, and never evaluates text.

    read_number("$(1,234.5)", NumberSettings())     # "-1234.5"

Knows nothing of files, models or other kinds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, DivisionByZero, InvalidOperation
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from semievol_api.config.method import Settings
from semievol_api.records import Example
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks.kind import TaskKind
from semievol_api.tasks.replies import find_answer

if TYPE_CHECKING:
    from semievol_api.tasks.definition import TaskDefinition


@fingerprinted("tolerance", "absolute_tolerance", "decimal", "percent", "scale_words")
class NumberSettings(Settings):
    """`[number]`: how a number is read and compared."""

    tolerance: float = Field(default=0.01, ge=0)
    """Relative to the gold number (paper §4.1: within 1 %)."""
    absolute_tolerance: float = Field(default=0.0, ge=0)
    """Matters for a gold number of 0."""
    decimal: Literal[".", ","] = "."
    percent: Literal["fraction", "points"] = "fraction"
    """Is `15%` the number 0.15 or the number 15?"""
    scale_words: bool = True
    """Is `1.2 million` the number 1200000, or 1.2 in the unit that everybody knows?"""


class Number(TaskKind):
    """The canonical answer is a plain decimal text; answers within the gold number's tolerance are equal."""

    opening = "You answer questions with a number."
    instruction = "Answer the question with a number."
    placeholders = ("1", "2")
    starter_lines = ("[number]", "tolerance = 0.01", 'percent = "fraction"   # or "points": 15% is the number 15')

    def parse(self, task: TaskDefinition, text: str, example: Example, order: Sequence[int] | None) -> str | None:
        """The number that a response gives."""
        return read_number(text, task.number)

    def equal(self, task: TaskDefinition, answer: str, gold: str) -> bool:
        """Whether `answer` lies within the tolerance of `gold`."""
        return _numbers_equal(answer, gold, task.number)

    def read_gold(self, task: TaskDefinition, cell: str, example: Example) -> str | None:
        """The number of a cell."""
        return read_number(f"Answer: {cell}", task.number)

    def why_refused(self, task: TaskDefinition, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        return "is no number."


_SCALES = {"thousand": 3, "million": 6, "mn": 6, "mln": 6, "billion": 9, "bn": 9, "bln": 9, "trillion": 12}
_MAX_EXPONENT = 300
_CURRENCY = re.compile(r"[$€£¥₹₩]|\b(?:USD|US|EUR|GBP|CHF|JPY|CNY|INR|Rs\.?)(?=\s*[($\d.-])", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>(?<![\d)])[-+]\s*)?(?P<digits>\d(?:[\d.,]*\d)?|[.,]\d+)(?P<exponent>e[-+]?\d+)?", re.I
)
_POWER = re.compile(r"(?<=\d)\s*[×x*·]\s*10\s*\^\s*\{?([-+]?\d+)\}?")
_SUPERSCRIPT = re.compile(r"(?<=10)[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_PERCENT = re.compile(r"\s*\)?\s*(?:\\?%|per\s?cent\b|pct\b)", re.IGNORECASE)
_SCALE = re.compile(rf"[\s)]*({'|'.join(_SCALES)})s?\b", re.IGNORECASE)
_CLOSED = re.compile(r"\s*%?\s*\)")
_FRACTION = re.compile(r"^([-+]?\d+)\s*/\s*(\d+)$")
_GROUPING = re.compile(r"(?<=\d)[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))")
_ASIDE = re.compile(r"(?<=[\w%])\s+\((?![\s$€£¥₹\d.,+\-]*%?\s*\)).*?\)|(?<=[\w%])\s*\((?=[^)]*[A-Za-z=])[^)]*\)")
_SPOKEN_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=[$€£¥₹]?\s*[\d.])", re.IGNORECASE)


def read_number(response: str, settings: NumberSettings) -> str | None:
    """The number that a response gives, as a plain decimal text; None where it gives none or several."""
    response = response.replace("{,}", ",").replace("\\,", "\u2009")  # LaTeX between groups of digits
    claim = find_answer(_plain_digits(_GROUPING.sub("", _SUPERSCRIPT.sub(_caret, response))))
    if claim is None:
        return None
    text = _SPOKEN_MINUS.sub("-", claim.text.rsplit("=", 1)[-1].rsplit("≈", 1)[-1].strip())
    fraction = _FRACTION.match(text)
    if fraction:
        return _ratio(fraction.group(1), fraction.group(2))
    text = _CURRENCY.sub("", _POWER.sub(r"e\1", _ASIDE.sub(" ", text)))
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        return None
    value = _value(found[0], settings)
    return None if value is None else _canonical_number(value)


def _canonical_number(value: Decimal) -> str:
    """A plain decimal text: no exponent, no trailing zeros, no negative zero."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _numbers_equal(answer: str, gold: str, settings: NumberSettings) -> bool:
    """Whether `answer` lies within the tolerance of `gold`; text that is no finite number equals nothing."""
    try:
        a, b = Decimal(answer), Decimal(gold)
    except InvalidOperation:
        return False
    if not (a.is_finite() and b.is_finite()):
        return False
    allowed = max(Decimal(str(settings.tolerance)) * abs(b), Decimal(str(settings.absolute_tolerance)))
    return abs(a - b) <= allowed


def _value(match: re.Match[str], settings: NumberSettings) -> Decimal | None:
    """The number with its sign, its percent and its scale word, which stand around the match."""
    digits = _separators(match["digits"], settings.decimal)
    if digits is None:
        return None
    if match["exponent"] and abs(int(match["exponent"][1:])) > _MAX_EXPONENT:
        return None
    before, after = match.string[: match.start()], match.string[match.end() :]
    value = Decimal(digits + (match["exponent"] or ""))
    if _PERCENT.match(after) and settings.percent == "fraction":
        value = value.scaleb(-2)
    scale = _SCALE.match(after)
    if scale and settings.scale_words:
        value = value.scaleb(_SCALES[scale.group(1).lower()])
    sign = (match["sign"] or "+").strip()
    in_parentheses = before.rstrip().endswith("(") and _CLOSED.match(after) is not None
    negative = sign == "-" or before.rstrip().endswith("-(") or (in_parentheses and match["sign"] is None)
    return -value if negative else value


def _separators(digits: str, decimal: str) -> str | None:
    """The digits with a dot as decimal sign and nothing else; None where the separators make no sense."""
    thousands = "," if decimal == "." else "."
    if re.fullmatch(rf"\d{{1,3}}(?:\{thousands}\d{{3}})+(?:\{decimal}\d*)?", digits):
        return digits.replace(thousands, "").replace(decimal, ".")
    if re.fullmatch(rf"\d*\{decimal}?\d*", digits):
        return digits.replace(decimal, ".")
    if re.fullmatch(rf"\d{{1,3}}(?:\{decimal}\d{{3}})+\{thousands}\d+", digits):
        return digits.replace(decimal, "").replace(thousands, ".")
    if re.fullmatch(rf"\d*\{thousands}\d+", digits):
        return digits.replace(thousands, ".")
    if re.fullmatch(r"\d{1,3}(?:,\d{2})*,\d{3}(?:\.\d+)?", digits):
        return digits.replace(",", "")
    return None


def _ratio(over: str, under: str) -> str | None:
    try:
        return _canonical_number((Decimal(over) / Decimal(under)).normalize())
    except (DivisionByZero, InvalidOperation):
        return None


def _caret(superscript: re.Match[str]) -> str:
    """`10⁻³` as `10^-3`: Unicode's own normal form would glue it to `10-3`."""
    return "^" + unicodedata.normalize("NFKC", superscript.group()).replace("−", "-")


def _plain_digits(text: str) -> str:
    """ASCII digits and minus signs for those of other scripts."""
    table = {ord(c): str(unicodedata.decimal(c)) for c in set(text) if not c.isascii() and c.isdecimal()}
    return text.translate(table | {ord(c): "-" for c in "−–﹣－"})
