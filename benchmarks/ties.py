"""Do scores survive answers of which most tie, and are the ranges honest that a run prints?

    python -m benchmarks.ties            tables
    python -m benchmarks.ties --json     the same as JSON
    python -m benchmarks.ties --check    exit 1 where a promise is broken

Simulated answers of a sure model: twelve categories; in 60 % of the questions both annotators give the same answer with
a log-probability of exactly 0, which is right in .75 to .99 of the cases, by category; a category in which it is right
more often also has more of them, loosely. Compared with the scores of commit a87899e on the same draws. Knows nothing
of models, providers or files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks import selection as crews
from semievol_api.annotate.estimator import from_confidence
from semievol_api.annotate.pooled import mean_logprob
from semievol_api.selection import Calibration, fdr, pool, realised_range
from semievol_api.selection.ranking import local_confidence, ranks
from semievol_api.selection.values import BoolArray, FloatArray, IntArray

OPTIONS = 4
CATEGORIES = 12
TIED = 0.6
PRECISION = (0.75, 0.99)
DIMENSIONS = 16
ANCHORS = 120
NEAREST = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedAnswers:
    """Two annotators' answers to N questions.

    `answers` int64 (N, 2) label indices; `logprobs` float64 (N, 2), natural log-probabilities of those answers as a
    server shows them in float32; `gold` int64 (N,); `category` int64 (N,); `nearest` int64 (N, 3), the nearest labelled
    questions; `tied` bool (N,).
    """

    answers: IntArray
    logprobs: FloatArray
    gold: IntArray
    category: IntArray
    nearest: IntArray
    tied: BoolArray


def simulate(rng: np.random.Generator, size: int = 40_000) -> SimulatedAnswers:
    """A population of answers, one model asked twice."""
    category = rng.integers(CATEGORIES, size=size)
    low, high = PRECISION
    precision = 1.0 - np.geomspace(1.0 - low, 1.0 - high, CATEGORIES)
    ease = np.linspace(-1.0, 1.0, CATEGORIES) + 0.5 * rng.standard_normal(CATEGORIES)
    surety = 0.6 * ease[category] + rng.standard_normal(size)
    tied = surety >= np.quantile(surety, 1.0 - TIED)
    doubt = np.quantile(surety, 1.0 - TIED) - surety
    chance = np.where(tied, precision[category], 0.25 + 0.6 * np.exp(-doubt))
    right = rng.random(size) < chance
    gold = rng.integers(OPTIONS, size=size)
    other = (gold + 1 + rng.integers(OPTIONS - 1, size=size)) % OPTIONS
    first = np.where(right, gold, other)
    logprobs = -0.02 * doubt[:, None] * np.exp(1.5 * rng.standard_normal((size, 2)) + doubt[:, None])
    logprobs = np.maximum(np.where(tied[:, None], 0.0, logprobs), -1.3).astype(np.float32).astype(np.float64)
    second = np.where(
        ~tied & (rng.random(size) < 0.15), (first + 1 + rng.integers(OPTIONS - 1, size=size)) % OPTIONS, first
    )
    return SimulatedAnswers(
        answers=np.stack([first, second], axis=1).astype(np.int64),
        logprobs=logprobs,
        gold=gold.astype(np.int64),
        category=category.astype(np.int64),
        nearest=_nearest(category, rng),
        tied=np.asarray(tied, dtype=np.bool_),
    )


def _nearest(category: IntArray, rng: np.random.Generator) -> IntArray:
    """The nearest of 120 labelled questions by vectors that lie around their category's centre; int64 (N, 3)."""
    centres = rng.standard_normal((CATEGORIES, DIMENSIONS))
    vectors = centres[category] + 1.2 * rng.standard_normal((category.size, DIMENSIONS))
    labelled = centres[np.arange(ANCHORS) % CATEGORIES] + 1.2 * rng.standard_normal((ANCHORS, DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labelled /= np.linalg.norm(labelled, axis=1, keepdims=True)
    found = np.argsort(-(vectors @ labelled.T), axis=1, kind="stable")[:, :NEAREST]
    return found.astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Keys:
    """The pooled answers of a population and what ranks them: float64 (N,) each, `wrong` bool (N,)."""

    wrong: BoolArray
    score: FloatArray
    log_odds: FloatArray
    answer_logprob: FloatArray
    before: FloatArray


def pooled_keys(found: SimulatedAnswers) -> Keys:
    """Estimate and pool as a run does, and as commit a87899e did (`before`)."""
    n = np.full(found.gold.size, OPTIONS, dtype=np.int64)
    probs = np.stack(
        [
            from_confidence(np.exp(logprob), -np.expm1(logprob), answer, n, OPTIONS)
            for answer, logprob in zip(found.answers.T, found.logprobs.T, strict=True)
        ],
        axis=1,
    )
    pooled = pool(probs, n)
    return Keys(
        wrong=np.asarray(pooled.label != found.gold, dtype=np.bool_),
        score=pooled.score,
        log_odds=pooled.log_odds,
        answer_logprob=mean_logprob(found.answers, found.logprobs, pooled.label),
        before=_score_before(found),
    )


def _score_before(found: SimulatedAnswers) -> FloatArray:
    """The score of a87899e: probabilities floored at 1e-6, the mean of their logarithms, summed column by column."""
    total = np.zeros((found.gold.size, OPTIONS))
    for answer, logprob in zip(found.answers.T, found.logprobs.T, strict=True):
        p = np.exp(logprob)
        probs = np.repeat(((1.0 - p) / (OPTIONS - 1))[:, None], OPTIONS, axis=1)
        probs[np.arange(p.size), answer] = p
        probs = np.maximum(probs, 1e-6)
        total += np.log(probs / probs.sum(axis=1, keepdims=True))
    pooled = np.exp(total / 2 - (total / 2).max(axis=1, keepdims=True))
    return np.asarray((pooled / pooled.sum(axis=1, keepdims=True)).max(axis=1), dtype=np.float64)


POOL = 2_000
SIZES = (50, 100, 200)
NOW = ("category", "nearest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`fdr` over many draws by one way of scoring; shares are false labels among the kept."""

    scored: str
    alpha: float
    n_calibration: int
    draws: int
    coverage: float
    false_share: float
    standard_error: float
    empty: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeRow:
    """How often the printed 5-to-95 % range held the actual share, and how often runs kept nothing, told and actual."""

    scenario: str
    alpha: float
    n_calibration: int
    selections: int
    held: float | None
    empty_told: float
    empty: float


def measure(draws: int, seed: int = 1) -> list[Row]:
    """The scores of now and before on the same draws."""
    rng = np.random.default_rng(seed)
    answers = simulate(rng)
    keys = pooled_keys(answers)
    found: dict[tuple[str, float, int], list[tuple[float, float]]] = {}
    for n in SIZES:
        for _ in range(draws):
            drawn = rng.choice(answers.gold.size, size=n + POOL, replace=False)
            wrong = keys.wrong[drawn]
            for name, order in _orders(answers, keys, drawn).items():
                for alpha in (0.05, 0.1):
                    kept = fdr(order[n:], Calibration(scores=order[:n], wrong=wrong[:n]), alpha).kept
                    share = float(wrong[n:][kept].mean()) if kept.any() else 0.0
                    found.setdefault((name, alpha, n), []).append((float(kept.mean()), share))
    return [_row(key, np.array(values)) for key, values in found.items()]


def _orders(answers: SimulatedAnswers, keys: Keys, drawn: IntArray) -> dict[str, FloatArray]:
    own = (keys.score[drawn], keys.log_odds[drawn], keys.answer_logprob[drawn])
    return {
        "a87899e": keys.before[drawn],
        "category": ranks(*own, local_confidence(own[0], answers.category[drawn])),
        "nearest": ranks(*own, local_confidence(own[0], answers.nearest[drawn])),
    }


def _row(key: tuple[str, float, int], values: FloatArray) -> Row:
    coverage, share = values.T
    return Row(
        scored=key[0],
        alpha=key[1],
        n_calibration=key[2],
        draws=len(values),
        coverage=round(float(coverage.mean()), 4),
        false_share=round(float(share.mean()), 4),
        standard_error=round(float(share.std(ddof=1) / np.sqrt(len(values))), 5),
        empty=round(float(np.mean(coverage == 0)), 4),
    )


def measure_ranges(draws: int, seed: int = 2, simulated: int = 60) -> list[RangeRow]:
    """The range that a run prints against the share that it realises, for every simulated crew."""
    rows: list[RangeRow] = []
    for name in (*(s.name for s in crews.SCENARIOS), "60-percent-ties"):
        rng = np.random.default_rng(seed)
        scores, wrong = _population(name, rng)
        rows += [_range_row(name, scores, wrong, alpha, n, draws, simulated) for alpha in (0.1, 0.2) for n in SIZES]
    return rows


def _population(name: str, rng: np.random.Generator) -> tuple[FloatArray, BoolArray]:
    """Scores and errors, (N,) each."""
    scenario = next((s for s in crews.SCENARIOS if s.name == name), None)
    if scenario is not None:
        population = crews.simulate(scenario, rng)
        return population.scores, population.wrong
    answers = simulate(rng)
    keys = pooled_keys(answers)
    local = local_confidence(keys.score, answers.category)
    return ranks(keys.score, keys.log_odds, keys.answer_logprob, local), keys.wrong


def _range_row(  # noqa: PLR0913 - a cell of the table
    name: str, scores: FloatArray, wrong: BoolArray, alpha: float, n: int, draws: int, simulated: int
) -> RangeRow:
    rng = np.random.default_rng(n)
    held: list[bool] = []
    told: list[float] = []
    for draw in range(draws):
        drawn = rng.choice(scores.size, size=n + POOL, replace=False)
        calibration = Calibration(scores=scores[drawn[:n]], wrong=wrong[drawn[:n]])
        runs = simulated if draw % 10 == 0 else 0
        found = realised_range(scores[drawn[n:]], calibration, alpha, runs=runs, seed=draw)
        kept = fdr(scores[drawn[n:]], calibration, alpha).kept
        if kept.any():
            held.append(found.low <= wrong[drawn[n:]][kept].mean() <= found.high)
        if runs:
            told.append(found.empty_share)
    return RangeRow(
        scenario=name,
        alpha=alpha,
        n_calibration=n,
        selections=len(held),
        held=round(float(np.mean(held)), 4) if held else None,
        empty_told=round(float(np.mean(told)), 4),
        empty=round(1.0 - len(held) / draws, 4),
    )


def broken_promises(rows: Sequence[Row], ranges: Sequence[RangeRow]) -> list[str]:
    """What these numbers do not keep, in words."""
    broken = [
        f"{row.scored} at alpha {row.alpha} with {row.n_calibration} labels: {row.false_share:.4f} false labels"
        for row in rows
        if row.false_share > row.alpha + 3 * row.standard_error
    ]
    at = {row.scored: row.coverage for row in rows if (row.alpha, row.n_calibration) == (0.05, 200)}
    broken += [
        f"ties by {name} keep {at[name]:.3f}, before {at['a87899e']:.3f}" for name in NOW if not _doubled(at, name)
    ]
    for n in SIZES:
        cells = [row for row in ranges if row.n_calibration == n]
        held = sum((row.held or 0.0) * row.selections for row in cells) / max(1, sum(row.selections for row in cells))
        if not 0.85 <= held <= 0.95:
            broken.append(f"with {n} labels the range of 5 to 95 % held {held:.1%} of the shares")
        gap = float(np.mean([row.empty_told - row.empty for row in cells]))
        if abs(gap) > 0.05:
            broken.append(f"with {n} labels empty selections are told {gap:+.1%} too often")
    return broken


def _doubled(coverage: dict[str, float], name: str) -> bool:
    return coverage[name] >= 2 * coverage["a87899e"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --check judge; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ties", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is broken")
    parser.add_argument("--draws", type=int, default=300)
    chosen = parser.parse_args(arguments)
    rows, ranges = measure(chosen.draws), measure_ranges(chosen.draws)
    broken = broken_promises(rows, ranges)
    if chosen.json:
        tables = {"rows": [asdict(row) for row in rows], "ranges": [asdict(row) for row in ranges]}
        print(json.dumps({**tables, "broken": broken}, indent=1))
        return 1 if chosen.check and broken else 0
    print("| scored | alpha | n_cal | coverage | false | 3 s.e. | empty |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.scored} | {row.alpha} | {row.n_calibration} | {row.coverage:.3f} | {row.false_share:.4f} "
            f"| {3 * row.standard_error:.4f} | {row.empty:.3f} |"
        )
    print("\n| crew | alpha | n_cal | range held | empty: told | actual |\n|---|---|---|---|---|---|")
    for cell in ranges:
        print(
            f"| {cell.scenario} | {cell.alpha} | {cell.n_calibration} | {'-' if cell.held is None else cell.held} "
            f"| {cell.empty_told:.3f} | {cell.empty:.3f} |"
        )
    print("\n".join(broken) if broken else "Every promise was kept.")
    return 1 if chosen.check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
