"""Evidence read as columns gives what the same evidence gives row by row."""

from __future__ import annotations

import numpy as np
import pytest

from semievol_api.annotate.annotators import Annotator
from semievol_api.annotate.estimator import Readings
from semievol_api.annotate.estimators import estimator_of
from semievol_api.annotate.pooled import annotator_probs, evidence_columns
from semievol_api.annotate.requests import Corpus
from semievol_api.records import Evidence, Example
from semievol_api.selection import pool
from semievol_api.store.artifacts import EvidenceTable, Folds, Neighbours, Prepared
from semievol_api.tasks import Task, TaskDefinition

CHOICE = Task(TaskDefinition(name="c", kind="multiple_choice", instruction="Which?"))
CREW = (
    Annotator("read", "base", 0, reading="option_read"),
    Annotator("vote", "base", 0, reading="votes"),
    Annotator("sure", "base", 0, reading="answer_logprob"),
    Annotator("says", "base", 0, reading="verbal"),
    Annotator("checks", "base", 0, reading="p_true"),
    Annotator("silent", "base", 0, reading="option_read"),
)


def said(rng: np.random.Generator, example: Example, annotator: Annotator, sample: str = "") -> Evidence:
    labels = "ABCDE"[: len(example.options)]
    answer = [None, "Z", *labels][rng.integers(len(labels) + 2)]
    probs = rng.dirichlet(np.ones(len(labels))).astype(np.float32)
    return Evidence(
        example_id=example.id,
        annotator_id=annotator.id + sample,
        prompt_hash="",
        text="",
        answer=answer,
        finish="length" if rng.random() < 0.2 else "stop",
        option_probs=tuple(probs.tolist()) if rng.random() < 0.8 else None,
        answer_logprob=-1.0 if rng.random() < 0.7 else None,
        verbal=0.75 if rng.random() < 0.7 else None,
        p_true=0.25 if rng.random() < 0.7 else None,
    )


def corpus(examples: tuple[Example, ...]) -> Corpus:
    data = Prepared(labeled=(), unlabeled=examples, test=(), report={})
    return Corpus(CHOICE, data, Folds((), (), (), tunable=True, note=""), Neighbours())


def row_by_row(rows: list[Evidence], annotator: Annotator, examples: tuple[Example, ...]) -> Readings:
    """What one annotator said, looked up row by row: the plain meaning of what is read from columns."""
    labels = ["ABCDE"[: len(example.options)] for example in examples]
    width = max(map(len, labels))
    answers = np.full((len(examples), 2), -1)
    probs = np.full((len(examples), width), np.nan)
    numbers = {name: np.full(len(examples), np.nan) for name in ("answer_logprob", "p_true", "verbal")}
    for row in rows:
        name, _, sample = row.annotator_id.partition("#")
        if name != annotator.id or row.finish != "stop":
            continue
        place = [example.id for example in examples].index(row.example_id)
        answers[place, 1 if sample else 0] = labels[place].find(row.answer) if row.answer else -1
        if sample:
            continue
        if row.option_probs is not None:
            probs[place] = (*row.option_probs, *(0.0,) * (width - len(row.option_probs)))
        for measure, values in numbers.items():
            value = getattr(row, measure)
            values[place] = np.nan if value is None else np.float32(value)
    return Readings(
        answers=answers, n_options=np.array([len(o) for o in labels]), width=width, option_probs=probs, **numbers
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("again", [False, True])
def test_columns_give_what_the_rows_say_one_by_one(seed: int, again: bool) -> None:
    rng = np.random.default_rng(seed)
    examples = tuple(Example(id=f"q{i}", question="?", options=tuple("uvwxy"[: rng.integers(2, 6)])) for i in range(60))
    rows = [said(rng, e, a) for e in examples for a in CREW[:-1] if rng.random() < 0.8]
    rows += [said(rng, e, CREW[1], "#2") for e in examples] if again else []
    evidence = evidence_columns((EvidenceTable.of(rows[::2]), EvidenceTable.of(rows[1::2])), 0)
    found = annotator_probs(corpus(examples), CREW, examples, evidence)
    expected = np.full(found.probs.shape, np.nan)
    for column, annotator in enumerate(CREW):
        estimator = estimator_of(annotator.reading)
        assert estimator is not None
        expected[:, column] = estimator.estimate(row_by_row(rows, annotator, examples))
    np.testing.assert_array_equal(found.probs, expected)
    pooled = pool(expected, found.n_options)
    np.testing.assert_array_equal(found.pooled.score, pooled.score)
    np.testing.assert_array_equal(found.pooled.label, pooled.label)
    assert np.isfinite(expected[:, 0]).any() and np.isnan(expected).any()


def test_nobody_said_anything() -> None:
    example = Example(id="q", question="Q?", options=("u", "v"))
    evidence = evidence_columns((EvidenceTable.of([]),), 0)
    found = annotator_probs(corpus((example,)), CREW, (example,), evidence)
    assert found.answer(0) is None
