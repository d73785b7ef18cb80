"""A task ready for use: prompts out, canonical answers in.

Canonical answers are a letter (multiple_choice), a label as the task spells it, a plain decimal text (number), labels
with a separator (label_set), a JSON object (json) or the text itself (free_text). None always means: no valid answer.
Knows nothing of files of examples or of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic_core import to_json

from semievol_api.config.settings import nearest, parse_settings, read_toml
from semievol_api.errors import ConfigError
from semievol_api.records import Example, Message, Prompt
from semievol_api.store.fingerprints import plain
from semievol_api.tasks.chat import Chat, chat_prompt
from semievol_api.tasks.definition import KINDS, TaskDefinition
from semievol_api.tasks.kind import LETTERS, TaskKind
from semievol_api.tasks.replies import find_answer

ABSENT = TaskKind.absent
"""The value of a field that an answer does not have."""
VERDICTS = ("Y", "N")
"""Right and wrong: letters, since every vocabulary has them as single tokens."""
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
        Its name; a kind of `KINDS`, such as labels.

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
    def kind(self) -> str:
        """The name of its kind, such as multiple_choice."""
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

    @property
    def closed(self) -> bool:
        """Whether every question has a closed set of answers."""
        return self._kind.closed

    @property
    def lettered(self) -> bool:
        """Whether every question has options of its own, answered by letter."""
        return self._kind.lettered

    @property
    def fixed_labels(self) -> bool:
        """Whether all questions share the labels that the task names."""
        return self._kind.fixed_labels

    @property
    def _kind(self) -> TaskKind:
        return KINDS[self.definition.kind]

    def prompt(
        self,
        example: Example,
        shots: Sequence[Example] = (),
        permutation: Sequence[int] | None = None,
        *,
        weights: bool = False,
    ) -> Prompt:
        """Ask for one answer.

        Args:
            example: the question.
            shots: solved examples, nearest first, as retrieval returns them; the prompt shows the nearest last.
            permutation: `permutation[i]` is the canonical index of the option shown at position i.
            weights: leave a conversation's turns the weights that they have in its file, for a training.
        """
        if example.chat is not None:
            return self._chat_prompt(example, shots, weights=weights)
        return self._render(self._ask(example, permutation, f"Reply with one line: {self._answer_line}"), shots)

    def justify_prompt(
        self,
        example: Example,
        shots: Sequence[Example],
        proposals: Sequence[str],
        permutation: Sequence[int] | None = None,
    ) -> Prompt:
        """Ask to decide between proposals, which are whole responses or canonical answers (paper §3.3).

        With a permutation the proposals' canonical letters are shown as the letters that the reader sees.
        """
        if permutation is not None and self.lettered:
            proposals = [self._as_shown(text, example, permutation) for text in proposals]
        if example.chat is not None:
            listed = "\n".join(f"{i}. {text.strip()}" for i, text in enumerate(proposals, 1))
            closing = f"Proposed replies:\n{listed}\n\nWeigh the proposals, decide, and give your reply alone."
            return self._chat_prompt(example, shots, closing)
        listed = "\n".join(f"{i}. {_with_answer(text)}" for i, text in enumerate(proposals, 1))
        closing = f"Weigh the proposals, decide, and reply with one line: {self._answer_line}"
        return self._render(self._ask(example, permutation, f"Proposed answers:\n{listed}\n\n{closing}"), shots)

    def verify_prompt(self, example: Example, answer: str) -> Prompt:
        """Ask whether a canonical answer is right; the reply's label is one of `VERDICTS`.

        Kadavath et al. 2022 (arXiv 2207.05221), P(True).
        """
        words = f"{answer}. {self.in_words(example, answer)}" if self._is_letter(example, answer) else answer
        closing = (
            f"Proposed answer: {words}\n\nIs the proposed answer right?\n{VERDICTS[0]}. It is right\n"
            f"{VERDICTS[1]}. It is wrong\n\nReply with one line: Answer: {' or '.join(VERDICTS)}"
        )
        if example.chat is not None:
            return self._chat_prompt(example, (), closing)
        return self._render(self._ask(example, None, closing), ())

    def parse(self, text: str, example: Example, permutation: Sequence[int] | None = None) -> str | None:
        """The canonical answer in a response; None (an abstention) where there is none, or more than one."""
        return self._kind.parse(self.definition, text, example, permutation)

    def equal(self, answer: str | None, gold: str | None) -> bool:
        """Whether two canonical answers mean the same; an abstention equals nothing. Tolerance is the gold's."""
        return bool(answer and gold) and self._kind.equal(self.definition, answer or "", gold or "")

    def labels(self, example: Example) -> tuple[str, ...] | None:
        """The closed set of canonical answers; None where any answer is possible."""
        return self._kind.labels(self.definition, example)

    def in_words(self, example: Example, answer: str) -> str:
        """A canonical answer without letters: the option's own words, or the answer itself."""
        return example.options[LETTERS.index(answer)] if self._is_letter(example, answer) else answer

    @property
    def placeholders(self) -> tuple[str, str]:
        """Two different answers of usual length, for a plan to count with."""
        return self._kind.placeholders

    def target(self, example: Example, answer: str) -> str:
        """The assistant turn to train on.

        Raises:
            ValueError: the answer is outside the example's closed set.
        """
        allowed = self.labels(example)
        if allowed is not None and answer not in allowed:
            raise ValueError(f"{answer!r} is no answer of example {example.id!r}: {', '.join(allowed)}")
        if example.chat is not None and example.answer == answer:
            return Chat.read(example.chat).reply or self.reply(answer)
        return self.reply(answer)

    @property
    def chat(self) -> bool:
        """Whether questions are conversations, which a model is shown as they are."""
        return self.definition.columns.messages is not None

    def reply(self, answer: str) -> str:
        """A canonical answer as the assistant's turn."""
        return self._kind.reply(self.definition, answer) if self.chat else target(answer)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields of which every answer consists; empty where an answer is one thing."""
        return self._kind.fields(self.definition)

    @property
    def schema(self) -> str:
        """The JSON schema of every reply, as JSON; empty where replies are no bare JSON."""
        return self._kind.schema(self.definition) if self.chat else ""

    @property
    def weakest(self) -> bool:
        """Whether an answer is as certain as its least certain field; else the product over its fields counts."""
        return self._kind.weakest(self.definition)

    @property
    def partial(self) -> bool:
        """Whether a pseudo-label may leave out fields that are not certain."""
        return bool(self.fields) and self.definition.json_.partial

    def parts(self, answer: str) -> Mapping[str, str]:
        """The value of each field of an answer; absent ones are left out."""
        return self._kind.parts(self.definition, answer)

    def joined(self, parts: Mapping[str, str]) -> str:
        """The canonical answer of such values; `ABSENT` ones are left out."""
        return self._kind.joined(self.definition, {name: value for name, value in parts.items() if value != ABSENT})

    def values(self, field: str) -> tuple[str, ...] | None:
        """The closed set of a field's values, `ABSENT` among them; None where any value is possible."""
        return self._kind.values(self.definition, field)

    def same(self, field: str, value: str, gold: str) -> bool:
        """Whether two values of a field mean the same; `ABSENT` is the same as itself alone."""
        if ABSENT in (value, gold):
            return value == gold
        return self._kind.same(self.definition, field, value, gold)

    def spans(self, text: str) -> Mapping[str, tuple[int, int]]:
        """Where each field that a response has stands in it."""
        return self._kind.spans(self.definition, text)

    def read_gold(self, cell: str, example: Example) -> str | None:
        """A cell of the answer column in canonical form; None where it is no possible answer of the example."""
        return self._kind.read_gold(self.definition, cell.strip(), example)

    def why_refused(self, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        return self._kind.why_refused(self.definition, cell, example)

    @property
    def _answer_line(self) -> str:
        return f"Answer: {self.definition.answer_format or self._kind.answer_word}"

    def _ask(self, example: Example, permutation: Sequence[int] | None, last: str) -> str:
        """The user turn: instruction, question, possible answers, and what is asked for at the end."""
        listed = self._kind.listed(self.definition, example, permutation)
        parts = (self.definition.instruction, f"Question: {example.question}", listed, last)
        return "\n\n".join(part for part in parts if part)

    def _render(self, user: str, shots: Sequence[Example]) -> Prompt:
        """A user turn and, where there are shots or a system text, a system turn before it."""
        system = self.definition.system
        if shots:
            nearest_last = reversed(shots)
            solved = [f"Example {i}\n{self._solved(shot)}" for i, shot in enumerate(nearest_last, 1)]
            system = "\n\n".join((f"{system or self._kind.opening} Solved examples:", *solved))
        turns = (Message("system", system),) if system else ()
        return Prompt((*turns, Message("user", user)))

    def _solved(self, shot: Example) -> str:
        if shot.answer is None:
            raise ValueError(f"example {shot.id!r} has no answer and cannot be a demonstration")
        lines = (f"Question: {shot.question}", self._kind.listed_in_shot(self.definition, shot), target(shot.answer))
        return "\n".join(line for line in lines if line)

    def _chat_prompt(
        self, example: Example, shots: Sequence[Example], closing: str = "", *, weights: bool = False
    ) -> Prompt:
        """A conversation as it stands; the answers of solved ones as their replies."""
        known = [(Chat.read(shot.chat or "{}"), self.target(shot, shot.answer or "")) for shot in shots]
        chat = Chat.read(example.chat or "")
        return chat_prompt(self.definition.instruction, chat if weights else chat.without_weights, known, closing)

    def _is_letter(self, example: Example, answer: str) -> bool:
        return self.lettered and answer in (self.labels(example) or ())

    def _as_shown(self, proposal: str, example: Example, permutation: Sequence[int]) -> str:
        answer = self.parse(proposal, example)
        if answer is None:
            return proposal
        return target(LETTERS[list(permutation).index(LETTERS.index(answer))])


def target(answer: str) -> str:
    """The assistant turn to train on."""
    return f"Answer: {answer}"


def _with_answer(proposal: str) -> str:
    """A bare answer gets its `Answer:`; a whole response stays as it is."""
    text = proposal.strip()
    claim = find_answer(text)
    return text if claim is not None and claim.marked else target(text)


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
