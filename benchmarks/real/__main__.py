"""The method and what a user would take instead, on real tasks: one committed JSON file per cell, in slices.

    python -m benchmarks.real --data FOLDER --json                        go on with all cells, for 150 minutes
    python -m benchmarks.real --data FOLDER --task trec --labels 100      some of them
    python -m benchmarks.real --table                                     the table of the finished cells, as Markdown
    python -m benchmarks.real --data FOLDER --plan                        what is missing and what it would cost

Development rows are the default and serve every choice; `--split test` first writes a line per cell into the committed
ledger and refuses another recipe's second look without `--again REASON`. docs/benchmark_real.md tells splits, scoring,
and how to add a method. Knows nothing of how a method works.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.real.cells import RESULTS, Cell, Refused, Result, commit, enter, finished, keep, minutes_of, scored
from benchmarks.real.method import Place
from benchmarks.real.methods import METHODS
from benchmarks.real.splits import LABELS, SEEDS, TASKS, NotYet, draw
from benchmarks.real.table import as_json, as_markdown
from semievol_providers.local.packaged_models import folder_for

_NOT_YET = 3
"""Exit status of a cell that cannot be measured; its last line says why."""


def wanted(chosen: argparse.Namespace) -> list[Cell]:
    """The cells asked for, 100 labels first, seed by seed, so that a slice leaves whole rows of the table."""
    found = [
        Cell(task, labels if METHODS[arm].needs_labels else 0, seed, arm)
        for labels in sorted(chosen.labels, key=lambda n: (n != 100, n))
        for seed in chosen.seeds
        for task in chosen.task
        for arm in chosen.arms
    ]
    return list(dict.fromkeys(found))


def measure(cell: Cell, chosen: argparse.Namespace) -> None:
    """Measure one cell in this process and write its file.

    Raises:
        NotYet: something is missing.
    """
    method = METHODS[cell.method]
    split = draw(cell.task, chosen.data, cell.labels or LABELS[0], cell.seed, chosen.split)
    folder = chosen.work / chosen.split / cell.task / f"{cell.labels}-seed-{cell.seed}"
    began = time.monotonic()
    measured = method.measure(split, cell.seed, Place(folder, Path(folder_for("smollm2"))))
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(use.ru_utime + use.ru_stime for use in uses)
    result = scored(cell, split, measured, (cpu_s, time.monotonic() - began), method, chosen.split)
    keep(result, cell.path(chosen.split, chosen.results))


def run_slice(todo: Sequence[Cell], chosen: argparse.Namespace) -> None:
    """Every cell in a process of its own, ended where the slice's time is over; what it paid for is kept."""
    until = time.monotonic() + 60 * chosen.limit_minutes
    for number, cell in enumerate(todo, start=1):
        left = until - time.monotonic()
        if left < 5:
            say(f"The slice's {chosen.limit_minutes:g} minutes are over: {len(todo) - number + 1} cells are left.")
            return
        if chosen.split == "test":
            ledger = chosen.results / "test_ledger.jsonl"
            enter([cell], METHODS[cell.method], ledger, chosen.again, commit())
        outcome = _one(cell, chosen, left)
        say(f"[{number}/{len(todo)}] {cell.task}, {cell.labels} labels, seed {cell.seed}, {cell.method}: {outcome}")


def _one(cell: Cell, chosen: argparse.Namespace, left_s: float) -> str:
    command = [sys.executable, "-m", "benchmarks.real", "--data", str(chosen.data), "--work", str(chosen.work)]
    command += ["--results", str(chosen.results), "--split", chosen.split, "--one", json.dumps(asdict(cell))]
    log = chosen.work / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=Path(__file__).parents[2])
        try:
            status = process.wait(left_s)
        except subprocess.TimeoutExpired:
            return "not finished in this slice; the next one goes on with it"
        finally:
            process.terminate()
            process.wait()
    if status == 0:
        found = Result(**json.loads(cell.path(chosen.split, chosen.results).read_text("utf-8")))
        return f"{found.accuracy:.1f} %, {found.unreadable} unreadable, {found.cpu_s:.0f} CPU s"
    last = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
    return f"not yet: {last}" if status == _NOT_YET else f"failed ({log}): {last}"


def say(line: str) -> None:
    """To standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--labels", nargs="+", type=int, choices=LABELS, default=list(LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--again", metavar="REASON", help="look at the test rows again, and say why in the ledger")
    parser.add_argument("--limit-minutes", type=float, default=150.0)
    default = os.environ.get("SEMIEVOL_REAL_DATA")
    parser.add_argument("--data", type=Path, default=default, help="holds TASK/labeled.csv, unlabeled.csv, test.csv")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "semievol-real")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true", help="print the cost and stop")
    parser.add_argument("--table", action="store_true", help="print the finished cells and stop")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.data is None and not chosen.table:
        parser.error("name the folder of the data with --data or in SEMIEVOL_REAL_DATA")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the cost, measure, print the table."""
    chosen = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a cell's process and its server end too
    if chosen.one is not None:
        try:
            measure(Cell(**json.loads(chosen.one)), chosen)
        except NotYet as reason:
            say(str(reason))
            return _NOT_YET
        return 0
    if not chosen.table:
        done = finished(chosen.split, chosen.results)
        todo = [cell for cell in wanted(chosen) if not cell.path(chosen.split, chosen.results).is_file()]
        expected = sum(minutes_of(cell, METHODS[cell.method], done) for cell in todo)
        say(f"{len(todo)} cells are missing, about {expected:.0f} CPU minutes; this slice: {chosen.limit_minutes:g}.")
        for arm in chosen.arms:
            mine = [minutes_of(cell, METHODS[arm], done) for cell in todo if cell.method == arm]
            if mine:
                say(f"  {arm}: {len(mine)} cells, about {sum(mine):.0f} minutes")
        try:
            if not chosen.plan:
                run_slice(todo, chosen)
        except Refused as reason:
            say(str(reason))
            return 1
    results = finished(chosen.split, chosen.results)
    print(json.dumps(as_json(results), indent=1) if chosen.json else as_markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
