"""From evidence rows to one probability per label: estimators, the neighbours' vote, the pool (method §4).

Closed labels are those of the task; open answers are clustered by what the task calls equal, with one more label
for "some other answer". Knows nothing of selection rules, prompts or providers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

import numpy as np

from semievol_api.records import Evidence, Example
from semievol_api.selection import (
    ESTIMATORS,
    Estimator,
    Pooled,
    Readings,
    at_label_shares,
    neighbour_vote,
    pool,
    readings_of,
)
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.stages.annotators import Annotator, Reading
from semievol_api.stages.asking import Corpus
from semievol_api.stages.label_shares import Factors
from semievol_api.stages.measures import Measures
from semievol_api.stages.reading import asker_of
from semievol_api.tasks import Task
from semievol_api.tasks.answer_line import comparable

OTHER = "(another answer)"
"""The last label of an open question: takes probability, is never the label."""
_ESTIMATOR_OF: Mapping[Reading, str] = {
    "option_read": "option_prob",
    "option_prob": "option_prob",
    "answer_logprob": "answer_logprob",
    "p_true": "p_true",
    "verbal": "verbal",
    "votes": "votes",
}

Rows = Mapping[str, Sequence[Evidence]]
"""Evidence rows by example id."""


@dataclass(frozen=True, eq=False)
class Opinions:
    """What the crew makes of some examples.

    `labels[i]` are the labels of example i, `probs` float64 (m, annotators, options) with NaN for abstentions.
    """

    examples: Sequence[Example]
    labels: Sequence[tuple[str, ...]]
    n_options: IntArray
    probs: FloatArray
    pooled: Pooled

    def answer(self, place: int) -> str | None:
        """The pooled answer to an example."""
        label = int(self.pooled.label[place])
        return self.labels[place][label] if label >= 0 else None

    def only(self, places: slice) -> Opinions:
        """Those about some of the examples."""
        pooled = {f.name: attrgetter(f.name)(self.pooled)[places] for f in fields(Pooled)}
        return Opinions(
            examples=self.examples[places],
            labels=self.labels[places],
            n_options=self.n_options[places],
            probs=self.probs[places],
            pooled=Pooled(**pooled),
        )

    def answers(self, task: Task, place: int) -> list[str]:
        """The distinct first choices of the annotators that spoke, in the crew's order."""
        said: list[str] = []
        for column in range(self.probs.shape[1]):
            row = self.probs[place, column, : self.n_options[place]]
            if not np.isnan(row).any():
                choice = self.labels[place][int(row.argmax())]
                if choice != OTHER and not any(task.equal(choice, other) for other in said):
                    said.append(choice)
        return said


def opinions(
    corpus: Corpus,
    crew: Sequence[Annotator],
    examples: Sequence[Example],
    heard: Rows | Measures,
    factors: Factors | None = None,
) -> Opinions:
    """The crew's label probabilities and their pool; rows of askers outside the crew are left alone.

    `factors` bring annotators to the labels' shares, where they have some.
    """
    task = corpus.task
    closed = task.kind in ("multiple_choice", "labels")
    columns = heard if isinstance(heard, Measures) and closed and heard.single else None
    rows = heard.rows() if isinstance(heard, Measures) and columns is None else heard
    if isinstance(rows, Measures):
        said: Sequence[Sequence[Evidence]] = ()
        labels = [task.labels(e) or () for e in examples]
    else:
        askers = {annotator.id for annotator in crew}
        said = [rows.get(e.id, ()) for e in examples]
        labels = [task.labels(e) or _clusters(task, own, askers) for e, own in zip(examples, said, strict=True)]
    n_options = np.array([len(options) for options in labels], dtype=np.int64)
    width = int(n_options.max(initial=1))
    probs = np.full((len(examples), len(crew), width), np.nan)
    for column, annotator in enumerate(crew):
        if annotator.reading == "neighbour_vote":
            probs[:, column] = _neighbours(corpus, annotator, examples, labels, width)
        elif columns is not None:
            readings = columns.readings(annotator.id, [e.id for e in examples], labels)
            probs[:, column] = _estimator(annotator).estimate(readings)
        else:
            probs[:, column] = _estimator(annotator).estimate(_readings(task, annotator, said, labels))
        for options, weights in (factors or {}).get(annotator.id, {}).items():
            same = n_options == options
            probs[same, column, :options] = at_label_shares(probs[same, column, :options], weights)
    pooled = pool(probs, n_options, open_answers=not closed)
    return Opinions(examples=examples, labels=labels, n_options=n_options, probs=probs, pooled=pooled)


def wrong_answers(task: Task, found: Opinions) -> BoolArray:
    """Whether each pooled answer is wrong, bool (m,), for examples whose gold is known; abstentions are wrong."""
    wrong = [not task.equal(found.answer(i), e.answer) for i, e in enumerate(found.examples)]
    return np.array(wrong, dtype=np.bool_)


def _estimator(annotator: Annotator) -> Estimator:
    return next(e for e in ESTIMATORS if e.name == _ESTIMATOR_OF[annotator.reading])


def _readings(
    task: Task, annotator: Annotator, rows: Sequence[Sequence[Evidence]], labels: Sequence[tuple[str, ...]]
) -> Readings:
    """The annotator's rows as arrays; more than one sample can vote."""
    own = [
        [
            row if row.answer is None or row.answer in options else _as_label(task, row, options)
            for row in said
            if row.annotator_id == annotator.id or asker_of(row.annotator_id) == annotator.id
        ]
        for said, options in zip(rows, labels, strict=True)
    ]
    samples = max((len(said) for said in own), default=0)
    by_sample = [
        readings_of([said[i] if i < len(said) else None for said in own], labels) for i in range(max(samples, 1))
    ]
    readings = by_sample[0]
    if samples > 1:
        readings = replace(readings, answers=np.concatenate([reading.answers for reading in by_sample], axis=1))
    return readings


def _as_label(task: Task, row: Evidence, options: Sequence[str]) -> Evidence:
    """The row with its answer spelt as the label that it equals."""
    return replace(row, answer=next((label for label in options if task.equal(row.answer, label)), None))


def _clusters(task: Task, rows: Sequence[Evidence], askers: Collection[str]) -> tuple[str, ...]:
    """The distinct answers of the askers to an open question, in a fixed order, and the label for all others."""
    distinct: list[str] = []
    answers = {row.answer for row in rows if row.answer is not None and asker_of(row.annotator_id) in askers}
    for answer in sorted(answers):
        if not any(task.equal(answer, other) for other in distinct):
            distinct.append(answer)
    return (*distinct, OTHER)


def _neighbours(
    corpus: Corpus,
    annotator: Annotator,
    examples: Sequence[Example],
    labels: Sequence[tuple[str, ...]],
    width: int,
) -> FloatArray:
    """float64 (m, width): the vote of the nearest labelled examples, matched by the words of their answers."""
    gold = {e.id: _words(corpus.task, e, e.answer or "") for e in corpus.folds.warm}
    chosen: IntArray = np.full((len(examples), annotator.neighbours), -1, dtype=np.int64)
    cosine = np.zeros((len(examples), annotator.neighbours))
    for row, example in enumerate(examples):
        words = [_words(corpus.task, example, label) for label in labels[row]]
        near = corpus.neighbours.ids[example.id][: annotator.neighbours]
        for column, (name, similarity) in enumerate(
            zip(near, corpus.neighbours.similarities[example.id], strict=False)
        ):
            cosine[row, column] = similarity
            chosen[row, column] = words.index(gold[name]) if gold[name] in words else -1
    probs = np.full((len(examples), width), np.nan)
    counts = np.array([len(options) for options in labels], dtype=np.int64)
    for count in np.unique(counts):
        same = counts == count
        probs[same] = 0.0
        probs[same, :count] = neighbour_vote(chosen[same], cosine[same], int(count), annotator.sharpness)
    return probs


def _words(task: Task, example: Example, answer: str) -> str:
    """What an answer means: the option's own words where letters name options."""
    labels = task.labels(example) or ()
    if task.kind == "multiple_choice" and answer in labels:
        return comparable(example.options[labels.index(answer)])
    return answer
