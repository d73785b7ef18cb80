"""From evidence rows to one probability per label: estimators, the neighbours' vote, the pool (method §4).

Closed labels are those of the task; open answers are clustered by what the task calls equal, with one more label
for "some other answer". Knows nothing of selection rules, prompts or providers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.estimator import Estimator, Readings
from semievol_api.annotate.estimators import estimator_of
from semievol_api.annotate.fields import (
    OTHER,
    AnnotatorAnswers,
    PooledFields,
    answers_of,
    distinct,
    label_places,
    pool_fields,
    sound_rows,
)
from semievol_api.annotate.replies import asker_of
from semievol_api.annotate.requests import Corpus
from semievol_api.data.schemas import MEASURES
from semievol_api.records import Example
from semievol_api.selection import Pooled, at_label_shares, label_factors, neighbour_vote, pool
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.store.artifacts import EvidenceTable
from semievol_api.tasks import Task
from semievol_api.tasks.replies import comparable


def evidence_columns(tables: Sequence[EvidenceTable], part: int) -> pa.Table:
    """The rows of a part, of several evidence tables together: the columns of `schemas.MEASURES`."""
    read = [evidence.parts.read(part, MEASURES) for evidence in tables]
    return pa.concat_tables(read, promote_options="default").combine_chunks()


def by_annotator(evidence: pa.Table) -> dict[str, pa.Table]:
    """The rows of each annotator id; every sample has an id of its own."""
    encoded = evidence["annotator_id"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    names: list[str] = encoded.dictionary.to_pylist()
    return {name: evidence.filter(pa.array(codes == code)) for code, name in enumerate(names)}


def readings_of(
    task: Task, samples: Sequence[pa.Table], ids: Sequence[str], labels: Sequence[tuple[str, ...]]
) -> Readings:
    """One annotator's answers to the examples `ids`, in that order; `labels[i]` are the labels of example i.

    `samples` are the rows of its first sample, of its second one and so on; measures of confidence are those of the
    first. An answer that equals none of its example's labels, a missing row, and a response that did not end by itself
    (truncated, refused, failed) abstain.
    """
    width = max((len(options) for options in labels), default=0)
    sound = [sound_rows(rows, ids) for rows in samples]
    answers = label_places(answers_of(samples, ids), labels, task.equal)
    first = samples[0] if samples else None
    here: IntArray = np.array(sound[0] if samples else [], dtype=np.int64).reshape(-1, 2)

    def numbers(name: str) -> FloatArray:
        values = np.full(len(ids), np.nan)
        if first is not None and name in first.column_names:
            values[here[:, 0]] = first[name].to_numpy(zero_copy_only=False).astype(np.float64)[here[:, 1]]
        return values

    probs = np.full((len(ids), width), np.nan)
    if first is not None:
        probs[here[:, 0]] = _probabilities(first["option_probs"], width)[here[:, 1]]
    fields = np.full((len(ids), len(task.fields)), np.nan)
    if first is not None and "field_probs" in first.column_names:
        fields[here[:, 0]] = _probabilities(first["field_probs"], len(task.fields))[here[:, 1]]
    return Readings(
        answers=answers,
        n_options=np.array([len(options) for options in labels], dtype=np.int64),
        width=width,
        option_probs=probs,
        answer_logprob=numbers("answer_logprob"),
        mean_nll=numbers("mean_nll"),
        p_true=numbers("p_true"),
        verbal=numbers("verbal"),
        field_probs=fields if task.fields else None,
    )


def _probabilities(column: pa.ChunkedArray, width: int) -> FloatArray:
    """float64 (rows, width), 0 beyond a row's own options and NaN where there are none."""
    probs = np.full((len(column), width), np.nan)
    lists = column.combine_chunks()
    if not len(lists):
        return probs
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    known = lists.is_valid().to_numpy(zero_copy_only=False)
    for length in np.unique(lengths[known]).tolist():
        same = known & (lengths == length)
        probs[same] = 0.0
        probs[same, :length] = values[offsets[:-1][same][:, None] + np.arange(length)]
    return probs


Factors: TypeAlias = Mapping[str, Mapping[int, FloatArray]]
"""By annotator and number of options, float64 (options,); only those that change anything."""
_GRID = 2.0**32
"""Probabilities are summed as whole multiples of 1 / _GRID: the same in any order, parts or not."""


def factors_of_crew(
    corpus: Corpus, crew: Crew, annotations: EvidenceTable, chosen_ids: Collection[str] = ()
) -> Factors:
    """What brings each annotator's mean distribution towards the labels of D_warm; none for open answers.

    What calibrates is never counted among the labels, nor are pseudo-labels and examples chosen for a person
    (`chosen_ids`), which are no sample of the questions.
    """
    readers = [a for a in crew.annotators if _reads_distribution(a)]
    if not corpus.task.closed or not readers:
        return {}
    counts = _labelled(corpus, {*chosen_ids, *(e.id for e in corpus.pseudo_labeled)})
    sums = _sums(annotations, readers, {e.id for e in corpus.folds.warm})
    found: dict[str, dict[int, FloatArray]] = {}
    for (annotator, options), (total, rows) in sorted(sums.items()):
        if options in counts and rows:
            factors = label_factors(counts[options], total / (_GRID * rows))
            if not np.array_equal(factors, np.ones(options)):
                found.setdefault(annotator, {})[options] = factors
    return found


def _reads_distribution(annotator: Annotator) -> bool:
    found = estimator_of(annotator.reading)
    return found is not None and found.needs == "option_probs"


def _labelled(corpus: Corpus, without: Collection[str]) -> dict[int, IntArray]:
    """How often each label is the answer, by the number of options."""
    counts: dict[int, IntArray] = {}
    for example in corpus.folds.warm:
        labels = corpus.task.labels(example) or ()
        if example.id not in without and example.answer in labels:
            of_this_size = counts.setdefault(len(labels), np.zeros(len(labels), dtype=np.int64))
            of_this_size[labels.index(example.answer)] += 1
    return counts


def _sums(
    annotations: EvidenceTable, readers: Sequence[Annotator], labelled: Collection[str]
) -> dict[tuple[str, int], tuple[IntArray, int]]:
    """The sum of distributions, in multiples of 1 / _GRID, and how many; by annotator and number of options."""
    sums: dict[tuple[str, int], tuple[IntArray, int]] = {}
    for table in annotations.parts.tables(["example_id", "annotator_id", "finish", "option_probs"]):
        asker, finish = (table[name].to_numpy() for name in ("annotator_id", "finish"))
        asked = np.array([example not in labelled for example in table["example_id"].to_pylist()], dtype=np.bool_)
        usable = (finish == "stop") & table["option_probs"].is_valid().to_numpy() & asked
        for annotator in readers:
            own = table["option_probs"].filter(pa.array(usable & (asker == annotator.id))).combine_chunks()
            sizes = own.value_lengths().to_numpy()
            for options in np.unique(sizes).tolist():
                flat = own.filter(pa.array(sizes == options)).flatten().to_numpy()
                probs = flat.astype(np.float64).reshape(-1, options)
                total, rows = sums.get((annotator.id, options), (np.zeros(options, dtype=np.int64), 0))
                total = total + np.rint(probs * _GRID).astype(np.int64).sum(axis=0)
                sums[annotator.id, options] = (total, rows + len(probs))
    return sums


@dataclass(frozen=True, eq=False)
class AnnotatorProbs:
    """What the crew makes of some examples.

    `labels[i]` are the labels of example i, `probs` float64 (m, annotators, options) with NaN for abstentions,
    `answer_logprob` float64 (m,) see `mean_logprob`.
    `field_scores` float64 (m, fields): the probability of each field of the pooled answer, where answers have fields.
    """

    examples: Sequence[Example]
    labels: Sequence[tuple[str, ...]]
    n_options: IntArray
    probs: FloatArray
    pooled: Pooled
    answer_logprob: FloatArray
    field_scores: FloatArray | None = None

    def answer(self, place: int) -> str | None:
        """The pooled answer to an example."""
        label = int(self.pooled.label[place])
        return self.labels[place][label] if label >= 0 else None

    def only(self, places: slice) -> AnnotatorProbs:
        """Those about some of the examples."""
        pooled = {f.name: attrgetter(f.name)(self.pooled)[places] for f in fields(Pooled)}
        return AnnotatorProbs(
            examples=self.examples[places],
            labels=self.labels[places],
            n_options=self.n_options[places],
            probs=self.probs[places],
            pooled=Pooled(**pooled),
            answer_logprob=self.answer_logprob[places],
            field_scores=None if self.field_scores is None else self.field_scores[places],
        )

    def answers(self, task: Task, place: int) -> list[str]:
        """The distinct first choices of the annotators that answered, in the annotators' order."""
        rows = self.probs[place, :, : self.n_options[place]]
        choices = [self.labels[place][int(row.argmax())] for row in rows if not np.isnan(row).any()]
        return distinct([choice for choice in choices if choice != OTHER], task.equal)


def annotator_probs(
    corpus: Corpus,
    annotators: Sequence[Annotator],
    examples: Sequence[Example],
    evidence: pa.Table,
    factors: Factors | None = None,
) -> AnnotatorProbs:
    """The annotators' label probabilities and their pool; rows of anybody else in `evidence` are left alone.

    `factors` bring annotators to the labels' shares, where they have some.
    """
    task = corpus.task
    own: dict[str, list[pa.Table]] = {annotator.id: [] for annotator in annotators}
    for name, rows in sorted(by_annotator(evidence).items()):
        if asker_of(name) in own:
            own[asker_of(name)].append(rows)
    ids = [e.id for e in examples]
    labels = [task.labels(e) or () for e in examples] if task.closed else _clusters(task, ids, own)
    n_options = np.array([len(options) for options in labels], dtype=np.int64)
    width = int(n_options.max(initial=1))
    probs = np.full((len(examples), len(annotators), width), np.nan)
    answers: IntArray = np.full((len(examples), len(annotators)), -1, dtype=np.int64)
    logprobs = np.full(answers.shape, np.nan)
    readings: dict[str, Readings] = {}
    for column, annotator in enumerate(annotators):
        if annotator.reading == "neighbour_vote":
            probs[:, column] = _neighbours(corpus, annotator, examples, labels, width)
        else:
            read = readings[annotator.id] = readings_of(task, own[annotator.id], ids, labels)
            probs[:, column] = _estimator(annotator).estimate(read)
            answers[:, column] = read.answers[:, 0]
            logprobs[:, column] = np.nan if read.answer_logprob is None else read.answer_logprob
        for options, weights in (factors or {}).get(annotator.id, {}).items():
            same = n_options == options
            probs[same, column, :options] = at_label_shares(probs[same, column, :options], weights)
    pooled = pool(probs, n_options, open_answers=not task.closed)
    found = AnnotatorProbs(
        examples=examples,
        labels=labels,
        n_options=n_options,
        probs=probs,
        pooled=pooled,
        answer_logprob=mean_logprob(answers, logprobs, pooled.label),
    )
    if not task.fields:
        return found
    by_id = {annotator.id: (_estimator(annotator), answers_of(own[annotator.id], ids)) for annotator in annotators}
    told = [AnnotatorAnswers(by_id[name][0], read, by_id[name][1]) for name, read in readings.items()]
    return _of_fields(found, pool_fields(task, len(ids), told), weakest=task.weakest)


def mean_logprob(answers: IntArray, logprobs: FloatArray, label: IntArray) -> FloatArray:
    """The mean log-probability of the pooled answer among the annotators that gave it, float64 (m,); NaN for none.

    Sums are exact, in any order of annotators.

    Args:
        answers: int64, shape (m, annotators), -1 = abstain.
        logprobs: float64, the same shape, of those answers; NaN where the server showed none.
        label: int64, shape (m,), the pooled answers, -1 = abstain.
    """
    gave = (answers == label[:, None]) & (answers >= 0) & ~np.isnan(logprobs)
    total = np.rint(np.where(gave, logprobs, 0.0) * _GRID).sum(axis=1) / _GRID
    count = gave.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _of_fields(found: AnnotatorProbs, fields: PooledFields, *, weakest: bool) -> AnnotatorProbs:
    """The pool with the answers that are made of fields; one that nobody gave as a whole stands behind the others.

    What tells equal answers apart is of whole answers, and so unknown here.
    """
    labels = [
        given if answer is None or answer in given else (*given, answer)
        for given, answer in zip(found.labels, fields.answers, strict=True)
    ]
    places = [-1 if a is None else given.index(a) for given, a in zip(labels, fields.answers, strict=True)]
    unknown = np.full(len(labels), np.nan)
    pooled = replace(
        found.pooled,
        label=np.array(places, dtype=np.int64),
        score=fields.scores.min(axis=1) if weakest else fields.scores.prod(axis=1),
        margin=fields.margins.min(axis=1),
        agreed=fields.agreed,
        log_odds=unknown,
    )
    return replace(found, labels=labels, pooled=pooled, field_scores=fields.scores, answer_logprob=unknown)


def wrong_answers(task: Task, found: AnnotatorProbs) -> BoolArray:
    """Whether each pooled answer is wrong, bool (m,), for examples whose gold is known; abstentions are wrong."""
    wrong = [not task.equal(found.answer(i), e.answer) for i, e in enumerate(found.examples)]
    return np.array(wrong, dtype=np.bool_)


def _estimator(annotator: Annotator) -> Estimator:
    found = estimator_of(annotator.reading)
    if found is None:
        raise ValueError(f"annotator {annotator.id!r} is read as {annotator.reading!r}, which gives no probabilities")
    return found


def _clusters(task: Task, ids: Sequence[str], own: Mapping[str, Sequence[pa.Table]]) -> list[tuple[str, ...]]:
    """For each open question the distinct answers, in a fixed order, and the label for all others."""
    answers: dict[str, set[str]] = {}
    for rows in itertools.chain.from_iterable(own.values()):
        for name, answer in zip(rows["example_id"].to_pylist(), rows["answer"].to_pylist(), strict=True):
            if answer is not None:
                answers.setdefault(name, set()).add(answer)
    return [(*distinct(sorted(answers.get(name, ())), task.equal), OTHER) for name in ids]


def _neighbours(
    corpus: Corpus,
    annotator: Annotator,
    examples: Sequence[Example],
    labels: Sequence[tuple[str, ...]],
    width: int,
) -> FloatArray:
    """float64 (m, width): the vote of the nearest labelled examples, matched by the words of their answers."""
    gold = {e.id: meant_by(corpus.task, e, e.answer or "") for e in corpus.folds.warm}
    chosen: IntArray = np.full((len(examples), annotator.neighbours), -1, dtype=np.int64)
    cosine = np.zeros((len(examples), annotator.neighbours))
    for row, example in enumerate(examples):
        words = [meant_by(corpus.task, example, label) for label in labels[row]]
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


def meant_by(task: Task, example: Example, answer: str) -> str:
    """What an answer means: the option's own words where letters name options."""
    return comparable(task.in_words(example, answer)) if task.lettered else answer
