"""Label new rows with a run's model: an answer, a confidence, and an abstention below a calibrated cut.

    found = await predict(config, "semievol", Path("new.csv"))

The cut is placed by the `fdr` rule: among the accepted rows the expected share of wrong answers is at most alpha, if
the new rows are like the run's held-out ones (test and development questions, whose answers the run has already).
Asks through the run's journal. Knows nothing of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semievol_api.annotate.clients import Clients
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import nearest_among
from semievol_api.config.settings import Config, nearest
from semievol_api.data import RawData, Table, read_examples, read_table
from semievol_api.data.examples import columns_of
from semievol_api.errors import RunFolderError
from semievol_api.evaluation.answers import evaluate
from semievol_api.notebook import html_table
from semievol_api.records import Evidence, Example
from semievol_api.selection import Calibration, RuleSettings, select
from semievol_api.selection.values import ENOUGH_CALIBRATION, BoolArray, FloatArray
from semievol_api.session import NullWatcher, Plan, Watcher, check, open_tools
from semievol_api.store.artifacts import Answers, Folds, Neighbours, Prepared, TunedModel
from semievol_api.store.run_store import load_artifact
from semievol_api.tasks import Columns, Task
from semievol_api.training.jobs import job_artifact, model_trained_by

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Prediction:
    """One new row: the answer and its words (None: none was given), the confidence in [0, 1], whether it counts.

    `unsure` are the fields below the cut, where answers consist of fields: those are left to a person, and
    `certain` is the answer without them (None where nothing is left).
    """

    example_id: str
    answer: str | None
    text: str | None
    confidence: float | None
    accepted: bool
    certain: str | None = None
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Predictions:
    """All rows in the file's order, the cut in terms of confidence (None: no row passes, or there is no cut).

    `calibration` counts the held-out answers that placed the cut; `messages` say what the user must know.
    """

    rows: tuple[Prediction, ...]
    table: Table
    model: str
    alpha: float
    cut: float | None
    calibration: int
    messages: tuple[str, ...]
    by_field: bool = False

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as given, each with `prediction`, `prediction_text`, `confidence` and `accepted`; needs pandas."""
        import pandas as pd

        return pd.DataFrame(list(as_rows(self)))

    def __repr__(self) -> str:
        accepted = sum(row.accepted for row in self.rows)
        cut = "no cut" if self.cut is None else f"cut at {self.cut:.4g}"
        return f"Predictions({len(self.rows)} rows by {self.model!r}: {accepted} accepted, {cut})"

    def _repr_html_(self) -> str:
        """The first rows as a notebook shows them."""
        shown = [
            (row.example_id, row.text, "-" if row.confidence is None else f"{row.confidence:.3f}", row.accepted)
            for row in self.rows[:10]
        ]
        return html_table(repr(self), ("id", "prediction", "confidence", "accepted"), shown, self.messages)


async def predict(
    config: Config, model: str, data: Path, *, alpha: float | None = None, watcher: Watcher | None = None
) -> Predictions:
    """The rows of a file, labelled by a model of the run (`semievol`, `sft`, `warm`, `base`) or any of its provider.

    `alpha` is the tolerated share of wrong answers among the accepted; default: `[select] alpha`.

    Raises:
        DataError: the file cannot be read as the task's data.
        RunFolderError: the run has no such model.
    """
    plan = check(config, purpose="ask")
    table = read_table(data)
    columns = _without_absent(columns_of(plan.task, config.data.columns), table)
    model = _name_in(config, model)
    examples = tuple(read_examples(table, plan.task, "unlabeled", columns).examples)
    tolerated = config.select.alpha if alpha is None else alpha
    (answered,) = await answers_of(plan, [model], examples, watcher)
    by_id = {row.example_id: row for row in answered.evidence.rows()}
    task, annotations = plan.task, [by_id[e.id] for e in examples]
    scores = np.array([_confidence(task, row) for row in annotations], dtype=np.float64)
    calibration = held_out(config, model, task)
    cut = _place_cut(scores, calibration, tolerated, model)
    rows = tuple(
        Prediction(
            example_id=row.example_id,
            answer=row.answer,
            text=None if row.answer is None else task.in_words(example, row.answer),
            confidence=None if np.isnan(score) else float(score),
            accepted=bool(accepted),
            **(_split_by_field(task, row, accepted=bool(accepted), cut=cut.threshold) if task.fields else {}),
        )
        for example, row, score, accepted in zip(examples, annotations, scores, cut.accepted, strict=True)
    )
    known = 0 if calibration is None else calibration.size
    messages = (cut.message, _about_fields(rows)) if task.fields else (cut.message,)
    return Predictions(rows, table, model, tolerated, cut.threshold, known, messages, by_field=bool(task.fields))


async def answers_of(
    plan: Plan, models: Sequence[str], examples: tuple[Example, ...], watcher: Watcher | None = None
) -> list[Answers]:
    """Each model's greedy answers to some questions, as the run's evaluation would ask them; journaled.

    Raises:
        RunFolderError: the run has no such model.
    """
    config = plan.config
    found = {name: _model_of(config, name) for name in models}
    async with open_tools(plan, RawData((), examples, ()), watcher or NullWatcher()) as tools:
        corpus = await _corpus(tools, plan.task, examples, config)
        return [
            await evaluate(tools.student({"subject": tuned}), corpus, name, config.evaluate)
            for name, tuned in found.items()
        ]


def _without_absent(columns: Columns, table: Table) -> Columns:
    """New rows need no id, group or category: those columns serve the run's own splits."""
    own = (("id", columns.id), ("group", columns.group), ("category", columns.category))
    return columns.model_copy(update={role: None for role, name in own if name not in table.columns})


def _name_in(config: Config, name: str) -> str:
    """`sft` is the warm model of a run whose warm model was trained on all labels, and so serves as baseline."""
    there = {model: (config.run.folder / job_artifact(model, "model")).exists() for model in ("sft", "warm")}
    return "warm" if name == "sft" and not there["sft"] and there["warm"] else name


def _model_of(config: Config, name: str) -> TunedModel:
    """A model by its name in the run, or as its provider calls it.

    Raises:
        RunFolderError: it is the name of a model that this run has not made.
    """
    base = config.roles.student.model
    if name == "base":
        return TunedModel(base, base)
    found = load_artifact(config.run.folder, job_artifact(name, "model"), TunedModel)
    if found is not None:
        return found
    if name in ("warm", "sft", "semievol", "ceiling"):
        stored = sorted(path.name.removesuffix("-model") for path in config.run.folder.glob("jobs/*-model"))
        there = [model_trained_by(job) for job in stored]
        raise RunFolderError(
            f"The run {str(config.run.folder)!r} has no model {name!r}. It has: {', '.join(['base', *there])}. "
            f"{nearest(name, ['base', *there]) if there else 'Run it first.'}"
        )
    return TunedModel(name, base)


def held_out(config: Config, model: str, task: Task) -> Calibration | None:
    """What the run knows of the model on questions that it never learned from; None where it knows nothing."""
    scores: list[float] = []
    wrong: list[bool] = []
    for place in ("evaluate", "gate"):
        answers = load_artifact(config.run.folder, f"{place}/{model}", Answers)
        for row in answers.evidence.rows() if answers is not None else ():
            scores.append(_confidence(task, row))
            wrong.append(not (answers is not None and answers.correct[row.example_id]))
    return Calibration(scores=np.array(scores), wrong=np.array(wrong, dtype=np.bool_)) if scores else None


def as_rows(found: Predictions) -> Iterator[Mapping[str, object]]:
    """The file's own rows, each with `prediction`, `prediction_text`, `confidence` and `accepted`."""
    for row, made in zip(found.table.rows, found.rows, strict=True):
        yield {
            **row,
            "prediction": made.answer,
            "prediction_text": made.text,
            "confidence": None if made.confidence is None else round(made.confidence, 6),
            "accepted": made.accepted,
            **({"certain": made.certain, "for_a_person": list(made.unsure)} if found.by_field else {}),
        }


@dataclass(frozen=True, eq=False)
class _Cut:
    """Which rows count, bool (m,), the confidence at the cut (None: none, or no row passes), and what holds for it."""

    accepted: BoolArray
    threshold: float | None
    message: str


def _place_cut(scores: FloatArray, calibration: Calibration | None, alpha: float, model: str) -> _Cut:
    """The cut of the `fdr` rule; with too few held-out answers every answer is accepted, without a guarantee."""
    if calibration is None or calibration.size < ENOUGH_CALIBRATION:
        message = (
            f"No cut: the run holds {calibration.size if calibration else 0} held-out answers of {model!r}, and "
            f"{ENOUGH_CALIBRATION} are needed. Every answer is accepted and nothing is promised; name a test file in "
            f"[data] test and run again."
        )
        return _Cut(~np.isnan(scores), None, message)
    chosen = select(
        scores, [str(place) for place in range(scores.size)], calibration, RuleSettings(rule="fdr", alpha=alpha)
    )
    return _Cut(chosen.kept, chosen.threshold, _promise(chosen.count, scores.size, alpha, calibration))


def _fields_of(task: Task, row: Evidence) -> dict[str, float]:
    """The probability of each of the task's fields in an answer; the answer's own where fields have none."""
    return dict(zip(task.fields, row.field_probs or (row.confidence,) * len(task.fields), strict=True))


def _confidence(task: Task, row: Evidence) -> float:
    """Of an answer of fields that of its least certain one, or the product, as its task says; else the model's own."""
    if not task.fields or row.field_probs is None or row.answer is None:
        return row.confidence
    return min(row.field_probs) if task.weakest else math.prod(row.field_probs)


def _split_by_field(task: Task, row: Evidence, *, accepted: bool, cut: float | None) -> dict[str, Any]:
    """An accepted answer keeps all its fields; another one those that pass the cut, and never its least certain one."""
    if row.answer is None:
        return {"unsure": task.fields}
    if accepted:
        return {"certain": row.answer}
    probs, parts = _fields_of(task, row), task.parts(row.answer)
    weakest = min(probs, key=lambda name: probs[name])
    sure = {name for name, prob in probs.items() if cut is not None and prob >= cut} - {weakest}
    kept = {name: value for name, value in parts.items() if name in sure}
    return {
        "certain": task.joined(kept) if kept else None,
        "unsure": tuple(name for name in dict.fromkeys((*task.fields, *parts)) if name not in sure),
    }


def _about_fields(rows: Sequence[Prediction]) -> str:
    some = sum(row.certain is not None for row in rows if not row.accepted)
    return (
        f"Fields below the cut are left to a person: `for_a_person` names them, and `certain` is the answer without "
        f"them; {some} of the {sum(not row.accepted for row in rows)} answers that are not accepted keep some fields. "
        f"Nothing is promised of these."
    )


def _promise(accepted: int, rows: int, alpha: float, calibration: Calibration) -> str:
    if not accepted:
        right = 1.0 - float(np.mean(calibration.wrong))
        return (
            f"Accepted: 0 of {rows}. No cut keeps the expected share of wrong answers within {alpha:.1%}: of the "
            f"{calibration.size} held-out answers of the run {right:.0%} were right. A larger --alpha accepts more; "
            f"the confidences are in the file."
        )
    return (
        f"Accepted: {accepted} of {rows}. Among them at most {alpha:.0%} wrong answers are expected, on average over "
        f"files like this one, if its rows are like the {calibration.size} held-out ones of the run."
    )


async def _corpus(tools: Clients, task: Task, examples: tuple[Example, ...], config: Config) -> Corpus:
    """The new rows as test questions, with the run's labels where demonstrations are shown."""
    folds = load_artifact(config.run.folder, "split", Folds) or Folds((), (), (), tunable=True, note="")
    neighbours = await nearest_among(tools.embedder, folds.warm, examples, config.retrieve, config.evaluate.shots)
    data = Prepared(labeled=folds.warm, unlabeled=(), test=examples, report={})
    return Corpus(task, data, folds, Neighbours(neighbours.ids, neighbours.similarities))
