"""What a made-up model answers: right on easy questions, wrong on hard ones, and now and then of another mind.

The stages after it (justification, calibration, selection) then have work of a plausible size to do. Knows nothing of
counting or of providers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from semievol_api.records import Example
from semievol_api.tasks import Task

QUESTION = re.compile(r"(?:^|\n)Question: (.*?)\n\n(?:Options:|Labels:|Reply|Proposed|Weigh)", re.DOTALL)
OPTION = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Guess:
    """What cannot be known before a run.

    `easy` is the share of questions that every model gets right, `dissent` how often an answer leaves the common
    one. `length` is a completion's tokens: `bare` (one), `line` (twice the line that was asked for) or `limit`
    (max_tokens).
    """

    name: str
    easy: float
    dissent: float
    length: str


LOW = Guess("low", 0.4, 0.0, "bare")
EXPECTED = Guess("expected", 0.8, 0.1, "line")
HIGH = Guess("high", 0.98, 0.25, "limit")


class AnswerKey:
    """Made-up answers for a sample of the data; where the gold is known, the right one is the gold."""

    def __init__(self, task: Task, examples: Iterable[Example], guess: Guess) -> None:
        self.guess = guess
        self._task = task
        self._examples = {e.question: e for e in examples}

    def choose(self, turn: str, asker: str) -> tuple[str, float]:
        """The answer as the reader of this turn would give it, and how sure it is, in (0, 1)."""
        found = QUESTION.search(turn)
        question = found[1] if found else turn
        one, other = self._pair(turn, self._examples.get(question))
        easy = uniform(question) < self.guess.easy
        common, rest = (one, other) if easy else (other, one)
        dissents = uniform(question, turn, asker) < self.guess.dissent
        surety = (0.9 if easy else 0.45) + 0.09 * uniform(question, asker)
        return (rest, surety - 0.3) if dissents else (common, surety)

    def _pair(self, turn: str, example: Example | None) -> tuple[str, str]:
        """A right and a wrong answer, as the turn shows them."""
        match self._task.kind:
            case "multiple_choice":
                return self._letters(turn, example)
            case "labels":
                labels = self._task.definition.labels
                right = example.answer if example and example.answer else labels[0]
                return right, next((label for label in labels if label != right), right)
            case "number":
                return (example.answer if example and example.answer else "1"), "2"
            case "free_text":
                return (example.answer if example and example.answer else "yes"), "no"

    def _letters(self, turn: str, example: Example | None) -> tuple[str, str]:
        shown = OPTION.findall(turn)
        if len(shown) < 2 or example is None:
            return "A", "B"
        place = ord(example.answer) - ord("A") if example.answer else int(uniform(example.question) * len(shown))
        text = example.options[place] if place < len(example.options) else ""
        right = next((letter for letter, option in shown if option == text), shown[0][0])
        return right, next(letter for letter, _ in shown if letter != right)


def uniform(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the parts."""
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
