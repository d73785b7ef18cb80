"""The paper's rule: keep the share of items with the lowest mean negative log-probability.

Promises nothing about the labels that it keeps. Knows nothing of calibration labels, models or prompts.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import Literal, TypeAlias

import numpy as np

from semievol_api.selection.values import BoolArray, FloatArray, IntArray, Selected, share_in_unit_interval

Interpolation: TypeAlias = Literal["linear", "lower", "higher"]
"""How a percentile falls between two values."""


def percentile(
    mean_nll: FloatArray,
    share: float,
    *,
    reference: FloatArray | None = None,
    interpolation: Interpolation = "linear",
) -> Selected:
    """Keep the items with `mean_nll <= tau`, tau the `share`-percentile.

    SemiEvol (arXiv 2410.14745 v2), section 3.3: H(y) <= tau, theta = 50 %. The percentile is taken over the
    items that have a value; those without (NaN) abstain and count in the coverage only. Ties are kept or left
    as a whole. An item on which the percentile falls is kept whatever the rounding.

    Args:
        mean_nll: float64, shape (m,), nats per token; NaN = abstain.
        share: theta in [0, 1]; 0 keeps nothing, 1 everything that has a value.
        reference: values, of any length, that place tau instead of `mean_nll` (the paper's prose: the labelled).
        interpolation: how tau falls between two values.

    Raises:
        ConfigError: `share` is not a share.
    """
    share_in_unit_interval(share, "share")
    valid = ~np.isnan(mean_nll)
    abstained = int(mean_nll.size - np.count_nonzero(valid))
    pool = mean_nll if reference is None else reference
    ordered = np.sort(pool[~np.isnan(pool)])
    if share == 0.0 or abstained == mean_nll.size or not ordered.size:
        return _nothing(mean_nll, abstained, "theta is 0" if share == 0.0 else "no item has a log-probability")
    threshold = np.inf if share == 1.0 else _quantile(ordered, share, interpolation)
    kept: BoolArray = np.less_equal(mean_nll, threshold, where=valid, out=np.zeros_like(valid))
    return Selected(
        rule="percentile",
        kept=kept,
        abstained=abstained,
        threshold=float(ordered[-1]) if share == 1.0 else threshold,
        messages=_about_ties(kept, int(np.count_nonzero(valid)), share) if reference is None else (),
    )


def percentile_of_score(scores: FloatArray, share: float) -> Selected:
    """The same rule on confidences: keep the `share` of items with the highest score (float64, shape (m,))."""
    selected = percentile(-scores, share)
    if selected.threshold is None:
        return selected
    return replace(selected, threshold=-selected.threshold)


def _quantile(ordered: FloatArray, share: float, interpolation: Interpolation) -> float:
    """The percentile of ascending values; the position is exact and infinities do not become NaN."""
    position = (ordered.size - 1) * Fraction(str(float(share)))
    low, high = float(ordered[floor(position)]), float(ordered[ceil(position)])
    fraction = float(position - floor(position))
    if interpolation == "higher":
        return high
    if interpolation == "lower" or low == high or not np.isfinite([low, high]).all():
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


def _nothing(mean_nll: FloatArray, abstained: int, why: str) -> Selected:
    return Selected(
        rule="percentile",
        kept=np.zeros(mean_nll.shape, dtype=np.bool_),
        abstained=abstained,
        messages=(f"Nothing was selected: {why}.",),
    )


def unanimous(answers: IntArray) -> BoolArray:
    """Whether all annotators gave one and the same answer: bool (m,) from int64 (m, annotators), -1 = abstain.

    An empty answer is never a vote: a row with any abstention is not unanimous.
    """
    return np.asarray((answers >= 0).all(axis=1) & (answers == answers[:, :1]).all(axis=1), dtype=np.bool_)


def official_2025(answers: IntArray, justified_nll: FloatArray, share: float = 0.3) -> Selected:
    """Keep unanimous rows, and justified rows with a mean_nll strictly below the percentile of justified rows.

    The released code of arXiv 2410.14745, less its crashes. The strict comparison keeps nothing of tied
    values; that fault is reproduced, with a message.

    Args:
        answers: int64, shape (m, annotators), the first round's answers, -1 = abstain.
        justified_nll: float64, shape (m,), of the re-asked rows; NaN where the answer was empty or unanimous.
        share: the percentile, as a share.
    """
    share_in_unit_interval(share, "share")
    agreed = unanimous(answers)
    scored = ~agreed & ~np.isnan(justified_nll)
    threshold = float(np.quantile(justified_nll[scored], share)) if scored.any() else None
    below: BoolArray = np.zeros(agreed.shape, dtype=np.bool_)
    if threshold is not None:
        np.less(justified_nll, threshold, where=scored, out=below)
    return Selected(
        rule="official-2025",
        kept=agreed | below,
        abstained=int(np.count_nonzero(~agreed & ~scored)),
        threshold=threshold,
        messages=_about_nothing(int(scored.sum()), int(below.sum())),
    )


def _about_nothing(scored: int, below: int) -> tuple[str, ...]:
    if below or not scored:
        return ()
    return (
        f"None of the {scored:,} disagreements was kept: no value lies strictly below the percentile, as happens "
        f"in the released code when values tie. The rule 'percentile' keeps ties.",
    )
