"""The processes of one training, as torchrun starts them: who is first, sums over all, one word for all.

    torchrun --standalone --nproc-per-node 2 -m semievol_providers.local.train JOB.json

A training without torchrun has one rank, and every method costs nothing. Knows nothing of models or losses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor


class Ranks:
    """`rank` of `size`; `first` writes files and events."""

    def __init__(self, device: str) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = device
        if self.size > 1:
            import torch.distributed as dist

            if device.startswith("cuda"):
                self.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    @property
    def first(self) -> bool:
        """True for the one that writes."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over all ranks."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.all_reduce(tensor)

    def total(self, *numbers: float) -> list[float]:
        """The sums of these numbers over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.add_up([held])
        return [float(value) for value in held]

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()
