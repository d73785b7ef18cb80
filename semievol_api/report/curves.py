"""The points of the report's curves: precision against coverage, reliability, scores by correctness.

Pure numpy on confidences (higher is better, NaN abstains) and right/wrong. Knows nothing of models, files or
drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PrecisionCoverage:
    """Precision among the items at or above each confidence; float64 arrays of one shape, coverage ascending.

    `pool` counts all items, abstentions included; `chosen` is the (coverage, precision) of the rule's own cut.
    """

    confidence: FloatArray
    coverage: FloatArray
    precision: FloatArray
    pool: int
    chosen: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Reliability:
    """Equal-mass bins: mean confidence, accuracy with its 95 % Wilson interval, count; float64, shape (bins,)."""

    confidence: FloatArray
    accuracy: FloatArray
    low: FloatArray
    high: FloatArray
    count: FloatArray

    @property
    def expected_error(self) -> float:
        """The expected calibration error; NaN without bins."""
        if not self.count.size:
            return float("nan")
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Counts of right and wrong items per confidence bin; `edges` has one entry more."""

    edges: FloatArray
    right: FloatArray
    wrong: FloatArray


def wilson(share: FloatArray, count: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The 95 % score interval of a share (Wilson 1927), element by element."""
    z = NormalDist().inv_cdf(0.975)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def precision_coverage(
    confidence: FloatArray, right: BoolArray, kept: BoolArray, pool: int, points: int = 400
) -> PrecisionCoverage:
    """The curve over all cuts, whole tie groups at a time, thinned to `points` for drawing.

    The three arrays hold the items whose truth is known; `pool` is how many items there are with the abstentions.
    """
    order = np.argsort(-np.nan_to_num(confidence, nan=-np.inf), kind="stable")
    order = order[~np.isnan(confidence[order])]
    values, good = confidence[order], right[order]
    last_of_ties = np.flatnonzero(np.append(values[1:] != values[:-1], np.ones(min(values.size, 1), dtype=np.bool_)))
    reached = last_of_ties + 1.0
    precision = np.cumsum(good)[last_of_ties] / reached
    thin = np.unique(np.linspace(0, max(reached.size - 1, 0), min(points, reached.size)).astype(np.int64))
    count = int(kept.sum())
    return PrecisionCoverage(
        confidence=values[last_of_ties][thin],
        coverage=(reached / max(pool, 1))[thin],
        precision=precision[thin],
        pool=pool,
        chosen=(count / max(pool, 1), float(right[kept].mean())) if count else None,
    )


def reliability(confidence: FloatArray, right: BoolArray, bins: int = 15) -> Reliability:
    """Equal-mass bins in ascending confidence; tied confidences stay together, abstentions are left out."""
    answered = ~np.isnan(confidence)
    values, good = confidence[answered], right[answered]
    groups, inverse, mass = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(mass) - mass / 2.0
    place = np.minimum((bins * middle / max(values.size, 1)).astype(np.int64), bins - 1)[inverse]
    count = np.bincount(place, minlength=bins).astype(np.float64) if groups.size else np.zeros(bins)
    used = count > 0
    weight = count[used]
    accuracy = np.bincount(place, weights=good, minlength=bins)[used] / weight if groups.size else weight
    mean = np.bincount(place, weights=values, minlength=bins)[used] / weight if groups.size else weight
    low, high = wilson(accuracy, weight)
    return Reliability(confidence=mean, accuracy=accuracy, low=low, high=high, count=weight)


def score_histogram(confidence: FloatArray, right: BoolArray, bins: int = 20) -> ScoreHistogram:
    """Counts of right and wrong items over the range of confidences that occur."""
    answered = ~np.isnan(confidence)
    values, good = confidence[answered], right[answered]
    low = float(values.min()) if values.size else 0.0
    edges = np.linspace(min(low, 0.98), 1.0, bins + 1)
    right_counts, _ = np.histogram(np.clip(values[good], 0, 1), edges)
    wrong_counts, _ = np.histogram(np.clip(values[~good], 0, 1), edges)
    return ScoreHistogram(edges, right_counts.astype(np.float64), wrong_counts.astype(np.float64))


def auroc(confidence: FloatArray, right: BoolArray) -> float:
    """The chance that a right item is more confident than a wrong one, ties counting half; NaN for one class."""
    answered = ~np.isnan(confidence)
    _, inverse = np.unique(confidence[answered], return_inverse=True)
    good = np.bincount(inverse, weights=right[answered]).astype(np.float64)
    bad = np.bincount(inverse, weights=~right[answered]).astype(np.float64)
    pairs = good.sum() * bad.sum()
    return float(np.sum(good * (np.cumsum(bad) - bad / 2.0)) / pairs) if pairs else float("nan")
