"""Runs a model on the tokens of many samples laid end to end, without padding between them.

    packed = PackedModel(base, pad_id, exact=False)        # changes the base in place
    read_prompts(packed, base, [Prompt(ids) for ids in prompts], keep=False).logits

Everything but attention works token by token; attention is computed sample by sample, as a plan of the pass says. An
`exact` model gives a token bits that depend on its sample alone: linear layers work in blocks of rows that agree, and
the number of tokens is padded to a multiple at which no elementwise kernel ends in the middle of its vectors. Others
work as fast as the CPU can. Knows nothing of caches' places, sampling or queues.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from semievol_providers.local.linear import (
    AdapterRuns,
    BlockSizes,
    FastLinear,
    PassRows,
    use_fast_linears,
    use_row_linears,
)
from semievol_providers.local.model_folder import ModelFolderError

_EXACT_PASS_TOKENS = 768

_PASS_BYTES = 16 * 2**20
"""What the activations of a pass may take: more leaves the CPU's caches, less leaves its kernels too little to do."""

_PASS_TOKENS = (256, 8192)

_STEP = 64

_STEPS_PER_DOUBLING = 8

_ATTENTION = "semievol_packed"

_VECTOR_FLOATS = 32

_LEAST_ROWS = 4

_QUERY_ROWS = 256

_KINDS = frozenset({"full_attention", "sliding_attention"})

_Ids = tuple[int, ...]

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each (heads, tokens, size)."""


# -------------------------------------------------------------------------------------------------------- a pass


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a pass, the index that each has in its own sample, and whose adapters they have."""

    ids: Sequence[int]
    positions: Sequence[int]
    adapters: AdapterRuns = ()


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

    def __init__(self, base: PreTrainedModel, pad_id: int, *, exact: bool) -> None:
        """Changes `base` in place.

        Raises:
            ModelFolderError: its attention cannot be computed sample by sample.
        """
        _check(base)
        self.base = base
        self.exact = exact
        self.rows = PassRows()
        self.pad_id = pad_id
        self.unit = _row_unit(base) if exact else 1
        self.pass_tokens = _EXACT_PASS_TOKENS if exact else _pass_tokens(base)
        """Prompts share a pass up to so many tokens together; a longer one has a pass of its own."""
        self.last_layer: int = base.config.get_text_config().num_hidden_layers - 1
        self.linears: dict[str, FastLinear] = self.prepare(base)
        """The layers that adapters may change, by their names; none where the model is exact."""

    def prepare(self, model: PreTrainedModel) -> dict[str, FastLinear]:
        """Let a model run the passes of this one, in place; the layers that were replaced by fast ones."""
        _register_attention()
        model.set_attn_implementation(_ATTENTION)
        if not self.exact:
            return use_fast_linears(model, self.rows)
        use_row_linears(model, BlockSizes(), self.rows)
        return {}

    def logits(self, model: Any, tokens: Tokens, plan: Plan, wanted: Tensor, read_ids: Tensor | None = None) -> Tensor:
        """Float32 logits (wanted, vocabulary) of the tokens with these indices; nothing else of them may be needed.

        `read_ids` (wanted, n) are token ids whose logits are looked at, whatever their rank.
        """
        padded = torch.nn.functional.pad(wanted, (0, _multiple_of(self.unit, len(wanted)) - len(wanted)))
        padded = padded.to(model.device)
        out = self._run(model, tokens, plan, (padded, read_ids), {"logits_to_keep": padded})
        logits: Tensor = out.logits[0].float()
        return logits[: len(wanted)]

    def hidden(self, model: Any, tokens: Tokens, plan: Plan, wanted: Tensor) -> Tensor:
        """Final hidden states (wanted, hidden size) of the tokens with these indices."""
        wanted = wanted.to(model.device)
        hidden: Tensor = self._run(model.get_decoder(), tokens, plan, (wanted, None), {}).last_hidden_state[0]
        return hidden[wanted]

    def _run(
        self, model: Any, tokens: Tokens, plan: Plan, asked: tuple[Tensor, Tensor | None], settings: dict[str, Tensor]
    ) -> Any:
        wanted = asked[0]
        spare = _multiple_of(self.unit, len(tokens.ids)) - len(tokens.ids)
        rows = [[*tokens.ids, *[self.pad_id] * spare], [*tokens.positions, *[0] * spare]]
        both = torch.tensor(rows, device=wanted.device)
        self.rows.begin(tokens.adapters, *asked)
        if 2 * len(wanted) < both.shape[1]:
            plan = _Narrowing(plan, self.last_layer, self.rows, (wanted, both.shape[1]))
        try:
            return model(input_ids=both[:1], position_ids=both[1:], use_cache=False, row_plan=plan, **settings)
        finally:
            self.rows.end()


def _pass_tokens(model: PreTrainedModel) -> int:
    text = model.config.get_text_config()
    of_one = model.dtype.itemsize * (4 * text.hidden_size + 3 * (getattr(text, "intermediate_size", 0) or 0))
    least, most = _PASS_TOKENS
    return most if model.device.type != "cpu" else min(most, max(least, _PASS_BYTES // of_one))


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

    def __init__(self, plan: Plan, last_layer: int, rows: PassRows, wanted: tuple[Tensor, int]) -> None:
        self._plan = plan
        self._last_layer = last_layer
        self._rows = rows
        self._wanted = wanted

    def attend(self, layer: int, states: tuple[Tensor, Tensor, Tensor], look: Look) -> Tensor:
        """See Plan."""
        if self._rows.narrowed:
            raise ValueError(f"Layer {layer} comes after layer {self._last_layer}, which should be the last one.")
        out = self._plan.attend(layer, states, look)
        if layer == self._last_layer:
            self._rows.narrow(*self._wanted)
        return out


# ------------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to be read with an adapter; what `head` holds of their beginning is not read again."""

    ids: _Ids
    adapter: str | None = None
    head: Layers | None = None

    @property
    def read_before(self) -> int:
        """How many tokens the head has."""
        return self.head[0][0].shape[1] if self.head else 0


class _PromptPlan:
    """Prompts laid end to end: each attends to itself, at its own length. Keeps keys and values where asked to.

    Of the last layer only the prompts' last tokens come out; the others are zeros.
    """

    def __init__(self, prompts: Sequence[Prompt], last_layer: int, keep: bool) -> None:
        lengths = [len(prompt.ids) - prompt.read_before for prompt in prompts]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.spans: list[tuple[int, int]] = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._heads = [prompt.head for prompt in prompts]
        self._last_layer = last_layer
        self._keep = keep
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

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
        for (start, end), head in zip(self.spans, self._heads, strict=True):
            first = end - start - 1 if layer == self._last_layer else 0
            asked = query[None, :, start + first : end].clone(memory_format=torch.contiguous_format)
            seen = [
                torch.cat([head[layer][side], new[:, start:end]], 1)[None]
                if head
                else new[None, :, start:end].clone(memory_format=torch.contiguous_format)
                for side, new in enumerate((key, value))
            ]
            out[start + first : end] = self._attend_causally(asked, seen[0], seen[1], look)[0].transpose(0, 1)
        return out

    def _attend_causally(self, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """Attention of the last tokens of `key` and `value`, as many as `query` has."""
        count, seen = query.shape[2], key.shape[2]
        near = look.window is not None and look.window < seen
        if not _by_products(query):
            mask = self._mask(seen - count, seen, look.window, query) if near or count < seen else None
            return attention(query, key, value, mask, look)
        found: list[Tensor] = []
        for start in range(0, count, _QUERY_ROWS):
            end = seen - count + min(count, start + _QUERY_ROWS)
            begin = seen - count + start
            low = max(0, begin - look.window + 1) if look.window is not None else 0
            mask = self._mask(begin - low, end - low, look.window, query)
            asked = query[:, :, start : start + _QUERY_ROWS]
            found.append(attention(asked, key[:, :, low:end], value[:, :, low:end], mask, look))
        return torch.cat(found, 2) if len(found) > 1 else found[0]

    def _mask(self, first: int, length: int, window: int | None, query: Tensor) -> Tensor:
        key = (first, length, window)
        if key not in self._masks:
            self._masks[key] = _causal_mask(first, length, window, query)
        return self._masks[key]


@dataclass(frozen=True, slots=True)
class _ReadPrompts:
    """`logits` float32 (prompts, vocabulary) of each prompt's next token."""

    logits: Tensor
    prompts: Sequence[Prompt]
    spans: list[tuple[int, int]]
    layers: Layers

    def layers_of(self, prompt: int) -> Layers:
        """One prompt's keys and values, for every layer."""
        (start, end), head = self.spans[prompt], self.prompts[prompt].head
        own = [(keys[:, start:end], values[:, start:end]) for keys, values in self.layers]
        if not head:
            return own
        return [
            (torch.cat([before[0], new[0]], 1), torch.cat([before[1], new[1]], 1))
            for before, new in zip(head, own, strict=True)
        ]


def passes(prompts: Sequence[_Ids], most: int) -> Iterator[list[int]]:
    """Indices of prompts that share a pass of at most so many tokens, in order; a longer one has its own."""
    taken: list[int] = []
    tokens = 0
    for i, prompt in enumerate(prompts):
        if taken and tokens + len(prompt) > most:
            yield taken
            taken, tokens = [], 0
        taken.append(i)
        tokens += len(prompt)
    if taken:
        yield taken


def read_prompts(
    packed: PackedModel,
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    *,
    keep: bool,
    read_ids: Sequence[Sequence[int]] = (),
) -> _ReadPrompts:
    """One pass over all of these; `keep` says whether keys and values are wanted, `read_ids` as in `logits`."""
    plan = _PromptPlan(prompts, packed.last_layer, keep)
    longest = max(map(len, read_ids), default=0)
    ids = torch.tensor([[*few, *[0] * (longest - len(few))] for few in read_ids]) if longest else None
    logits = packed.logits(model, _laid_out(prompts), plan, plan.last_tokens, ids)
    return _ReadPrompts(logits, prompts, plan.spans, [plan.layers[layer] for layer in sorted(plan.layers)])


def embed_pass(packed: PackedModel, model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[NDArray[np.float32]]:
    """The vector of unit length of each of these tokenised texts, in one pass; `passes` says which share one."""
    plan = _PromptPlan(prompts, packed.last_layer, keep=False)
    hidden = packed.hidden(model, _laid_out(prompts), plan, plan.last_tokens).float()
    return [torch.nn.functional.normalize(row, dim=-1).cpu().numpy() for row in hidden]


def _laid_out(prompts: Sequence[Prompt]) -> Tokens:
    ids = [token for prompt in prompts for token in prompt.ids[prompt.read_before :]]
    positions = [position for prompt in prompts for position in range(prompt.read_before, len(prompt.ids))]
    return Tokens(ids, positions, [(prompt.adapter, len(prompt.ids) - prompt.read_before) for prompt in prompts])


def cache_width(tokens: int) -> int:
    """The padded length of the cache that holds `tokens` tokens: multiples of 64 up to 512, then coarser ones."""
    step = _STEP
    while tokens > _STEPS_PER_DOUBLING * step:
        step *= 2
    return -(-tokens // step) * step


# ----------------------------------------------------------------------------------------------------- attention


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, look: Look) -> Tensor:
    """Of every batch entry and head; `mask` is added to the scores, None is causal. Shapes as in torch."""
    if look.softcap is None and not _by_products(query):
        grouped = query.shape[1] != key.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=look.scale, enable_gqa=grouped
        )
    batch, heads, rows = query.shape[:3]
    mask = _causal_mask(0, rows, None, query) if mask is None else mask
    entries = batch * key.shape[1]  # heads that share keys are as rows of one head
    asked, keys, values = (states.reshape(entries, -1, states.shape[3]) for states in (query, key, value))
    scores = torch.bmm(asked, keys.transpose(1, 2)).float().view(batch, heads, rows, -1)
    if look.softcap is None:
        scores = torch.add(mask, scores, alpha=look.scale)
    else:
        scores = torch.tanh(scores * (look.scale / look.softcap)) * look.softcap + mask
    probs = scores.softmax(-1).to(value.dtype).view(entries, -1, keys.shape[1])
    return torch.bmm(probs, values).view(batch, heads, rows, -1)


def _by_products(query: Tensor) -> bool:
    """Whether two matrix products and a softmax are faster than torch's own attention: in bfloat16 on a CPU, twice."""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu"


def no_mask(shape: Sequence[int], like: Tensor) -> Tensor:
    """A mask for `attention` that hides nothing yet."""
    return torch.zeros(shape, dtype=torch.float32 if _by_products(like) else like.dtype, device=like.device)


def _causal_mask(first: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """What is added to the scores of the tokens from `first`, (length - first, length).

    A token sees itself and those before it, at most `window` tokens in all.
    """
    index = torch.arange(length, device=like.device)
    asking = index[first:, None]
    hidden = index > asking
    if window is not None:
        hidden |= index <= asking - window
    return no_mask(hidden.shape, like).masked_fill_(hidden, -math.inf)


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
