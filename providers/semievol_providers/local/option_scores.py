"""Exact log-probabilities of given next tokens, read in one prefill; and which tokens spell a label.

Runs at the engine's fixed shapes, so a prompt's numbers never depend on its neighbours. Knows nothing of queues,
adapters or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from semievol_providers.local.requests import EngineSettings, ReadRequest


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
    model: PreTrainedModel, requests: Sequence[ReadRequest], pad_id: int, settings: EngineSettings
) -> list[tuple[float | None, ...]]:
    """For every request, the natural log of the probability that the next token is one of each group's."""
    import torch

    from semievol_providers.local.batch_group import padded_batch, prompt_bucket

    buckets: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        buckets.setdefault(prompt_bucket(len(request.prompt_ids), settings), []).append(i)
    read: dict[int, tuple[float | None, ...]] = {}
    for length, members in sorted(buckets.items()):
        for start in range(0, len(members), settings.prefill_rows):
            chunk = members[start : start + settings.prefill_rows]
            prompts = [requests[i].prompt_ids for i in chunk]
            ids, mask = padded_batch(prompts, settings.prefill_rows, length, pad_id)
            mask = mask.to(model.device)
            logits = model(
                input_ids=ids.to(model.device),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
            scores = logits.float().log_softmax(-1).cpu()
            for row, i in enumerate(chunk):
                groups = requests[i].token_groups
                read[i] = tuple([float(torch.logsumexp(scores[row][list(g)], 0)) if g else None for g in groups])
    return [read[i] for i in range(len(requests))]
