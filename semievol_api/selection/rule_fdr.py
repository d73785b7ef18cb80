"""The default rule: keep a set whose expected share of false labels stays below alpha.

Ranks scores against a calibration slice. The promise is on the expectation over calibration slices, under
exchangeability of calibration and unlabelled items; one run may exceed it. Knows nothing of how scores are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from semievol_api.errors import ConfigError
from semievol_api.selection.values import ENOUGH_KEPT, BoolArray, Calibration, FloatArray, IntArray, Selected

_INT64_MAX = 2**63 - 1


def fdr(scores: FloatArray, calibration: Calibration, alpha: float | Fraction = 0.1, *, gone: int = 0) -> Selected:
    """Keep `s >= tau`, tau the smallest t with [m (1 + W(t)) / (n + 1)] / max(R(t), 1) <= alpha.

    W(t) counts wrong calibration items with s >= t, R(t) unlabelled items with s >= t. The same set as
    Benjamini and Hochberg (1995) on the conformal p-values p_j = (1 + #{wrong i: s_i >= s_j}) / (n + 1) of Jin
    and Candes (2023, arXiv 2210.01408). m and n count abstentions, which never pass. Integers are compared
    exactly; alpha is read as the decimal fraction that it prints as. O((n + m) log (n + m)).

    Args:
        scores: float64, shape (m,), higher is better, NaN = abstain.
        calibration: items answered in the same way whose gold is known.
        alpha: the expected share of false labels among the kept, in (0, 1).
        gone: items of the same pool that earlier rounds kept. Calibration items are like the whole pool, not like
            what is left of it, so these count in m, as if they had abstained.

    Raises:
        ConfigError: alpha does not lie between 0 and 1.
    """
    bound, m = exact_alpha(alpha), scores.size + gone
    valid = ~np.isnan(scores)
    ordered = scores[valid]
    ordered.sort()
    levels = _candidates(ordered, calibration)
    reached: IntArray = ordered.size - np.searchsorted(ordered, levels, side="left").astype(np.int64)
    wrong = _wrong_at_least(levels, calibration)
    passing = np.flatnonzero(_passes(wrong, reached, m, calibration.size, bound))
    abstained = int(scores.size - ordered.size)
    if not passing.size:
        return Selected(rule="fdr", kept=np.zeros_like(valid), abstained=abstained, messages=(_EMPTY,))
    first = passing[0]
    estimate = m * (1 + int(wrong[first])) / ((calibration.size + 1) * int(reached[first]))
    kept: BoolArray = np.greater_equal(scores, levels[first], where=valid, out=np.zeros_like(valid))
    return Selected(rule="fdr", kept=kept, abstained=abstained, threshold=float(levels[first]), estimate=estimate)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallestBudget:
    """The least alpha at which `fdr` keeps enough, rounded up to thousandths, and how many it keeps there."""

    alpha: float
    kept: int


def smallest_budget(
    scores: FloatArray, calibration: Calibration, *, at_least: int = ENOUGH_KEPT, gone: int = 0
) -> SmallestBudget | None:
    """The least alpha at which at least so many items are kept; None where there is none below 1."""
    ordered = np.sort(scores[~np.isnan(scores)])
    levels = _candidates(ordered, calibration)
    reached = ordered.size - np.searchsorted(ordered, levels, side="left")
    wrong = _wrong_at_least(levels, calibration)
    m = scores.size + gone
    shares = [
        Fraction(m * (1 + w), (calibration.size + 1) * r)
        for w, r in zip(wrong.tolist(), reached.tolist(), strict=True)
        if r >= at_least
    ]
    alpha = Fraction(ceil(min(shares, default=Fraction(1)) * 1000), 1000)
    if alpha >= 1:
        return None
    return SmallestBudget(alpha=float(alpha), kept=fdr(scores, calibration, alpha, gone=gone).count)


def exact_alpha(alpha: float | Fraction) -> Fraction:
    """The false-label budget as the fraction that its decimal notation means: 0.1 is 1/10.

    Raises:
        ConfigError: it does not lie strictly between 0 and 1.
    """
    exact = Fraction(str(alpha)) if np.isfinite(float(alpha)) else Fraction(-1)
    if not 0 < exact < 1:
        raise ConfigError(
            f"The false-label budget alpha is {alpha!r}; it is the tolerated share of false labels and must lie "
            f"strictly between 0 and 1. The usual values are 0.05, 0.1 and 0.2."
        )
    return exact


def _wrong_at_least(levels: FloatArray, calibration: Calibration) -> IntArray:
    """W(t) for each t of `levels` (shape (l,)): wrong calibration items with a score of at least t."""
    wrong = np.sort(calibration.scores[calibration.wrong & ~np.isnan(calibration.scores)])
    return (wrong.size - np.searchsorted(wrong, levels, side="left")).astype(np.int64)


def _candidates(ordered: FloatArray, calibration: Calibration) -> FloatArray:
    """The cuts worth a look: W is constant between wrong calibration scores, where the lowest cut keeps the most.

    `ordered` (m,) are the sorted scores of the unlabelled items; at most one cut more than wrong calibration items.
    """
    wrong = calibration.scores[calibration.wrong & ~np.isnan(calibration.scores)]
    first = np.unique(np.append(np.searchsorted(ordered, wrong, side="right"), 0))
    return np.asarray(ordered[first[first < ordered.size]], dtype=np.float64)


def _passes(wrong: IntArray, reached: IntArray, m: int, n: int, alpha: Fraction) -> BoolArray:
    """m (1 + W) denominator <= numerator (n + 1) R, in integers wide enough to be exact."""
    left, right = m * alpha.denominator, alpha.numerator * (n + 1)
    largest = max(left * (n + 1), right * max(m, 1))
    if largest <= _INT64_MAX:
        return np.asarray((1 + wrong) * left <= reached * right, dtype=np.bool_)
    pairs = zip(wrong.tolist(), reached.tolist(), strict=True)
    return np.array([(1 + w) * left <= r * right for w, r in pairs], dtype=np.bool_)


_EMPTY = (
    "Nothing was selected: no cut keeps the expected share of false labels within alpha. More calibration labels, "
    "a larger alpha or better annotators would help."
)
