"""A chat fine-tuning file, looked at before it is uploaded: what a vendor would refuse, or bill for nothing.

Knows nothing of vendors or of what the lines teach.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from semievol_api.errors import DataError

MIN_EXAMPLES = 10
"""OpenAI's own minimum for a fine-tuning file."""
MAX_BYTES = 512 * 2**20
"""OpenAI's own limit for one file."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What stands in a training file. `duplicates` counts lines that repeat an earlier one, word for word."""

    examples: int
    duplicates: int
    longest_characters: int

    @property
    def sentence(self) -> str:
        """For the progress of a job."""
        twice = f", {self.duplicates} of them repeated word for word" if self.duplicates else ""
        return f"Uploading {self.examples} examples{twice}; the longest has {self.longest_characters:,} characters."


def check_training_file(content: bytes) -> FileReport:
    """Refuse what no vendor accepts.

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
    sizes = [_characters(number, line) for number, line in enumerate(lines, start=1)]
    repeated = sum(count - 1 for count in Counter(lines).values())
    return FileReport(len(lines), repeated, max(sizes))


def _characters(number: int, line: bytes) -> int:
    try:
        record: Any = json.loads(line)
        turns = record["messages"]
        last = turns[-1]
        size = sum(len(turn["content"]) for turn in turns)
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(f"Line {number} of the training file is no chat of messages with texts.") from None
    if last["role"] != "assistant" or not last["content"].strip():
        raise DataError(
            f"Line {number} of the training file has no answer: it should end with the assistant's turn. Look at this "
            f"example's label."
        )
    return size
