"""Tell equal answers apart: one order of pool and calibration items, by several keys one after the other.

    local = local_confidence(score, groups)
    rank = ranks(score, log_odds, answer_logprob, local)

The keys are made without any label and in one way for all items, so that pool and calibration stay exchangeable. Knows
nothing of how a key is made, of models or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semievol_api.selection.values import FloatArray, IntArray

_GRID = 2.0**30
"""Confidences are summed as whole multiples of 1 / _GRID: exactly for eight million of them, in any order."""
_PRIOR = 5.0
"""As many items of average confidence are counted in with every group, so that a group of one does not rank itself."""
_MANY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """The ranks of the pool (m,) and of the calibration items (n,), float64, higher is better, NaN = abstain.

    `scores` are those of pool and calibration items, (m + n,), in the order of the ranks, see `in_order`. `equal` is
    the largest number of pool items with one rank, `by` what told questions apart by where they stand: `category`,
    `nearest` or nothing.
    """

    pool: FloatArray
    calibration: FloatArray
    scores: FloatArray
    equal: int = 0
    by: str = ""

    @property
    def message(self) -> str | None:
        """What a reader has to know of ties; None where few are left."""
        answered = int(np.count_nonzero(~np.isnan(self.pool)))
        if self.equal <= max(1, _MANY * answered):
            return None
        return (
            f"{self.equal:,} of {answered:,} answers cannot be told apart: their probabilities, log-probabilities and "
            f"what surrounds them are equal. They are kept or left out together, by lot where a number was asked for."
        )


def ranks(*keys: FloatArray) -> FloatArray:
    """The place of every item among the distinct ones, from the lowest up: by the first key, then by the next.

    Args:
        keys: float64, shape (m,) each, higher is better; NaN in the first abstains, in a later one it ranks lowest.

    Returns:
        float64, shape (m,); equal numbers for items that are equal in all keys.
    """
    columns = [np.where(np.isnan(key), -np.inf, key) for key in keys]
    order = np.lexsort(columns[::-1])
    new = np.zeros(order.size, dtype=np.bool_)
    for column in columns:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    found = np.empty(order.size)
    found[order] = np.cumsum(new)
    return np.where(np.isnan(keys[0]), np.nan, found)


def in_order(scores: FloatArray, ranked: FloatArray) -> FloatArray:
    """The scores, each in the last bits below those of higher rank: whoever compares them finds the ranks' order.

    Args:
        scores: float64, shape (m,), above 0, NaN = abstain.
        ranked: float64, shape (m,), see `ranks`; of these scores as the first key.
    """
    known = np.flatnonzero(~np.isnan(ranked))
    order = known[np.argsort(-ranked[known], kind="stable")]
    if not order.size:
        return scores
    below = (ranked[order[0]] - ranked[order]).astype(np.int64)
    bits = scores[order].view(np.int64)
    found = scores.copy()
    found[order] = (np.minimum.accumulate(bits + below) - below).view(np.float64)
    return found


def local_confidence(confidence: FloatArray, groups: IntArray) -> FloatArray:
    """The mean confidence of what surrounds each item: of its group, or of several groups; float64 (m,).

    The mean of a group is shrunk by five items of average confidence (method of an additive prior), since one of a
    single item would repeat its own confidence. Sums are exact, in any order of items.

    Args:
        confidence: float64, shape (m,), in [0, 1], NaN = abstain and not counted.
        groups: int64, shape (m,) or (m, k), such as the k nearest labelled questions of each; -1 = none.
    """
    whole = np.rint(np.nan_to_num(confidence) * _GRID)
    columns = groups.reshape(confidence.size, -1).T
    size = int(groups.max(initial=-1)) + 1
    sums, counts = np.zeros(size), np.zeros(size, dtype=np.int64)
    for column in columns:
        counted = (column >= 0) & ~np.isnan(confidence)
        sums += np.bincount(column[counted], weights=whole[counted], minlength=size)
        counts += np.bincount(column[counted], minlength=size)
    if not counts.any():
        return np.zeros(confidence.size)
    average = float(sums.sum() / counts.sum())
    means = np.rint(np.append((sums + _PRIOR * average) / (counts + _PRIOR), average))  # the last is that of no group
    return np.asarray(sum(means[column] for column in columns) / (_GRID * len(columns)), dtype=np.float64)


def largest_tie(values: FloatArray) -> int:
    """How often the most frequent value occurs; NaN is left out."""
    return int(np.unique(values[~np.isnan(values)], return_counts=True)[1].max(initial=0))
