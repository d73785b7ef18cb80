"""Compare two models on the same questions, over one task or several, from what their runs answered.

    comparisons = compare_pairs([("runs/a", "runs/b")])

A side is a run's folder, or `folder:model` (base, warm, sft, semievol, ceiling); or, asked through a run's config,
any model of its provider. Knows nothing of how a run was made or of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semievol_api.config.settings import Config, nearest
from semievol_api.data import read_data
from semievol_api.errors import DataError, RunFolderError
from semievol_api.evaluation import (
    BootstrapSettings,
    Interval,
    McNemar,
    accuracy,
    brier,
    expected_calibration_error,
    holm,
    mcnemar,
    paired_bootstrap,
    smallest_detectable_effect,
)
from semievol_api.notebook import html_table
from semievol_api.report.prediction import answers_of
from semievol_api.report.report_data import categories_of
from semievol_api.selection.values import BoolArray, FloatArray
from semievol_api.session import Watcher, check
from semievol_api.store.artifacts import Answers, Prepared
from semievol_api.store.run_store import load_artifact

_BEST_FIRST = ("semievol", "sft", "warm", "base")
_MAX_CATEGORIES = 60


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One model's answers to a run's test questions: right or wrong, and how sure (NaN where nothing is known)."""

    name: str
    categories: Mapping[str, str]
    ids: tuple[str, ...]
    correct: BoolArray
    confidence: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SideScore:
    """What one side came to; calibration by 15 equal-mass bins, NaN without log-probabilities."""

    name: str
    accuracy: Interval
    ece: float
    brier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryGain:
    """One category's questions: both accuracies and the difference, with its interval."""

    name: str
    ours: float
    theirs: float
    gain: Interval


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PairComparison:
    """One pair on one task. `holm_p` is McNemar's p-value adjusted for all pairs that were asked together."""

    ours: SideScore
    theirs: SideScore
    gain: Interval
    test: McNemar
    holm_p: float
    detectable: float
    categories: tuple[CategoryGain, ...]

    @property
    def sentence(self) -> str:
        """What it shows, in words."""
        gain = self.gain
        figures = f"{100 * gain.estimate:+.1f} points, 95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        if not gain.excludes_zero:
            return (
                f"No difference between {self.ours.name} and {self.theirs.name} could be shown: {figures}; the "
                f"smallest one that a test of this size shows is {100 * self.detectable:.1f} points."
            )
        return f"{self.ours.name} is {'better' if gain.estimate > 0 else 'worse'} than {self.theirs.name}: {figures}."

    def __repr__(self) -> str:
        ours, theirs = (f"{side.name} {side.accuracy.estimate:.1%}" for side in (self.ours, self.theirs))
        return f"PairComparison({ours}, {theirs} of {self.gain.n} questions; {100 * self.gain.estimate:+.1f} points)"

    def _repr_html_(self) -> str:
        """Both sides as a notebook shows them."""
        rows = [
            (side.name, f"{side.accuracy.estimate:.1%}", f"{side.accuracy.low:.1%} to {side.accuracy.high:.1%}")
            for side in (self.ours, self.theirs)
        ]
        return html_table(f"{self.gain.n} questions", ("model", "accuracy", "95 % interval"), rows, [self.sentence])


def compare_pairs(
    pairs: Sequence[tuple[str, str]], settings: BootstrapSettings | None = None
) -> tuple[PairComparison, ...]:
    """Every pair's comparison, p-values adjusted over all pairs (Holm 1979).

    Raises:
        RunFolderError: a side is no run, or has no such model.
        DataError: two sides share no questions.
    """
    return compare_sides([(read_side(ours), read_side(theirs)) for ours, theirs in pairs], settings)


async def ask_sides(config: Config, models: Sequence[str], watcher: Watcher | None = None) -> list[Side]:
    """Models of a run or of its provider, on the config's test questions; what was asked before is in the journal.

    Raises:
        UserError: the config or its data needs mending, there is no test file, or the run has no such model.
    """
    plan = check(config, purpose="look")
    data = read_data(config.data, plan.task)
    if not data.test:
        raise DataError("Models are compared on test questions, and the config names none: set [data] test.")
    answered = await answers_of(plan, models, data.test, watcher)
    return [_side(answers, answers.label, categories_of(data.test)) for answers in answered]


def compare_sides(
    sides: Sequence[tuple[Side, Side]], settings: BootstrapSettings | None = None
) -> tuple[PairComparison, ...]:
    """Every pair of sides, p-values adjusted over all pairs.

    Raises:
        DataError: two sides share no questions.
    """
    matched = [_matched(ours, theirs) for ours, theirs in sides]
    tests = [mcnemar(ours.correct, theirs.correct) for ours, theirs in matched]
    adjusted = holm([test.p_value for test in tests])
    return tuple(
        _compared(two, test, p, settings or BootstrapSettings())
        for two, test, p in zip(matched, tests, adjusted, strict=True)
    )


def read_side(spec: str) -> Side:
    """The answers that a run's folder, or `folder:model`, stands for; by default those of the run's result.

    Raises:
        RunFolderError: there is no such run or model.
    """
    path, _, name = spec.rpartition(":") if ":" in spec and not Path(spec).exists() else (spec, "", "")
    folder = Path(path)
    there = sorted(p.name for p in folder.glob("evaluate/*") if p.is_dir() and not p.name.startswith("."))
    if not there:
        raise RunFolderError(
            f"{spec!r} is no run that was evaluated: {str(folder / 'evaluate')!r} holds nothing. Name a run's folder, "
            f"or folder:model."
        )
    if name == "sft" and name not in there and "warm" in there:
        name = "warm"  # trained on all labels, it is the SFT model of its run
    chosen = name or next((n for n in _BEST_FIRST if n in there), there[0])
    answers = load_artifact(folder, f"evaluate/{chosen}", Answers)
    if answers is None:
        raise RunFolderError(f"The run {path!r} has no answers of {chosen!r}. {nearest(chosen, there)}")
    data = load_artifact(folder, "prepare", Prepared)
    return _side(answers, f"{folder.name}:{chosen}", categories_of(data.test if data else ()))


def _side(answers: Answers, name: str, categories: Mapping[str, str]) -> Side:
    rows = {row.example_id: row for row in answers.evidence.rows()}
    ids = tuple(sorted(answers.correct))
    return Side(
        name=name,
        categories=categories,
        ids=ids,
        correct=np.array([answers.correct[i] for i in ids], dtype=np.bool_),
        confidence=np.array([rows[i].confidence for i in ids], dtype=np.float64),
    )


def _matched(ours: Side, theirs: Side) -> tuple[Side, Side]:
    """Both sides on the questions that they share, in one order."""
    shared = sorted(set(ours.ids) & set(theirs.ids))
    if not shared:
        raise DataError(
            f"{ours.name} and {theirs.name} have no test question in common. Compare runs over the same test file."
        )
    return _only(ours, shared), _only(theirs, shared)


def _only(side: Side, ids: Sequence[str]) -> Side:
    place = {name: i for i, name in enumerate(side.ids)}
    rows = np.array([place[name] for name in ids])
    return Side(side.name, side.categories, tuple(ids), side.correct[rows], side.confidence[rows])


def _compared(sides: tuple[Side, Side], test: McNemar, adjusted: float, settings: BootstrapSettings) -> PairComparison:
    ours, theirs = sides
    n = len(ours.ids)
    discordant = max(1, test.only_ours + test.only_theirs) / n
    return PairComparison(
        ours=_score(ours),
        theirs=_score(theirs),
        gain=paired_bootstrap(ours.correct, theirs.correct, settings),
        test=test,
        holm_p=adjusted,
        detectable=smallest_detectable_effect(n, discordant=discordant),
        categories=_by_category(ours, theirs, settings),
    )


def _score(side: Side) -> SideScore:
    return SideScore(
        name=side.name,
        accuracy=accuracy(side.correct),
        ece=expected_calibration_error(side.confidence, side.correct),
        brier=brier(side.confidence, side.correct),
    )


def _by_category(ours: Side, theirs: Side, settings: BootstrapSettings) -> tuple[CategoryGain, ...]:
    names = np.array([ours.categories.get(i, "(none)") for i in ours.ids])
    distinct = np.unique(names)
    if not 2 <= distinct.size <= _MAX_CATEGORIES:
        return ()
    return tuple(
        CategoryGain(
            name=str(name),
            ours=float(ours.correct[names == name].mean()),
            theirs=float(theirs.correct[names == name].mean()),
            gain=paired_bootstrap(ours.correct[names == name], theirs.correct[names == name], settings),
        )
        for name in distinct
    )
