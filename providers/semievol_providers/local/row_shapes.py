"""Which shapes of a pass give every row the same bits, found out on the machine at hand.

Libraries choose their kernels by shape, so a row's last bits may depend on how many rows run beside it. A pass of
`reference` rows is the measure. Any other number, and any cheaper way of running the same rows, is tried once beside
it, on real work; where the bits are equal it is used from then on, else never. So answers stay independent of their
neighbours, and cost follows the number of rows wherever the machine allows it. Knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Compute: TypeAlias = Callable[[int, int], Sequence[Tensor]]


def sizes_around(reference: int) -> tuple[int, ...]:
    """Numbers of rows worth trying, ascending: from an eighth of the reference (at least 4) to its double."""
    shares = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2)
    return tuple(sorted({size for share in shares if (size := int(reference * share)) >= 4} | {reference}))


@dataclass(frozen=True, slots=True)
class Pass:
    """One step's work. `measure(start, end)` runs these rows, padding where there are none; `quick` does the same in
    a cheaper way, named by `quick_name`, None where there is none. Row i of each tensor belongs to row `start + i`.
    Both may be called twice for the same rows.
    """

    rows: int
    measure: Compute
    quick: Compute | None = None
    quick_name: Hashable = None


class RowShapes:
    """Runs passes in the cheapest shape that is known to give the reference's bits."""

    def __init__(self) -> None:
        self._same: dict[Hashable, bool] = {}

    def run(self, key: Hashable, work: Pass, sizes: Sequence[int], reference: int) -> list[Sequence[Tensor]]:
        """The parts that together hold at least the first `work.rows` rows, in order.

        `key` names all that shapes depend on besides the number of rows; `sizes` ascend.
        """
        size = next((size for size in sizes if size >= work.rows), 0)
        name = (key, size, work.quick_name)
        if not size or (size == reference and work.quick is None) or not self._same.get(name, True):
            return _by_reference(work, work.rows, reference)
        tried = (work.quick or work.measure)(0, size)
        if name in self._same:
            return [tried]
        parts = _by_reference(work, size, reference)
        self._same[name] = _equal(tried, parts, reference)
        return parts


def _by_reference(work: Pass, rows: int, reference: int) -> list[Sequence[Tensor]]:
    return [work.measure(start, start + reference) for start in range(0, rows, reference)]


def _equal(whole: Sequence[Tensor], parts: Sequence[Sequence[Tensor]], reference: int) -> bool:
    return all(
        torch.equal(tensor[i * reference : (i + 1) * reference], part[k][: len(tensor) - i * reference])
        for i, part in enumerate(parts)
        for k, tensor in enumerate(whole)
    )
