"""Does the request engine keep its promises? CPU per request, memory, quotas, chaos, kills, budget, journal.

    python -m benchmarks.engine --json            all figures, about ten minutes
    python -m benchmarks.engine --check           exit 1 where a promise is broken
    python -m benchmarks.engine --quick           smaller sizes, under a minute
    python -m benchmarks.engine --only chaos      one case
    python -m benchmarks.engine --litellm-python /other/venv/bin/python

Needs two cores to be meaningful: one for the server, one for the client. Knows nothing of how cases measure.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable

from benchmarks import engine_cases as cases
from benchmarks.engine_cases import Figures, Sizes

MOST = {
    "cpu_s_per_1000_at_16_tokens": 0.20,
    "times_raw_at_16_tokens": 1.5,
    "cpu_s_per_1000_at_200_tokens": 0.30,
    "rss_ratio": 1.2,
    "rss_mb_long": 150.0,
    "rpm_lost": 0,
    "rpm_429": 10,
    "tpm_lost": 0,
    "both_lost": 0,
    "chaos_lost": 0,
    "chaos_duplicated": 0,
    "chaos_wrong": 0,
    "kill_journaled_asked_again": 0,
    "journal_open_s": 1.0,
}
"""Figures that must not be greater."""
LEAST = {
    "sdk_times_engine": 8.0,
    "litellm_times_engine": 15.0,
    "tpm_share_of_quota": 0.95,
    "both_share_of_quota": 0.95,
    "kill_same_results": 1,
    "budget_stopped": 1,
    "cached_rows_per_s": 20_000,
}
"""Figures that must not be smaller."""
RELATIVE = {
    "rpm_wall_s": ("rpm_ideal_s", 1.05),
    "kill_requests_beyond": ("kill_requests_beyond_allowed", 1.0),
    "budget_spent_usd": ("budget_cap_usd", 1.0 + 1e-9),
}
"""Figures that must not be greater than so many times another one."""


def broken(figures: Figures) -> list[str]:
    """One sentence for every promise that does not hold; figures that could not be taken are passed over."""
    faults = []

    def value(name: str) -> float | None:
        found = figures.get(name)
        return float(found) if isinstance(found, int | float) else None

    for name, bound in MOST.items():
        found = value(name)
        if found is not None and found > bound:
            faults.append(f"{name} is {found:.4g}; at most {bound:g} is promised.")
    for name, bound in LEAST.items():
        found = value(name)
        if found is not None and found < bound:
            faults.append(f"{name} is {found:.4g}; at least {bound:g} is promised.")
    for name, (other, factor) in RELATIVE.items():
        found, base = value(name), value(other)
        if found is not None and base is not None and found > factor * base:
            faults.append(f"{name} is {found:.4g}; at most {factor * base:.4g} is promised.")
    return faults


def measure(sizes: Sizes, only: str | None, litellm_python: str | None) -> Figures:
    """All figures, or those of one case."""
    figures: Figures = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}

    def peers() -> Figures:
        ours = figures.get("cpu_s_per_1000_at_16_tokens")
        if not isinstance(ours, float):
            ours = float(cases.cpu(sizes, 16)["cpu_s_per_1000_at_16_tokens"] or 0.0)
        return cases.peers(sizes, ours, litellm_python)

    plan: dict[str, Callable[[], Figures]] = {
        "cpu": lambda: cases.cpu(sizes, 16),
        "long-answers": lambda: cases.cpu(sizes, 200),
        "peers": peers,
        "memory": lambda: cases.memory(sizes),
        "pacing": lambda: cases.pacing(sizes),
        "chaos": lambda: cases.chaos(sizes),
        "kill": lambda: cases.kill(sizes),
        "budget": lambda: cases.budget(sizes),
        "journal": lambda: cases.journal(sizes),
    }
    for name, case in plan.items():
        if only is None or only == name:
            began_s = time.perf_counter()
            figures |= case()
            print(f"{name}: {time.perf_counter() - began_s:.1f} s", file=sys.stderr)
    return figures


def main() -> int:
    """Measure, print, and judge where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is broken")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--only", help="one case: cpu, long-answers, peers, memory, pacing, chaos, kill, ...")
    parser.add_argument("--litellm-python", help="an interpreter with litellm, to compare with it")
    chosen = parser.parse_args()
    figures = measure(cases.QUICK if chosen.quick else Sizes(), chosen.only, chosen.litellm_python)
    faults = broken(figures)
    if chosen.json:
        print(json.dumps({**figures, "broken": faults}, indent=1))
    else:
        width = max(map(len, figures))
        for name, figure in figures.items():
            print(f"{name.ljust(width)}  {figure if not isinstance(figure, float) else round(figure, 4)}")
        for fault in faults:
            print(f"BROKEN: {fault}")
    return 1 if chosen.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
