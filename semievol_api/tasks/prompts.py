"""Word the turns: question, solved examples, proposals.

The wording is fixed, because it is part of every journaled request and of every trained model. Knows nothing of
how an answer is read back, nor which examples are good demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence

from semievol_api.records import Example, Message, Prompt
from semievol_api.tasks.answer_line import find_answer
from semievol_api.tasks.definition import ANSWER_FORMATS, LETTERS, Kind, TaskDefinition

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
