"""Reads prompts end to end in one pass: the next token's logits, and keys and values where a sample goes on from there.

Knows nothing of samples, queues or where the caches go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from semievol_providers.local.packed import PackedModel, PromptPlan, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PASS_TOKENS = 768
"""Prompts share a pass up to so many tokens together; a longer one has a pass of its own."""

_Ids = tuple[int, ...]
Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each (heads, tokens, size)."""


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """`logits` float32 (prompts, vocabulary) of each prompt's next token."""

    logits: Tensor
    spans: list[tuple[int, int]]
    layers: Layers

    def layers_of(self, prompt: int) -> Layers:
        """One prompt's keys and values, for every layer."""
        start, end = self.spans[prompt]
        return [(keys[:, start:end], values[:, start:end]) for keys, values in self.layers]


def passes(prompts: Sequence[_Ids]) -> Iterator[list[int]]:
    """Indices of prompts that share a pass, in order."""
    taken: list[int] = []
    tokens = 0
    for i, prompt in enumerate(prompts):
        if taken and tokens + len(prompt) > PASS_TOKENS:
            yield taken
            taken, tokens = [], 0
        taken.append(i)
        tokens += len(prompt)
    if taken:
        yield taken


def read_prompts(packed: PackedModel, model: PreTrainedModel, prompts: Sequence[_Ids], keep: bool) -> ReadPrompts:
    """One pass over all of these; `keep` says whether keys and values are wanted."""
    plan = PromptPlan([len(prompt) for prompt in prompts], packed.last_layer, keep)
    logits = packed.logits(model, _laid_out(prompts), plan, plan.last_tokens)
    return ReadPrompts(logits, plan.spans, [plan.layers[layer] for layer in sorted(plan.layers)])


def last_hidden(packed: PackedModel, model: PreTrainedModel, prompts: Sequence[_Ids]) -> Tensor:
    """Final hidden states (prompts, hidden size) of each prompt's last token, in one pass."""
    plan = PromptPlan([len(prompt) for prompt in prompts], packed.last_layer, keep=False)
    return packed.hidden(model, _laid_out(prompts), plan, plan.last_tokens)


def _laid_out(prompts: Sequence[_Ids]) -> Tokens:
    ids = [token for prompt in prompts for token in prompt]
    return Tokens(ids, [position for prompt in prompts for position in range(len(prompt))])
