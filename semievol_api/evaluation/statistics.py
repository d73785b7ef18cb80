"""Accuracies and gains with their intervals.

Pure numpy on right/wrong arrays. Knows nothing of models, tasks or what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from semievol_api.errors import ConfigError, DataError
from semievol_api.selection.values import BoolArray, FloatArray, IntArray


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


def wilson(share: FloatArray, count: FloatArray, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """The score interval of Wilson (1927) for each share of `count` > 0 items; float64 arrays of one shape."""
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)
    return np.where(share == 0.0, 0.0, low), np.where(share == 1.0, 1.0, high)


def accuracy(correct: BoolArray, level: float = 0.95) -> Interval:
    """The share of right answers with Wilson's interval; `correct` is bool, shape (n,)."""
    n = int(correct.size)
    share = float(np.mean(correct)) if n else float("nan")
    low, high = wilson(np.array(share), np.array(float(n)), level) if n else (share, share)
    return Interval(estimate=share, low=float(low), high=float(high), n=n, level=level)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Items that only one side got right, and the exact two-sided p-value."""

    only_ours: int
    only_theirs: int
    p_value: float


def mcnemar(ours: BoolArray, theirs: BoolArray) -> McNemar:
    """The exact test of McNemar (1947): discordant items are coin flips under the null; both bool, shape (n,).

    Raises:
        DataError: the two sides have different numbers of items.
    """
    from scipy.stats import binomtest

    if ours.shape != theirs.shape:
        raise DataError(
            f"McNemar's test needs the same items on both sides; got {ours.size} and {theirs.size}. Evaluate both "
            f"models on one test file."
        )
    gained, lost = int(np.count_nonzero(ours & ~theirs)), int(np.count_nonzero(~ours & theirs))
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return McNemar(only_ours=gained, only_theirs=lost, p_value=p_value)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values adjusted for testing them together (Holm 1979), in the given order; NaN entries stay NaN."""
    p = np.array(p_values, dtype=np.float64)
    valid = np.flatnonzero(~np.isnan(p))
    order = valid[np.argsort(p[valid], kind="stable")]
    scaled = p[order] * np.arange(order.size, 0, -1)
    adjusted = np.full(p.size, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return tuple(adjusted.tolist())


def smallest_detectable_effect(
    n: int, discordant: float = 0.1, significance: float = 0.05, power: float = 0.8
) -> float:
    """The smallest accuracy difference that a paired test of n items finds with the given power, in [0, 1].

    Connor (1987): d = (z_{1-a/2} sqrt(p) + z_{power} sqrt(p - d^2)) / sqrt(n), solved for d, where p is the
    share of items that only one side gets right. Where d would exceed p, p is raised to d, since the difference
    cannot be larger than the discordance. 1 where no difference can be seen.

    Raises:
        ConfigError: a number lies outside its range.
    """
    if n < 1 or not (0 < discordant <= 1 and 0 < significance < 1 and 0 < power < 1):
        raise ConfigError(
            f"The smallest detectable effect needs n >= 1 and shares between 0 and 1; got n={n}, "
            f"discordant={discordant!r}, significance={significance!r}, power={power!r}."
        )
    z_test, z_power = (NormalDist().inv_cdf(q) for q in (1 - significance / 2, power))

    def excess(d: float) -> float:
        p = max(discordant, d)
        return d * sqrt(n) - z_test * sqrt(p) - z_power * sqrt(max(0.0, p - d * d))

    low, high = 0.0, 1.0
    if excess(high) < 0:
        return 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """Whether the evolved model replaces the fine-tuned one, with the gain in accuracy (evolved - SFT)."""

    promoted: bool
    gain: Interval | None
    message: str


def promotion_gate(
    evolved: BoolArray | None, sft: BoolArray | None, settings: BootstrapSettings | None = None
) -> Promotion:
    """Promote if the paired estimate of (evolved - SFT) on D_dev is above 0; bool arrays, shape (n,).

    "Promote unless significantly worse" would promote a model truly 5 points worse in 82 % of cases at 50
    items; this rule in 13 %. Without a development set (None) there is no gate, and the message says so.
    """
    if evolved is None or sft is None or evolved.size == 0:
        return Promotion(
            promoted=True,
            gain=None,
            message="There is no development set, so nothing was compared: the evolved model is untested.",
        )
    gain = paired_bootstrap(evolved, sft, settings)
    figures = f"{points(gain)} on {gain.n:,} development items"
    if gain.estimate > 0:
        return Promotion(promoted=True, gain=gain, message=f"The evolved model is promoted: {figures}.")
    return Promotion(
        promoted=False, gain=gain, message=f"The fine-tuned model is kept; the evolved one is no better: {figures}."
    )


def points(gain: Interval) -> str:
    """A gain in words: `+2.1 points (95 % interval -0.3 to +4.5)`."""
    return (
        f"{100 * gain.estimate:+.1f} points ({gain.level:.0%} interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    )


def cost_per_point(cost_usd: float, gain: Interval) -> float | None:
    """USD per accuracy point gained; None where the gain's interval contains 0, or the gain is a loss."""
    if not gain.excludes_zero or gain.estimate <= 0:
        return None
    return cost_usd / (100 * gain.estimate)


def cost_per_point_text(cost_usd: float, gain: Interval) -> str:
    """The cost of a point as printed: `$0.42`, or `undefined`."""
    cost = cost_per_point(cost_usd, gain)
    return "undefined" if cost is None else f"${cost:,.2f}"
