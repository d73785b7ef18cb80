"""The strict rule: a cut whose error stays below alpha with probability 1 - delta over calibration slices.

Knows nothing of how scores are made, of models or prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from semievol_api.errors import ConfigError
from semievol_api.selection.promises import binomial_tail
from semievol_api.selection.rule_fdr import exact_alpha
from semievol_api.selection.values import BoolArray, Calibration, FloatArray, Selected

_STEP = Fraction(1, 20)
_RECOMMENDED_CALIBRATION = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class _TestSequence:
    """A fixed sequence of tests: it starts at a coverage and spends a share of delta."""

    start: Fraction
    share: Fraction


_SEQUENCES = (
    _TestSequence(start=Fraction(1, 2), share=Fraction(1, 2)),
    _TestSequence(start=Fraction(3, 10), share=Fraction(1, 4)),
    _TestSequence(start=Fraction(3, 20), share=Fraction(1, 4)),
)
"""Starting mid-coverage, where enough calibration items lie above the cut to certify anything."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranked:
    """Valid scores only, in ascending order; `m` counts all unlabelled items."""

    unlabelled: FloatArray
    m: int
    calibration: FloatArray
    wrong: FloatArray

    def cut(self, coverage: Fraction) -> float | None:
        """The score of the item at this coverage from the top, or None below the last answered item."""
        rank = max(1, ceil(self.m * coverage))
        return float(self.unlabelled[-rank]) if rank <= self.unlabelled.size else None

    def counts(self, cut: float) -> tuple[int, int]:
        """Wrong calibration items and all calibration items at or above the cut."""
        above = [values.size - int(np.searchsorted(values, cut)) for values in (self.wrong, self.calibration)]
        return above[0], above[1]


def high_probability(
    scores: FloatArray, calibration: Calibration, alpha: float | Fraction = 0.1, delta: float = 0.1
) -> Selected:
    """Keep `s >= t` for the loosest certified cut t.

    Learn-then-Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed-sequence testing: each sequence starts
    at its coverage and goes to looser cuts in steps of 0.05 while P(Bin(N, alpha) <= W) is at most its share
    of delta; N and W count calibration items and wrong ones above the cut. Cuts are quantiles of the
    unlabelled scores, abstentions included at the bottom; tie groups stay whole.

    Args:
        scores: float64, shape (m,), higher is better, NaN = abstain.
        calibration: items answered in the same way whose gold is known.
        alpha: the largest tolerated share of false labels above the cut.
        delta: the largest tolerated probability of exceeding alpha.

    Raises:
        ConfigError: alpha or delta does not lie between 0 and 1.
    """
    bound = exact_alpha(alpha)
    if not 0.0 < delta < 1.0:
        raise ConfigError(f"The setting 'delta' is {delta!r}; it is a probability and must lie between 0 and 1.")
    valid = ~np.isnan(scores)
    answered = ~np.isnan(calibration.scores)
    ranked = _Ranked(
        unlabelled=np.sort(scores[valid]),
        m=scores.size,
        calibration=np.sort(calibration.scores[answered]),
        wrong=np.sort(calibration.scores[answered & calibration.wrong]),
    )
    found = [_loosest(sequence, ranked, float(bound), delta * float(sequence.share)) for sequence in _SEQUENCES]
    cuts = [cut for cut in found if cut is not None]
    kept: BoolArray = np.zeros_like(valid)
    if cuts:
        np.greater_equal(scores, min(cuts), where=valid, out=kept)
    wrong, above = ranked.counts(min(cuts)) if cuts else (0, 0)
    return Selected(
        rule="high-probability",
        kept=kept,
        abstained=int(scores.size - np.count_nonzero(valid)),
        threshold=min(cuts) if cuts else None,
        estimate=wrong / above if above else None,
        messages=() if cuts else (_empty(calibration.size),),
    )


def _loosest(sequence: _TestSequence, ranked: _Ranked, alpha: float, level: float) -> float | None:
    """The last certified cut before the first one that fails."""
    certified: float | None = None
    coverage = sequence.start
    while coverage <= 1:
        cut = ranked.cut(coverage)
        if cut is None:
            break
        wrong, above = ranked.counts(cut)
        if above == 0 or binomial_tail(wrong, above, alpha) > level:
            break
        certified = cut
        coverage += _STEP
    return certified


def _empty(n: int) -> str:
    more = f" At least {_RECOMMENDED_CALIBRATION} calibration labels are recommended; there are {n}."
    return (
        "Nothing was selected: no cut could be certified at this alpha and delta."
        + (more if n < _RECOMMENDED_CALIBRATION else "")
        + " A larger alpha or the rule 'fdr' would help."
    )
