"""Runs a model on the tokens of many samples laid end to end, so that one token's numbers depend on its sample alone.

    packed = PackedModel(base, pad_id)                     # changes the base in place
    for members in passes(prompts): read_prompts(packed, model, [prompts[i] for i in members], keep=False).logits

Everything but attention works token by token, linear layers in blocks of rows that give equal bits; attention is
computed sample by sample, as a plan of the pass says. The number of tokens is padded to a multiple at which no
elementwise kernel ends in the middle of its vectors. Knows nothing of caches' places, sampling or queues.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from semievol_providers.local.model_folder import ModelFolderError, check_adapter
from semievol_providers.local.requests import EngineSettings

if TYPE_CHECKING:
    from semievol_providers.local.requests import ReadRequest

PASS_TOKENS = 768
"""Prompts share a pass up to so many tokens together; a longer one has a pass of its own."""

_STEP = 64

_STEPS_PER_DOUBLING = 8

_REFERENCE = 16

_SIZES = (256, 128, 64, 32, 16, 8, 4)

_ALIGNMENT_BYTES = 64

_ATTENTION = "semievol_packed"

_VECTOR_FLOATS = 32

_LEAST_ROWS = 4

_KINDS = frozenset({"full_attention", "sliding_attention"})

_Ids = tuple[int, ...]

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each (heads, tokens, size)."""


# -------------------------------------------------------------------------------------------------------- a pass


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a pass, and the index that each has in its own sample."""

    ids: Sequence[int]
    positions: Sequence[int]


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


class PackedModel:
    """A base model made ready: `logits` of the next tokens of a pass, and `hidden` states of prompts."""

    def __init__(self, base: PreTrainedModel, pad_id: int) -> None:
        """Changes `base` in place.

        Raises:
            ModelFolderError: its attention cannot be computed sample by sample.
        """
        _check(base)
        self.blocks = BlockSizes()
        self.pad_id = pad_id
        self.unit = _row_unit(base)
        text = base.config.get_text_config()
        self.last_layer: int = text.num_hidden_layers - 1
        _register_attention()
        base.set_attn_implementation(_ATTENTION)
        use_row_linears(base, self.blocks)

    def logits(self, model: Any, tokens: Tokens, plan: Plan, wanted: Tensor) -> Tensor:
        """Float32 logits (wanted, vocabulary) of the tokens with these indices; nothing else of them may be needed."""
        padded = torch.nn.functional.pad(wanted, (0, _multiple_of(self.unit, len(wanted)) - len(wanted)))
        padded = padded.to(model.device)
        out = self._run(model, tokens, plan, padded, {"logits_to_keep": padded})
        logits: Tensor = out.logits[0].float()
        return logits[: len(wanted)]

    def hidden(self, model: Any, tokens: Tokens, plan: Plan, wanted: Tensor) -> Tensor:
        """Final hidden states (wanted, hidden size) of the tokens with these indices."""
        wanted = wanted.to(model.device)
        hidden: Tensor = self._run(model.get_decoder(), tokens, plan, wanted, {}).last_hidden_state[0]
        return hidden[wanted]

    def _run(self, model: Any, tokens: Tokens, plan: Plan, wanted: Tensor, settings: dict[str, Tensor]) -> Any:
        spare = _multiple_of(self.unit, len(tokens.ids)) - len(tokens.ids)
        rows = [[*tokens.ids, *[self.pad_id] * spare], [*tokens.positions, *[0] * spare]]
        both = torch.tensor(rows, device=wanted.device)
        if 2 * len(wanted) < both.shape[1]:
            plan = _Narrowing(plan, self.last_layer, self.blocks, (wanted, both.shape[1]))
        try:
            return model(input_ids=both[:1], position_ids=both[1:], use_cache=False, row_plan=plan, **settings)
        finally:
            self.blocks.widen()


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


def _multiple_of(unit: int, count: int) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit


class _Narrowing:
    """A plan after whose last attention only the wanted tokens are computed: nobody reads the others any more."""

    def __init__(self, plan: Plan, last_layer: int, blocks: BlockSizes, wanted: tuple[Tensor, int]) -> None:
        self._plan = plan
        self._last_layer = last_layer
        self._blocks = blocks
        self._wanted = wanted

    def attend(self, layer: int, states: tuple[Tensor, Tensor, Tensor], look: Look) -> Tensor:
        """See Plan."""
        if self._blocks.narrowed:
            raise ValueError(f"Layer {layer} comes after layer {self._last_layer}, which should be the last one.")
        out = self._plan.attend(layer, states, look)
        if layer == self._last_layer:
            self._blocks.narrow(*self._wanted)
        return out


# ------------------------------------------------------------------------------------------------------- prompts


class _PromptPlan:
    """Prompts laid end to end: each attends to itself, at its own length. Keeps keys and values where asked to.

    Of the last layer only the prompts' last tokens come out; the others are zeros.
    """

    def __init__(self, lengths: Sequence[int], last_layer: int, keep: bool) -> None:
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.spans: list[tuple[int, int]] = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._last_layer = last_layer
        self._keep = keep

    @property
    def last_tokens(self) -> Tensor:
        """Indices of the prompts' last tokens."""
        return torch.tensor([end - 1 for _, end in self.spans])

    def attend(self, layer: int, states: tuple[Tensor, Tensor, Tensor], look: Look) -> Tensor:
        """See Plan."""
        query, key, value = states
        if self._keep:
            self.layers[layer] = (key, value)
        out = query.new_zeros((query.shape[1], query.shape[0], value.shape[2]))
        for start, end in self.spans:
            one = [state[None, :, start:end].clone(memory_format=torch.contiguous_format) for state in states]
            first = end - start - 1 if layer == self._last_layer else 0
            near = look.window is not None and look.window < end - start
            mask = _causal_mask(first, end - start, look.window, query) if near or first else None
            asked = one[0][:, :, first:].contiguous()
            out[start + first : end] = attention(asked, one[1], one[2], mask, look)[0].transpose(0, 1)
        return out


@dataclass(frozen=True, slots=True)
class _ReadPrompts:
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


def read_prompts(packed: PackedModel, model: PreTrainedModel, prompts: Sequence[_Ids], keep: bool) -> _ReadPrompts:
    """One pass over all of these; `keep` says whether keys and values are wanted."""
    plan = _PromptPlan([len(prompt) for prompt in prompts], packed.last_layer, keep)
    logits = packed.logits(model, _laid_out(prompts), plan, plan.last_tokens)
    return _ReadPrompts(logits, plan.spans, [plan.layers[layer] for layer in sorted(plan.layers)])


def read_next(
    packed: PackedModel, model: PreTrainedModel, requests: Sequence[ReadRequest]
) -> list[tuple[float | None, ...]]:
    """For every request, the natural log of the probability that the next token is one of each group's."""
    prompts = [request.prompt_ids for request in requests]
    read: list[tuple[float | None, ...]] = []
    for members in passes(prompts):
        logits = read_prompts(packed, model, [prompts[i] for i in members], keep=False).logits
        for i, scores in zip(members, logits.log_softmax(-1).cpu(), strict=True):
            groups = requests[i].token_groups
            read.append(tuple([float(torch.logsumexp(scores[list(g)], 0)) if g else None for g in groups]))
    return read


def _last_hidden(packed: PackedModel, model: PreTrainedModel, prompts: Sequence[_Ids]) -> Tensor:
    """Final hidden states (prompts, hidden size) of each prompt's last token, in one pass."""
    plan = _PromptPlan([len(prompt) for prompt in prompts], packed.last_layer, keep=False)
    return packed.hidden(model, _laid_out(prompts), plan, plan.last_tokens)


def embed_pass(
    packed: PackedModel, model: PreTrainedModel, inputs: Sequence[tuple[int, ...]]
) -> list[NDArray[np.float32]]:
    """The vector of unit length of each of these tokenised texts, in one pass; `passes` says which share one."""
    hidden = _last_hidden(packed, model, inputs).float()
    return [torch.nn.functional.normalize(row, dim=-1).cpu().numpy() for row in hidden]


def _laid_out(prompts: Sequence[_Ids]) -> Tokens:
    ids = [token for prompt in prompts for token in prompt]
    return Tokens(ids, [position for prompt in prompts for position in range(len(prompt))])


def cache_width(tokens: int) -> int:
    """The padded length of the cache that holds `tokens` tokens: multiples of 64 up to 512, then coarser ones."""
    step = _STEP
    while tokens > _STEPS_PER_DOUBLING * step:
        step *= 2
    return -(-tokens // step) * step


# ----------------------------------------------------------------------------------------------------- attention


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
        mask = _causal_mask(0, query.shape[2], None, query)
    return torch.matmul((scores + mask).softmax(-1, dtype=torch.float32).to(value.dtype), value)


def _causal_mask(first: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """What is added to the scores of the tokens from `first`, (length - first, length).

    A token sees itself and those before it, at most `window` tokens in all.
    """
    index = torch.arange(length, device=like.device)
    asking = index[first:, None]
    hidden = index > asking
    if window is not None:
        hidden |= index <= asking - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -math.inf)


def _register_attention() -> None:
    """Make the attention of packed passes known to transformers; doing so again changes nothing."""
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


# ------------------------------------------------------------------------------------------------- linear layers


class BlockSizes:
    """Multiplies rows with weights in blocks of sizes that agree; finds out which do when a shape is first seen."""

    def __init__(self, candidates: tuple[int, ...] = _SIZES) -> None:
        self._candidates = candidates
        self._found: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self._wanted: tuple[Tensor, int] | None = None

    def __deepcopy__(self, memo: object) -> BlockSizes:
        """What is known holds for copies of a model too."""
        return self

    def narrow(self, wanted: Tensor, rows: int) -> None:
        """From now on only these rows of inputs of so many rows are computed; the others come out as zeros."""
        self._wanted = (wanted, rows)

    def widen(self) -> None:
        """Compute all rows again."""
        self._wanted = None

    @property
    def narrowed(self) -> bool:
        """Whether some rows are left out."""
        return self._wanted is not None

    def multiply(self, rows: Tensor, weight: Tensor) -> Tensor:
        """`rows` (rows, inputs) times the transposed `weight` (outputs, inputs), both float32 on the CPU."""
        if self._wanted is not None and len(rows) == self._wanted[1]:
            out = rows.new_zeros((len(rows), len(weight)))
            return out.index_copy_(0, self._wanted[0], self._product(rows[self._wanted[0]], weight))
        return self._product(rows, weight)

    def _product(self, rows: Tensor, weight: Tensor) -> Tensor:
        sizes = self.sizes_for(weight)
        count = len(rows)
        whole = -(-count // sizes[-1]) * sizes[-1]
        if whole > count:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, whole - count))
        out = rows.new_empty((whole, len(weight)))
        turned = weight.t()
        start = 0
        for size in sizes:
            while whole - start >= size:
                torch.mm(rows[start : start + size], turned, out=out[start : start + size])
                start += size
        return out[:count]

    def sizes_for(self, weight: Tensor) -> tuple[int, ...]:
        """Block sizes that give weights of this shape and alignment equal bits, the largest first."""
        key = (weight.shape[0], weight.shape[1], weight.data_ptr() % _ALIGNMENT_BYTES)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._agreeing(*key)
        return found

    def _agreeing(self, outputs: int, inputs: int, offset_bytes: int) -> tuple[int, ...]:
        chance = torch.Generator().manual_seed(0)
        store = torch.empty(outputs * inputs + _ALIGNMENT_BYTES // 4)
        offset = (offset_bytes - store.data_ptr()) % _ALIGNMENT_BYTES // store.element_size()
        turned = store[offset : offset + outputs * inputs].normal_(generator=chance).view(outputs, inputs).t()
        rows = torch.empty(max(self._candidates), inputs).normal_(generator=chance)
        block = rows[:_REFERENCE]
        first = torch.mm(block, turned)
        for places in range(1, _REFERENCE):
            if not torch.equal(torch.mm(block.roll(places, 0), turned).roll(-places, 0), first):
                return (1,)
        reference = torch.cat([torch.mm(part, turned) for part in torch.split(rows, _REFERENCE)])
        return tuple(
            size
            for size in self._candidates
            if size == _REFERENCE or torch.equal(torch.mm(rows[:size], turned), reference[:size])
        )


class RowLinear(torch.nn.Linear):
    """A linear layer with the weights of another, computed in blocks of rows."""

    def __init__(self, source: torch.nn.Linear, blocks: BlockSizes) -> None:
        bias = cast("torch.nn.Parameter | None", source.bias)
        super().__init__(source.in_features, source.out_features, bias=bias is not None, device="meta")
        self.weight = source.weight
        self.register_parameter("bias", bias)
        self._blocks = blocks

    def forward(self, input: Tensor) -> Tensor:
        """As in torch, but a row's bits do not depend on the others."""
        if input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        out = self._blocks.multiply(input.reshape(-1, self.in_features).contiguous(), self.weight)
        bias = cast("torch.nn.Parameter | None", self.bias)
        if bias is not None:
            out += bias
        return out.view(*input.shape[:-1], self.out_features)


def use_row_linears(model: torch.nn.Module, blocks: BlockSizes) -> None:
    """Replace every plain linear layer of a model, in place."""
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            model.set_submodule(name, RowLinear(module, blocks))


class AdapterShelf:
    """`model_for(adapter_folder)` gives a model ready for a forward pass; None is the base."""

    def __init__(self, base: PreTrainedModel, blocks: BlockSizes, settings: EngineSettings) -> None:
        self._base = base
        self._blocks = blocks
        self._settings = settings
        self._bytes = sum(p.numel() * p.element_size() for p in base.parameters())
        self._merged: OrderedDict[str, PreTrainedModel] = OrderedDict()
        self._switching: Any = None
        self._names: dict[str, str] = {}

    @property
    def merges(self) -> bool:
        """True where every adapter has a merged copy of its own, so that several can run side by side."""
        return self._bytes <= self._settings.merge_limit_bytes

    def model_for(self, adapter: str | None) -> PreTrainedModel:
        """The model with this adapter in place.

        Raises:
            ModelFolderError: the folder holds no adapter in safetensors.
        """
        if adapter is None and self._switching is None:
            return self._base
        if self.merges:
            return self._base if adapter is None else self._merged_copy(adapter)
        return self._switched(adapter)

    def forget(self, adapter: str) -> None:
        """Free what an adapter holds."""
        self._merged.pop(adapter, None)
        name = self._names.pop(adapter, None)
        if name is not None and self._switching is not None:
            self._switching.delete_adapter(name)

    def _merged_copy(self, adapter: str) -> PreTrainedModel:
        found = self._merged.get(adapter)
        if found is None:
            from peft import PeftModel

            check_adapter(adapter)
            wrapped: Any = PeftModel.from_pretrained(copy.deepcopy(self._base), adapter)
            merged: PreTrainedModel = wrapped.merge_and_unload().eval()
            while self._merged and (len(self._merged) + 1) * self._bytes > self._settings.adapter_cache_bytes:
                self._merged.popitem(last=False)
            found = self._merged[adapter] = merged
        self._merged.move_to_end(adapter)
        return found

    def _switched(self, adapter: str | None) -> PreTrainedModel:
        self._switch(adapter)
        switched: PreTrainedModel = self._switching
        return switched

    def _switch(self, adapter: str | None) -> None:
        from peft import PeftModel

        if adapter is None:
            self._switching.disable_adapter_layers()
            return
        check_adapter(adapter)
        if adapter not in self._names:
            name = f"adapter{len(self._names)}"
            if self._switching is None:
                self._switching = PeftModel.from_pretrained(self._base, adapter, adapter_name=name).eval()
            else:
                self._switching.load_adapter(adapter, adapter_name=name)
            use_row_linears(self._switching, self._blocks)
            self._names[adapter] = name
        self._switching.enable_adapter_layers()
        self._switching.set_adapter(self._names[adapter])
