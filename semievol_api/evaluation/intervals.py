"""Accuracies and gains with their intervals.

Pure numpy on right/wrong arrays. Knows nothing of models, tasks or what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import DataError

FloatArray: TypeAlias = NDArray[np.float64]
"""float64 array; its shape stands in the docstring that names it."""
IntArray: TypeAlias = NDArray[np.int64]
"""int64 array of label indices, -1 = none."""
BoolArray: TypeAlias = NDArray[np.bool_]
"""Boolean array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with a two-sided interval at `level`; `n` items; NaN for none."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside; False where there is no interval."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapSettings:
    """How often items are resampled, at which level, from which seed."""

    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0


def accuracy(correct: BoolArray, level: float = 0.95) -> Interval:
    """The share of right answers with the score interval of Wilson (1927); `correct` is bool, shape (n,)."""
    n = int(correct.size)
    if n == 0:
        nan = float("nan")
        return Interval(estimate=nan, low=nan, high=nan, n=0, level=level)
    share = float(np.mean(correct))
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(
        estimate=share, low=0.0 if share == 0.0 else low, high=1.0 if share == 1.0 else high, n=n, level=level
    )


def accuracy_by_category(correct: BoolArray, categories: Sequence[str], level: float = 0.95) -> Mapping[str, Interval]:
    """The accuracy within each category, in alphabetical order; both have n entries."""
    names = np.array(categories, dtype=np.str_)
    return {str(name): accuracy(correct[names == name], level) for name in np.unique(names)}


def confusion(gold: IntArray, predicted: IntArray, n_labels: int) -> IntArray:
    """Counts of shape (n_labels, n_labels + 1): gold by predicted, the last column abstentions (-1).

    Both int64, shape (n,); items without gold (-1) are left out.
    """
    known = gold >= 0
    columns = np.where(predicted[known] < 0, n_labels, predicted[known])
    cells = gold[known] * (n_labels + 1) + columns
    counts = np.bincount(cells, minlength=n_labels * (n_labels + 1))
    return counts.reshape(n_labels, n_labels + 1).astype(np.int64)


def paired_bootstrap(
    ours: BoolArray | FloatArray,
    theirs: BoolArray | FloatArray,
    settings: BootstrapSettings | None = None,
) -> Interval:
    """The mean of (ours - theirs) over the same items, with a percentile bootstrap interval.

    Efron and Tibshirani (1993), section 13.3. Each resample draws items with replacement and, nested in it, the
    training seeds of each side; a drawn seed counts for all items, since one training moves them together.

    Args:
        ours: shape (n,) or (seeds, n): right answers, or any score per item.
        theirs: shape (n,) or (other seeds, n), the same items in the same order.
        settings: resamples, level, seed.

    Raises:
        DataError: the two sides have different items, or there are none.
    """
    settings = settings or BootstrapSettings()
    one, other = np.atleast_2d(ours).astype(np.float64), np.atleast_2d(theirs).astype(np.float64)
    if one.shape[1] != other.shape[1] or one.size == 0 or other.size == 0:
        raise DataError(
            f"A paired comparison needs the same items on both sides; got {one.shape[1]} and {other.shape[1]}. "
            f"Evaluate both models on one test file."
        )
    differences = _resampled_differences(one, other, settings)
    tail = (1.0 - settings.level) / 2.0
    low, high = (float(value) for value in np.quantile(differences, [tail, 1.0 - tail]))
    return Interval(estimate=float(one.mean() - other.mean()), low=low, high=high, n=one.shape[1], level=settings.level)


def _resampled_differences(one: FloatArray, other: FloatArray, settings: BootstrapSettings) -> FloatArray:
    """One mean difference per resample.

    Items with the same outcomes are interchangeable, so their counts are drawn instead of the items.
    """
    rng = np.random.default_rng(settings.seed)
    n = one.shape[1]
    patterns, counts = np.unique(np.vstack([one, other]), axis=1, return_counts=True)
    differences = np.empty(settings.resamples)
    chunk = max(1, 2_000_000 // counts.size)
    for start in range(0, settings.resamples, chunk):
        size = min(chunk, settings.resamples - start)
        drawn = rng.multinomial(n, counts / n, size=size)
        means = drawn @ patterns.T / n
        ours = _mean_of_drawn_seeds(means[:, : one.shape[0]], rng)
        theirs = _mean_of_drawn_seeds(means[:, one.shape[0] :], rng)
        differences[start : start + size] = ours - theirs
    return differences


def _mean_of_drawn_seeds(means: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Row by row the mean over seeds drawn with replacement; `means` is (resamples, seeds)."""
    seeds = means.shape[1]
    if seeds == 1:
        return means[:, 0]
    drawn = rng.integers(seeds, size=means.shape)
    return np.asarray(np.take_along_axis(means, drawn, axis=1).mean(axis=1), dtype=np.float64)
