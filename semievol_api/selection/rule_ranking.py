"""Rules with a fixed number of items: the best n, the questions for a person, and a quota per class.

Ties are broken by a seeded hash of the example id, so that neither row order nor chance decides. Knows nothing of
calibration, models or prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from semievol_api.errors import ConfigError, DataError
from semievol_api.selection.values import BoolArray, FloatArray, LabelArray, Selected, share_in_unit_interval


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HumanQueue:
    """What a person is asked: `asked` bool (m,), of which `audit` bool (m,) is a uniform sample of all items.

    The audit answers join the calibration slice; only they are exchangeable with the pool.
    """

    asked: BoolArray
    audit: BoolArray


def top_n(scores: FloatArray, ids: Sequence[str], n: int, seed: int = 0) -> Selected:
    """Keep the n items with the highest score (float64, shape (m,), NaN = abstain and never kept).

    Raises:
        ConfigError: n is negative.
        DataError: ids and scores differ in length.
    """
    if n < 0:
        raise ConfigError(f"The rule 'top-n' is asked for {n} items; the number must be 0 or more.")
    _same_length(scores, ids)
    valid = ~np.isnan(scores)
    answered = int(np.count_nonzero(valid))
    kept = _best(np.where(valid, scores, -np.inf), ids, min(n, answered), seed, valid)
    few = f"The rule 'top-n' asked for {n:,} items and only {answered:,} have an answer; all of them were kept."
    return Selected(
        rule="top-n",
        kept=kept,
        abstained=scores.size - answered,
        threshold=float(np.min(scores[kept])) if kept.any() else None,
        messages=(few,) if n > answered else (),
    )


def at_random(scores: FloatArray, ids: Sequence[str], share: float, seed: int = 0) -> Selected:
    """Keep a random `share` of the items that have a score: the control of every rule that looks at scores.

    Raises:
        ConfigError: `share` is not a share.
        DataError: ids and scores differ in length.
    """
    share_in_unit_interval(share, "share")
    equal = np.where(np.isnan(scores), np.nan, 0.0)
    chosen = top_n(equal, ids, round(share * int(np.count_nonzero(~np.isnan(scores)))), seed)
    return replace(chosen, rule="random", threshold=None)


def human_budget(
    scores: FloatArray, ids: Sequence[str], budget: int, audit_share: float = 0.15, seed: int = 0
) -> HumanQueue:
    """The `budget` items worth a person's time: a uniform audit sample, then the least certain items.

    Abstentions (NaN) come first among the least certain. Uncertainty sampling after Lewis and Gale (1994); the
    audit part keeps an exchangeable calibration sample.

    Raises:
        ConfigError: a negative budget, or an audit share outside 10-20 %.
        DataError: ids and scores differ in length.
    """
    if budget < 0 or not 0.1 <= audit_share <= 0.2:
        raise ConfigError(
            f"The rule 'human-budget' got a budget of {budget} with an audit share of {audit_share!r}; the budget "
            f"must be 0 or more and the audit share between 0.1 and 0.2."
        )
    _same_length(scores, ids)
    total = min(budget, scores.size)
    everyone = np.ones(scores.size, dtype=np.bool_)
    audited = min(round(total * audit_share + 0.499), max(total // 5, -(-total // 10)))  # of few, a fifth at most
    audit = _best(np.zeros(scores.size), ids, audited, seed + 1, everyone)
    doubt = np.where(np.isnan(scores), np.inf, -scores)
    least_certain = _best(doubt, ids, total - int(audit.sum()), seed, ~audit)
    return HumanQueue(asked=audit | least_certain, audit=audit)


def with_class_quota(
    selected: Selected,
    scores: FloatArray,
    labels: LabelArray,
    ids: Sequence[str],
    share: float,
    seed: int = 0,
) -> Selected:
    """The selection, completed so that every predicted class keeps at least `share` of its items.

    Keeps classes from vanishing, at the price of precision: what the quota adds lies below the rule's cut, so
    the rule's estimate no longer holds and is dropped. `labels` are integers, shape (m,), -1 = abstain.

    Raises:
        ConfigError: `share` is not a share.
    """
    share_in_unit_interval(share, "class_quota")
    _same_length(scores, ids)
    valid = (labels >= 0) & ~np.isnan(scores)
    kept = selected.kept.copy()
    for label in np.unique(labels[valid]).tolist():
        members = valid & (labels == label)
        missing = int(np.floor(share * np.count_nonzero(members))) - int(np.count_nonzero(kept & members))
        if missing > 0:
            kept |= _best(scores, ids, missing, seed, members & ~selected.kept)
    added = int(np.count_nonzero(kept)) - selected.count
    if not added:
        return selected
    return replace(selected, kept=kept, estimate=None).with_messages(
        f"A minimum share by class or category added {added:,} items below the cut of the rule {selected.rule!r}; the "
        f"promise of that "
        f"rule does not cover them."
    )


def _best(values: FloatArray, ids: Sequence[str], n: int, seed: int, among: BoolArray) -> BoolArray:
    """The n highest values among some rows; only the rows tied at the cut are hashed."""
    chosen: BoolArray = np.zeros(values.size, dtype=np.bool_)
    rows = np.flatnonzero(among)
    if n <= 0 or not rows.size:
        return chosen
    if n >= rows.size:
        return among.copy()
    cut = np.partition(values[rows], rows.size - n)[rows.size - n]
    above = rows[values[rows] > cut]
    tied = rows[values[rows] == cut]
    chosen[above] = True
    if above.size + tied.size > n:
        by_lot = sorted((_lot(ids[int(row)], seed), int(row)) for row in tied)
        tied = np.array([row for _, row in by_lot[: n - above.size]], dtype=np.int64)
    chosen[tied] = True
    return chosen


def _lot(example_id: str, seed: int) -> bytes:
    return blake2b(example_id.encode(), digest_size=8, salt=seed.to_bytes(16, "big", signed=True)).digest()


def _same_length(scores: FloatArray, ids: Sequence[str]) -> None:
    if scores.ndim != 1 or len(ids) != scores.size:
        raise DataError(f"Ranking needs one id per score; got {len(ids)} ids and scores of shape {scores.shape}.")
