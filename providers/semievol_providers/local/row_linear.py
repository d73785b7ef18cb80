"""Linear layers whose rows come out with the same bits however many rows are multiplied at once.

Matrix libraries choose their kernels by the number of rows, and with another kernel a row's sum may be taken in another
order. Here rows are multiplied in blocks of a few fixed sizes only. A block size is used for a shape of weights if a
dense random block gives, bit for bit, in every row and at every place, what blocks of `_REFERENCE` rows give; so every
block in use sums in one and the same order, which no data can change. Where a library does otherwise only blocks of
`_REFERENCE` rows are left, or single rows. On accelerators the layers are those of torch. For inference only. Knows
nothing of models' architecture or requests.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

_REFERENCE = 16
_SIZES = (256, 128, 64, 32, 16, 8, 4)
_ALIGNMENT_BYTES = 64


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
