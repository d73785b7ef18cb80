"""Answers told apart: by the labels of a question, and, where they consist of fields, field by field.

An answer of fields is made of each field's likeliest value, whoever gave it, and is as certain as its fields are.
Knows nothing of selection rules, prompts or providers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from semievol_api.annotate.estimator import Estimator, Readings
from semievol_api.selection import pool
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.tasks import Task
from semievol_api.tasks.task import ABSENT

OTHER = "(another answer)"
"""The last label of an open question: takes probability, is never the label."""


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatorAnswers:
    """One annotator: how it is read, what was read, and its answers by sample; None where there is none."""

    estimator: Estimator
    readings: Readings
    answers: Sequence[Sequence[str | None]]


@dataclass(frozen=True, slots=True, eq=False)
class PooledFields:
    """Answers made of fields; None where nobody answered.

    `scores` and `margins` float64 (m, fields), NaN = abstain; `agreed` bool (m,): no annotator differed in any field.
    """

    answers: Sequence[str | None]
    scores: FloatArray
    margins: FloatArray
    agreed: BoolArray


def pool_fields(task: Task, items: int, annotators: Sequence[AnnotatorAnswers]) -> PooledFields:
    """Pool every field by itself, as answers without fields are; a missing field is a value like others."""
    shape = (items, len(task.fields))
    scores, margins = np.full(shape, np.nan), np.full(shape, np.nan)
    agreed: BoolArray = np.ones(items, dtype=np.bool_)
    parts = [[[None if a is None else task.parts(a) for a in one] for one in some.answers] for some in annotators]
    chosen: list[dict[str, str]] = [{} for _ in range(items)]
    for column, name in enumerate(task.fields):
        given = [[[None if p is None else p.get(name, ABSENT) for p in one] for one in samples] for samples in parts]
        values = _values(task, name, given, items)
        counts = np.array([len(some) for some in values], dtype=np.int64)
        probs = np.full((items, len(annotators), int(counts.max(initial=1))), np.nan)
        for place, annotator in enumerate(annotators):
            here = replace(
                annotator.readings,
                answers=label_places(given[place], values, partial(task.same, name)),
                n_options=counts,
                width=probs.shape[2],
                answer_logprob=_log_of_field(annotator.readings, column),
            )
            probs[:, place] = annotator.estimator.estimate(here)
        pooled = pool(probs, counts, open_answers=task.values(name) is None)
        scores[:, column], margins[:, column] = pooled.score, pooled.margin
        agreed &= pooled.agreed
        for item in np.flatnonzero(pooled.label >= 0).tolist():
            chosen[item][name] = values[item][int(pooled.label[item])]
    silent: BoolArray = np.asarray(np.isnan(scores).any(axis=1), dtype=np.bool_).reshape(items)
    answers = [None if silent[item] else task.joined(chosen[item]) for item in range(items)]
    scores[silent], margins[silent] = np.nan, np.nan
    return PooledFields(answers, scores, margins, agreed)


def _values(
    task: Task, name: str, given: Sequence[Sequence[Sequence[str | None]]], items: int
) -> list[tuple[str, ...]]:
    """For each example the values of a field that were given, in a fixed order, and one for all others."""
    closed = task.values(name)
    if closed is not None:
        return [closed] * items
    values: list[set[str]] = [set() for _ in range(items)]
    for sample in itertools.chain.from_iterable(given):
        for example, value in enumerate(sample):
            if value is not None:
                values[example].add(value)
    return [(*distinct(sorted(some), partial(task.same, name)), OTHER) for some in values]


def _log_of_field(readings: Readings, field: int) -> FloatArray | None:
    """The natural log-probability of a field; that of the whole answer where the field's is not known."""
    if readings.field_probs is None or readings.answer_logprob is None:
        return readings.answer_logprob
    known = readings.field_probs[:, field]
    return np.where(np.isnan(known), readings.answer_logprob, np.log(np.maximum(known, 1e-300)))


def answers_of(samples: Sequence[pa.Table], ids: Sequence[str]) -> list[list[str | None]]:
    """For each sample the answers to the examples `ids`; None where a response is missing or did not end by itself."""
    found: list[list[str | None]] = []
    for rows in samples:
        texts, answers = rows["answer"].to_pylist(), list[str | None]([None] * len(ids))
        for example, at in sound_rows(rows, ids):
            answers[example] = texts[at]
        found.append(answers)
    return found


def label_places(
    answers: Sequence[Sequence[str | None]], labels: Sequence[tuple[str, ...]], same: Callable[[str, str], bool]
) -> IntArray:
    """int64 (m, samples): which of its example's labels each answer is or equals, -1 for none."""
    places = np.full((len(labels), max(1, len(answers))), -1, dtype=np.int64)
    for sample, texts in enumerate(answers):
        known: dict[tuple[tuple[str, ...], str], int] = {}
        for example, text in enumerate(texts):
            if text is None:
                continue
            asked = (labels[example], text)
            if asked not in known:
                known[asked] = _label_of(*asked, same)
            places[example, sample] = known[asked]
    return places


def sound_rows(rows: pa.Table, ids: Sequence[str]) -> list[tuple[int, int]]:
    """The places of the examples that have a whole response, each with that of its row."""
    places = {name: at for at, name in enumerate(rows["example_id"].to_pylist())}
    finish = rows["finish"].to_pylist()
    found = ((example, places.get(name, -1)) for example, name in enumerate(ids))
    return [(example, at) for example, at in found if at >= 0 and finish[at] == "stop"]


def _label_of(labels: tuple[str, ...], answer: str, same: Callable[[str, str], bool]) -> int:
    """The label that an answer is or equals; -1 for none."""
    if answer in labels:
        return labels.index(answer)
    return next((place for place, label in enumerate(labels) if same(answer, label)), -1)


def distinct(answers: Iterable[str], same: Callable[[str, str], bool]) -> list[str]:
    """The answers without those that equal an earlier one."""
    found: list[str] = []
    for answer in answers:
        if not any(same(answer, other) for other in found):
            found.append(answer)
    return found
