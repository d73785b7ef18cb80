"""An alternative to the log-opinion pool: how each annotator confuses labels, learned without gold.

An option, not the default: with correlated annotators it did not beat the pool in simulation. For closed label sets
of one size. Knows nothing of models or prompts.
"""

from __future__ import annotations

import numpy as np

from semievol_api.selection.values import FloatArray, IntArray

_PRIOR = 0.5
"""Half a count for every confusion, so that an unseen one stays possible."""


def dawid_skene(answers: IntArray, n_classes: int, iterations: int = 50) -> FloatArray:
    """Label probabilities by expectation-maximisation (Dawid and Skene 1979, equations 2.3-2.5).

    Fit it on unlabelled and calibration items together: it sees no gold, so both stay exchangeable.

    Args:
        answers: int64, shape (m, annotators), -1 = abstain.
        n_classes: K, the number of labels of the task.
        iterations: at most; stops when no probability moves by more than 1e-6.

    Returns:
        float64, shape (m, K); NaN rows where nobody answered.
    """
    m, annotators = answers.shape
    said = [_one_hot(answers[:, annotator], n_classes) for annotator in range(annotators)]
    belief = np.sum(said, axis=0) if said else np.zeros((m, n_classes))
    answered = belief.sum(axis=1) > 0
    belief += _PRIOR
    belief /= belief.sum(axis=1, keepdims=True)
    for _ in range(iterations):
        log_belief = np.tile(np.log(belief[answered].sum(axis=0) + _PRIOR), (m, 1))
        for one_hot in said:
            confusion = belief.T @ one_hot + _PRIOR
            confusion /= confusion.sum(axis=1, keepdims=True)
            log_belief += one_hot @ np.log(confusion).T
        log_belief -= log_belief.max(axis=1, keepdims=True)
        updated = np.exp(log_belief)
        updated /= updated.sum(axis=1, keepdims=True)
        moved = float(np.max(np.abs(updated - belief), initial=0.0))
        belief = updated
        if moved < 1e-6:
            break
    belief[~answered] = np.nan
    return np.asarray(belief, dtype=np.float64)


def _one_hot(labels: IntArray, n_classes: int) -> FloatArray:
    """float64 (m, K), a row of zeros for an abstention."""
    rows = np.zeros((labels.size, n_classes))
    valid = np.flatnonzero(labels >= 0)
    rows[valid, labels[valid]] = 1.0
    return rows
