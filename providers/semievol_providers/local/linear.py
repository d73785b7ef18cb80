"""Linear layers of a pass over the tokens of many samples, and the adapters that some of these are answered with.

`use_row_linears` replaces a model's linear layers by ones whose rows have equal bits in any company; `use_fast_linears`
by ones whose weights are laid out for the CPU's kernels, and to which each row's own LoRA is added. Both leave out rows
that nobody reads. Knows nothing of prompts, caches or attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REFERENCE = 16

_SIZES = (256, 128, 64, 32, 16, 8, 4)

_ALIGNMENT_BYTES = 64

_EXACT_LOGITS = 24

AdapterRuns: TypeAlias = Sequence[tuple[str | None, int]]
"""Which adapter the tokens of a pass have, and how many in a row; None is the base model."""


class PassRows:
    """What the linear layers of a model are told about the pass under way: which rows count, and whose they are."""

    def __init__(self) -> None:
        self._wanted: tuple[Tensor, int] | None = None
        self._lanes: list[tuple[str, Tensor | None]] = []
        self._narrow_lanes: list[tuple[str, Tensor | None]] = []
        self.read_ids: Tensor | None = None

    def __deepcopy__(self, memo: object) -> PassRows:
        """Copies of a model run the same passes."""
        return self

    def begin(self, runs: AdapterRuns, wanted: Tensor, read_ids: Tensor | None) -> None:
        """A pass begins; `wanted` are the rows of which logits are asked, `read_ids` (wanted, n) tokens of interest."""
        self.read_ids = read_ids
        names = {name for name, _ in runs if name is not None}
        if not names:
            return
        places = {name: place for place, name in enumerate(sorted(names))}
        counts = torch.tensor([count for _, count in runs])
        owners = torch.tensor([-1 if name is None else places[name] for name, _ in runs]).repeat_interleave(counts)
        self._lanes = _lanes(owners, places)
        self._narrow_lanes = _lanes(owners[wanted.cpu()], places)

    def narrow(self, wanted: Tensor, rows: int) -> None:
        """From now on only these rows of inputs of so many rows are computed; the others come out as zeros."""
        self._wanted = (wanted, rows)

    def end(self) -> None:
        """The pass is over."""
        self._wanted, self._lanes, self._narrow_lanes, self.read_ids = None, [], [], None

    @property
    def narrowed(self) -> bool:
        """Whether some rows are left out."""
        return self._wanted is not None

    def wanted_of(self, rows: int) -> Tensor | None:
        """Which of so many rows are computed; None where all of them are."""
        return self._wanted[0] if self._wanted is not None and rows == self._wanted[1] else None

    def lanes_of(self, rows: Tensor | None) -> list[tuple[str, Tensor | None]]:
        """Adapters with the indices of their rows, None where all rows are one adapter's."""
        return self._lanes if rows is None else self._narrow_lanes


def _lanes(owners: Tensor, places: dict[str, int]) -> list[tuple[str, Tensor | None]]:
    found: list[tuple[str, Tensor | None]] = []
    for name, place in places.items():
        index = (owners == place).nonzero()[:, 0]
        if len(index):
            found.append((name, None if len(index) == len(owners) else index))
    return found


# ----------------------------------------------------------------------------------------------------- equal bits


class BlockSizes:
    """Multiplies rows with weights in blocks of sizes that agree; finds out which do when a shape is first seen."""

    def __init__(self, candidates: tuple[int, ...] = _SIZES) -> None:
        self._candidates = candidates
        self._found: dict[tuple[int, int, int], tuple[int, ...]] = {}

    def __deepcopy__(self, memo: object) -> BlockSizes:
        """What is known holds for copies of a model too."""
        return self

    def multiply(self, rows: Tensor, weight: Tensor) -> Tensor:
        """`rows` (rows, inputs) times the transposed `weight` (outputs, inputs), both float32 on the CPU."""
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
    """A float32 linear layer with the weights of another, computed in blocks of rows: a row's bits are its own."""

    def __init__(self, source: torch.nn.Linear, blocks: BlockSizes, rows: PassRows) -> None:
        bias = cast("torch.nn.Parameter | None", source.bias)
        super().__init__(source.in_features, source.out_features, bias=bias is not None, device="meta")
        self.weight = source.weight
        self.register_parameter("bias", bias)
        self._blocks = blocks
        self._rows = rows

    def forward(self, input: Tensor) -> Tensor:
        """As in torch, but a row's bits do not depend on the others."""
        flat = input.reshape(-1, self.in_features).contiguous()
        wanted = self._rows.wanted_of(len(flat))
        if wanted is None:
            out = self._blocks.multiply(flat, self.weight)
        else:
            out = flat.new_zeros((len(flat), self.out_features))
            out.index_copy_(0, wanted, self._blocks.multiply(flat[wanted], self.weight))
        bias = cast("torch.nn.Parameter | None", self.bias)
        if bias is not None:
            out += bias
        return out.view(*input.shape[:-1], self.out_features)


def use_row_linears(model: torch.nn.Module, blocks: BlockSizes, rows: PassRows) -> None:
    """Replace every plain linear layer of a model, in place."""
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            model.set_submodule(name, RowLinear(module, blocks, rows))


# ----------------------------------------------------------------------------------------------------------- fast


class FastLinear(torch.nn.Module):
    """A linear layer whose rows may each have a LoRA of their own; `add_lora` makes one known by its adapter's name."""

    def __init__(self, source: torch.nn.Linear, rows: PassRows) -> None:
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        self._rows = rows
        self._bias = cast("torch.nn.Parameter | None", source.bias)
        self._weight = _packed_weight(source.weight)
        self._packs = self._weight.is_mkldnn
        self._loras: dict[str, tuple[Tensor, Tensor]] = {}

    def add_lora(self, adapter: str, down: Tensor, up: Tensor) -> None:
        """`down` (rank, inputs) and `up` (outputs, rank), the scale multiplied in."""
        self._loras[adapter] = (down, up)

    def remove_lora(self, adapter: str) -> None:
        """Forget an adapter; nothing happens where this layer has nothing of it."""
        self._loras.pop(adapter, None)

    def forward(self, input: Tensor) -> Tensor:
        """As in torch, with each row's LoRA added."""
        flat = input.reshape(-1, self.in_features)
        wanted = self._rows.wanted_of(len(flat))
        if wanted is None:
            out = self._product(flat, None)
        else:
            out = flat.new_zeros((len(flat), self.out_features))
            out.index_copy_(0, wanted, self._product(flat[wanted], wanted))
        return out.view(*input.shape[:-1], self.out_features)

    def _product(self, flat: Tensor, wanted: Tensor | None) -> Tensor:
        out = self._plain(flat)
        for adapter, index in self._rows.lanes_of(wanted) if self._loras else ():
            lora = self._loras.get(adapter)
            if lora is None:
                continue
            if index is None:
                out.addmm_(flat @ lora[0].t(), lora[1].t())
            else:
                out.index_add_(0, index, (flat[index] @ lora[0].t()) @ lora[1].t())
        return out

    def _plain(self, flat: Tensor) -> Tensor:
        if self._packs:
            return _packed_product(flat, self._weight, self._bias)
        return torch.nn.functional.linear(flat, self._weight, self._bias)


class _Head(FastLinear):
    """The layer that gives logits, in float32.

    A bfloat16 of 20 is known to 0.125, too coarse to rank options by: the likeliest tokens, and those of interest,
    are computed again as float32 sums.
    """

    def __init__(self, source: torch.nn.Linear, rows: PassRows) -> None:
        super().__init__(source, rows)
        self._source = source.weight

    def forward(self, input: Tensor) -> Tensor:
        """Float32 (batch, rows, vocabulary)."""
        flat = input.reshape(-1, self.in_features)
        out = self._plain(flat).float()
        if self._source.dtype != torch.float32:
            chosen = out.topk(min(_EXACT_LOGITS, self.out_features), dim=-1, sorted=False).indices
            read = self._rows.read_ids
            if read is not None and len(read) == len(flat):
                chosen = torch.cat([chosen, read.to(chosen.device)], 1)
            exact = torch.bmm(self._source[chosen].float(), flat.float()[:, :, None])[:, :, 0]
            if self._bias is not None:
                exact += self._bias[chosen].float()
            out.scatter_(1, chosen, exact)
        return out.view(*input.shape[:-1], self.out_features)


def use_fast_linears(model: PreTrainedModel, rows: PassRows) -> dict[str, FastLinear]:
    """Replace every plain linear layer of a model, in place; those but the head by their names."""
    known: Any = model
    head: torch.nn.Module | None = known.get_output_embeddings()
    replaced: dict[str, FastLinear] = {}
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            if module is head:
                model.set_submodule(name, _Head(module, rows))
            else:
                replaced[name] = FastLinear(module, rows)
                model.set_submodule(name, replaced[name])
    return replaced


def _packed_weight(weight: Tensor) -> Tensor:
    """The weight laid out for oneDNN's bfloat16 kernels, which otherwise do so in each call; as it is elsewhere."""
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return weight.detach()
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _REFERENCE)
        _packed_product(weight.new_zeros((1, weight.shape[1])), packed, None)
    except (RuntimeError, AttributeError):  # this build of torch, or this CPU, has no such kernels
        return weight.detach()
    return packed


def _packed_product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out
