"""Label probabilities from the token alternatives at the answer position: the formula, on arrays.

Knows nothing of tokens' texts, requests, servers or prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum

import numpy as np

from semievol_api.records import UNSEEN_LOGPROB
from semievol_api.selection.values import BoolArray, FloatArray, IntArray

LEAST = 1e-30
"""No label gets less, so that every logarithm is finite, also of what is stored as float32."""
REST = 2.0**-40
"""What a log-probability of exactly 0.0 leaves to the labels that were not shown."""
_SHARE_FLOOR = 1e-6
"""A label that an annotator gives less often than this counts as this frequent."""
_GRID = 2.0**40
"""Numbers up to 1 are summed as whole multiples of 1 / _GRID: exactly, and so the same in any order."""
BLOCK_ROWS = 32_768
"""Rows worked on together: what fits the processor's cache is several times faster."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptionProbs:
    """Label probabilities of many items of one annotator.

    `probs` is float64, shape (m, options): each row sums to 1 over its first n_options columns and is 0 beyond;
    a row in which no label was seen is NaN. `seen` is bool of the same shape: labels whose probability was
    reported, not filled in.
    """

    probs: FloatArray
    seen: BoolArray


def option_prob(logprobs: FloatArray, label_of: IntArray, n_options: IntArray, width: int) -> OptionProbs:
    """q(c) = sum of exp(logprob) over the tokens that mean c, filled up and normalised.

    An unseen label gets min(smallest probability shown, (1 - sum shown) / number unseen), where the difference is at
    least 2^-40. Log-probabilities of -9999 and NaN count as unseen. The same to the last bit in any order of labels.

    Args:
        logprobs: float64, shape (m, k), natural log-probabilities of the k alternatives.
        label_of: int64, shape (m, k), the label each alternative means, -1 = none.
        n_options: int64, shape (m,), how many labels each item has.
        width: columns of the result, at least max(n_options).
    """
    probs = np.empty((logprobs.shape[0], width))
    seen = np.empty((logprobs.shape[0], width), dtype=np.bool_)
    for start in range(0, logprobs.shape[0], BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        probs[rows], seen[rows] = _option_prob(logprobs[rows], label_of[rows], n_options[rows], width)
    return OptionProbs(probs=probs, seen=seen)


def summed(values: FloatArray) -> FloatArray:
    """Sums over the last axis, with that axis kept, that do not depend on its order; values in [0, 1]."""
    return np.asarray(np.rint(values * _GRID).sum(axis=-1, keepdims=True) / _GRID, dtype=np.float64)


def normalised(probs: FloatArray, n_options: IntArray) -> FloatArray:
    """q over its sum over the first n_options columns, 0 beyond, never 0 within; (m, options), NaN rows stay NaN."""
    q = np.maximum(probs, LEAST)
    if n_options.size and n_options.min() < probs.shape[1]:
        q[np.arange(probs.shape[1]) >= n_options[:, None]] = 0.0
    q /= q.max(axis=1, keepdims=True, initial=LEAST)
    q /= np.maximum(summed(q), LEAST)
    return q


def undo_permutation(probs: FloatArray, permutation: IntArray) -> FloatArray:
    """Columns in canonical order: result[i, permutation[i, j]] = probs[i, j]; both of shape (m, options)."""
    canonical = np.empty_like(probs)
    np.put_along_axis(canonical, permutation, probs, axis=1)
    return canonical


def _option_prob(
    logprobs: FloatArray, label_of: IntArray, n_options: IntArray, width: int
) -> tuple[FloatArray, BoolArray]:
    """Probabilities and which labels were seen, of one block of rows."""
    m = logprobs.shape[0]
    shown = logprobs > UNSEEN_LOGPROB
    p = np.exp(np.minimum(np.where(shown, logprobs, -np.inf), 0.0))
    labelled = shown & (label_of >= 0)
    cell = (np.arange(m)[:, None] * width + label_of)[labelled]
    tokens = np.bincount(cell, minlength=m * width).reshape(m, width)
    if tokens.max(initial=0) > 2:  # of three, the order of adding shows in the last bit
        order = np.argsort(-p, axis=1, kind="stable")
        p = np.take_along_axis(p, order, axis=1)
        label_of = np.take_along_axis(label_of, order, axis=1)
        labelled = np.take_along_axis(labelled, order, axis=1)
        cell = (np.arange(m)[:, None] * width + label_of)[labelled]
    seen_mass = np.bincount(cell, weights=p[labelled], minlength=m * width).reshape(m, width)
    seen = tokens > 0
    real = np.arange(width) < n_options[:, None]
    unseen = real & ~seen
    rest = np.maximum(REST, 1.0 - summed(p)[:, 0]) / np.maximum(unseen.sum(axis=1), 1)
    smallest = np.min(np.where(p > 0.0, p, 1.0), axis=1, initial=1.0)
    filled = np.where(unseen, np.minimum(smallest, rest)[:, None], seen_mass)
    probs = normalised(filled, n_options)
    probs[~seen.any(axis=1)] = np.nan
    return probs, seen


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
    given = np.maximum(mean, _SHARE_FLOOR)
    given /= fsum(given.tolist())
    gap = 4.0 * fsum(((np.sqrt(counts) - np.sqrt(labelled * given)) ** 2).tolist())
    real = 1.0 - (options - 1) / gap if gap > options - 1 else 0.0
    if real == 0.0:
        return neutral
    shares = (counts + 0.5) / (labelled + 0.5 * options)
    return np.asarray((shares / given) ** real, dtype=np.float64)


def at_label_shares(probs: FloatArray, factors: FloatArray) -> FloatArray:
    """q(c) w(c), normalised; float64 (m, K), NaN rows stay NaN.

    Args:
        probs: float64, shape (m, K).
        factors: float64, shape (K,), see `label_factors`.
    """
    return normalised(probs * factors, np.full(probs.shape[0], probs.shape[1], dtype=np.int64))


def _clearly_uneven(counts: IntArray) -> bool:
    """Whether Pearson's test rejects equal shares at 5 %; the quantile as Wilson and Hilferty (1931) have it."""
    freedom, even = counts.size - 1, float(counts.sum()) / counts.size
    quantile = freedom * (1.0 - 2.0 / (9.0 * freedom) + 1.6449 * (2.0 / (9.0 * freedom)) ** 0.5) ** 3
    return bool(fsum(((counts - even) ** 2).tolist()) > quantile * even)


def neighbour_vote(labels: IntArray, cosine: FloatArray, n_options: int, sharpness: float = 10.0) -> FloatArray:
    """q(c) = (sum of w_i over neighbours labelled c + 0.5 / K) / (sum of w_i + 0.5), w = exp(10 cosine).

    A kernel vote (Nadaraya 1964, Watson 1964) with half a vote of prior.

    Args:
        labels: int64, shape (m, neighbours), labels of the nearest labelled examples, -1 = none.
        cosine: float64, the same shape, their cosine similarities.
        n_options: K, the number of labels of the task.
        sharpness: the factor in the exponent.

    Returns:
        float64, shape (m, K); NaN rows where an item has no neighbour.
    """
    m = labels.shape[0]
    valid = labels >= 0
    weights = np.where(valid, np.exp(sharpness * cosine), 0.0)
    cell = (np.arange(m)[:, None] * n_options + labels)[valid]
    mass = np.bincount(cell, weights=weights[valid], minlength=m * n_options).reshape(m, n_options)
    probs = (mass + 0.5 / n_options) / (weights.sum(axis=1) + 0.5)[:, None]
    result = normalised(probs, np.full(m, n_options, dtype=np.int64))
    result[~valid.any(axis=1)] = np.nan
    return result
