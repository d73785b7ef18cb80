"""Is the difference more than chance, over one task or several, and how small a one could be seen?

Knows nothing of models or tasks: it is given right/wrong arrays and p-values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt
from statistics import NormalDist

import numpy as np

from semievol_api.errors import ConfigError, DataError
from semievol_api.evaluation.intervals import BoolArray


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
    if ours.shape != theirs.shape:
        raise DataError(
            f"McNemar's test needs the same items on both sides; got {ours.size} and {theirs.size}. Evaluate both "
            f"models on one test file."
        )
    gained, lost = int(np.count_nonzero(ours & ~theirs)), int(np.count_nonzero(~ours & theirs))
    return McNemar(only_ours=gained, only_theirs=lost, p_value=_two_sided_coin(min(gained, lost), gained + lost))


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


def _two_sided_coin(fewer: int, flips: int) -> float:
    """min(1, 2 P(X <= fewer)) for X ~ Binomial(flips, 1/2)."""
    if 2 * fewer >= flips:
        return 1.0
    terms = [exp(lgamma(flips + 1) - lgamma(i + 1) - lgamma(flips - i + 1) - flips * log(2)) for i in range(fewer + 1)]
    return min(1.0, 2.0 * sum(terms))
