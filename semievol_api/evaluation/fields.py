"""How right answers are field by field: micro and macro F1, with an interval.

A field of an answer that is not in the gold answer, or differs there, is a false positive; one of the gold answer that
the answer lacks or has otherwise a false negative. Knows nothing of models or of how answers came to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from semievol_api.evaluation.statistics import BootstrapSettings
from semievol_api.store.verdict import FieldScores
from semievol_api.tasks import Task

_AT_ONCE = 200
"""Resamples that are drawn together."""


def field_scores(
    task: Task, answers: Sequence[str | None], gold: Sequence[str], settings: BootstrapSettings | None = None
) -> FieldScores:
    """F1 over all fields of all answers, and per field; the interval is a percentile bootstrap over answers.

    An abstention has none of the gold answer's fields. van Rijsbergen 1979: F1 = 2 TP / (2 TP + FP + FN).
    """
    settings = settings or BootstrapSettings(resamples=2000)
    of_rows = [_counts(task, answer, known) for answer, known in zip(answers, gold, strict=True)]
    total = np.zeros((max(len(of_rows), 1), 3))
    by_field: dict[str, NDArray[np.float64]] = {}
    for row, counts in enumerate(of_rows):
        for name, (hit, added, missed) in counts.items():
            total[row] += (hit, added, missed)
            by_field[name] = by_field.get(name, np.zeros(3)) + np.array((hit, added, missed))
    known = {name: _f1(by_field[name]) for name in task.fields if name in by_field}
    low, high = _interval(total, settings)
    macro = float(np.mean(list(known.values()))) if known else float("nan")
    return FieldScores(interval=(low, high), micro_f1=_f1(total.sum(axis=0)), macro_f1=macro, by_field=known)


def _counts(task: Task, answer: str | None, gold: str) -> Mapping[str, tuple[int, int, int]]:
    """True positives, false positives and false negatives of each field that stands in either."""
    ours, theirs = {} if answer is None else task.parts(answer), task.parts(gold)
    counts: dict[str, tuple[int, int, int]] = {}
    for name in (*ours, *(name for name in theirs if name not in ours)):
        hit = name in ours and name in theirs and task.same(name, ours[name], theirs[name])
        counts[name] = (int(hit), int(name in ours and not hit), int(name in theirs and not hit))
    return counts


def _f1(counts: NDArray[np.float64]) -> float:
    """Of (true positives, false positives, false negatives); 1 where there is nothing to find and nothing was found."""
    hit, added, missed = counts.tolist()
    return 2 * hit / (2 * hit + added + missed) if hit + added + missed else 1.0


def _interval(rows: NDArray[np.float64], settings: BootstrapSettings) -> tuple[float, float]:
    rng = np.random.default_rng(settings.seed)
    shares = np.full(len(rows), 1 / len(rows))
    found: list[float] = []
    for start in range(0, settings.resamples, _AT_ONCE):
        times = rng.multinomial(len(rows), shares, size=min(_AT_ONCE, settings.resamples - start))
        found += [_f1(counts) for counts in times @ rows]
    tail = (1.0 - settings.level) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return float(low), float(high)
