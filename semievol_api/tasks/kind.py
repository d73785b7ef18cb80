"""What a kind of task decides: what is shown to a model, how an answer is read, compared and refused.

A kind is a subclass in a file of its own, and a line in the table `KINDS` of `definition.py`; docs/howto/task-kind.md
adds one. What is written here holds for open answers in text. Knows nothing of files, models or particular kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from semievol_api.records import Example
from semievol_api.tasks.replies import comparable, find_answer

if TYPE_CHECKING:
    from semievol_api.tasks.definition import TaskDefinition

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The names of a multiple-choice question's options, in order."""


class TaskKind:
    """One kind of task. An answer is a canonical text; None always means that there is no valid one."""

    opening: str = "You answer questions."
    """Opens the system turn that holds demonstrations."""
    instruction: str = "Answer the question."
    """What `semievol init` writes into a task file of this kind."""
    answer_word: str = "VALUE"
    """Stands after `Answer:` in the request."""
    lettered: bool = False
    """Every question has options, and their letters are the answers."""
    fixed_labels: bool = False
    """All questions share the labels that the task names."""
    placeholders: tuple[str, str] = ("yes", "no")
    """Two different answers of usual length, for a plan to count with."""
    absent: str = ""
    """Stands for the value of a field that an answer does not have."""
    starter_lines: tuple[str, ...] = ()
    """Lines at the end of the task file that `semievol init` writes."""

    @property
    def closed(self) -> bool:
        """Whether every question has a closed set of answers."""
        return self.lettered or self.fixed_labels

    def fault(self, task: TaskDefinition) -> str | None:
        """What is wrong with a task file of this kind, as a sentence without its full stop."""
        if task.labels and not self.closed:
            return f"a task of kind {task.kind!r} has no labels; remove them or change the kind"
        return None

    def listed(self, task: TaskDefinition, example: Example, order: Sequence[int] | None) -> str:
        """The possible answers as a question shows them; empty for open answers.

        `order[i]` is the canonical index of the option shown at position i; None is the canonical order.
        """
        return ""

    def listed_in_shot(self, task: TaskDefinition, example: Example) -> str:
        """The possible answers as a demonstration shows them."""
        return ""

    def labels(self, task: TaskDefinition, example: Example) -> tuple[str, ...] | None:
        """The closed set of canonical answers; None where any answer is possible."""
        return None

    def parse(self, task: TaskDefinition, text: str, example: Example, order: Sequence[int] | None) -> str | None:
        """The canonical answer in a response; None where there is none, or more than one."""
        if example.chat is not None:
            return text.strip() or None
        found = find_answer(text)
        return (found.text or None) if found else None

    def equal(self, task: TaskDefinition, answer: str, gold: str) -> bool:
        """Whether two canonical answers mean the same."""
        return answer == gold if self.closed else comparable(answer) == comparable(gold)

    def read_gold(self, task: TaskDefinition, cell: str, example: Example) -> str | None:
        """A cell of the answer column, without outer space, in canonical form; None where it is no possible answer."""
        return (cell if example.chat is not None else " ".join(cell.split())) or None

    def why_refused(self, task: TaskDefinition, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        return "is empty."

    def reply(self, task: TaskDefinition, answer: str) -> str:
        """A canonical answer as a reply in a chat is written, where no line `Answer:` is asked for."""
        return answer

    # Answers that consist of fields are told apart, pooled and scored field by field.
    def fields(self, task: TaskDefinition) -> tuple[str, ...]:
        """The names of the fields of which every answer consists; empty where an answer is one thing."""
        return ()

    def parts(self, task: TaskDefinition, answer: str) -> Mapping[str, str]:
        """The value of each field of an answer; absent ones are left out, and fields that are no field are there."""
        return {}

    def joined(self, task: TaskDefinition, parts: Mapping[str, str]) -> str:
        """The canonical answer of such values."""
        raise ValueError(f"answers of kind {task.kind!r} have no fields")

    def values(self, task: TaskDefinition, field: str) -> tuple[str, ...] | None:
        """The closed set of a field's values, `absent` among them; None where any value is possible."""
        return None

    def same(self, task: TaskDefinition, field: str, value: str, gold: str) -> bool:
        """Whether two values of a field mean the same."""
        return value == gold

    def spans(self, task: TaskDefinition, text: str) -> Mapping[str, tuple[int, int]]:
        """Where each field that a response has stands in it: the places of its first and behind its last character."""
        return {}

    def schema(self, task: TaskDefinition) -> str:
        """The JSON schema of every reply, as JSON; empty where replies are no JSON."""
        return ""

    def weakest(self, task: TaskDefinition) -> bool:
        """Whether an answer is as certain as its least certain field; else the product over its fields counts."""
        return True
