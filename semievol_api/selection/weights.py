"""How much each annotator counts, learned from labels that it has not seen: a log-opinion pool with fitted weights.

    weights = fitted_weights(probs, gold)            # float64 (annotators,), fitted on some labels ...
    probs = weighted(probs, weights)                 # ... and applied to other items, before `pool`

Knows nothing of annotators' names, of folds or of who calibrates.
"""

from __future__ import annotations

import numpy as np

from semievol_api.selection.values import FloatArray, IntArray

PULL = 1.0
"""How many labels' worth of evidence holds the weights together."""
_LEAST_COMMON = 1e-3
_TINY = 1e-300
_FLOOR = 1e-6
"""Below, an annotator is no surer that a label is wrong: one miss does not decide its weight."""
LEAST_LABELS = 20
"""Below, all annotators count alike."""


def fitted_weights(probs: FloatArray, gold: IntArray, pull: float = PULL) -> FloatArray:
    """Weights w >= 0 of s(c) proportional to prod over annotators of q_a(c) ** w_a; float64 (annotators,).

    Genest and Zidek 1986 (section 3): the logarithmic pool, its weights by maximum likelihood as in Satopaa et al.
    2014. They are drawn to one common weight, the best that all could share, by a penalty of `pull` labels; an
    annotator that is no better than a guess among all labels, by one standard error of its log-loss at its own best
    temperature, gets none. The weights are then scaled to a mean of 1 over those that count: fitted temperatures would
    make scores of different folds incomparable. With few labels, or where nobody is better than a guess, all are 1.

    Args:
        probs: float64, shape (n, annotators, options), 0 beyond an item's own options, NaN = abstains. By models that
            have not seen these labels.
        gold: int64, shape (n,), places among the options; items without gold (-1) are left out.
        pull: strength of the penalty.
    """
    known = gold >= 0
    logs, gold = _logs(probs[known]), gold[known]
    annotators = probs.shape[1]
    if gold.size < LEAST_LABELS:
        return np.ones(annotators)
    useful = np.array([_better_than_a_guess(logs[:, [a]], gold) for a in range(annotators)], dtype=np.bool_)
    weights = np.zeros(annotators)
    if not useful.any():
        return np.ones(annotators)
    logs = logs[:, useful]
    common = max(float(_minimum(logs.sum(axis=1, keepdims=True), gold, 0.0)[0]), _LEAST_COMMON)
    weights[useful] = _minimum(common * logs, gold, pull / gold.size)
    if not weights.any():
        return np.ones(annotators)
    return np.asarray(weights * np.count_nonzero(weights) / weights.sum(), dtype=np.float64)


def weighted(probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Probabilities whose equal pool is the weighted one: q ** w, normalised; float64 of the shape of `probs`.

    Annotators of weight 0 abstain (NaN). Nothing is floored, so that sure answers keep their order.

    Args:
        probs: float64, shape (m, annotators, options), 0 beyond an item's own options, NaN = abstains.
        weights: float64, shape (annotators,), not negative.
    """
    raised = weights[:, None] * np.log(np.maximum(probs, _TINY))
    raised = np.where(probs > 0, raised, np.where(np.isnan(probs), np.nan, -np.inf))
    found = np.exp(raised - np.max(raised, axis=2, keepdims=True))
    found /= found.sum(axis=2, keepdims=True)
    found[:, weights == 0] = np.nan
    return np.asarray(found, dtype=np.float64)


def _logs(probs: FloatArray) -> FloatArray:
    """log q, float64 (n, annotators, options): an abstention counts for nothing, -inf never."""
    silent = np.isnan(probs)
    beyond = np.all((probs == 0) | silent, axis=1, keepdims=True)
    logs = np.log(np.maximum(np.where(silent, 1.0, probs), _FLOOR))
    return np.asarray(np.where(beyond, -1e3, logs), dtype=np.float64)


def _losses(logs: FloatArray, gold: IntArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The log-loss of each item (n,) and its gradient (n, annotators)."""
    mixed = np.einsum("nac,a->nc", logs, weights)
    mixed -= mixed.max(axis=1, keepdims=True)
    shares = np.exp(mixed)
    total = shares.sum(axis=1, keepdims=True)
    rows = np.arange(gold.size)
    losses = np.log(total[:, 0]) - mixed[rows, gold]
    slope = np.einsum("nac,nc->na", logs, shares / total) - logs[rows, :, gold]
    return losses, slope


def _minimum(logs: FloatArray, gold: IntArray, pull: float) -> FloatArray:
    """Weights that are not negative, of least mean log-loss plus pull * sum (w - 1)^2."""
    from scipy.optimize import minimize

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        losses, slope = _losses(logs, gold, weights)
        away = weights - 1.0
        return float(losses.mean() + pull * away @ away), slope.mean(axis=0) + 2.0 * pull * away

    found = minimize(loss, np.ones(logs.shape[1]), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * logs.shape[1])
    return np.asarray(np.rint(found.x * 2.0**16) / 2.0**16, dtype=np.float64)


def _better_than_a_guess(logs: FloatArray, gold: IntArray) -> bool:
    losses, _ = _losses(logs, gold, _minimum(logs, gold, 0.0))
    options = np.count_nonzero(logs[:, 0] > -1e2, axis=1)
    gains = np.log(options) - losses
    return bool(gains.mean() > gains.std(ddof=1) / np.sqrt(gold.size))
