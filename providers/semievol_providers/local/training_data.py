"""Turn chat examples into token ids with a mask of what is learnt, and into batches.

Only assistant turns are learnt (completion-only loss), whatever the chat template. The order of examples in an
epoch depends on the seed and the epoch alone. Knows nothing of models or optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from semievol_api.training.chat_jsonl import ChatExample, TrainingFileError, read_examples
from semievol_providers.local.chat_tokens import ChatTokens

_MAX_PADDING = 0.1


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Token ids of one example; `learnt[i]` says whether token i counts in the loss."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class _TokenBatch:
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
        if passes and padded <= tokens_per_pass and real >= (1 - _MAX_PADDING) * padded:
            passes[-1].append(example)
        else:
            passes.append([example])
            real = len(example.ids)
    return passes


def to_batch(examples: Sequence[TokenExample], pad_id: int) -> _TokenBatch:
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
    return _TokenBatch(ids, mask, ids[:, -tail:].masked_fill(~learnt, -100), learnt.float() * weight[:, None])
