"""A chat fine-tuning file, looked at before it is uploaded: what a vendor would refuse, or bill for nothing.

Knows nothing of vendors or of what the lines teach.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from semievol_api.errors import DataError
from semievol_api.records import Message

MIN_EXAMPLES = 10
"""OpenAI's own minimum for a fine-tuning file."""
MAX_BYTES = 512 * 2**20
"""OpenAI's own limit for one file."""
AUTO_EPOCHS = 3
"""What `auto` usually comes to; the vendor decides."""


CountTokens = Callable[[Sequence[Message]], int]


@dataclass(frozen=True, slots=True)
class FileReport:
    """What stands in a training file. `duplicates` counts lines that repeat an earlier one, word for word.

    `tokens` (of one epoch) and `longest_tokens` are None where nobody counted; `too_long` counts the examples that
    are longer than the model's context.
    """

    examples: int
    duplicates: int
    longest_characters: int
    tokens: int | None = None
    longest_tokens: int | None = None
    too_long: int = 0

    @property
    def sentence(self) -> str:
        """For the progress of a job."""
        twice = f", {self.duplicates} of them repeated word for word" if self.duplicates else ""
        size = f"the longest has {self.longest_characters:,} characters"
        if self.tokens is not None and self.longest_tokens is not None:
            mean = self.tokens / max(1, self.examples)
            size = f"about {self.tokens:,} tokens, {mean:.0f} in an example and {self.longest_tokens:,} in the longest"
        cut = (
            f" {self.too_long} are longer than the model's context, and vendors cut them off." if self.too_long else ""
        )
        return f"Uploading {self.examples} examples{twice}; {size}.{cut}"


def check_training_file(
    content: bytes, count: CountTokens | None = None, context_tokens: int | None = None
) -> FileReport:
    """Refuse what no vendor accepts; `count` gives the tokens of one example.

    Raises:
        DataError: fewer than ten examples, a line that is no chat, or one without an answer; names the line.
    """
    lines = content.splitlines()
    if len(lines) < MIN_EXAMPLES:
        raise DataError(
            f"The training file has {len(lines)} examples, and a fine-tuning job needs at least {MIN_EXAMPLES}. Add "
            f"labelled examples; nothing was uploaded."
        )
    if len(content) > MAX_BYTES:
        raise DataError(
            f"The training file has {len(content) / 2**20:.0f} MiB, and vendors take at most {MAX_BYTES // 2**20}. "
            f"Take fewer unlabelled rows: [data] max_unlabeled."
        )
    chats = [_chat(number, line) for number, line in enumerate(lines, start=1)]
    repeated = sum(copies - 1 for copies in Counter(lines).values())
    longest = max(sum(len(turn.content) for turn in chat) for chat in chats)
    if count is None:
        return FileReport(len(lines), repeated, longest)
    tokens = [count(chat) for chat in chats]
    too_long = sum(size > context_tokens for size in tokens) if context_tokens else 0
    return FileReport(len(lines), repeated, longest, sum(tokens), max(tokens), too_long)


def _chat(number: int, line: bytes) -> list[Message]:
    try:
        record: Any = json.loads(line)
        turns = [Message(turn["role"], turn["content"] + "") for turn in record["messages"]]
        last = turns[-1]
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(f"Line {number} of the training file is no chat of messages with texts.") from None
    if last.role != "assistant" or not last.content.strip():
        raise DataError(
            f"Line {number} of the training file has no answer: it should end with the assistant's turn. Look at this "
            f"example's label."
        )
    return turns
