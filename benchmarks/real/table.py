"""The finished cells as a table: means over seeds, and the paired gain over plain fine-tuning where both are measured.

Knows nothing of how cells come about.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.real.cells import Result
from benchmarks.real.methods import METHODS
from benchmarks.real.splits import LABELS, TASKS
from semievol_api.evaluation.statistics import paired_bootstrap

BASELINE = "SFT"


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """A row per task, number of labels and method; accuracies in percent, gains in points with 95 % intervals."""
    rows: list[dict[str, object]] = []
    for task in TASKS:
        for labels in LABELS:
            for name in METHODS:
                mine = _cells(results, task, labels, name)
                if mine:
                    rows.append(_row(mine, labels, _cells(results, task, labels, BASELINE)))
    return rows


def _cells(results: Sequence[Result], task: str, labels: int, method: str) -> dict[int, Result]:
    return {r.seed: r for r in results if r.task == task and r.method == method and r.labels in (labels, 0)}


def _row(mine: dict[int, Result], labels: int, baseline: dict[int, Result]) -> dict[str, object]:
    cells = list(mine.values())
    both = [seed for seed in mine if seed in baseline]
    gain: list[float] | None = None
    if both and cells[0].method != BASELINE:
        gap = np.stack([_right(mine[seed]) - _right(baseline[seed]) for seed in both])
        found = paired_bootstrap(gap, np.zeros((1, gap.shape[1])))
        gain = [round(100 * value, 1) for value in (found.estimate, found.low, found.high)]
    return {
        "task": cells[0].task,
        "labels": labels,
        "method": cells[0].method,
        "seeds": sorted(mine),
        "accuracy": round(float(np.mean([cell.accuracy for cell in cells])), 1),
        "by_seed": [mine[seed].accuracy for seed in sorted(mine)],
        "unreadable": round(float(np.mean([100 * cell.unreadable / cell.n for cell in cells])), 1),
        "ceiling": round(float(np.mean([cell.ceiling for cell in cells])), 1),
        "n": cells[0].n,
        "cpu_s": round(float(np.mean([cell.cpu_s for cell in cells])), 1),
        "gain_over_sft": gain,
    }


def _right(cell: Result) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([float(one) for one in cell.right])


def as_markdown(results: Sequence[Result]) -> str:
    """One table per task, a line per method and number of labels."""
    lines: list[str] = []
    for task in TASKS:
        rows = [row for row in as_json(results) if row["task"] == task]
        if not rows:
            continue
        lines += [f"### {task}", "", f"{rows[0]['n']} rows are measured per seed.", ""]
        lines += [
            "| labels | method | accuracy % | by seed | gain over SFT | unreadable % | ceiling by labels % | CPU s |"
        ]
        lines += ["|---:|---|---:|---|---|---:|---:|---:|"]
        for row in rows:
            by_seed = ", ".join(f"{value:.1f}" for value in _floats(row["by_seed"]))
            gain = (
                "–"
                if row["gain_over_sft"] is None
                else "{:+.1f} ({:+.1f} to {:+.1f})".format(*_floats(row["gain_over_sft"]))
            )
            lines.append(
                f"| {row['labels']} | {row['method']} | {row['accuracy']} | {by_seed} | {gain} | {row['unreadable']} "
                f"| {row['ceiling']} | {row['cpu_s']} |"
            )
        lines.append("")
    return "\n".join(lines)


def _floats(value: object) -> list[float]:
    assert isinstance(value, list)
    return [float(one) for one in value]
