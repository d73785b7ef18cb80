"""The selection of the code released with the paper, for reproduction only.

Unanimous answers are kept without any threshold; of the rest, those strictly below a percentile. Knows nothing of
how answers are compared or made.
"""

from __future__ import annotations

import numpy as np

from semievol_api.selection.values import BoolArray, FloatArray, IntArray, Selected, share_in_unit_interval


def unanimous(answers: IntArray) -> BoolArray:
    """Whether all annotators gave one and the same answer: bool (m,) from int64 (m, annotators), -1 = abstain.

    An empty answer is never a vote: a row with any abstention is not unanimous.
    """
    return np.asarray((answers >= 0).all(axis=1) & (answers == answers[:, :1]).all(axis=1), dtype=np.bool_)


def official_2025(answers: IntArray, justified_nll: FloatArray, share: float = 0.3) -> Selected:
    """Keep unanimous rows, and justified rows with a mean_nll strictly below the percentile of justified rows.

    The released code of arXiv 2410.14745, less its crashes. The strict comparison keeps nothing of tied
    values; that fault is reproduced, and said.

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
