"""Vectors of texts from a causal language model: the last token's final hidden state, at unit length.

Texts share passes as prompts do, so a text's vector never depends on its neighbours. Knows nothing of queues, adapters
or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from semievol_providers.local.packed import PackedModel
from semievol_providers.local.prefill import last_hidden


def embed_pass(
    packed: PackedModel, model: PreTrainedModel, inputs: Sequence[tuple[int, ...]]
) -> list[NDArray[np.float32]]:
    """The vector of unit length of each of these tokenised texts, in one pass; `passes` says which share one."""
    hidden = last_hidden(packed, model, inputs).float()
    return [torch.nn.functional.normalize(row, dim=-1).cpu().numpy() for row in hidden]
