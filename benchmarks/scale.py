"""Does memory stay flat where the rows grow, and what does the pipeline cost beside the request engine alone?

    python -m benchmarks.scale --json         200,000 and 1,000,000 rows, 10,000,000 scored ones: about 25 minutes
    python -m benchmarks.scale --check        exit 1 where a promise is broken
    python -m benchmarks.scale --quick        20,000 and 100,000 rows, 1,000,000 scored ones: two minutes
    python -m benchmarks.scale --only selection

Questions of 300 tokens in a JSONL file, read, cleaned (exact matches), one option read each from a mock server at zero
latency on a core of its own, selected, and written into the training file; every measurement in a process of its own.
What rows cost beside the engine alone is told of collaborate, select and the training file, at the same number of
requests. Knows nothing of how a measurement is made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mock import MockServer

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, Any]
CHARACTERS = 1180
"""About 300 tokens, as the engine's own benchmark asks."""
SHORT = 120
MOST = {
    "peak_mb_many": 1536.0,
    "peak_ratio": 1.15,
    "selection_wall_s": 120.0,
    "selection_peak_mb": 2048.0,
}
LEAST = {"rows_per_cpu_s_share_of_engine": 0.75}
STAGES = ("read", "prepare", "collaborate", "select", "export")
SELECTED_AT = 10_000_000
"""Rows that the promise of `selection_wall_s` is about."""


@dataclass(frozen=True)
class Sizes:
    """Rows of each measurement."""

    few: int = 200_000
    many: int = 1_000_000
    engine: int = 1_000_000
    scored: int = SELECTED_AT


QUICK = Sizes(few=20_000, many=100_000, engine=100_000, scored=1_000_000)


def child(**settings: Any) -> Figures:
    """One measured process."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'providers'}", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "benchmarks.scale_run", json.dumps(settings)]
    done = subprocess.run(arguments, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{settings} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def walked(server: MockServer, rows: int) -> Figures:
    """One walk through the pipeline."""
    with tempfile.TemporaryDirectory(prefix="semievol-scale-") as folder:
        child(do="files", folder=folder, rows=rows, characters=CHARACTERS)
        server.configure(zero=1)
        figures = child(do="pipeline", folder=folder, url=server.url)
        figures["sent"] = int(server.stats()["total"])
    print(f"pipeline {rows:,}: {figures}", file=sys.stderr)
    return figures


def pipeline(sizes: Sizes) -> Figures:
    """Few rows, many rows, and the engine alone."""
    with MockServer(latency=0, tokens=5, choices=1) as server:
        with tempfile.TemporaryDirectory(prefix="semievol-scale-") as folder:
            alone = child(do="engine", folder=folder, url=server.url, rows=sizes.engine, characters=CHARACTERS)
        print(f"engine {sizes.engine:,}: {alone}", file=sys.stderr)
        few, many = walked(server, sizes.few), walked(server, sizes.many)
    engine_rate = sizes.engine / alone["alone_cpu_s"]
    cpu_s = sum(many[f"{stage}_cpu_s"] for stage in ("collaborate", "select", "export"))
    return {
        "rows": many["rows"],
        "requests_sent": many["sent"],
        "kept": many["kept"],
        "peak_mb_few": few["peak_mb"],
        "peak_mb_many": many["peak_mb"],
        "peak_ratio": many["peak_mb"] / few["peak_mb"],
        **{f"{stage}_cpu_s": many[f"{stage}_cpu_s"] for stage in STAGES},
        **{f"peak_mb_after_{stage}": many[f"rss_mb_after_{stage}"] for stage in STAGES},
        "wall_s": sum(many[f"{stage}_wall_s"] for stage in ("collaborate", "select", "export")),
        "engine_rows_per_cpu_s": engine_rate,
        "rows_per_cpu_s": many["rows"] / cpu_s,
        "rows_per_cpu_s_share_of_engine": many["rows"] / cpu_s / engine_rate,
    }


def selection(sizes: Sizes) -> Figures:
    """Scored columns to a training file."""
    with tempfile.TemporaryDirectory(prefix="semievol-scale-") as folder:
        child(do="scores", folder=folder, rows=sizes.scored, characters=SHORT)
        done = child(do="selection", folder=folder)
    print(f"selection {sizes.scored:,}: {done}", file=sys.stderr)
    return {
        "selection_rows": done["rows"],
        "selection_kept": done["kept"],
        "selection_file_mb": done["file_mb"],
        "selection_wall_s": done["select_wall_s"] + done["export_wall_s"],
        "selection_cpu_s": done["select_cpu_s"] + done["export_cpu_s"],
        "selection_peak_mb": done["peak_mb"],
    }


def broken(figures: Mapping[str, Any]) -> list[str]:
    """One sentence for every promise that does not hold."""
    faults = [
        f"{name} is {figures[name]:.4g}; at most {bound:g} is promised."
        for name, bound in MOST.items()
        if name in figures and figures[name] > bound
    ]
    faults += [
        f"{name} is {figures[name]:.4g}; at least {bound:g} is promised."
        for name, bound in LEAST.items()
        if name in figures and figures[name] < bound
    ]
    if figures.get("requests_sent") not in (None, figures.get("rows", 0) + 300):
        faults.append(f"{figures['requests_sent']:,} requests were sent for {figures['rows']:,} rows and 300 labels.")
    return faults


def main() -> int:
    """Measure, print, and judge where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is broken")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--only", choices=("pipeline", "selection"))
    chosen = parser.parse_args()
    sizes, figures = QUICK if chosen.quick else Sizes(), Figures()
    for name, case in (("pipeline", pipeline), ("selection", selection)):
        if chosen.only in (None, name):
            figures |= case(sizes)
    faults = broken(figures)
    if chosen.json:
        print(json.dumps({**figures, "broken": faults}, indent=1))
    else:
        for name, figure in figures.items():
            print(f"{name.ljust(34)}  {figure if not isinstance(figure, float) else round(figure, 3)}")
        print("\n".join(f"BROKEN: {fault}" for fault in faults))
    return 1 if chosen.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
