"""Alerts about labels, pool, selection and task: missing classes, drift, ambiguous questions, uninformative answers.

Inherently high entropy is not bad quality: where two answers are equally valid, the annotators split between two labels
of which one is the gold; where answers are poor, they are unrelated to the gold. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import DataError
from semievol_api.records import Alert
from semievol_api.selection.values import BoolArray, FloatArray, IntArray, LabelArray

_CHANCE = 0.005
"""An absence that luck explains more often than this is not reported."""
_LARGE_SHIFT = 0.35
"""A total variation above this is reported."""
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassCoverage:
    """What a selection does to the classes.

    `predicted` and `kept` int64 (K,): items of each class in the pool and in the selection; `coverage` float64
    (K,): kept over predicted, NaN for a class that was never predicted; `total_variation` between the class
    shares of the selection and of the pool, in [0, 1], 0 where nothing is kept.
    """

    predicted: IntArray
    kept: IntArray
    coverage: FloatArray
    total_variation: float


def class_coverage(labels: LabelArray, kept: BoolArray, n_classes: int) -> ClassCoverage:
    """Count classes before and after selecting; `labels` (m,) any integers, -1 = abstain, `kept` bool (m,)."""
    predicted = _counts(labels, n_classes)
    chosen = _counts(labels, n_classes, kept)
    coverage: FloatArray = np.full(predicted.size, np.nan)
    np.divide(chosen, predicted, out=coverage, where=predicted > 0)
    distance = 0.0
    if chosen.sum() and predicted.sum():
        distance = float(0.5 * np.sum(np.abs(chosen / chosen.sum() - predicted / predicted.sum())))
    return ClassCoverage(predicted=predicted, kept=chosen, coverage=coverage, total_variation=distance)


def _counts(labels: LabelArray, n_classes: int, among: BoolArray | None = None) -> IntArray:
    """How many items each class has, int64 (K,), without a copy of all labels."""
    counts = np.zeros(max(n_classes, int(labels.max(initial=-1)) + 1), dtype=np.int64)
    for start in range(0, labels.size, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        known = labels[rows] >= 0 if among is None else (labels[rows] >= 0) & among[rows]
        counts += np.bincount(labels[rows][known], minlength=counts.size)
    return counts


def alerts_of_labels(gold: IntArray, predicted: LabelArray | None, names: Sequence[str]) -> tuple[Alert, ...]:
    """Classes that the labelled examples lack although they should be there.

    A class is missed when its share of the pool's predictions (equal shares without any) makes its absence
    from so many labels a matter of less than 0.5 % chance, shared over the classes.

    Args:
        gold: int64, shape (n,), labels of the labelled examples.
        predicted: integers, shape (m,), predictions on the pool, -1 = abstain, or None.
        names: the K class names.
    """
    count = np.bincount(gold[gold >= 0], minlength=len(names))
    n, k = int(count.sum()), len(names)
    if n == 0 or k < 2:
        return ()
    if np.count_nonzero(count) == 1 and (1.0 / k) ** (n - 1) < _CHANCE:
        only = names[int(count.argmax())]
        return (
            Alert(
                kind="one-class",
                message=f"All {n} labelled examples have the label {only!r}, of {k} possible ones. Nothing about "
                f"the other labels can be learned or calibrated from them; label some of those too.",
            ),
        )
    share = np.full(k, 1.0 / k)
    if predicted is not None and (predicted >= 0).any():
        pool = _counts(predicted, k)
        share = pool / pool.sum()
    missing = [name for c, name in enumerate(names) if count[c] == 0 and (1 - share[c]) ** n < _CHANCE / k]
    if not missing:
        return ()
    return (
        Alert(
            kind="missing-class",
            message=f"None of the {n} labelled examples has the label {_listed(missing)}, which the pool should "
            f"hold. Label some of those too.",
        ),
    )


def alerts_of_selection(coverage: ClassCoverage, names: Sequence[str]) -> tuple[Alert, ...]:
    """Classes that vanish from a selection, and a selection whose classes are very unlike the pool's."""
    kept, total = int(coverage.kept.sum()), int(coverage.predicted.sum())
    if kept == 0 or total == 0:
        return ()
    share = coverage.predicted / total
    gone = [
        name for c, name in enumerate(names) if coverage.kept[c] == 0 and (1 - share[c]) ** kept < _CHANCE / len(names)
    ]
    alerts: list[Alert] = []
    if gone:
        alerts.append(
            Alert(
                kind="vanished-class",
                message=f"No item predicted as {_listed(gone)} was kept; a model trained on the selection may "
                f"forget it. A class quota brings it back, at the price of precision.",
            )
        )
    if coverage.total_variation > _LARGE_SHIFT:
        alerts.append(
            Alert(
                kind="shifted-classes",
                message=f"The classes of the selection are unlike those of the pool (total variation "
                f"{coverage.total_variation:.2f}). A class quota would even them out.",
            )
        )
    return tuple(alerts)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


_Outcome: TypeAlias = Literal["clear", "ambiguous", "uninformative", "undecided"]

_FEWEST = 20
_SIGNIFICANCE = 0.01
_RIVAL = 1.0 / 3.0 - 1e-9
"""A label is a rival when it has a third of the leader's mass or more: one of four votes against three."""
_MOSTLY = 0.75
"""Four annotators that flip a coin each split on 7 of 8 items; annotators that err now and then, on far fewer."""
_COIN = 0.65
"""A leader that is right this often or less, among items whose gold is the leader or the second, is a coin flip."""
_PAIRED = 0.6
"""Two labels take nearly all that is valid when they hold the gold by this part of the way from chance to always;
annotators that know little leave the gold to a third label more often."""
_PERMUTATIONS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguity:
    """What the calibration slice says about disagreement.

    `contested` is the share of items whose leading label has a rival; among those, `pair_rate` is how often the
    gold is one of the two, and `pair_chance` how often it would be without any relation to the gold. `leader_rate`
    is how often, on all items whose gold is the first or second label, it is the first. `p_informative` is the
    chance that answers without any relation to the gold give it as much probability. NaN where there is nothing to
    count.
    """

    verdict: _Outcome
    contested: float
    pair_rate: float
    pair_chance: float
    leader_rate: float
    p_informative: float


def ambiguity(probs: FloatArray, gold: IntArray, n_options: IntArray, seed: int = 0) -> Ambiguity:
    """Tell an ambiguous task from poor answers, on items whose gold is known.

    The annotators' answers are compared with permuted gold (999 permutations among items with as many options), as
    chance-corrected agreement is (Cohen 1960): annotators that only give frequent labels are not informative. Two
    options alone cannot show a rival pair: there uninformative annotators are "undecided".

    Args:
        probs: float64, shape (n, annotators, options), NaN = abstain.
        gold: int64, shape (n,), canonical labels.
        n_options: int64, shape (n,).
        seed: of the permutations.
    """
    mass, leader, rival, contested = _leader_and_rival(probs, n_options)
    known = (leader >= 0) & (gold >= 0)
    nan = float("nan")
    found = Ambiguity(
        verdict="undecided", contested=nan, pair_rate=nan, pair_chance=nan, leader_rate=nan, p_informative=nan
    )
    if np.count_nonzero(known) < _FEWEST:
        return found
    leader, rival, gold, n_options = (column[known] for column in (leader, rival, gold, n_options))
    contested_items = contested[known] & (n_options > 2)
    truth = np.concatenate([gold[None], _permuted(gold, n_options, seed)])
    given = np.sum(mass[known][np.arange(gold.size), truth], axis=1)
    pairs = np.count_nonzero(((truth == leader) | (truth == rival)) & contested_items, axis=1)
    n_contested = int(np.count_nonzero(contested_items))
    in_pair = (gold == leader) | (gold == rival)
    found = replace(
        found,
        contested=float(np.mean(contested[known])),
        pair_rate=int(pairs[0]) / n_contested if n_contested else nan,
        pair_chance=float(np.mean(pairs[1:])) / n_contested if n_contested else nan,
        leader_rate=float(np.mean(gold[in_pair] == leader[in_pair])) if in_pair.any() else nan,
        p_informative=_p_value(given),
    )
    finds_pairs = n_contested >= _FEWEST and _p_value(pairs) <= _SIGNIFICANCE
    return replace(found, verdict=_verdict(found, finds_pairs, bool(np.all(n_options <= 2))))


def alerts_of_ambiguity(found: Ambiguity) -> tuple[Alert, ...]:
    """A finding for an ambiguous task, and another for answers that say nothing about the gold."""
    if found.verdict == "ambiguous":
        return (
            Alert(
                kind="ambiguous",
                message=f"The task looks ambiguous: on {found.contested:.0%} of the calibration items two answers "
                f"compete, the gold is one of the two {found.pair_rate:.0%} of the time, and which one is "
                f"close to a coin flip. The answers are not poor; the labels may allow more than one. Sharpen the "
                f"instruction or the label definitions before tuning selection.",
            ),
        )
    if found.p_informative > _SIGNIFICANCE:
        unclear = " With two options an ambiguous task looks the same." if found.verdict == "undecided" else ""
        return (
            Alert(
                kind="uninformative",
                message=f"The answers agree with the gold labels no more than chance would (p = "
                f"{found.p_informative:.2f}). Check the prompt, the answer format and the label order.{unclear}",
            ),
        )
    return ()


def _verdict(found: Ambiguity, finds_pairs: bool, two_options: bool) -> _Outcome:
    apart = found.pair_rate - found.pair_chance >= _PAIRED * (1.0 - found.pair_chance)
    if finds_pairs and apart and found.contested >= _MOSTLY and found.leader_rate <= _COIN:
        return "ambiguous"
    if found.p_informative > _SIGNIFICANCE:
        return "undecided" if two_options else "uninformative"
    return "clear"


def _leader_and_rival(probs: FloatArray, n_options: IntArray) -> tuple[FloatArray, IntArray, IntArray, BoolArray]:
    """The sum over annotators (n, options), its two largest labels, -1 = abstain, and whether the second is a rival.

    What every label has (an estimator's prior) is taken off first, for the rivalry.
    """
    n, _, width = probs.shape
    real: BoolArray = np.less(np.arange(width), n_options[:, None])
    answered: BoolArray = ~np.any(np.isnan(np.where(real[:, None, :], probs, 0.0)), axis=2)
    total = np.sum(np.where(answered[:, :, None] & real[:, None, :], probs, 0.0), axis=1)
    mass = total - np.where(n_options > 2, np.min(np.where(real, total, np.inf), axis=1, initial=np.inf), 0.0)[:, None]
    mass[~real] = -1.0
    order = np.argsort(-mass, axis=1, kind="stable")
    abstained = ~np.any(answered, axis=1)
    leader = np.where(abstained, -1, order[:, 0])
    rival = np.where(abstained | (n_options < 2), -1, order[:, min(1, width - 1)])
    rows = np.arange(n)
    contested = (rival >= 0) & (mass[rows, rival] >= _RIVAL * mass[rows, leader]) & (mass[rows, leader] > 0)
    return total, leader.astype(np.int64), rival.astype(np.int64), np.asarray(contested, dtype=np.bool_)


def _permuted(gold: IntArray, n_options: IntArray, seed: int) -> IntArray:
    """The gold in other orders, int64 (permutations, n); each among the items with as many options."""
    rng = np.random.default_rng(seed)
    shuffled = np.tile(gold, (_PERMUTATIONS, 1))
    for count in np.unique(n_options).tolist():
        same = np.flatnonzero(n_options == count)
        shuffled[:, same] = rng.permuted(shuffled[:, same], axis=1)
    return shuffled


def _p_value(values: FloatArray | IntArray) -> float:
    """The share of values, the first among them, that reach the first: float64 or int64 (1 + permutations,)."""
    return float(np.mean(values >= values[0] - 1e-9))


_FEWEST_DRIFT = 10
_SIGNIFICANCE_DRIFT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """Rows taken from each side at most, permutations, and the seed of both."""

    max_rows: int = 500
    permutations: int = 999
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftTest:
    """The squared maximum mean discrepancy and its permutation p-value; NaN where a side is too small."""

    mmd_squared: float
    p_value: float


def drift_test(
    labelled: NDArray[np.float32] | FloatArray,
    unlabelled: NDArray[np.float32] | FloatArray,
    settings: DriftSettings | None = None,
) -> DriftTest:
    """Test whether two sets of vectors share a distribution; shapes (n, d) and (m, d).

    Kernel two-sample test (Gretton et al. 2012, JMLR 13, equation 5, biased estimate) with a Gaussian kernel on
    unit vectors, its width the median distance, and a permutation p-value (1 + exceeding) / (1 + permutations).

    Raises:
        DataError: the vectors have different lengths.
    """
    settings = settings or DriftSettings()
    if labelled.ndim != 2 or unlabelled.ndim != 2 or labelled.shape[1] != unlabelled.shape[1]:
        raise DataError(
            f"The drift test needs vectors of one length on both sides; got shapes {labelled.shape} and "
            f"{unlabelled.shape}. Embed both files with the same model."
        )
    if min(len(labelled), len(unlabelled)) < _FEWEST_DRIFT:
        return DriftTest(mmd_squared=float("nan"), p_value=float("nan"))
    rng = np.random.default_rng(settings.seed)
    one, other = (_sample(side, settings.max_rows, rng) for side in (labelled, unlabelled))
    kernel = _gaussian_kernel(np.concatenate([one, other]))
    sides = np.zeros((len(kernel), settings.permutations + 1))
    sides[: len(one), 0] = 1.0
    for column in range(1, sides.shape[1]):
        sides[rng.permutation(len(kernel))[: len(one)], column] = 1.0
    found = _discrepancies(kernel, sides, len(one))
    exceeding = int(np.count_nonzero(found[1:] >= found[0] - 1e-12))
    return DriftTest(mmd_squared=float(found[0]), p_value=(1 + exceeding) / (1 + settings.permutations))


def alerts_of_drift(test: DriftTest) -> tuple[Alert, ...]:
    """A finding where the two sides differ at the 1 % level."""
    if not test.p_value <= _SIGNIFICANCE_DRIFT:
        return ()
    return (
        Alert(
            kind="drift",
            message=f"The unlabelled questions differ from the labelled ones (kernel two-sample test, "
            f"p = {test.p_value:.3f}). Calibration promises hold for items like the labelled ones only; label a "
            f"random sample of the pool.",
        ),
    )


def _sample(rows: NDArray[np.float32] | FloatArray, limit: int, rng: np.random.Generator) -> FloatArray:
    """At most `limit` rows at random, of unit length."""
    if len(rows) > limit:
        chosen: IntArray = rng.permutation(len(rows))[:limit]
        rows = rows[chosen]
    vectors = rows.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), dtype=np.float64)


def _gaussian_kernel(vectors: FloatArray) -> FloatArray:
    """exp(-d^2 / (2 median(d)^2)) for all pairs, shape (N, N)."""
    norms = np.sum(vectors**2, axis=1)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2.0 * vectors @ vectors.T, 0.0)
    median = float(np.median(squared[np.triu_indices(len(vectors), 1)]))
    return np.asarray(np.exp(-squared / (2.0 * median if median > 0 else 1.0)), dtype=np.float64)


def _discrepancies(kernel: FloatArray, sides: FloatArray, n: int) -> FloatArray:
    """The squared discrepancy of each column of `sides` (N, columns): 1 on one side, of which there are n."""
    m = len(kernel) - n
    weights = sides / n - (1.0 - sides) / m
    return np.asarray(np.sum(weights * (kernel @ weights), axis=0), dtype=np.float64)
