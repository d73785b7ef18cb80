"""What this machine has to give at the moment: idle cores, free memory, and whether it is fast in bfloat16.

Imports no torch before it is asked about a dtype. Knows nothing of models or requests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semievol_providers.local.requests import EXACT_BYTES


def idle_threads(weight_bytes: int) -> int:
    """How many threads a model should compute with: one for each core of this process that has nothing to do.

    `OMP_NUM_THREADS`, where it is set, is the user's own word on it. A small model, which owes equal bits,
    keeps to one.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    if weight_bytes <= EXACT_BYTES:
        return 1
    if sys.platform == "win32":  # which tells nobody its load
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    load = os.getloadavg()[0]
    return max(1, min(cores, round(cores - load)))


def free_memory_bytes() -> int | None:
    """What programs may still take without swapping, a control group's limit included; None where nobody tells."""
    found: list[int] = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = meminfo.read_text(encoding="utf-8").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdecimal():
        found.append(max(0, int(most) - int(used.read_text())))
    return min(found, default=None)


def fast_in_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: accelerators, and CPUs with AVX512_BF16 or AMX."""
    if device != "cpu":
        return True
    import torch

    known: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))
