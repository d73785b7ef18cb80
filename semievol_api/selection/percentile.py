"""The paper's rule: keep the share of items with the lowest mean negative log-probability.

Promises nothing about the labels that it keeps. Knows nothing of calibration labels, models or prompts.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from semievol_api.selection.values import BoolArray, FloatArray, Selected, share_in_unit_interval


def percentile(mean_nll: FloatArray, share: float) -> Selected:
    """Keep the items with `mean_nll <= tau`, tau the `share`-percentile, linearly interpolated.

    SemiEvol (arXiv 2410.14745 v2), section 3.3: H(y) <= tau, theta = 50 %. The percentile is taken over the
    items that have a value; those without (NaN) abstain and count in the coverage only. Ties are kept or left
    as a whole. The comparison is made with the order statistic below tau, which is the same set without the
    rounding of the interpolation.

    Args:
        mean_nll: float64, shape (m,), nats per token; NaN = abstain.
        share: theta in [0, 1]; 0 keeps nothing, 1 everything that has a value.

    Raises:
        ConfigError: `share` is not a share.
    """
    share_in_unit_interval(share, "theta")
    valid = ~np.isnan(mean_nll)
    abstained = int(mean_nll.size - np.count_nonzero(valid))
    if share == 0.0 or abstained == mean_nll.size:
        why = "theta is 0" if share == 0.0 else "no item has a log-probability"
        return _nothing(mean_nll, abstained, f"Nothing was selected: {why}.")
    ordered = np.sort(mean_nll[valid])
    position = (ordered.size - 1) * Fraction(str(float(share)))
    below = int(position)
    kept: BoolArray = np.less_equal(mean_nll, ordered[below], where=valid, out=np.zeros_like(valid))
    return Selected(
        rule="percentile",
        kept=kept,
        abstained=abstained,
        threshold=_between(ordered, below, float(position - below)),
        messages=_about_ties(kept, ordered.size, share),
    )


def percentile_of_score(scores: FloatArray, share: float) -> Selected:
    """The same rule on confidences: keep the `share` of items with the highest score (float64, shape (m,))."""
    selected = percentile(-scores, share)
    if selected.threshold is None:
        return selected
    return replace(selected, threshold=-selected.threshold)


def _between(ordered: FloatArray, below: int, fraction: float) -> float:
    """The value at `below + fraction` between two order statistics; infinities do not become NaN."""
    low = float(ordered[below])
    high = float(ordered[min(below + 1, ordered.size - 1)])
    if fraction == 0.0 or low == high or not np.isfinite([low, high]).all():
        return low
    return low + (high - low) * fraction


def _about_ties(kept: BoolArray, answered: int, share: float) -> tuple[str, ...]:
    surplus = int(np.count_nonzero(kept)) - share * answered
    if surplus <= max(1.0, 0.05 * answered):
        return ()
    return (
        f"Ties at the cut are kept as a whole: {np.count_nonzero(kept):,} of {answered:,} answered items were "
        f"kept where theta asked for {share:.0%}.",
    )


def _nothing(mean_nll: FloatArray, abstained: int, message: str) -> Selected:
    return Selected(
        rule="percentile",
        kept=np.zeros(mean_nll.shape, dtype=np.bool_),
        abstained=abstained,
        messages=(message,),
    )
