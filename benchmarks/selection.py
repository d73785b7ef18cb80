"""Does selection keep its promises? Simulated annotators, many calibration splits, and the speed of it.

    python -m benchmarks.selection            a table
    python -m benchmarks.selection --json     the same as JSON
    python -m benchmarks.selection --check    exit 1 where a promise is broken
    python -m benchmarks.selection --quick    fewer splits, a smaller speed run

The section `cross` (all labels teach and calibrate) is that of `benchmarks/selection_cross.py`.

Uses the selection package as a stage would. Knows nothing of models, providers or files.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.selection_cross import ALL_WAYS_AT, CREWS, LABELS, broken_cross, measure_cross, print_cross
from semievol_api.selection import Calibration, Selected, fdr, high_probability, option_prob, percentile_of_score, pool
from semievol_api.selection.values import BoolArray, FloatArray, IntArray

ALPHAS = (0.05, 0.1, 0.2)
DELTA = 0.1
CALIBRATION_SIZES = (50, 100, 200, 400)
POPULATION = 40_000
POOL = 2_000
SECONDS_ALLOWED = 5.0
GIGABYTES_ALLOWED = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A simulated crew: `skills` per annotator, how much of their errors they share, and what is odd about it.

    `certain` items have exactly tied scores; `useless` annotators answer at random with confidence.
    """

    name: str
    skills: tuple[float, ...]
    shared_noise: float = 0.5
    class_shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    certain: float = 0.0
    useless: int = 0


SCENARIOS = (
    Scenario(name="heterogeneous", skills=(4.0, 2.8, 2.0, 1.5)),
    Scenario(name="identical", skills=(2.8, 2.8, 2.8, 2.8), shared_noise=1.0),
    Scenario(name="imbalanced", skills=(3.2, 2.6, 2.0, 2.0), class_shares=(0.75, 0.15, 0.07, 0.03)),
    Scenario(name="ties-45-percent", skills=(3.2, 2.8, 2.8, 2.4), certain=0.45),
    Scenario(name="one-useless", skills=(4.5, 4.0, 3.5, 0.0), useless=1),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Population:
    """Pooled scores (N,) and whether the pooled label is wrong (N,)."""

    scores: FloatArray
    wrong: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one rule did over all splits of one scenario; shares are false labels among the kept."""

    scenario: str
    rule: str
    alpha: float
    n_calibration: int
    splits: int
    error: float
    mean_share: float
    standard_error: float
    mean_share_if_any: float | None
    share_p95: float
    coverage: float
    empty: float
    violations: float
    promise_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Wall seconds of each step and the peak memory of the process."""

    items: int
    estimate_s: float
    pool_s: float
    select_s: float
    total_s: float
    peak_gb: float


def simulate(scenario: Scenario, rng: np.random.Generator, size: int = POPULATION) -> Population:
    """A population answered by the scenario's crew, pooled as in a run."""
    k, crew = len(scenario.class_shares), len(scenario.skills)
    gold = rng.choice(k, size=size, p=scenario.class_shares)
    ease = rng.gamma(2.0, 0.5, size=size)
    signal = np.zeros((size, k))
    signal[np.arange(size), gold] = 1.0
    shared = rng.standard_normal((size, 1, k))
    own = rng.standard_normal((size, crew, k))
    noise = np.sqrt(scenario.shared_noise) * shared + np.sqrt(1 - scenario.shared_noise) * own
    logits = np.array(scenario.skills)[:, None] * (ease[:, None] * signal)[:, None, :] + 1.3 * noise
    logits += 0.3 * np.log(np.array(scenario.class_shares) * k)
    if scenario.useless:
        logits[:, -scenario.useless :] = 4.0 * rng.standard_normal((size, scenario.useless, k))
    if scenario.certain:
        _make_certain(logits, scenario.certain, rng)
    probs = np.exp(logits - logits.max(axis=2, keepdims=True))
    probs /= probs.sum(axis=2, keepdims=True)
    pooled = pool(probs, np.full(size, k, dtype=np.int64))
    return Population(scores=pooled.score, wrong=np.asarray(pooled.label != gold, dtype=np.bool_))


def measure(scenario: Scenario, splits: int, seed: int) -> list[Row]:
    """All rules on one scenario, at every alpha and calibration size."""
    rng = np.random.default_rng(seed)
    population = simulate(scenario, rng)
    order = np.argsort(population.scores)
    ranked = population.scores[order]
    false_above = np.append(np.cumsum(population.wrong[order][::-1])[::-1], 0)
    rows: list[Row] = []
    for n in CALIBRATION_SIZES:
        found: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
        for _ in range(splits):
            drawn = rng.choice(POPULATION, size=n + POOL, replace=False)
            calibration = Calibration(scores=population.scores[drawn[:n]], wrong=population.wrong[drawn[:n]])
            scores, wrong = population.scores[drawn[n:]], population.wrong[drawn[n:]]
            for alpha in ALPHAS:
                for selected in _all_rules(scores, calibration, alpha):
                    share = float(np.mean(wrong[selected.kept])) if selected.count else 0.0
                    at = len(ranked) if selected.threshold is None else int(np.searchsorted(ranked, selected.threshold))
                    error = float(false_above[at]) / max(len(ranked) - at, 1)
                    found.setdefault((selected.rule, alpha), []).append((share, selected.coverage, error))
        error = float(population.wrong.mean())
        rows += [_row(scenario.name, key, n, error, np.array(values)) for key, values in found.items()]
    return rows


def measure_speed(items: int) -> Speed:
    """Estimate, pool and select for `items` x 4 annotators x 5 labels, from top-5 log-probabilities."""
    rng = np.random.default_rng(0)
    logprobs = np.log(rng.dirichlet(np.full(5, 0.3), size=items).clip(1e-9, 1.0))
    label_of: IntArray = np.tile(np.arange(5, dtype=np.int64), (items, 1))
    n_options = np.full(items, 5, dtype=np.int64)
    calibration = Calibration(scores=rng.random(500) ** 0.2, wrong=rng.random(500) < 0.1)
    start = time.perf_counter()
    probs = np.empty((items, 4, 5))
    for annotator in range(4):
        probs[:, annotator] = option_prob(logprobs, label_of, n_options, 5).probs
    estimated = time.perf_counter()
    pooled = pool(probs, n_options)
    together = time.perf_counter()
    fdr(pooled.score, calibration, 0.1)
    end = time.perf_counter()
    return Speed(
        items=items,
        estimate_s=estimated - start,
        pool_s=together - estimated,
        select_s=end - together,
        total_s=end - start,
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )


def broken_promises(rows: Sequence[Row], speed: Speed) -> list[str]:
    """Every promise that these numbers do not keep, in words."""
    broken = [
        f"{row.rule} on {row.scenario} at alpha {row.alpha} with {row.n_calibration} calibration labels: "
        f"{row.mean_share:.4f} false labels, {row.violations:.3f} violations"
        for row in rows
        if not row.promise_kept
    ]
    for rule in ("fdr", "high-probability"):
        for alpha in ALPHAS:
            if not any(row.empty <= 0.2 for row in rows if (row.rule, row.alpha) == (rule, alpha)):
                broken.append(f"{rule} at alpha {alpha} keeps something in 80 % of the splits nowhere")
    scale = speed.items / 1_000_000
    if speed.total_s > SECONDS_ALLOWED * scale or speed.peak_gb > GIGABYTES_ALLOWED:
        broken.append(f"{speed.items:,} items took {speed.total_s:.2f} s and {speed.peak_gb:.2f} GB")
    return broken


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --check judge; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description="Does selection keep its promises?"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is broken")
    parser.add_argument("--quick", action="store_true", help="100 splits and 200,000 items")
    parser.add_argument("--splits", type=int, default=None, help="calibration splits per scenario (default 500)")
    chosen = parser.parse_args(arguments)
    speed = measure_speed(200_000 if chosen.quick else 1_000_000)
    splits = chosen.splits or (100 if chosen.quick else 500)
    rows = [row for seed, scenario in enumerate(SCENARIOS) for row in measure(scenario, splits, seed)]
    cross = [
        row
        for seed, crew in enumerate(CREWS)
        for row in measure_cross(crew, (ALL_WAYS_AT,) if chosen.quick else LABELS, splits, seed)
    ]
    broken = [*broken_promises(rows, speed), *broken_cross(cross)]
    if chosen.json:
        tables = {"rows": [asdict(row) for row in rows], "cross": [asdict(row) for row in cross]}
        print(json.dumps({**tables, "speed": asdict(speed), "broken": broken}, indent=1))
    else:
        _print_table(rows, speed, broken)
        print()
        print_cross(cross)
    return 1 if chosen.check and broken else 0


def _make_certain(logits: FloatArray, share: float, rng: np.random.Generator) -> None:
    """A share of items, roughly those where the crew is surest, get a probability of exactly 1 from everybody."""
    mean = logits.mean(axis=1)
    ordered = np.sort(mean, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    margin += margin.std() * rng.standard_normal(margin.size)
    sure = np.flatnonzero(margin >= np.quantile(margin, 1 - share))
    logits[sure] = -1e9
    logits[sure, :, mean[sure].argmax(axis=1)] = 0.0


def _all_rules(scores: FloatArray, calibration: Calibration, alpha: float) -> tuple[Selected, ...]:
    return (
        fdr(scores, calibration, alpha),
        high_probability(scores, calibration, alpha, DELTA),
        percentile_of_score(scores, 0.5),
    )


def _row(scenario: str, key: tuple[str, float], n: int, error: float, values: FloatArray) -> Row:
    rule, alpha = key
    share, coverage, population_error = values.T
    splits, some = len(values), coverage > 0
    standard_error = float(share.std(ddof=1) / np.sqrt(splits))
    violations = float(np.mean(population_error > alpha))
    kept = {
        "fdr": float(share.mean()) <= alpha + 3 * standard_error,
        "high-probability": violations <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / splits),
    }
    return Row(
        scenario=scenario,
        rule=rule,
        alpha=alpha,
        n_calibration=n,
        splits=splits,
        error=round(error, 4),
        mean_share=round(float(share.mean()), 4),
        standard_error=round(standard_error, 5),
        mean_share_if_any=round(float(share[some].mean()), 4) if some.any() else None,
        share_p95=round(float(np.quantile(share, 0.95)), 4),
        coverage=round(float(coverage.mean()), 4),
        empty=round(float(1 - some.mean()), 4),
        violations=round(violations, 4),
        promise_kept=bool(kept.get(rule, True)),
    )


def _print_table(rows: Sequence[Row], speed: Speed, broken: Sequence[str]) -> None:
    print(
        f"{'scenario':<16}{'rule':<18}{'alpha':>6}{'n_cal':>6}{'error':>7}{'false':>8}{'+-3se':>7}"
        f"{'if any':>8}{'p95':>7}{'cover':>7}{'empty':>7}{'P(>a)':>7}  promise"
    )
    for row in rows:
        print(
            f"{row.scenario:<16}{row.rule:<18}{row.alpha:>6}{row.n_calibration:>6}{row.error:>7.3f}"
            f"{row.mean_share:>8.4f}{3 * row.standard_error:>7.4f}{_or_dash(row.mean_share_if_any):>8}"
            f"{row.share_p95:>7.3f}{row.coverage:>7.3f}{row.empty:>7.3f}{row.violations:>7.3f}"
            f"  {_promise(row)}"
        )
    print(
        f"\n{speed.items:,} items x 4 annotators x 5 labels: estimate {speed.estimate_s:.2f} s, pool "
        f"{speed.pool_s:.2f} s, select {speed.select_s:.2f} s; {speed.total_s:.2f} s, peak {speed.peak_gb:.2f} GB"
    )
    print("\n".join(broken) if broken else "Every promise was kept.")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _promise(row: Row) -> str:
    if row.rule == "percentile":
        return "none"
    return "kept" if row.promise_kept else "BROKEN"


if __name__ == "__main__":
    sys.exit(main())
