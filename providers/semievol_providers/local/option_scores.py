"""Exact log-probabilities of given next tokens, read in one prefill; and which tokens spell a label.

Prompts share passes as those of samples do, so a prompt's numbers never depend on its neighbours. Knows nothing of
queues, adapters or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from semievol_providers.local.packed import PackedModel
    from semievol_providers.local.requests import ReadRequest


def label_token_ids(
    label: str, encode: Callable[[str], Sequence[int]], decode: Callable[[Sequence[int]], str]
) -> tuple[int, ...]:
    """The tokens that alone spell a label, with and without a space before it; none where it takes several.

    The spelling is checked by decoding, since a tokenizer may put a space of its own before a text.
    """
    wanted = label.strip()
    found: dict[int, None] = {}
    for spelling in (wanted, f" {wanted}"):
        ids = encode(spelling)
        if len(ids) == 1 and decode(ids).strip() == wanted:
            found[ids[0]] = None
    return tuple(found)


def read_next(
    packed: PackedModel, model: PreTrainedModel, requests: Sequence[ReadRequest]
) -> list[tuple[float | None, ...]]:
    """For every request, the natural log of the probability that the next token is one of each group's."""
    import torch

    from semievol_providers.local.prefill import passes, read_prompts

    prompts = [request.prompt_ids for request in requests]
    read: list[tuple[float | None, ...]] = []
    for members in passes(prompts):
        logits = read_prompts(packed, model, [prompts[i] for i in members], keep=False).logits
        for i, scores in zip(members, logits.log_softmax(-1).cpu(), strict=True):
            groups = requests[i].token_groups
            read.append(tuple([float(torch.logsumexp(scores[list(g)], 0)) if g else None for g in groups]))
    return read
