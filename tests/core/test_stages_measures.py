"""Evidence read as columns gives what the same evidence gives row by row."""

from __future__ import annotations

import numpy as np
import pytest

from semievol_api.annotate.annotators import Annotator
from semievol_api.annotate.pooled import Measures, annotator_probs
from semievol_api.annotate.requests import Corpus
from semievol_api.records import Evidence, Example
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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("again", [False, True])
def test_columns_and_rows_give_the_same_opinions(seed: int, again: bool) -> None:
    rng = np.random.default_rng(seed)
    examples = tuple(Example(id=f"q{i}", question="?", options=tuple("uvwxy"[: rng.integers(2, 6)])) for i in range(60))
    rows = [said(rng, e, a) for e in examples for a in CREW[:-1] if rng.random() < 0.8]
    rows += [said(rng, e, CREW[1], "#2") for e in examples] if again else []
    heard = Measures.of((EvidenceTable.of(rows[::2]), EvidenceTable.of(rows[1::2])), 0)
    assert heard.single is not again
    by_column, by_row = (annotator_probs(corpus(examples), CREW, examples, given) for given in (heard, heard.rows()))
    np.testing.assert_array_equal(by_column.probs, by_row.probs)
    np.testing.assert_array_equal(by_column.pooled.score, by_row.pooled.score)
    np.testing.assert_array_equal(by_column.pooled.label, by_row.pooled.label)
    assert by_column.labels == by_row.labels
    assert np.isfinite(by_row.probs[:, 0]).any() and np.isnan(by_row.probs).any()


def test_nobody_said_anything() -> None:
    example = Example(id="q", question="?", options=("u", "v"))
    heard = Measures.of((EvidenceTable.of([]),), 0)
    found = annotator_probs(corpus((example,)), CREW, (example,), heard)
    assert found.answer(0) is None
