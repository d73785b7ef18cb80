"""Read and check a chat fine-tuning file: one JSON object with `messages` a line.

Errors name the line. Works on one line at a time, so a file of any size costs little memory. Knows nothing of
tokenizers, models or jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from semievol_api.errors import DataError

MIN_EXAMPLES = 10
_ROLES = ("system", "developer", "user", "assistant")
_MAX_LINE_BYTES = 4 * 2**20


class TrainingFileError(DataError):
    """A training file cannot be used; the message names the line."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One chat turn; `trained` says whether its tokens count in the loss."""

    role: str
    content: str
    trained: bool


@dataclass(frozen=True, slots=True)
class ChatExample:
    """One line of the file; `weight` multiplies its part of the loss."""

    line: int
    turns: tuple[Turn, ...]
    weight: float = 1.0

    def messages(self, until: int | None = None) -> list[dict[str, str]]:
        """The turns as chat messages, up to and without turn `until`."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns[:until]]


def read_examples(path: Path, *, at_least: int = 1) -> Iterator[ChatExample]:
    """The examples of the file in order.

    Raises:
        TrainingFileError: a line is malformed, or fewer than `at_least` examples (raised after the last).
    """
    count = 0
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > _MAX_LINE_BYTES:
                raise TrainingFileError(f"Line {number} is longer than {_MAX_LINE_BYTES:,} bytes.")
            if line.strip():
                count += 1
                yield _example(number, line)
    if count < at_least:
        raise TrainingFileError(f"The file has {count} example(s), but must have at least {at_least} examples.")


def _example(number: int, line: bytes) -> ChatExample:
    try:
        record = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingFileError(f"Line {number} is not valid JSON: {error}.") from error
    if not isinstance(record, dict):
        raise TrainingFileError(f"Line {number} is not a JSON object.")
    unknown = sorted(set(record) - {"messages", "weight"})
    if unknown:
        raise TrainingFileError(
            f"Line {number} has the key {unknown[0]!r}, which is not supported: only 'messages' "
            "(and optionally 'weight', a number in (0, 1]) are."
        )
    weight = record.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
        raise TrainingFileError(f"Line {number}: 'weight' must be a number in (0, 1].")
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise TrainingFileError(f"Line {number} has no list of messages under the key 'messages'.")
    turns = tuple(_turn(number, position, message) for position, message in enumerate(messages))
    if not any(turn.trained for turn in turns):
        raise TrainingFileError(f"Line {number} has no assistant message to learn from (with a weight other than 0).")
    return ChatExample(number, turns, float(weight))


def _turn(number: int, position: int, message: object) -> Turn:
    place = f"Line {number}, message {position + 1}"
    if not isinstance(message, dict):
        raise TrainingFileError(f"{place} is not a JSON object.")
    unknown = sorted(str(key) for key in set(message) - {"role", "content", "weight"})
    if unknown:
        raise TrainingFileError(f"{place} has the key {unknown[0]!r}, which is not supported.")
    role, content, weight = message.get("role"), message.get("content"), message.get("weight", 1)
    if role not in _ROLES:
        raise TrainingFileError(f"{place}: 'role' is {role!r}; expected one of {', '.join(_ROLES)}.")
    if not isinstance(content, str):
        raise TrainingFileError(f"{place}: 'content' must be a text.")
    if role == "assistant" and not content.strip():
        raise TrainingFileError(f"{place}: an assistant message must not be empty.")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise TrainingFileError(f"{place}: 'weight' must be 0 or 1.")
    if weight != 1 and role != "assistant":
        raise TrainingFileError(f"{place}: 'weight' is for assistant messages only.")
    return Turn(str(role), content, role == "assistant" and weight == 1)
