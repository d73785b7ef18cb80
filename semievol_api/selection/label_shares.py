"""Brings one annotator's label probabilities back to the labels' shares where it uses a label too much or too little.

Knows nothing of how probabilities are read, of examples, servers or prompts.
"""

from __future__ import annotations

import numpy as np

from semievol_api.selection.option_probability import FLOOR, floored
from semievol_api.selection.values import FloatArray, IntArray


def label_factors(counts: IntArray, mean: FloatArray) -> FloatArray:
    """w(c) = (share of c among the labelled / mean probability that the annotator gives c) ** lambda; float64 (K,).

    Saerens, Latinne and Decaestecker 2002 (eq. 2.4): outputs at other priors; against a mean over the questions
    themselves as in Zhou et al. 2024 (batch calibration, arXiv 2309.17249). lambda = max(0, 1 - (K - 1) / X2) is the
    part of the gap that the draw of the labelled examples does not explain (method of moments, as Efron and Morris
    1973); X2 = 4 sum (sqrt(n_c) - sqrt(n mean_c))^2 (Freeman and Tukey 1950), of expectation K - 1 without a gap.

    All 1 where the gap is chance, and where the labels are about equally frequent: such shares are often chosen, and
    then they are not those of the questions.

    Args:
        counts: int64, shape (K,), how often each label stands among the labelled examples: a sample of the same
            questions, of which the annotator's mean tells nothing.
        mean: float64, shape (K,), the annotator's mean probabilities over the unlabelled questions.
    """
    options, labelled = counts.size, int(counts.sum())
    neutral = np.ones(options)
    if options < 2 or labelled == 0 or not _clearly_uneven(counts):
        return neutral
    said = np.maximum(mean, FLOOR)
    said /= said.sum()
    gap = 4.0 * float(np.sum((np.sqrt(counts) - np.sqrt(labelled * said)) ** 2))
    real = 1.0 - (options - 1) / gap if gap > options - 1 else 0.0
    if real == 0.0:
        return neutral
    shares = (counts + 0.5) / (labelled + 0.5 * options)
    return np.asarray((shares / said) ** real, dtype=np.float64)


def at_label_shares(probs: FloatArray, factors: FloatArray) -> FloatArray:
    """q(c) w(c), normalised; float64 (m, K), NaN rows stay NaN.

    Args:
        probs: float64, shape (m, K).
        factors: float64, shape (K,), see `label_factors`.
    """
    return floored(probs * factors, np.full(probs.shape[0], probs.shape[1], dtype=np.int64))


def _clearly_uneven(counts: IntArray) -> bool:
    """Whether Pearson's test rejects equal shares at 5 %; the quantile as Wilson and Hilferty (1931) have it."""
    freedom, even = counts.size - 1, float(counts.sum()) / counts.size
    quantile = freedom * (1.0 - 2.0 / (9.0 * freedom) + 1.6449 * (2.0 / (9.0 * freedom)) ** 0.5) ** 3
    return bool(np.sum((counts - even) ** 2) > quantile * even)
