"""Are all classes there: among the labels, and among what was selected?

Works on label indices and counts. Knows nothing of what a class means, of models or rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semievol_api.selection.alerts import Alert
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
