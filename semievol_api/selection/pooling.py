"""Pool several annotators' probabilities into one per label.

A log-opinion pool: the mean of the annotators' log-probabilities, so that different annotators pool as long as every
annotator gives label probabilities. Knows nothing of how an annotator came to its probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np

from semievol_api.errors import DataError
from semievol_api.selection.label_probabilities import BLOCK_ROWS, LEAST, summed
from semievol_api.selection.values import BoolArray, FloatArray, IntArray

_SURE = 1e-6
"""No annotator is surer than this that a label is wrong, where the label is chosen: none outvotes all others alone."""
_GRID = 2.0**40
"""Log-probabilities become whole multiples of 1 / _GRID, so that sums are exact in any order of annotators."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pooled:
    """One label per item.

    `probs` float64 (m, options), 0 beyond an item's own options and NaN where nobody answered; `label` int64
    (m,), -1 = abstain; `score` float64 (m,), the probability of the label, NaN = abstain; `log_odds` float64 (m,), the
    log-odds of the label without any floor, which tells answers of one score apart; `margin` float64 (m,), the score
    less the second best; `n_annotators` int64 (m,), annotators that answered; `agreed` bool (m,), whether
    all of them had the same first choice.
    """

    probs: FloatArray
    label: IntArray
    score: FloatArray
    log_odds: FloatArray
    margin: FloatArray
    n_annotators: IntArray
    agreed: BoolArray


def pool(
    probs: FloatArray, n_options: IntArray, *, open_answers: bool = False, weights: FloatArray | None = None
) -> Pooled:
    """s(c) proportional to exp(mean over annotators of log q(c)); the label is the argmax, of equals the first.

    Genest and Zidek (1986), section 3: the logarithmic opinion pool, by default with equal weights. Annotators that
    abstain on an item (NaN) are left out of its mean. In `probs`, `label` and `score` probabilities below 1e-6 count
    as 1e-6, so that one overconfident annotator does not outvote all others; in `log_odds` they count as they are.
    Scores are the same to the last bit in any order of labels and annotators.

    Args:
        probs: float64, shape (m, annotators, options); NaN = this annotator abstains on this item.
        n_options: int64, shape (m,), how many labels each item has; columns beyond are ignored.
        open_answers: the last label of each item stands for "some other answer": it takes probability, and is
            never the label.
        weights: float64, shape (annotators,), positive; fitted anywhere but on calibration items.

    Raises:
        DataError: the shapes do not fit.
    """
    if probs.ndim != 3 or n_options.shape != probs.shape[:1]:
        raise DataError(
            f"Pooling needs probabilities of shape (items, annotators, options) and one number of options per "
            f"item; got {probs.shape} and {n_options.shape}."
        )
    m, annotators, width = probs.shape
    shares = np.ones(annotators) if weights is None else weights
    pooled = Pooled(
        probs=np.empty((m, width)),
        label=np.empty(m, dtype=np.int64),
        score=np.empty(m),
        log_odds=np.empty(m),
        margin=np.empty(m),
        n_annotators=np.empty(m, dtype=np.int64),
        agreed=np.empty(m, dtype=np.bool_),
    )
    for start in range(0, m, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        block = _pool(probs[rows], n_options[rows], shares, open_answers)
        for field in fields(Pooled):
            attrgetter(field.name)(pooled)[rows] = attrgetter(field.name)(block)
    return pooled


def worth_justifying(pooled: Pooled, margin: float = 0.2) -> BoolArray:
    """Where self-justification may help: the annotators disagree, or the top-2 margin is below 0.2; bool (m,)."""
    return np.asarray((pooled.label >= 0) & (~pooled.agreed | (pooled.margin < margin)), dtype=np.bool_)


def _pool(probs: FloatArray, n_options: IntArray, weights: FloatArray, open_answers: bool) -> Pooled:
    """One block of rows."""
    m, _, width = probs.shape
    beyond = np.arange(width) >= n_options[:, None]
    logs, n_annotators, agreed = _mean_of_logs(probs, beyond, weights)
    logs[:, beyond] = -np.inf
    bounded, exact = logs
    eligible = bounded
    if open_answers:
        eligible = bounded.copy()
        eligible[np.arange(m), n_options - 1] = -np.inf
    best = eligible == eligible.max(axis=1, keepdims=True)
    label = np.where(best, exact, -np.inf).argmax(axis=1).astype(np.int64)
    probabilities = _softmax(bounded)
    score = probabilities[np.arange(m), label]
    margin = score - _second_best(probabilities, label)
    odds = _log_odds(exact, label)
    abstained = (n_annotators == 0) | (eligible[np.arange(m), label] == -np.inf)
    for values in (probabilities, score, margin, odds):
        values[abstained] = np.nan
    label[abstained] = -1
    return Pooled(
        probs=probabilities,
        label=label,
        score=score,
        log_odds=odds,
        margin=margin,
        n_annotators=n_annotators,
        agreed=agreed,
    )


def _mean_of_logs(probs: FloatArray, beyond: BoolArray, weights: FloatArray) -> tuple[FloatArray, IntArray, BoolArray]:
    """Mean over annotators of log q, bounded by `_SURE` and as it is (2, m, options), how many answered (m,), and
    whether their first choices agree (m,)."""
    m, annotators, width = probs.shape
    total = np.zeros((2, m, width))
    n_annotators = np.zeros(m, dtype=np.int64)
    weight = np.zeros(m)
    first = np.full(m, -1, dtype=np.int64)
    agreed = np.ones(m, dtype=np.bool_)
    some_beyond = bool(beyond.any())
    for annotator in range(annotators):
        q = probs[:, annotator, :]
        if some_beyond:
            q = np.where(beyond, 0.0, q)
        answered = ~np.isnan(q).any(axis=1)
        choice = np.where(answered, q.argmax(axis=1), -1)
        q = np.maximum(q, LEAST, order="C")
        np.log(q, out=q)
        if not answered.all():
            q[~answered] = 0.0
        for row, logs in enumerate((np.maximum(q, np.log(_SURE)), q)):
            logs *= weights[annotator] * _GRID
            total[row] += np.rint(logs, out=logs)
        n_annotators += answered
        weight += np.rint(weights[annotator] * _GRID) / _GRID * answered
        agreed &= (choice == first) | (first < 0) | (choice < 0)
        first = np.where(first < 0, choice, first)
    total /= np.where(weight > 0, weight, 1.0)[:, None] * _GRID
    return total, n_annotators, agreed


def _softmax(logs: FloatArray) -> FloatArray:
    """exp(logs) normalised over the columns; rows without any finite value become uniform NaN-free zeros."""
    best = logs.max(axis=1, keepdims=True)
    best[~np.isfinite(best)] = 0.0
    result = np.exp(logs - best)
    sums = summed(result)
    sums[sums == 0.0] = 1.0
    result /= sums
    return np.asarray(result, dtype=np.float64)


def _log_odds(logs: FloatArray, label: IntArray) -> FloatArray:
    """log q(label) - log of the sum of all others, float64 (m,); infinite where there is no other."""
    rows = np.arange(label.size)
    others = logs.copy()
    others[rows, label] = -np.inf
    best = others.max(axis=1, keepdims=True, initial=-np.inf)
    nearest = np.where(np.isfinite(best), best, 0.0)
    with np.errstate(divide="ignore"):
        rest = np.log(summed(np.exp(others - nearest))[:, 0])
    return np.asarray(logs[rows, label] - nearest[:, 0] - rest, dtype=np.float64)


def _second_best(probs: FloatArray, label: IntArray) -> FloatArray:
    if probs.shape[1] < 2:
        return np.zeros(probs.shape[0])
    others = probs.copy()
    others[np.arange(probs.shape[0]), label] = 0.0
    return np.asarray(others.max(axis=1), dtype=np.float64)


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
    votes = [_one_hot(answers[:, annotator], n_classes) for annotator in range(annotators)]
    belief = np.sum(votes, axis=0) if votes else np.zeros((m, n_classes))
    answered = belief.sum(axis=1) > 0
    belief += _PRIOR
    belief /= belief.sum(axis=1, keepdims=True)
    for _ in range(iterations):
        counted = _on_grid(belief)
        log_belief = np.tile(_on_grid(np.log(counted[answered].sum(axis=0) + _PRIOR)), (m, 1))
        for one_hot in votes:
            confusion = counted.T @ one_hot + _PRIOR
            confusion /= confusion.sum(axis=1, keepdims=True)
            log_belief += one_hot @ _on_grid(np.log(confusion)).T
        updated = _softmax(log_belief)
        moved = float(np.max(np.abs(updated - belief), initial=0.0))
        belief = updated
        if moved < 1e-6:
            break
    belief[~answered] = np.nan
    return np.asarray(belief, dtype=np.float64)


def _on_grid(values: FloatArray) -> FloatArray:
    """Multiples of 2^-30, whose sums over up to 2^22 items are exact in any order."""
    return np.asarray(np.rint(values * 2.0**30) / 2.0**30, dtype=np.float64)


def _one_hot(labels: IntArray, n_classes: int) -> FloatArray:
    """float64 (m, K), a row of zeros for an abstention."""
    rows = np.zeros((labels.size, n_classes))
    valid = np.flatnonzero(labels >= 0)
    rows[valid, labels[valid]] = 1.0
    return rows
