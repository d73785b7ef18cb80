"""Runs a model on the tokens of many samples laid end to end, so that one token's numbers depend on its sample alone.

Everything but attention works token by token, linear layers by `row_linear`; attention is computed sample by sample,
as a plan of the pass says. The number of tokens is padded to a multiple at which no elementwise kernel ends in the
middle of its vectors. Knows nothing of caches' places, sampling or queues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from semievol_providers.local.model_folder import ModelFolderError
from semievol_providers.local.padding import multiple_of
from semievol_providers.local.row_linear import BlockSizes, use_row_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "semievol_packed"
_VECTOR_FLOATS = 32
_LEAST_ROWS = 4
_KINDS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class Look:
    """How a layer's scores are made: their scale, how many of the latest tokens are seen, a cap on the scores."""

    scale: float
    window: int | None
    softcap: float | None


class Plan(Protocol):
    """Which tokens of a pass belong together."""

    def attend(self, layer: int, states: tuple[Tensor, Tensor, Tensor], look: Look) -> Tensor:
        """`states` are queries, keys and values (heads, tokens, size); gives (tokens, heads, size)."""
        ...


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, look: Look) -> Tensor:
    """Of every batch entry and head; `mask` is added to the scores, None is causal. Shapes as in torch."""
    if look.softcap is None:
        grouped = query.shape[1] != key.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=look.scale, enable_gqa=grouped
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeats, 1) if repeats > 1 else states for states in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * look.scale
    scores = torch.tanh(scores / look.softcap) * look.softcap
    if mask is None:
        mask = causal_mask(query.shape[2], None, query)
    return torch.matmul((scores + mask).softmax(-1, dtype=torch.float32).to(value.dtype), value)


def causal_mask(length: int, window: int | None, like: Tensor) -> Tensor:
    """(length, length), to be added to scores; a token sees itself and at most `window` tokens in all."""
    index = torch.arange(length, device=like.device)
    hidden = index > index[:, None]
    if window is not None:
        hidden |= index <= index[:, None] - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -math.inf)


class PromptPlan:
    """Prompts laid end to end: each attends to itself, at its own length. Keeps keys and values where asked to."""

    def __init__(self, lengths: Sequence[int], keep: bool) -> None:
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.spans: list[tuple[int, int]] = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._keep = keep

    def attend(self, layer: int, states: tuple[Tensor, Tensor, Tensor], look: Look) -> Tensor:
        """See Plan."""
        query, key, value = states
        if self._keep:
            self.layers[layer] = (key, value)
        out = query.new_zeros((query.shape[1], query.shape[0], value.shape[2]))
        for start, end in self.spans:
            one = [state[None, :, start:end].clone(memory_format=torch.contiguous_format) for state in states]
            near = look.window is not None and look.window < end - start
            mask = causal_mask(end - start, look.window, query) if near else None
            out[start:end] = attention(one[0], one[1], one[2], mask, look)[0].transpose(0, 1)
        return out


class PackedModel:
    """A base model made ready: `logits` and `hidden` of the tokens of a plan."""

    def __init__(self, base: PreTrainedModel, pad_id: int) -> None:
        """Changes `base` in place.

        Raises:
            ModelFolderError: its attention cannot be computed sample by sample.
        """
        _check(base)
        self.blocks = BlockSizes()
        self.pad_id = pad_id
        self.unit = _row_unit(base)
        register_attention()
        base.set_attn_implementation(_ATTENTION)
        use_row_linears(base, self.blocks)

    def logits(self, model: Any, ids: Sequence[int], positions: Sequence[int], plan: Plan, wanted: Tensor) -> Tensor:
        """Float32 logits (wanted, vocabulary) of the tokens with these indices."""
        padded = torch.nn.functional.pad(wanted, (0, multiple_of(self.unit, len(wanted)) - len(wanted)))
        out = model(**self._inputs(model, ids, positions), logits_to_keep=padded.to(model.device), row_plan=plan)
        logits: Tensor = out.logits[0].float()
        return logits[: len(wanted)]

    def hidden(self, model: Any, ids: Sequence[int], positions: Sequence[int], plan: Plan) -> Tensor:
        """Final hidden states (tokens, hidden size)."""
        out = model.get_decoder()(**self._inputs(model, ids, positions), row_plan=plan)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _inputs(self, model: Any, ids: Sequence[int], positions: Sequence[int]) -> dict[str, Any]:
        spare = multiple_of(self.unit, len(ids)) - len(ids)
        both = torch.tensor([[*ids, *[self.pad_id] * spare], [*positions, *[0] * spare]], device=model.device)
        return {"input_ids": both[:1], "position_ids": both[1:], "use_cache": False}


def _row_unit(model: PreTrainedModel) -> int:
    """How many rows of any layer's width are a whole number of vectors; the head's width counts where it is capped."""
    known: Any = model
    head = known.get_output_embeddings()
    capped = model.config.to_dict().get("final_logit_softcapping") is not None
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and (capped or m is not head)]
    widths = [width for linear in linears for width in (linear.in_features, linear.out_features)]
    return max(_LEAST_ROWS, _VECTOR_FLOATS // math.gcd(_VECTOR_FLOATS, *widths))


def _check(model: PreTrainedModel) -> None:
    known: Any = model
    written = model.config.to_dict()
    text = written.get("text_config") or written
    kinds = set(text.get("layer_types") or ()) - _KINDS
    if kinds or not known.is_backend_compatible():
        what = f"layers of {', '.join(sorted(kinds))}" if kinds else "an attention of its own"
        raise ModelFolderError(
            f"The model is a {type(model).__name__} with {what}, which cannot be served: samples share their steps "
            "here, each with its own attention. Serve it with vLLM, or take a model of another architecture."
        )


def register_attention() -> None:
    """Make the attention of packed passes known to transformers; doing so again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """What a layer calls; the plan of the pass comes through the model's forward."""
    if settings.get("s_aux") is not None:
        raise ValueError("Models with attention sinks are not supported.")
    scaling = settings.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    look = Look(scale, settings.get("sliding_window"), settings.get("softcap"))
    plan: Plan = settings["row_plan"]
    return plan.attend(module.layer_idx, (query[0], key[0], value[0]), look)[None], None
