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
from semievol_api.selection.values import (
    ENOUGH_CALIBRATION,
    BoolArray,
    Calibration,
    FloatArray,
    IntArray,
    Selected,
)

_LARGEST_POOL = 2_000
_DRAWS = 20_000
_WRONG_AT_TOP = 0.3


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
    """The likely share of false labels of this selection, and how runs like this one end.

    `low`, `median` and `high` are the 5th, 50th and 95th percentiles of the share among what this run keeps, NaN where
    it keeps nothing. Over simulated runs `mean` is the average share in which empty selections count as 0,
    `mean_if_any` that without them (NaN where every one is empty), `empty_share` how many keep nothing.
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
    """The likely share of false labels among what `fdr` keeps here, and how often runs like this one keep nothing.

    The share: of N calibration items above the cut W are wrong, so that the share in the population is Beta(1 + W, 1 +
    N - W) (Laplace's prior, whose additional wrong item the rule counts too), and that among the kept binomial around
    it. The runs: each draws the chance of a wrong label given the score (a Bayesian bootstrap of the calibration items
    (Rubin 1981) with a third of a wrong item at the top, made non-increasing), then n calibration and min(m, 2,000)
    unlabelled scores from the pool and their errors, and selects. Neither is a bound.

    Args:
        scores: float64, shape (m,), NaN = abstain.
        calibration: the run's own slice.
        alpha: the false-label budget.
        runs: how many selections are simulated.
        seed: of the simulation.
    """
    rng = np.random.default_rng(seed)
    bound = exact_alpha(alpha)
    likely = _likely_share(fdr(scores, calibration, bound), calibration, rng)
    shares = np.full(runs, np.nan)
    m, n = min(scores.size, _LARGEST_POOL), calibration.size
    world = _World.of(scores, calibration)
    for run in range(runs if scores.size else 0):
        rows = rng.integers(scores.size, size=n + m)
        wrong = rng.random(rows.size) < world.wrong_rate(rng, rows)
        drawn = Calibration(scores=scores[rows[:n]], wrong=wrong[:n])
        kept = fdr(scores[rows[n:]], drawn, bound).kept
        if kept.any():
            shares[run] = np.mean(wrong[n:][kept])
    return _summary(shares, likely, n, float(bound))


def _likely_share(selected: Selected, calibration: Calibration, rng: np.random.Generator) -> FloatArray:
    """Draws of the share of false labels among the kept; empty where nothing is kept."""
    if selected.threshold is None:
        return np.empty(0)
    above = calibration.scores >= selected.threshold
    wrong = int(np.count_nonzero(above & calibration.wrong))
    share = rng.beta(1 + wrong, 1 + int(np.count_nonzero(above)) - wrong, size=_DRAWS)
    return np.asarray(rng.binomial(selected.count, share) / selected.count, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _World:
    """Wrong and all calibration items by level of score, int64 (levels,) each, and the level of each pool item (m,)."""

    wrong: IntArray
    count: IntArray
    level: IntArray
    abstained: BoolArray

    @classmethod
    def of(cls, scores: FloatArray, calibration: Calibration) -> _World:
        known = ~np.isnan(calibration.scores)
        levels, place = np.unique(calibration.scores[known], return_inverse=True)
        level = np.clip(np.searchsorted(levels, scores, side="right") - 1, 0, max(levels.size - 1, 0))
        wrong = np.bincount(place, weights=calibration.wrong[known], minlength=levels.size)
        count = np.bincount(place, minlength=levels.size)
        return cls(wrong.astype(np.int64), count.astype(np.int64), level, np.isnan(scores) | (levels.size == 0))

    def wrong_rate(self, rng: np.random.Generator, rows: IntArray) -> FloatArray:
        """The chance of a wrong label for some pool items, float64 (rows,); 1 for abstentions."""
        from scipy.optimize import isotonic_regression

        if not self.count.size:
            return np.ones(rows.size)
        wrong, right = rng.gamma(self.wrong), rng.gamma(self.count - self.wrong)  # sums of exponential weights
        wrong[-1] += _WRONG_AT_TOP * rng.exponential()
        weights = np.maximum(wrong + right, 1e-12)
        fitted = isotonic_regression(wrong / weights, weights=weights, increasing=False).x
        return np.where(self.abstained[rows], 1.0, fitted[self.level[rows]])


def _summary(shares: FloatArray, likely: FloatArray, n: int, alpha: float) -> RealisedRange:
    found, nan = shares[~np.isnan(shares)], float("nan")
    empty = 1.0 - found.size / shares.size if shares.size else 1.0
    low, median, high = (float(v) for v in np.quantile(likely, [0.05, 0.5, 0.95])) if likely.size else (nan, nan, nan)
    told = [f"In simulated runs with {n} calibration labels alpha = {alpha:g} kept nothing in {empty:.0%}."]
    if likely.size:
        told.insert(
            0,
            f"Of the kept labels {low:.1%} to {high:.1%} are likely to be false (5th to 95th percentile). The budget "
            f"alpha = {alpha:g} holds on average, a single run may exceed it.",
        )
    return RealisedRange(
        low=low,
        median=median,
        high=high,
        mean=float(np.nansum(shares) / max(shares.size, 1)),
        mean_if_any=float(found.mean()) if found.size else nan,
        empty_share=empty,
        message=" ".join(told),
    )
