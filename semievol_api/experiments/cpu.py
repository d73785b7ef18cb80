"""CPU seconds of this process and everything it started, so that a server and its trainings are counted too.

Reads /proc; where there is none, children that are still running are left out. Knows nothing of stages or runs.
"""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
_TICK_FIELDS = slice(11, 15)
"""utime, stime and those of children that have ended, in /proc/PID/stat after the command's name."""


def tree_cpu_s() -> float:
    """CPU seconds so far of this process, its living descendants, and their ended children."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    stats = _stats()
    ticks = sum(stats[pid][1] for pid in _descendants(stats, os.getpid()))
    return own + ticks / ticks_per_s


def _stats() -> dict[int, tuple[int, int]]:
    """For every process its parent and its ticks."""
    found: dict[int, tuple[int, int]] = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:  # it has ended in the meantime
            continue
        found[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[_TICK_FIELDS]))
    return found


def _descendants(stats: dict[int, tuple[int, int]], root: int) -> set[int]:
    found: set[int] = set()
    fresh = {root}
    while fresh:
        fresh = {pid for pid, (parent, _) in stats.items() if parent in fresh} - found
        found |= fresh
    return found
