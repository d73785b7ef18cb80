"""The prompts of the demo, word for word as the multiple-choice task renders them.

Knows nothing of tokens, topics or how a question is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDE"
INSTRUCTION = "Which field does this exam question belong to?"
OTHER_INSTRUCTIONS = (
    "Answer the multiple-choice question.",
    "Choose the best option.",
    "Which option fits this text best?",
)
SHOTS_INTRO = "You answer multiple-choice questions. Solved examples:"
REPLY_LINE = "Reply with one line: Answer: LETTER"
JUSTIFY_LINE = "Weigh the proposals, decide, and reply with one line: Answer: LETTER"
MAX_SHOTS, MAX_PROPOSALS = 8, 8

CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Shot:
    """A solved example: its question and its letter."""

    question: str
    letter: str


@dataclass(frozen=True)
class Item:
    """Everything that one prompt shows; `proposals` are letters and make it a justification prompt."""

    question: str
    options: tuple[str, ...]
    shots: tuple[Shot, ...] = ()
    proposals: tuple[str, ...] = ()
    instruction: str = INSTRUCTION


def single_token_phrases() -> tuple[str, ...]:
    """The fixed phrases that get one token each: the shortest prompts that say the same."""
    return (
        INSTRUCTION,
        SHOTS_INTRO,
        f"\n\n{REPLY_LINE}",
        f"\n\n{JUSTIFY_LINE}",
        "\n\nQuestion:",
        "\n\nOptions:",
        "\n\nProposed answers:",
        "Answer:",
        *(f"\n{letter}." for letter in LETTERS),
        *(f"\n\nExample {n}\nQuestion:" for n in range(1, MAX_SHOTS + 1)),
        *(f"\n{n}. Answer:" for n in range(1, MAX_PROPOSALS + 1)),
    )


def messages(item: Item) -> Messages:
    """The chat turns that ask for the item's answer; shots stand in the system turn, the nearest last."""
    turns: Messages = []
    if item.shots:
        solved = "".join(
            f"\n\nExample {n}\nQuestion: {shot.question}\nAnswer: {shot.letter}" for n, shot in enumerate(item.shots, 1)
        )
        turns.append({"role": "system", "content": SHOTS_INTRO + solved})
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False))
    question = f"{item.instruction}\n\nQuestion: {item.question}\n\nOptions:{options}"
    return [*turns, {"role": "user", "content": f"{question}\n\n{_last_lines(item.proposals)}"}]


def _last_lines(proposals: Sequence[str]) -> str:
    if not proposals:
        return REPLY_LINE
    listed = "".join(f"\n{n}. Answer: {letter}" for n, letter in enumerate(proposals, 1))
    return f"Proposed answers:{listed}\n\n{JUSTIFY_LINE}"


def reply(letter: str) -> str:
    """The assistant's turn."""
    return f"Answer: {letter}"
