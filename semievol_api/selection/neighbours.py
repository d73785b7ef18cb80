"""An annotator without a model: the similarity-weighted vote of the nearest labelled examples.

For closed label sets. Costs no tokens and errs differently from a model. Knows nothing of embeddings' makers or of
how neighbours are found.
"""

from __future__ import annotations

import numpy as np

from semievol_api.selection.option_probability import floored
from semievol_api.selection.values import FloatArray, IntArray


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
    result = floored(probs, np.full(m, n_options, dtype=np.int64))
    result[~valid.any(axis=1)] = np.nan
    return result
