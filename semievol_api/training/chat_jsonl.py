"""Chat JSONL, the format of every training file: read, checked and written in one place, for the run and for trainers.

    for example in read_examples(path, at_least=MIN_EXAMPLES): print(example.line, example.turns)
    print(check_training_file(content).sentence)         # before an upload

One example a line, `{"messages": [{"role": ..., "content": ...}], "weight": 1}`, with `tools` where there are some. How
often a file of so many lines is trained on where nobody says so, `rule_epochs`, stands here too, for our trainers and
for plans. Imports no more than `records` and `errors`, since the trainers of providers read their files here too. Knows
nothing of tokenizers, models or vendors.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from semievol_api.errors import DataError
from semievol_api.records import Message, Role, TrainingExample

MIN_EXAMPLES = 10
"""OpenAI's own minimum for a fine-tuning file."""
_MAX_BYTES = 512 * 2**20
"""OpenAI's own limit for one file."""
_ROLES = ("system", "developer", "user", "assistant")
_CALLS = ("tool_calls", "tool_call_id", "name")
"""Keys of turns that call tools, and of their results; vendors take them."""
_MAX_LINE_BYTES = 4 * 2**20
_LINES_AT_ONCE = 256
_RULE_BATCH, _RULE_STEPS, _LEAST_STEPS = 8, 130, 80
"""The largest batch, the steps for 100 examples, and the fewest."""

CountTokens = Callable[[Sequence[Message]], int]


class TrainingFileError(DataError):
    """A training file cannot be used; the message names the line."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One chat turn; `trained` says whether its tokens count in the loss. `more`: its calls of tools, as JSON."""

    role: str
    content: str
    trained: bool
    more: str = ""


@dataclass(frozen=True, slots=True)
class ChatExample:
    """One line of the file; `weight` multiplies its part of the loss."""

    line: int
    turns: tuple[Turn, ...]
    weight: float = 1.0

    def messages(self, until: int | None = None) -> list[dict[str, str]]:
        """The turns as chat messages, up to and without turn `until`."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns[:until]]


# ------------------------------------------------------------------------------------------------ reading
def read_examples(source: Path | bytes, *, at_least: int = 1, tools: bool = False) -> Iterator[ChatExample]:
    """The examples of a file, or of its content, in order; `tools` says whether they may call some.

    Raises:
        TrainingFileError: a line is malformed, or fewer than `at_least` examples (raised after the last).
    """
    count = 0
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > _MAX_LINE_BYTES:
                raise TrainingFileError(f"Line {number} is longer than {_MAX_LINE_BYTES:,} bytes.")
            if line.strip():
                count += 1
                yield _example(number, line, tools=tools)
    if count < at_least:
        raise TrainingFileError(f"The file has {count} example(s), but must have at least {at_least} examples.")


def _example(number: int, line: bytes, *, tools: bool) -> ChatExample:
    try:
        record = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingFileError(f"Line {number} is not valid JSON: {error}.") from error
    if not isinstance(record, dict):
        raise TrainingFileError(f"Line {number} is not a JSON object.")
    unknown = sorted(set(record) - {"messages", "weight", *(("tools",) if tools else ())})
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
    turns = tuple(_turn(number, position, message, tools=tools) for position, message in enumerate(messages))
    if not any(turn.trained for turn in turns):
        raise TrainingFileError(f"Line {number} has no assistant message with a weight other than 0.")
    return ChatExample(number, turns, float(weight))


def _turn(number: int, position: int, message: object, *, tools: bool) -> Turn:
    place = f"Line {number}, message {position + 1}"
    if not isinstance(message, dict):
        raise TrainingFileError(f"{place} is not a JSON object.")
    more = {name: message[name] for name in _CALLS if tools and name in message}
    unknown = sorted(str(key) for key in set(message) - {"role", "content", "weight", *more})
    if unknown:
        raise TrainingFileError(f"{place} has the key {unknown[0]!r}, which is not supported.")
    role, content, weight = message.get("role"), message.get("content"), message.get("weight", 1)
    if role not in (*_ROLES, *(("tool",) if tools else ())):
        raise TrainingFileError(f"{place}: 'role' is {role!r}; expected one of {', '.join(_ROLES)}.")
    if content is None and "tool_calls" in more:
        content = ""
    content = _joined(content)
    if not isinstance(content, str):
        raise TrainingFileError(f"{place}: 'content' must be a text, or parts of type 'text' alone.")
    if role == "assistant" and not content.strip() and "tool_calls" not in more:
        raise TrainingFileError(f"{place}: an assistant message must not be empty.")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise TrainingFileError(f"{place}: 'weight' must be 0 or 1.")
    if weight != 1 and role != "assistant":
        raise TrainingFileError(f"{place}: 'weight' is for assistant messages only.")
    calls = msgspec.json.encode(more).decode() if more else ""
    return Turn(str(role), content, role == "assistant" and weight == 1, calls)


def _joined(content: object) -> object:
    """Parts of text as the one text that they are; anything else as it is."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content


# -------------------------------------------------------------------------------------- before an upload
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
        DataError: fewer than ten examples, a malformed line, or one that does not end with an answer; names the line.
    """
    if len(content) > _MAX_BYTES:
        raise DataError(
            f"The training file has {len(content) / 2**20:.0f} MiB, and vendors take at most {_MAX_BYTES // 2**20}. "
            f"Take fewer unlabelled rows: [data] max_unlabeled."
        )
    try:
        chats = [_ending_with_an_answer(example) for example in read_examples(content, at_least=0, tools=True)]
    except TrainingFileError as error:
        raise DataError(
            f"The training file cannot be used, and nothing was uploaded. {error} Look at this example's label."
        ) from error
    if len(chats) < MIN_EXAMPLES:
        raise DataError(
            f"The training file has {len(chats)} examples, and a fine-tuning job needs at least {MIN_EXAMPLES}. Add "
            f"labelled examples; nothing was uploaded."
        )
    repeated = sum(copies - 1 for copies in Counter(line for line in content.splitlines() if line.strip()).values())
    longest = max(sum(len(turn.content) for turn in chat) for chat in chats)
    if count is None:
        return FileReport(len(chats), repeated, longest)
    tokens = [count(chat) for chat in chats]
    too_long = sum(size > context_tokens for size in tokens) if context_tokens else 0
    return FileReport(len(chats), repeated, longest, sum(tokens), max(tokens), too_long)


def _ending_with_an_answer(example: ChatExample) -> list[Message]:
    """The turns. Vendors refuse a chat that ends with another turn, which our own trainers would cut off."""
    if example.turns[-1].role != "assistant":
        raise TrainingFileError(f"Line {example.line} has no answer: it should end with the assistant's turn.")
    return [Message(cast("Role", turn.role), turn.content, turn.more) for turn in example.turns]


# ------------------------------------------------------------------------------------------------ writing
def jsonl_chunks(lines: Iterable[TrainingExample]) -> Iterator[bytes]:
    """Examples as chat JSONL, always the same bytes: those of `json.dumps` without ASCII escapes."""
    encode = msgspec.json.encode
    chunk: list[bytes] = []
    for line in lines:
        turns = [
            b'{"role": %b, "content": %b}' % (encode(m.role), encode(m.content))
            if not m.more
            else json.dumps(m.body, ensure_ascii=False).encode()
            for m in line.messages
        ]
        tools = b', "tools": %b' % line.tools.encode() if line.tools else b""
        chunk.append(b'{"messages": [%b]%b}\n' % (b", ".join(turns), tools))
        if len(chunk) == _LINES_AT_ONCE:
            yield b"".join(chunk)
            chunk.clear()
    yield b"".join(chunk)


def rule_batch(examples: int) -> int:
    """Examples in a step where our trainers choose: a quarter of the file, at most 8."""
    return max(1, min(_RULE_BATCH, examples // 4))


def rule_epochs(examples: int, batch_size: int) -> int:
    """Epochs where our trainers choose: 130 steps for 100 examples, more with their square root, at least 80.

    docs/decisions/0020-rate-and-steps-of-auto.md tells where this comes from.

    >>> [rule_epochs(n, rule_batch(n)) for n in (10, 100, 400, 10_000)]
    [16, 10, 5, 1]
    """
    steps = max(_LEAST_STEPS, _RULE_STEPS * math.sqrt(examples / 100))
    return max(1, round(steps / -(-examples // batch_size)))
