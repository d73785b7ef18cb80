"""Vectors of texts from a causal language model: the last token's final hidden state, at unit length.

Runs at the same fixed shapes as generation, so a text's vector never depends on its neighbours. Knows nothing
of queues, adapters or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from semievol_providers.local.batch_group import padded_batch, prompt_bucket
from semievol_providers.local.requests import EngineSettings


def embed_ids(
    model: PreTrainedModel, inputs: Sequence[tuple[int, ...]], pad_id: int, settings: EngineSettings
) -> NDArray[np.float32]:
    """Float32 array (texts, hidden size), rows of unit length, in the order of `inputs`."""
    body = model.base_model
    buckets: dict[int, list[int]] = {}
    for i, ids in enumerate(inputs):
        buckets.setdefault(prompt_bucket(len(ids), settings), []).append(i)
    vectors: dict[int, NDArray[np.float32]] = {}
    for length, members in sorted(buckets.items()):
        for start in range(0, len(members), settings.prefill_rows):
            chunk = members[start : start + settings.prefill_rows]
            padded, mask = padded_batch([inputs[i] for i in chunk], settings.prefill_rows, length, pad_id)
            mask = mask.to(model.device)
            hidden = body(
                input_ids=padded.to(model.device),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
            ).last_hidden_state
            pooled = torch.nn.functional.normalize(hidden[:, -1].float(), dim=-1)
            for row, i in enumerate(chunk):
                vectors[i] = pooled[row].cpu().numpy()
    return np.stack([vectors[i] for i in range(len(inputs))])
