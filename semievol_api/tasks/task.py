"""A task ready for use: prompts out, canonical answers in.

Canonical answers are a letter (multiple_choice), a label as the task spells it, a plain decimal text (number) or
the text itself (free_text). None always means: no valid answer. Knows nothing of files of examples or of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic_core import to_json

from semievol_api.config.settings import nearest, parse_settings, read_toml
from semievol_api.errors import ConfigError
from semievol_api.records import Example, Message, Prompt
from semievol_api.store.fingerprints import plain
from semievol_api.tasks.definition import ANSWER_FORMATS, LETTERS, Kind, TaskDefinition
from semievol_api.tasks.numbers import numbers_equal, read_number
from semievol_api.tasks.replies import comparable, exact_choice, exact_label, find_answer, read_choice, read_label

_OPENINGS: dict[Kind, str] = {
    "multiple_choice": "You answer multiple-choice questions.",
    "labels": "You assign labels.",
    "number": "You answer questions with a number.",
    "free_text": "You answer questions.",
}
VERDICTS = ("Y", "N")
"""Right and wrong: letters, since every vocabulary has them as single tokens."""


def render(definition: TaskDefinition, user: str, shots: Sequence[Example]) -> Prompt:
    """A prompt of a user turn and, where there are shots or a system text, a system turn before it."""
    system = _system(definition, shots)
    turns = (Message("system", system),) if system else ()
    return Prompt((*turns, Message("user", user)))


def user_turn(definition: TaskDefinition, example: Example, permutation: Sequence[int] | None) -> str:
    """The user turn that asks for one answer."""
    return _ask(definition, example, permutation, f"Reply with one line: {_answer_line(definition)}")


def justify_turn(
    definition: TaskDefinition, example: Example, proposals: Sequence[str], permutation: Sequence[int] | None
) -> str:
    """The user turn that lists proposals and asks for a decision (paper §3.3, self-justification)."""
    listed = "\n".join(f"{i}. {_with_answer(text)}" for i, text in enumerate(proposals, 1))
    closing = f"Weigh the proposals, decide, and reply with one line: {_answer_line(definition)}"
    return _ask(definition, example, permutation, f"Proposed answers:\n{listed}\n\n{closing}")


def verify_turn(definition: TaskDefinition, example: Example, answer: str) -> str:
    """The user turn that asks whether a proposed answer is right (Kadavath et al. 2022, P(True))."""
    letters = LETTERS[: len(example.options)]
    words = f"{answer}. {example.options[letters.index(answer)]}" if answer in letters else answer
    closing = f"Reply with one line: Answer: {' or '.join(VERDICTS)}"
    return _ask(
        definition,
        example,
        None,
        f"Proposed answer: {words}\n\nIs the proposed answer right?\n{VERDICTS[0]}. It is right\n"
        f"{VERDICTS[1]}. It is wrong\n\n{closing}",
    )


def target(answer: str) -> str:
    """The assistant turn to train on."""
    return f"Answer: {answer}"


def _answer_line(definition: TaskDefinition) -> str:
    return f"Answer: {definition.answer_format or ANSWER_FORMATS[definition.kind]}"


def _with_answer(proposal: str) -> str:
    """A bare answer gets its `Answer:`; a whole response stays as it is."""
    text = proposal.strip()
    claim = find_answer(text)
    return text if claim is not None and claim.marked else target(text)


def _ask(definition: TaskDefinition, example: Example, permutation: Sequence[int] | None, last: str) -> str:
    closed = ""
    if definition.kind == "multiple_choice":
        closed = f"\n\nOptions:\n{_option_lines(example.options, permutation)}"
    elif definition.kind == "labels":
        closed = f"\n\nLabels: {', '.join(definition.labels)}"
    return f"{definition.instruction}\n\nQuestion: {example.question}{closed}\n\n{last}"


def _option_lines(options: Sequence[str], permutation: Sequence[int] | None) -> str:
    order = range(len(options)) if permutation is None else permutation
    return "\n".join([f"{LETTERS[place]}. {options[i]}" for place, i in enumerate(order)])


def _system(definition: TaskDefinition, shots: Sequence[Example]) -> str | None:
    if not shots:
        return definition.system
    opening = definition.system or _OPENINGS[definition.kind]
    nearest_last = reversed(shots)
    solved = [f"Example {i}\n{_solved(definition, shot)}" for i, shot in enumerate(nearest_last, 1)]
    return "\n\n".join((f"{opening} Solved examples:", *solved))


def _solved(definition: TaskDefinition, shot: Example) -> str:
    if shot.answer is None:
        raise ValueError(f"example {shot.id!r} has no answer and cannot be a demonstration")
    lines = [f"Question: {shot.question}"]
    if definition.kind == "multiple_choice" and definition.shots_show_options:
        lines.append(f"Options:\n{_option_lines(shot.options, None)}")
    return "\n".join((*lines, target(shot.answer)))


_DEFINITIONS = Path(__file__).parent / "definitions"
_WORDING_VERSION = 1
"""Raised when wording or parsing changes in a way that must not reuse old answers."""


@dataclass(frozen=True)
class Task:
    """One task, from `load_task`: all that turns examples into prompts and responses into answers.

    Attributes
    ----------
    definition : TaskDefinition
        The task's file.
    name, kind : str
        Its name; multiple_choice, labels, number or free_text.

    Raises
    ------
    ConfigError
        By `load_task`, where the file is wrong.

    Examples
    --------
    >>> task = semievol_api.load_task("task.toml")
    >>> example = Example(id="q1", question="The sky?", options=("red", "blue"))
    >>> task.parse("Answer: B", example), task.equal("B", "B")
    ('B', True)
    """

    definition: TaskDefinition

    @property
    def name(self) -> str:
        """The task's name."""
        return self.definition.name

    @property
    def kind(self) -> Kind:
        """multiple_choice, labels, number or free_text."""
        return self.definition.kind

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that shapes prompts and parsing; where the data lies is no part of it."""
        content = to_json(plain(self.definition), inf_nan_mode="null").decode()
        return hashlib.blake2b(f"{_WORDING_VERSION}\n{content}".encode(), digest_size=16).hexdigest()

    @property
    def identity(self) -> str:
        """What enters the fingerprints of the stages that use this task."""
        return self.fingerprint

    def prompt(
        self, example: Example, shots: Sequence[Example] = (), permutation: Sequence[int] | None = None
    ) -> Prompt:
        """Ask for one answer.

        Args:
            example: the question.
            shots: solved examples, nearest first, as retrieval returns them; the prompt shows the nearest last.
            permutation: `permutation[i]` is the canonical index of the option shown at position i.
        """
        return render(self.definition, user_turn(self.definition, example, permutation), shots)

    def justify_prompt(
        self,
        example: Example,
        shots: Sequence[Example],
        proposals: Sequence[str],
        permutation: Sequence[int] | None = None,
    ) -> Prompt:
        """Ask to decide between proposals, which are whole responses or canonical answers.

        With a permutation the proposals' canonical letters are shown as the letters that the reader sees.
        """
        if permutation is not None and self.kind == "multiple_choice":
            proposals = [self._as_shown(text, example, permutation) for text in proposals]
        user = justify_turn(self.definition, example, proposals, permutation)
        return render(self.definition, user, shots)

    def verify_prompt(self, example: Example, answer: str) -> Prompt:
        """Ask whether a canonical answer is right; the reply's label is one of `VERDICTS`."""
        return render(self.definition, verify_turn(self.definition, example, answer), ())

    def parse(self, text: str, example: Example, permutation: Sequence[int] | None = None) -> str | None:
        """The canonical answer in a response; None (an abstention) where there is none, or more than one."""
        match self.kind:
            case "multiple_choice":
                order = range(len(example.options)) if permutation is None else permutation
                place = read_choice(text, [example.options[i] for i in order])
                return None if place is None else LETTERS[order[place]]
            case "labels":
                return read_label(text, self.definition.labels, self.definition.aliases)
            case "number":
                return read_number(text, self.definition.number)
            case "free_text":
                claim = find_answer(text)
                return (claim.text or None) if claim else None

    def equal(self, answer: str | None, gold: str | None) -> bool:
        """Whether two canonical answers mean the same; an abstention equals nothing. Tolerance is the gold's."""
        if not answer or not gold:
            return False
        if self.kind == "number":
            return numbers_equal(answer, gold, self.definition.number)
        if self.kind == "free_text":
            return comparable(answer) == comparable(gold)
        return answer == gold

    def labels(self, example: Example) -> tuple[str, ...] | None:
        """The closed set of canonical answers; None where any answer is possible."""
        match self.kind:
            case "multiple_choice":
                return tuple(LETTERS[: len(example.options)])
            case "labels":
                return self.definition.labels
            case _:
                return None

    def target(self, example: Example, answer: str) -> str:
        """The assistant turn to train on.

        Raises:
            ValueError: the answer is outside the example's closed set.
        """
        allowed = self.labels(example)
        if allowed is not None and answer not in allowed:
            raise ValueError(f"{answer!r} is no answer of example {example.id!r}: {', '.join(allowed)}")
        return target(answer)

    def read_gold(self, cell: str, example: Example) -> str | None:
        """A cell of the answer column in canonical form; None where it is no possible answer of the example."""
        text = cell.strip()
        match self.kind:
            case "multiple_choice":
                return self._gold_choice(text, example)
            case "labels":
                return exact_label(text, self.definition.labels, self.definition.aliases)
            case "number":
                return read_number(f"Answer: {text}", self.definition.number)
            case "free_text":
                return " ".join(text.split()) or None

    def _gold_choice(self, text: str, example: Example) -> str | None:
        place = exact_choice(text, example.options, self.definition.first_option_digit)
        return None if place is None else LETTERS[place]

    def _as_shown(self, proposal: str, example: Example, permutation: Sequence[int]) -> str:
        answer = self.parse(proposal, example)
        if answer is None:
            return proposal
        return target(LETTERS[list(permutation).index(LETTERS.index(answer))])


def task_names() -> tuple[str, ...]:
    """The built-in tasks."""
    return tuple(sorted(path.stem for path in _DEFINITIONS.glob("*.toml")))


def load_task(name_or_path: str | Path) -> Task:
    """A built-in task by name, or the user's own by the path of its TOML file.

    Parameters
    ----------
    name_or_path : str or path
        `mmlu`, `mmlu-pro`, `arc`, `fpb`, `usmle`, `pubmedqa`, `convfinqa`, or a path that ends in `.toml`.

    Returns
    -------
    Task
        What words prompts and reads answers.

    Raises
    ------
    ConfigError
        There is no such task, or its file is wrong.

    Examples
    --------
    >>> semievol_api.load_task("mmlu").kind
    'multiple_choice'
    """
    text = str(name_or_path)
    path = Path(text) if text.endswith(".toml") else _DEFINITIONS / f"{text}.toml"
    if not path.is_file() and not text.endswith(".toml"):
        raise ConfigError(
            f"There is no task {text!r}. {nearest(text, task_names())} "
            "A task of your own is the path of a TOML file, which ends in .toml."
        )
    if not path.is_file():
        raise ConfigError(f"There is no task file {text!r}. Make one with: semievol init data.csv")
    return Task(parse_settings(TaskDefinition, read_toml(path), where=path.name))
