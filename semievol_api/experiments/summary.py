"""What the cells say together: each arm's mean over seeds, and its gain over the baseline, both with intervals.

Paired: the same questions on both sides, resampled, and nested in it the seeds, each with both sides' trainings and
draws. Knows nothing of files or tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import DataError
from semievol_api.evaluation import BootstrapSettings, Interval, paired_bootstrap, smallest_detectable_effect
from semievol_api.experiments.cell import DoneCell
from semievol_api.experiments.grid import Experiment, Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm at one value of the axis; accuracies are shares in [0, 1].

    `gain` is None for the baseline. `detectable` is the smallest gain that a test of this size shows, at the
    discordance that was observed. `skipped` counts seeds in which too little was kept to train on.
    """

    arm: str
    value: Scalar | None
    seeds: int
    accuracy: Interval
    gain: Interval | None
    detectable: float | None
    kept: float | None
    unlabeled: float | None
    false_share: float | None
    skipped: int
    published: str | None


def summarise(experiment: Experiment, done: Sequence[DoneCell]) -> tuple[ArmSummary, ...]:
    """Every arm at every value, in the grid's order.

    Raises:
        DataError: two arms were measured on different questions.
    """
    settings = BootstrapSettings(resamples=experiment.experiment.resamples)
    found: list[ArmSummary] = []
    for value in experiment.values:
        baseline = _cells(done, experiment.experiment.baseline, value)
        for arm in experiment.arms:
            mine = _cells(done, arm.name, value)
            if mine:
                against = baseline if arm.name != experiment.experiment.baseline else []
                found.append(_summary(mine, against, settings, arm.published))
    return tuple(found)


def compare_arms(ours: Sequence[DoneCell], theirs: Sequence[DoneCell], settings: BootstrapSettings) -> Interval:
    """The gain of one arm over another, seeds paired.

    Raises:
        DataError: the arms have no seed in common, or were measured on different questions.
    """
    other = {cell.row.seed: cell for cell in theirs}
    pairs = [(cell, other[cell.row.seed]) for cell in ours if cell.row.seed in other]
    if not pairs:
        raise DataError("Two arms can only be compared over seeds that both have run.")
    rows = np.vstack([_right(a, list(a.correct)) - _right(b, list(a.correct)) for a, b in pairs])
    return paired_bootstrap(rows, np.zeros_like(rows[:1]), settings)


def _summary(
    mine: Sequence[DoneCell], baseline: Sequence[DoneCell], settings: BootstrapSettings, published: str | None
) -> ArmSummary:
    ids = list(mine[0].correct)
    right = np.vstack([_right(cell, ids) for cell in mine])
    gain = compare_arms(mine, baseline, settings) if baseline else None
    return ArmSummary(
        arm=mine[0].row.arm,
        value=mine[0].row.value,
        seeds=len(mine),
        accuracy=paired_bootstrap(right, np.zeros_like(right[:1]), settings),
        gain=gain,
        detectable=_detectable(mine, baseline) if baseline else None,
        kept=_mean([cell.row.kept for cell in mine]),
        unlabeled=_mean([cell.row.unlabeled for cell in mine]),
        false_share=_mean([cell.row.false_share for cell in mine]),
        skipped=sum(cell.row.kept is not None and cell.row.model != "semievol" for cell in mine),
        published=published,
    )


def _cells(done: Sequence[DoneCell], arm: str, value: Scalar | None) -> list[DoneCell]:
    return [cell for cell in done if cell.row.arm == arm and cell.row.value == value]


def _right(cell: DoneCell, ids: Sequence[str]) -> NDArray[np.float64]:
    if set(cell.correct) != set(ids):
        raise DataError(
            f"The arm {cell.row.arm!r} was measured on other questions than the arm beside it; an experiment compares "
            f"on one test file."
        )
    return np.array([cell.correct[i] for i in ids], dtype=np.float64)


def _detectable(mine: Sequence[DoneCell], baseline: Sequence[DoneCell]) -> float:
    """At the mean discordance of the seeds."""
    other = {cell.row.seed: cell for cell in baseline}
    shares = [
        sum(cell.correct[i] != other[cell.row.seed].correct[i] for i in cell.correct) / len(cell.correct)
        for cell in mine
        if cell.row.seed in other
    ]
    n = len(mine[0].correct)
    return smallest_detectable_effect(n, discordant=max(1 / n, sum(shares) / len(shares)))


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
