"""From evidence rows to one probability per label: estimators, the neighbours' vote, the pool (method §4).

Closed labels are those of the task; open answers are clustered by what the task calls equal, with one more label
for "some other answer". Knows nothing of selection rules, prompts or providers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.estimators import Estimator, Readings, estimator_of, readings_of
from semievol_api.annotate.replies import asker_of
from semievol_api.annotate.requests import Corpus
from semievol_api.data.tables import MEASURES, as_evidence, grouped
from semievol_api.records import Evidence, Example
from semievol_api.selection import Pooled, at_label_shares, label_factors, neighbour_vote, pool
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.store.artifacts import EvidenceTable
from semievol_api.tasks import Task
from semievol_api.tasks.replies import comparable


@dataclass(frozen=True, eq=False)
class Measures:
    """The evidence rows of one part, annotators' and judge's; columns of `tables.MEASURES`."""

    table: pa.Table

    @classmethod
    def of(cls, tables: Sequence[EvidenceTable], part: int) -> Measures:
        """Those of a part, of several evidence tables together."""
        read = []
        for evidence in tables:
            names = evidence.parts.names(part)
            read.append(evidence.parts.read(part, [name for name in MEASURES if name in names]))
        return cls(pa.concat_tables(read, promote_options="default").combine_chunks())

    @cached_property
    def single(self) -> bool:
        """Whether no annotator answered a question more than once."""
        return all(asker_of(name) == name and len(self._places[name]) == len(own) for name, own in self._own.items())

    def rows(self) -> dict[str, list[Evidence]]:
        """The rows of each example as values."""
        return grouped(as_evidence(self.table, measures_only=True))

    def of_asker(self, asker: str) -> pa.Table:
        """The rows of an asker, all its samples."""
        own = [rows for name, rows in self._own.items() if asker_of(name) == asker]
        return pa.concat_tables(own) if own else self.table.slice(0, 0)

    def readings(self, asker: str, ids: Sequence[str], labels: Sequence[tuple[str, ...]]) -> Readings:
        """One asker's answers to the examples `ids`, in that order; see `selection.readings_of`.

        Only where `single` holds.
        """
        rows, places = self._own.get(asker, self.table.slice(0, 0)), self._places.get(asker, {})
        finish = rows["finish"].to_pylist()
        found: IntArray = np.array([places.get(name, -1) for name in ids], dtype=np.int64)
        sound: BoolArray = np.array([at >= 0 and finish[at] == "stop" for at in found.tolist()], dtype=np.bool_)
        at = found[sound]
        width = max((len(options) for options in labels), default=0)

        def numbers(name: str) -> FloatArray:
            values = np.full(len(ids), np.nan)
            if name in rows.column_names:
                values[sound] = rows[name].to_numpy(zero_copy_only=False).astype(np.float64)[at]
            return values

        answers = np.full((len(ids), 1), -1, dtype=np.int64)
        answers[sound, 0] = _answers(rows["answer"], at, [labels[i] for i in np.flatnonzero(sound).tolist()])
        probs = np.full((len(ids), width), np.nan)
        probs[sound] = _probabilities(rows["option_probs"], width)[at]
        return Readings(
            answers=answers,
            n_options=np.array([len(options) for options in labels], dtype=np.int64),
            width=width,
            option_probs=probs,
            answer_logprob=numbers("answer_logprob"),
            p_true=numbers("p_true"),
            verbal=numbers("verbal"),
        )

    @cached_property
    def _own(self) -> dict[str, pa.Table]:
        """The rows of each annotator id."""
        encoded = self.table["annotator_id"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        names: list[str] = encoded.dictionary.to_pylist()
        return {name: self.table.filter(pa.array(codes == code)) for code, name in enumerate(names)}

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        """For each annotator id the place of each example's row."""
        return {
            name: {example: at for at, example in enumerate(own["example_id"].to_pylist())}
            for name, own in self._own.items()
        }


def _answers(column: pa.ChunkedArray, at: IntArray, labels: Sequence[tuple[str, ...]]) -> IntArray:
    """The place of each answer among its own labels, -1 where it is none of them."""
    encoded = column.combine_chunks().dictionary_encode()
    texts: list[str] = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(len(texts)).to_numpy()[at]
    sets: dict[tuple[str, ...], int] = {}
    which = np.array([sets.setdefault(options, len(sets)) for options in labels], dtype=np.int64)
    places = [[options.index(text) if text in options else -1 for text in texts] + [-1] for options in sets]
    table: IntArray = np.array(places, dtype=np.int64).reshape(len(sets), len(texts) + 1)
    return np.asarray(table[which, codes], dtype=np.int64)


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


def factors_of_crew(corpus: Corpus, crew: Crew, said: EvidenceTable, chosen_ids: Collection[str] = ()) -> Factors:
    """What brings each annotator's mean distribution towards the labels of D_warm; none for open answers.

    What calibrates is never counted among the labels, nor are pseudo-labels and examples chosen for a person
    (`chosen_ids`), which are no sample of the questions.
    """
    readers = [a for a in crew.annotators if _reads_distribution(a)]
    if not corpus.task.closed or not readers:
        return {}
    counts = _labelled(corpus, {*chosen_ids, *(e.id for e in corpus.pseudo_labeled)})
    sums = _sums(said, readers, {e.id for e in corpus.folds.warm})
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
    said: EvidenceTable, readers: Sequence[Annotator], labelled: Collection[str]
) -> dict[tuple[str, int], tuple[IntArray, int]]:
    """The sum of distributions, in multiples of 1 / _GRID, and how many; by annotator and number of options."""
    sums: dict[tuple[str, int], tuple[IntArray, int]] = {}
    for table in said.parts.tables(["example_id", "annotator_id", "finish", "option_probs"]):
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


OTHER = "(another answer)"
"""The last label of an open question: takes probability, is never the label."""
Rows = Mapping[str, Sequence[Evidence]]
"""Evidence rows by example id."""


@dataclass(frozen=True, eq=False)
class AnnotatorProbs:
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

    def only(self, places: slice) -> AnnotatorProbs:
        """Those about some of the examples."""
        pooled = {f.name: attrgetter(f.name)(self.pooled)[places] for f in fields(Pooled)}
        return AnnotatorProbs(
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


def annotator_probs(
    corpus: Corpus,
    crew: Sequence[Annotator],
    examples: Sequence[Example],
    heard: Rows | Measures,
    factors: Factors | None = None,
) -> AnnotatorProbs:
    """The crew's label probabilities and their pool; rows of askers outside the crew are left alone.

    `factors` bring annotators to the labels' shares, where they have some.
    """
    task = corpus.task
    columns = heard if isinstance(heard, Measures) and task.closed and heard.single else None
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
    pooled = pool(probs, n_options, open_answers=not task.closed)
    return AnnotatorProbs(examples=examples, labels=labels, n_options=n_options, probs=probs, pooled=pooled)


def wrong_answers(task: Task, found: AnnotatorProbs) -> BoolArray:
    """Whether each pooled answer is wrong, bool (m,), for examples whose gold is known; abstentions are wrong."""
    wrong = [not task.equal(found.answer(i), e.answer) for i, e in enumerate(found.examples)]
    return np.array(wrong, dtype=np.bool_)


def _estimator(annotator: Annotator) -> Estimator:
    found = estimator_of(annotator.reading)
    if found is None:
        raise ValueError(f"annotator {annotator.id!r} is read as {annotator.reading!r}, which gives no probabilities")
    return found


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
    return comparable(task.in_words(example, answer)) if task.lettered else answer
