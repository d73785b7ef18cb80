"""The binomial distribution: its lower tail and the exact interval of a share.

Written with the continued fraction of the regularised incomplete beta function (Numerical Recipes, section 6.4;
relative error about 1e-12), so that no statistics package is needed at run time. Knows nothing of what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, log, log1p

_CONVERGED = 1e-15
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of counted items with an interval; all three in [0, 1], NaN for no items."""

    estimate: float
    low: float
    high: float


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for 0 <= x <= 1 and positive a, b."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(1.0 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x))
    return front * _continued_fraction(x, a, b) / a


def binomial_tail(count: int, trials: int, share: float) -> float:
    """P(X <= count) for X ~ Binomial(trials, share)."""
    if count < 0:
        return 0.0
    if count >= trials:
        return 1.0
    return incomplete_beta(1.0 - share, trials - count, count + 1.0)


def clopper_pearson(count: int, trials: int, level: float = 0.95) -> Share:
    """The exact interval of Clopper and Pearson (1934) for `count` of `trials`."""
    if trials == 0:
        return Share(estimate=float("nan"), low=float("nan"), high=float("nan"))
    tail = (1.0 - level) / 2.0
    low = 0.0 if count == 0 else _quantile(tail, count, trials - count + 1)
    high = 1.0 if count == trials else _quantile(1.0 - tail, count + 1, trials - count)
    return Share(estimate=count / trials, low=low, high=high)


def _quantile(probability: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = probability, by bisection down to neighbouring floats near 1e-16."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if incomplete_beta(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Lentz's evaluation of the continued fraction of the incomplete beta function."""
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    result = d
    for step in range(1, 10_000):
        even = step * (b - step) * x / ((a + 2 * step - 1.0) * (a + 2 * step))
        d = 1.0 / _away_from_zero(1.0 + even * d)
        c = _away_from_zero(1.0 + even / c)
        result *= d * c
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1.0))
        d = 1.0 / _away_from_zero(1.0 + odd * d)
        c = _away_from_zero(1.0 + odd / c)
        result *= d * c
        if abs(d * c - 1.0) < _CONVERGED:
            break
    return result


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
