"""What makes a training in bfloat16 quick on a CPU: attention row by row, and LoRA layers without copies in float32.

    quicken(model)                                   # a PEFT model over a base in bfloat16, changed in place
    model(input_ids=ids, position_ids=positions, row_plan=RowPlan.of(lengths), ...)

Rows of a pass lie end to end. A kernel of torch for attention in bfloat16 is slow backward on a CPU, so scores of rows
of similar length are made by plain products, and long rows go through the kernel in float32. Knows nothing of steps,
losses or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

_ATTENTION = "semievol_training"
_KINDS = frozenset({"full_attention", "sliding_attention"})
_LONG = 320
"""From so many tokens on a row's scores are not kept for the backward pass but made again, by torch's own kernel."""
_LEAST_FILLED = 0.75
"""The shortest row of a group is at least so long, as a share of the longest."""


def quicken(model: Any) -> bool:
    """Prepare a PEFT model over a base in bfloat16; False, and nothing changed, where its attention is of another kind.

    The names of parameters and what is saved stay as they are.
    """
    base = model.get_base_model()
    text = base.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - _KINDS
    if kinds or not base.is_backend_compatible():
        return False
    AttentionInterface.register(_ATTENTION, _attend)
    base.set_attn_implementation(_ATTENTION)
    for module in model.modules():
        if _is_plain_lora(module):
            module.forward = MethodType(_lora_forward, module)
    return True


def is_quick(model: Any) -> bool:
    """Whether a model was prepared by `quicken`."""
    return getattr(model.config, "_attn_implementation", None) == _ATTENTION


# ----------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of similar length: their tokens' places in the pass, (rows, length), and which of them are padding."""

    places: Tensor
    real: Tensor


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Which tokens of a pass are a row. `back[i]` is where token i stands among all groups' places."""

    groups: tuple[_Group, ...]
    back: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int]) -> RowPlan:
        """The plan of rows of these lengths, laid end to end; neighbours of similar length are computed together."""
        groups: list[_Group] = []
        back: list[Tensor] = []
        first = start = taken = 0
        while first < len(lengths):
            last, most = first, lengths[first]
            while last < len(lengths) and _LEAST_FILLED * most <= lengths[last] <= most:
                last += 1
            steps = torch.arange(most)
            begins = start + torch.tensor([0, *lengths[first : last - 1]]).cumsum(0)
            real = steps < torch.tensor(lengths[first:last])[:, None]
            groups.append(_Group(torch.where(real, begins[:, None] + steps, start), real))
            back.append(taken + real.flatten().nonzero()[:, 0])
            start += sum(lengths[first:last])
            taken += real.numel()
            first = last
        return cls(tuple(groups), torch.cat(back))


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """What a layer calls; queries, keys and values are (1, heads, tokens, size)."""
    if settings.get("s_aux") is not None:
        raise ValueError("Models with attention sinks are not supported.")
    plan: RowPlan = settings["row_plan"]
    scaling = settings.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window, softcap = settings.get("sliding_window"), settings.get("softcap")
    states = [state[0].transpose(0, 1) for state in (query, key, value)]
    gather: Any = _Gather
    scatter: Any = _Scatter
    outs: list[Tensor] = []
    for group in plan.groups:
        flat, shape = group.places.flatten(), group.places.shape
        one = [gather.apply(state, flat, group.real).unflatten(0, shape) for state in states]
        if shape[1] > _LONG and softcap is None and (window is None or window >= shape[1]):
            out = _by_kernel(one, scale)
        else:
            out = _by_products(one, scale, window, softcap)
        outs.append(out.flatten(0, 1))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return (out if len(out) == len(plan.back) else scatter.apply(out, plan.back))[None], None


def _by_kernel(states: Sequence[Tensor], scale: float) -> Tensor:
    query, key, value = (state.transpose(1, 2).float() for state in states)
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).to(states[0].dtype)


def _by_products(states: Sequence[Tensor], scale: float, window: int | None, softcap: float | None) -> Tensor:
    """`states` are (rows, length, heads, size); the queries that share a key stand below each other."""
    query, key, value = states
    rows, length, heads, size = query.shape
    shared = key.shape[2]
    per = heads // shared
    query = (query * scale).view(rows, length, shared, per, size).permute(0, 2, 3, 1, 4).reshape(-1, per * length, size)
    key, value = (state.transpose(1, 2).reshape(rows * shared, length, state.shape[-1]) for state in (key, value))
    scores = torch.bmm(query, key.transpose(1, 2)).view(-1, length, length)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    index = torch.arange(length)
    hidden = index > index[:, None]
    if window is not None:
        hidden |= index <= index[:, None] - window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
    out = torch.bmm(weights.view(-1, per * length, length), value).view(rows, shared, per, length, -1)
    return out.permute(0, 3, 1, 2, 4).reshape(rows, length, heads, -1)


class _Gather(torch.autograd.Function):
    """Tokens (tokens, heads, size) at `places`; what padding gets back is nothing."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, places: Tensor, real: Tensor) -> Tensor:
        ctx.count = len(tokens)
        ctx.save_for_backward(places, real)
        return tokens.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        places, real = ctx.saved_tensors
        kept = real.flatten().nonzero()[:, 0]
        out = grads[0].new_zeros((ctx.count, *grads[0].shape[1:]))
        return out.index_copy_(0, places[kept], grads[0].index_select(0, kept)), None, None


class _Scatter(torch.autograd.Function):
    """The real ones of padded tokens, in their order."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, back: Tensor) -> Tensor:
        ctx.count = len(padded)
        ctx.save_for_backward(back)
        return padded.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (back,) = ctx.saved_tensors
        return grads[0].new_zeros((ctx.count, *grads[0].shape[1:])).index_copy_(0, back, grads[0]), None


# --------------------------------------------------------------------------------------------------- LoRA layers


def _is_plain_lora(module: Any) -> bool:
    """A linear layer that is no packed integers, with one LoRA, without dropout or variants."""
    from peft.tuners.lora import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    plain = name in module.lora_A and not module.use_dora.get(name) and not module.lora_bias.get(name)
    drops = name in module.lora_dropout and not isinstance(module.lora_dropout[name], nn.Identity)
    return plain and not drops and module.base_layer.weight.is_floating_point()


def _lora_forward(module: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    name = module.active_adapters[0]
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    out: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]), module.base_layer.weight, down, up, module.scaling[name]
    )
    if module.base_layer.bias is not None:
        out = out + module.base_layer.bias
    return out.view(*x.shape[:-1], -1)


class _LoraProduct(torch.autograd.Function):
    """x (tokens, inputs) times a frozen weight and its LoRA, whose factors stay in float32 and multiply in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
        low_down, low_up = down.to(x.dtype), (up * scaling).to(x.dtype)
        inner = x @ low_down.t()
        ctx.scaling = scaling
        ctx.save_for_backward(x, weight, inner, low_down, low_up)
        return torch.addmm(x @ weight.t(), inner, low_up.t())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x, weight, inner, low_down, low_up = ctx.saved_tensors
        grad = grads[0]
        grad_inner = grad @ low_up
        of_up = (grad.t() @ inner).float() * ctx.scaling
        of_down = (grad_inner.t() @ x).float()
        of_x = torch.addmm(grad @ weight, grad_inner, low_down) if ctx.needs_input_grad[0] else None
        return of_x, None, of_down, of_up, None
