"""What a false-label budget can promise with the labels at hand, before and after selecting.

Feasibility by arithmetic, and the spread of the realised share by simulation with the run's own sizes and scores.
Knows nothing of models, prompts or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from semievol_api.selection.rule_fdr import exact_alpha, fdr
from semievol_api.selection.values import ENOUGH_CALIBRATION, Calibration, FloatArray, Selected

_LARGEST_POOL = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of counted items with an interval; all three in [0, 1], NaN for no items."""

    estimate: float
    low: float
    high: float


def binomial_tail(count: int, trials: int, share: float) -> float:
    """P(X <= count) for X ~ Binomial(trials, share), with 0 <= count <= trials."""
    from scipy.special import bdtr

    return float(bdtr(count, trials, share))


def clopper_pearson(count: int, trials: int, level: float = 0.95) -> Share:
    """The exact interval of Clopper and Pearson (1934) for `count` of `trials`."""
    from scipy.special import betaincinv

    if trials == 0:
        return Share(estimate=float("nan"), low=float("nan"), high=float("nan"))
    tail = (1.0 - level) / 2.0
    low = 0.0 if count == 0 else float(betaincinv(count, trials - count + 1, tail))
    high = 1.0 if count == trials else float(betaincinv(count + 1, trials - count, 1.0 - tail))
    return Share(estimate=count / trials, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasibility:
    """What the `fdr` rule needs at a given alpha.

    `smallest_coverage` is the least share of the pool that a non-empty selection can have (above 1: none can
    exist), `abstain_share` what any method must leave out at this error level, `needed_calibration` the least
    number of calibration labels with which anything can be kept at all.
    """

    smallest_coverage: float
    abstain_share: float
    needed_calibration: int
    message: str

    @property
    def possible(self) -> bool:
        """Whether any selection can meet the budget."""
        return self.smallest_coverage <= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RealisedRange:
    """The simulated share of false labels of runs like this one.

    `low`, `median` and `high` are the 5th, 50th and 95th percentiles over the non-empty selections, `mean` the
    average in which empty selections count as 0, `mean_if_any` without them; NaN where every one is empty.
    """

    low: float
    median: float
    high: float
    mean: float
    mean_if_any: float
    empty_share: float
    message: str


def feasibility(n_calibration: int, error: float, alpha: float | Fraction = 0.1) -> Feasibility:
    """The necessary conditions of `fdr`: R/m >= 1/(alpha (n + 1)), and (error - alpha)/(1 - alpha) left out.

    `error` is the crew's error on the calibration slice, in [0, 1].
    """
    bound = exact_alpha(alpha)
    coverage = float(1 / (bound * (n_calibration + 1)))
    abstain = max(0.0, (error - float(bound)) / (1.0 - float(bound)))
    needed = max(0, ceil(1 / bound) - 1)
    if coverage > 1.0:
        message = (
            f"With {n_calibration} calibration labels no selection can meet alpha = {float(bound):g}: at least "
            f"{needed} are needed. Label more items or raise alpha."
        )
    else:
        message = (
            f"With {n_calibration} calibration labels and alpha = {float(bound):g} a selection must hold at least "
            f"{coverage:.1%} of the pool, or it is empty; at a calibration error of {error:.1%} any method that "
            f"keeps this budget must leave out at least {abstain:.1%}."
        )
    return Feasibility(smallest_coverage=coverage, abstain_share=abstain, needed_calibration=needed, message=message)


def error_above_cut(selected: Selected, calibration: Calibration, level: float = 0.95) -> Share:
    """The share of wrong calibration items at or above the cut, with the interval of Clopper and Pearson.

    Descriptive only: the cut was chosen on the same items, so this is no bound. NaN without a cut.
    """
    if selected.threshold is None:
        return clopper_pearson(0, 0, level)
    above = calibration.scores >= selected.threshold
    return clopper_pearson(int(np.count_nonzero(calibration.wrong & above)), int(np.count_nonzero(above)), level)


def calibration_size(n_labelled: int, n_gate: int = 0) -> int:
    """How many labelled items calibrate: clip(0.2 n, 50, 500), at most half of those that do not gate; 0 below 30.

    With 0 there is no split: all labels train, and no guarantee is given.
    """
    size = min(max(round(0.2 * n_labelled), 50), 500, (n_labelled - n_gate) // 2)
    return size if size >= ENOUGH_CALIBRATION else 0


def realised_range(
    scores: FloatArray,
    calibration: Calibration,
    alpha: float | Fraction = 0.1,
    runs: int = 1_000,
    seed: int = 0,
) -> RealisedRange:
    """Simulate `fdr` on worlds like this run's and report the realised share of false labels.

    A world: the chance of a wrong label falls with the score (isotonic regression on the calibration slice,
    with one more wrong item at the top, as in the rule itself); each run draws n calibration and
    min(m, 2,000) unlabelled scores from the pool, draws their verdicts, selects, and counts. It describes the
    spread of the share; it is no bound.

    Args:
        scores: float64, shape (m,), NaN = abstain.
        calibration: the run's own slice.
        alpha: the false-label budget.
        runs: how many selections are simulated.
        seed: of the simulation.
    """
    rng = np.random.default_rng(seed)
    bound = exact_alpha(alpha)
    m = min(scores.size, _LARGEST_POOL)
    shares = np.full(runs, np.nan)
    for run in range(runs if scores.size else 0):
        rows = rng.integers(scores.size, size=calibration.size + m)
        wrong = rng.random(rows.size) < _wrong_rate(scores[rows], calibration)
        n = calibration.size
        drawn = Calibration(scores=scores[rows[:n]], wrong=wrong[:n])
        kept = fdr(scores[rows[n:]], drawn, bound).kept
        if kept.any():
            shares[run] = np.mean(wrong[n:][kept])
    return _summary(shares, calibration.size, float(bound))


def isotonic_decreasing(x: FloatArray, y: FloatArray, at: FloatArray) -> FloatArray:
    """The non-increasing least-squares step function of y on x, read at `at`; all float64, one-dimensional.

    Tied x share one weighted mean. Between two observed x the step of the lower one holds.
    """
    from scipy.optimize import isotonic_regression

    levels, inverse = np.unique(x, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, weights=y) / weights
    fitted = isotonic_regression(means, weights=weights, increasing=False).x
    where = np.clip(np.searchsorted(levels, at, side="right") - 1, 0, levels.size - 1)
    return np.asarray(fitted[where], dtype=np.float64)


def _wrong_rate(scores: FloatArray, calibration: Calibration) -> FloatArray:
    """The fitted chance of a wrong label for each score, shape (m,); 1 for abstentions."""
    valid = ~np.isnan(calibration.scores)
    if not valid.any():
        return np.ones(scores.shape)
    observed = calibration.scores[valid]
    wrong = np.append(calibration.wrong[valid], True).astype(np.float64)
    fitted = isotonic_decreasing(np.append(observed, observed.max()), wrong, scores)
    return np.where(np.isnan(scores), 1.0, fitted)


def _summary(shares: FloatArray, n: int, alpha: float) -> RealisedRange:
    found = shares[~np.isnan(shares)]
    empty = 1.0 - found.size / shares.size if shares.size else 1.0
    if not found.size:
        nan = float("nan")
        return RealisedRange(
            low=nan,
            median=nan,
            high=nan,
            mean=0.0,
            mean_if_any=nan,
            empty_share=1.0,
            message=f"In simulated runs with {n} calibration labels alpha = {alpha:g} always kept nothing.",
        )
    low, median, high = (float(value) for value in np.quantile(found, [0.05, 0.5, 0.95]))
    return RealisedRange(
        low=low,
        median=median,
        high=high,
        mean=float(np.nansum(shares) / shares.size),
        mean_if_any=float(found.mean()),
        empty_share=empty,
        message=(
            f"In simulated runs with {n} calibration labels alpha = {alpha:g} gave {low:.1%} to {high:.1%} false "
            f"labels (5th to 95th percentile), {found.mean():.1%} on average when anything was kept; "
            f"{empty:.0%} of the runs kept nothing. The budget holds on average, a single run may exceed it."
        ),
    )
