"""Does a run with more labels end better? A simulated task from 10 to 1,000 labels, with and without a way out.

    python -m benchmarks.label_counts            a table
    python -m benchmarks.label_counts --check    exit 1 where more labels make a worse student

Questions are points around their class's centre. Annotators are a linear model of the labels that teach, a vote of
their neighbours and an untuned model that knows the classes roughly; the student is the linear model. The split, the
pool and the rule are those of the calibrated mode. `within` counts the kept rows of the runs whose share of false
labels is within alpha. Knows nothing of language models.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from semievol_api.selection import Calibration, RuleSettings, calibration_size, neighbour_vote, pool, select
from semievol_api.selection.ranking import ranks
from semievol_api.selection.rule_percentile import percentile_of_score
from semievol_api.selection.values import BoolArray, FloatArray, IntArray

LABELS = (10, 25, 40, 59, 60, 80, 100, 200, 500, 1_000)
CLASSES, DIMENSIONS, NEIGHBOURS = 5, 24, 5
POOL, TEST = 1_000, 3_000
ALPHA = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What so many labels came to, on average over runs: rows kept by the rule and, where it is empty, by half.

    Accuracies in per cent, of the student on the labels alone (`sft`), with what the rule kept, and with a way out.
    """

    labels: int
    calibration: int
    kept: float
    within: float
    within_se: float
    empty: float
    sft: float
    by_rule: float
    with_way_out: float
    se: float


@dataclass(frozen=True, slots=True, eq=False)
class _World:
    centres: FloatArray
    rough: FloatArray

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _World:
        centres = 0.75 * rng.standard_normal((CLASSES, DIMENSIONS))
        return cls(centres, centres + 0.9 * rng.standard_normal(centres.shape))

    def questions(self, rng: np.random.Generator, count: int) -> tuple[FloatArray, IntArray]:
        gold = rng.integers(CLASSES, size=count)
        return self.centres[gold] + 1.5 * rng.standard_normal((count, DIMENSIONS)), gold


def run_once(labels: int, seed: int) -> tuple[float, ...]:
    """Kept, kept within alpha, empty (0 or 1); the accuracies of SFT, of the rule's and of the way out's student."""
    rng = np.random.default_rng(seed)
    world = _World.drawn(rng)
    (x, y), (pool_x, pool_y), (test_x, test_y) = (world.questions(rng, n) for n in (labels, POOL, TEST))
    held = calibration_size(labels)
    warm_x, warm_y = x[held:], y[held:]
    scored, label = _pooled(world, warm_x, warm_y, np.concatenate([pool_x, x[:held]]))
    calibration = Calibration(scores=scored[POOL:], wrong=label[POOL:] != y[:held]) if held else None
    ids = [str(place) for place in range(POOL)]
    chosen = select(scored[:POOL], ids, calibration, RuleSettings(rule="fdr", alpha=ALPHA)).kept
    half = percentile_of_score(scored[:POOL], 0.5).kept if chosen.sum() < 20 else chosen

    def student(kept: BoolArray) -> float:
        taught_x, taught_y = np.concatenate([x, pool_x[kept]]), np.concatenate([y, label[:POOL][kept]])
        return 100 * float(np.mean(_linear(taught_x, taught_y, test_x).argmax(axis=1) == test_y))

    count = int(chosen.sum())
    false = float(np.mean(label[:POOL][chosen] != pool_y[chosen])) if count else 0.0
    nothing = np.zeros_like(chosen)
    return (
        count,
        count if false <= ALPHA else 0,
        count < 20,
        student(nothing),
        student(chosen if count >= 20 else nothing),
        student(half),
    )


def _pooled(world: _World, x: FloatArray, y: IntArray, asked: FloatArray) -> tuple[FloatArray, IntArray]:
    """Ranks and labels of three annotators together."""
    cosine = _unit(asked) @ _unit(x).T
    near = np.argsort(-cosine, axis=1, kind="stable")[:, :NEIGHBOURS]
    crew = [
        _linear(x, y, asked),
        neighbour_vote(y[near], np.take_along_axis(cosine, near, axis=1), CLASSES),
        _softmax(asked @ world.rough.T / 2.25 - np.sum(world.rough**2, axis=1) / 4.5),
    ]
    pooled = pool(np.stack(crew, axis=1), np.full(len(asked), CLASSES, dtype=np.int64))
    return ranks(pooled.score, pooled.log_odds), pooled.label


def _linear(x: FloatArray, y: IntArray, asked: FloatArray) -> FloatArray:
    """Label probabilities (m, K) by linear discriminants with a shared variance, shrunk towards the mean of all."""
    counts = np.bincount(y, minlength=CLASSES)
    sums = np.zeros((CLASSES, x.shape[1]))
    np.add.at(sums, y, x)
    means = (sums + x.mean(axis=0)) / (counts + 1)[:, None]
    variance = float(np.mean((x - means[y]) ** 2)) + 0.5
    return _softmax((asked @ means.T - 0.5 * np.sum(means**2, axis=1)) / variance)


def _softmax(logits: FloatArray) -> FloatArray:
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True), dtype=np.float64)


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float64)


def measure(runs: int) -> list[Row]:
    """Every number of labels over the same worlds."""
    rows: list[Row] = []
    for labels in LABELS:
        found = np.array([run_once(labels, seed) for seed in range(runs)], dtype=np.float64)
        kept, within, empty, sft, by_rule, way_out = (round(float(value), 3) for value in found.mean(axis=0))
        errors = found.std(axis=0, ddof=1) / np.sqrt(runs)
        rows.append(
            Row(
                labels=labels,
                calibration=calibration_size(labels),
                kept=kept,
                within=within,
                within_se=round(float(errors[1]), 3),
                empty=empty,
                sft=sft,
                by_rule=by_rule,
                with_way_out=way_out,
                se=round(float(errors[5]), 3),
            )
        )
    return rows


def broken_promises(rows: Sequence[Row]) -> list[str]:
    """Where more labels make a worse student, beyond two standard errors."""
    return [
        f"{after.labels} labels: {after.with_way_out:.2f} %, with {before.labels} {before.with_way_out:.2f} %"
        for before, after in pairwise(rows)
        if after.with_way_out < before.with_way_out - 2 * float(np.hypot(before.se, after.se))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --check judge; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_counts", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit 1 where more labels make a worse student")
    parser.add_argument("--runs", type=int, default=200)
    chosen = parser.parse_args(arguments)
    rows = measure(chosen.runs)
    broken = broken_promises(rows)
    if chosen.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "broken": broken}, indent=1))
        return 1 if chosen.check and broken else 0
    print("| labels | calibrate | kept | within alpha | empty | SFT | by the rule | with a way out |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.labels} | {row.calibration} | {row.kept:.0f} | {row.within:.0f} ± {row.within_se:.0f} "
            f"| {row.empty:.2f} | {row.sft:.2f} | {row.by_rule:.2f} | {row.with_way_out:.2f} ± {row.se:.2f} |"
        )
    print("\n".join(broken) if broken else "More labels never make a worse student.")
    return 1 if chosen.check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
