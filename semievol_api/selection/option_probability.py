"""Label probabilities from the token alternatives at the answer position: the formula, on arrays.

Knows nothing of tokens' texts, requests, servers or prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semievol_api.selection.values import BoolArray, FloatArray, IntArray

FLOOR = 1e-6
"""No label gets less: a log-probability of exactly 0.0 would make two disagreeing annotators 0/0."""
BLOCK_ROWS = 32_768
"""Rows worked on together: what fits the processor's cache is several times faster."""
UNSEEN_LOGPROB = -9998.0
"""Servers write -9999 for a token that they did not rank; anything down here, and NaN, counts as unseen."""


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
    """q(c) = sum of exp(logprob) over the tokens that mean c, filled up, floored at 1e-6 and normalised.

    An unseen label gets min(smallest probability shown, max(0, 1 - sum shown) / number unseen). Log-probabilities
    of -9999 and NaN count as unseen.

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


def floored(probs: FloatArray, n_options: IntArray) -> FloatArray:
    """max(q, 1e-6), normalised over the first n_options columns; shape (m, options), NaN rows stay NaN."""
    q = np.maximum(probs, FLOOR)
    q[np.arange(probs.shape[1]) >= n_options[:, None]] = 0.0
    q /= q.sum(axis=1, keepdims=True)
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
    m, k = logprobs.shape
    shown = logprobs > UNSEEN_LOGPROB
    p = np.exp(np.minimum(np.where(shown, logprobs, -np.inf), 0.0))
    labelled = shown & (label_of >= 0)
    cell = (np.arange(m)[:, None] * width + label_of)[labelled]
    seen_mass = np.bincount(cell, weights=p[labelled], minlength=m * width).reshape(m, width)
    seen = np.bincount(cell, minlength=m * width).reshape(m, width) > 0
    real = np.arange(width) < n_options[:, None]
    unseen = real & ~seen
    rest = np.maximum(0.0, 1.0 - p.sum(axis=1)) / np.maximum(unseen.sum(axis=1), 1)
    smallest = np.min(p, axis=1, where=shown, initial=1.0) if k else np.ones(m)
    filled = np.where(unseen, np.minimum(smallest, rest)[:, None], seen_mass)
    probs = floored(filled, n_options)
    probs[~seen.any(axis=1)] = np.nan
    return probs, seen
