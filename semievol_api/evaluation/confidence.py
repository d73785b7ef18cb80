"""How well a confidence ranks and how honest it is: AUROC, precision and coverage, calibration.

A confidence is a score in which higher is better; NaN stands for an abstention, and every function says what it does
with one. Knows nothing of how scores are
made or used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import DataError
from semievol_api.evaluation.statistics import BootstrapSettings, Interval, wilson
from semievol_api.selection.values import BoolArray, FloatArray

Abstentions: TypeAlias = Literal["lowest", "left-out"]
"""What an item without a score counts as: the least sure of all, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reliability:
    """Equal-mass bins in ascending confidence: float64 arrays of shape (bins,).

    `confidence` is the mean of a bin, `low` and `high` are Wilson's 95 % interval of its `accuracy`, `count` its items.
    """

    confidence: FloatArray
    accuracy: FloatArray
    low: FloatArray
    high: FloatArray
    count: FloatArray

    @property
    def weight(self) -> FloatArray:
        """The share of all items that each bin holds; sums to 1."""
        return np.asarray(self.count / max(self.count.sum(), 1.0), dtype=np.float64)

    @property
    def expected_error(self) -> float:
        """The expected calibration error: mean absolute gap, weighted. NaN without bins."""
        if not self.count.size:
            return float("nan")
        return float(np.sum(self.weight * np.abs(self.accuracy - self.confidence)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrecisionCoverage:
    """Precision among the items at or above each threshold; float64 arrays, thresholds descending.

    `coverage` counts abstentions in its denominator. Each threshold is a whole tie group.
    """

    threshold: FloatArray
    coverage: FloatArray
    precision: FloatArray

    def thinned(self, points: int) -> PrecisionCoverage:
        """At most so many of the thresholds, evenly spaced, the first and the last among them."""
        size = self.threshold.size
        at = np.unique(np.linspace(0, max(size - 1, 0), min(points, size)).astype(np.int64))
        return PrecisionCoverage(threshold=self.threshold[at], coverage=self.coverage[at], precision=self.precision[at])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreHistogram:
    """Counts of right and wrong items per confidence bin; `edges` has one entry more."""

    edges: FloatArray
    right: FloatArray
    wrong: FloatArray


def auroc(scores: FloatArray, correct: BoolArray, abstentions: Abstentions = "lowest") -> float:
    """The chance that a right item scores above a wrong one, ties counting half (Hanley and McNeil 1982).

    float64 and bool, shape (n,). NaN when only one class is there.
    """
    if abstentions == "left-out":
        answered = ~np.isnan(scores)
        scores, correct = scores[answered], correct[answered]
    groups, good, bad = _tie_groups(scores, correct)
    return float(_auroc_of_counts(good[None, :], bad[None, :])[0]) if groups.size else float("nan")


def auroc_difference(
    ours: FloatArray,
    theirs: FloatArray,
    correct: BoolArray,
    settings: BootstrapSettings | None = None,
    questions: NDArray[np.int64] | None = None,
) -> Interval:
    """AUROC(ours) - AUROC(theirs) on the same items, with a paired percentile bootstrap over items.

    `questions`, int64 (n,), tells which question each item is about, where several are about one: then whole questions
    are drawn.

    Raises:
        DataError: the shapes differ, or all items are right, or all wrong.
    """
    settings = settings or BootstrapSettings()
    if not ours.shape == theirs.shape == correct.shape or len(np.unique(correct)) < 2:
        raise DataError(
            "Comparing two confidences needs the same items on both sides, right ones and wrong ones among them."
        )
    rng = np.random.default_rng(settings.seed)
    n = correct.size
    sides = [np.unique(_filled(side), return_inverse=True)[1] for side in (ours, theirs)]
    names, about = np.unique(np.arange(n) if questions is None else questions, return_inverse=True)
    differences: list[FloatArray] = []
    chunk = max(1, 1_000_000 // n)
    for start in range(0, settings.resamples, chunk):
        drawn = rng.integers(names.size, size=(min(chunk, settings.resamples - start), names.size))
        values = [_auroc_of_draws(groups, correct, about, drawn) for groups in sides]
        differences.append(values[0] - values[1])
    found = np.concatenate(differences)
    tail = (1.0 - settings.level) / 2.0
    low, high = (float(value) for value in np.nanquantile(found, [tail, 1.0 - tail]))
    estimate = auroc(ours, correct) - auroc(theirs, correct)
    return Interval(estimate=estimate, low=low, high=high, n=n, level=settings.level)


def precision_coverage(scores: FloatArray, correct: BoolArray, total: int | None = None) -> PrecisionCoverage:
    """The precision-coverage curve over all cuts `score >= threshold` (El-Yaniv and Wiener 2010).

    float64 and bool, shape (n,); NaN scores are never covered. `total` is the size of the pool where these are only
    the items whose truth is known; default: n.
    """
    answered = ~np.isnan(scores)
    groups, good, bad = _tie_groups(scores[answered], correct[answered])
    right, reached = np.cumsum(good[::-1]), np.cumsum((good + bad)[::-1])
    return PrecisionCoverage(
        threshold=groups[::-1].copy(),
        coverage=reached / max(scores.size if total is None else total, 1),
        precision=right / np.maximum(reached, 1),
    )


def reliability(confidence: FloatArray, correct: BoolArray, bins: int = 15) -> Reliability:
    """Mean confidence and accuracy in equal-mass bins (Nguyen and O'Connor 2015); abstentions are left out.

    Tied confidences stay in one bin, the one of their middle rank, so that row order changes nothing. float64
    in [0, 1] and bool, shape (n,).
    """
    answered = ~np.isnan(confidence)
    values, right = confidence[answered], correct[answered]
    groups, good, bad = _tie_groups(values, right)
    mass = good + bad
    middle = np.cumsum(mass) - mass / 2.0
    place = np.minimum((bins * middle / max(values.size, 1)).astype(np.int64), bins - 1)
    filled = np.bincount(place, weights=mass, minlength=bins)
    used = filled > 0
    count = filled[used].astype(np.float64)
    share = np.bincount(place, weights=good, minlength=bins)[used] / count
    low, high = wilson(share, count)
    return Reliability(
        confidence=np.bincount(place, weights=mass * groups, minlength=bins)[used] / count,
        accuracy=share,
        low=low,
        high=high,
        count=count,
    )


def score_histogram(confidence: FloatArray, correct: BoolArray, bins: int = 20) -> ScoreHistogram:
    """Counts of right and wrong items over the range of confidences that occur; abstentions are left out."""
    answered = ~np.isnan(confidence)
    values, right = np.clip(confidence[answered], 0, 1), correct[answered]
    edges = np.linspace(min(float(values.min(initial=0.98)), 0.98), 1.0, bins + 1)
    counts = [np.histogram(some, edges)[0].astype(np.float64) for some in (values[right], values[~right])]
    return ScoreHistogram(edges=edges, right=counts[0], wrong=counts[1])


def expected_calibration_error(confidence: FloatArray, correct: BoolArray, bins: int = 15) -> float:
    """Mean absolute gap between confidence and accuracy over equal-mass bins; NaN without answers."""
    return reliability(confidence, correct, bins).expected_error


def brier(confidence: FloatArray, correct: BoolArray) -> float:
    """Mean squared gap between confidence and being right (Brier 1950); abstentions are left out, NaN for none."""
    answered = ~np.isnan(confidence)
    if not answered.any():
        return float("nan")
    return float(np.mean((confidence[answered] - correct[answered]) ** 2))


def _filled(scores: FloatArray) -> FloatArray:
    return np.where(np.isnan(scores), -np.inf, scores)


def _tie_groups(scores: FloatArray, correct: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct scores ascending, and how many right and wrong items have each."""
    groups, inverse = np.unique(_filled(scores), return_inverse=True)
    good = np.bincount(inverse, weights=correct, minlength=groups.size).astype(np.float64)
    bad = np.bincount(inverse, weights=~correct, minlength=groups.size).astype(np.float64)
    return groups, good, bad


def _auroc_of_counts(good: FloatArray, bad: FloatArray) -> FloatArray:
    """Row by row, from counts per ascending tie group of shape (rows, groups); NaN without both classes."""
    below = np.cumsum(bad, axis=1) - bad
    wins = np.sum(good * (below + bad / 2.0), axis=1)
    pairs = good.sum(axis=1) * bad.sum(axis=1)
    areas: FloatArray = np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0)
    return areas


def _auroc_of_draws(
    groups: NDArray[np.int64], correct: BoolArray, about: NDArray[np.int64], drawn: NDArray[np.int64]
) -> FloatArray:
    """One AUROC per row of drawn questions: item i counts as often as its question `about[i]` was drawn."""
    resamples, asked = drawn.shape
    row = np.arange(resamples)[:, None]
    times = np.bincount((row * asked + drawn).ravel(), minlength=resamples * asked).reshape(resamples, asked)
    weights = times[:, about].astype(np.float64)
    width = int(groups.max()) + 1
    cells = row * width + groups
    shape = (resamples, width)
    good, bad = (
        np.bincount(cells[:, which].ravel(), weights=weights[:, which].ravel(), minlength=resamples * width)
        for which in (correct, ~correct)
    )
    return _auroc_of_counts(good.astype(np.float64).reshape(shape), bad.astype(np.float64).reshape(shape))
