"""Turn chat examples into token ids with a mask of what is learnt, and into batches.

Only assistant turns are learnt (completion-only loss), whatever the chat template. The order of examples in an
epoch depends on the seed and the epoch alone. Knows nothing of models or optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from semievol_api.errors import DataError
from semievol_providers.local.chat_tokens import ChatTokens

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


MAX_PADDING = 0.1


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Token ids of one example; `learnt[i]` says whether token i counts in the loss."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Left-padded tensors (rows, length); `targets` (rows, tail) are the last ids with -100 where not learnt.

    `weights` (rows, tail) are zero where nothing is learnt.
    """

    ids: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor


def load_token_examples(
    path: Path, tokens: ChatTokens, end_ids: frozenset[int], context_tokens: int, at_least: int
) -> list[TokenExample]:
    """All examples of a file.

    Raises:
        TrainingFileError: a line is malformed or longer than the model's context.
    """
    examples: list[TokenExample] = []
    for example in read_examples(path, at_least=at_least):
        encoded = encode_example(example, tokens, end_ids)
        if len(encoded.ids) > context_tokens:
            raise TrainingFileError(
                f"Line {example.line} has {len(encoded.ids):,} tokens, more than the {context_tokens:,} of the "
                "model's context. Shorten or remove it."
            )
        examples.append(encoded)
    return examples


def encode_example(example: ChatExample, tokens: ChatTokens, end_ids: frozenset[int]) -> TokenExample:
    """Token ids, with the answers of trained assistant turns and their end-of-turn tokens learnt.

    Raises:
        TrainingFileError: the chat template changes earlier turns, so that no turn but the last can be found.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    done = ""
    for position, turn in enumerate(example.turns):
        if not turn.trained:
            continue
        before = tokens.render(example.messages(position))
        after = tokens.render(example.messages(position + 1), reply_follows=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise TrainingFileError(
                f"Line {example.line}: the model's chat template rewrites earlier turns, so message "
                f"{position + 1} cannot be trained in place. Keep one assistant message, or give the "
                "others the weight 0."
            )
        context = tokens.encode_rendered(before[len(done) :])
        answer = _until_end_of_turn(tokens.encode_rendered(after[len(before) :]), end_ids)
        ids += [*context, *answer[0], *answer[1]]
        learnt += [False] * len(context) + [True] * len(answer[0]) + [False] * len(answer[1])
        done = after
    last = max(i for i, flag in enumerate(learnt) if flag) + 1
    return TokenExample(tuple(ids[:last]), tuple(learnt[:last]), example.weight)


def _until_end_of_turn(ids: tuple[int, ...], end_ids: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The answer up to and with its end-of-turn token, and what the template puts behind it."""
    for i in range(len(ids) - 1, -1, -1):
        if ids[i] in end_ids:
            return ids[: i + 1], ids[i + 1 :]
    return ids, ()


def hold_out(
    examples: Sequence[TokenExample], share: float, seed: int
) -> tuple[list[TokenExample], list[TokenExample]]:
    """The examples to train on and those to validate on: at least one of each where a share is asked for."""
    if share <= 0:
        return list(examples), []
    count = min(max(1, round(share * len(examples))), len(examples) - 1)
    held = set(epoch_order(len(examples), seed, 0)[:count])
    kept = [example for i, example in enumerate(examples) if i not in held]
    return kept, [example for i, example in enumerate(examples) if i in held]


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: the permutation that a seeded torch sampler makes."""
    generator = torch.Generator().manual_seed(seed + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def step_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The examples of optimizer step `step` (from 0); an epoch's last batch may be smaller."""
    steps_per_epoch = -(-count // batch_size)
    epoch, within = divmod(step, steps_per_epoch)
    return epoch_order(count, seed, epoch)[within * batch_size : (within + 1) * batch_size]


def split_by_tokens(examples: Sequence[TokenExample], tokens_per_pass: int) -> list[list[TokenExample]]:
    """The examples in passes of similar length, each at most `tokens_per_pass` padded tokens (or one row).

    At most a tenth of a pass is padding, which costs as much as real tokens.
    """
    passes: list[list[TokenExample]] = []
    real = 0
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        padded = len(passes[-1][0].ids) * (len(passes[-1]) + 1) if passes else 0
        real += len(example.ids)
        if passes and padded <= tokens_per_pass and real >= (1 - MAX_PADDING) * padded:
            passes[-1].append(example)
        else:
            passes.append([example])
            real = len(example.ids)
    return passes


def to_batch(examples: Sequence[TokenExample], pad_id: int) -> TokenBatch:
    """Left-padded tensors: answers end together, so only the last columns need logits."""
    length = max(len(example.ids) for example in examples)
    tail = max(len(example.ids) - example.learnt.index(True) for example in examples)
    ids = torch.full((len(examples), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(examples), length), dtype=torch.long)
    learnt = torch.zeros((len(examples), length), dtype=torch.bool)
    for row, example in enumerate(examples):
        start = length - len(example.ids)
        ids[row, start:] = torch.tensor(example.ids, dtype=torch.long)
        mask[row, start:] = 1
        learnt[row, start:] = torch.tensor(example.learnt)
    learnt = learnt[:, -tail:]
    weight = torch.tensor([example.weight for example in examples], dtype=torch.float32)
    return TokenBatch(ids, mask, ids[:, -tail:].masked_fill(~learnt, -100), learnt.float() * weight[:, None])
