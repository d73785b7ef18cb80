"""Cross-fitting on arrays and values: who is asked, what a fold may learn from, and what annotators count."""

from __future__ import annotations

import numpy as np
import pytest

from semievol_api.annotate.annotators import Annotator
from semievol_api.annotate.learners import classifier, label_propagation, neighbour_graph
from semievol_api.annotate.requests import Corpus, SamplingParams, Student, questions_of
from semievol_api.cassettes.clock import RealClock
from semievol_api.config.settings import Limits, ProviderTable
from semievol_api.engine import RequestEngine
from semievol_api.records import Example, FloatMatrix
from semievol_api.registry import connect
from semievol_api.selection.values import FloatArray, IntArray
from semievol_api.selection.weights import fitted_weights, weighted
from semievol_api.store.artifacts import FINEST, Folds, Neighbours, Prepared
from semievol_api.tasks import Task, TaskDefinition

TASK = Task(TaskDefinition(name="c", kind="multiple_choice", instruction="Which?"))


def example(name: str, answer: str | None = None) -> Example:
    return Example(id=name, question=f"Question {name}?", options=("red", "green"), answer=answer)


def crossed(n: int, n_models: int = 2) -> Folds:
    warm = tuple(example(f"l{i}", "AB"[i % 2]) for i in range(n))
    cross = tuple(tuple(e.id for e in warm[place::FINEST]) for place in range(FINEST))
    return Folds(warm, warm, (), tunable=True, note="", cross=cross, n_models=n_models)


def test_folds_survive_being_stored_and_coarse_folds_are_made_of_fine_ones() -> None:
    folds = crossed(50, 5)
    stored = Folds.unpack(folds.pack())
    assert stored == folds
    rows = [f"u{i}" for i in range(4_000)]
    for of in (2, 5):
        counts = np.bincount([folds.fold_of(name, of) for name in rows], minlength=of)
        assert np.allclose(counts / len(rows), 1 / of, atol=0.03), "unlabelled rows are drawn evenly"
    assert all(folds.fold_of(name, 10) // 5 == folds.fold_of(name, 2) for name in rows)
    assert folds.fold_of("reviewed", 2) >= 0
    always = Folds((*folds.warm, example("kept", "A")), folds.warm, (), tunable=True, note="", cross=folds.cross)
    assert always.fold_of("kept", 5) == -1, "a pseudo-label teaches everybody and calibrates nothing"


def test_without_folds_everything_is_in_the_one_fold_and_nothing_else_is_stored() -> None:
    plain = Folds((example("l", "A"),), (), (), tunable=True, note="")
    assert plain.fold_of("l", 2) == plain.fold_of("u", 5) == 0
    assert plain.pack().documents == {"folds": {"tunable": True, "note": ""}}


@pytest.mark.parametrize("role", ["warm", "judge"])
async def test_a_label_and_a_row_are_answered_by_the_warm_model_of_their_fold(
    role: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folds = crossed(20)
    rows = tuple(example(f"u{i}") for i in range(20))
    corpus = Corpus(TASK, Prepared(folds.warm, rows, (), {}), folds, Neighbours())
    models = {"base": "tiny", "judge": "tiny", "warm-fold-1": "first", "warm-fold-2": "second"}
    provider = connect("mine", ProviderTable(kind="scripted"))
    async with RequestEngine.open(tmp_path_factory.mktemp("j") / "j.sqlite", Limits(), clock=RealClock()) as engine:
        student = Student(engine, provider, models, models, 0)
        asked = list(
            questions_of(
                student,
                corpus,
                Annotator("a", role, 0, reading="option_read"),
                (*folds.warm, *rows),
                SamplingParams(8, 0.0),
            )
        )
    await provider.aclose()
    for question in asked:
        fold = folds.fold_of(question.example.id, 2)
        assert question.request.model == ("first", "second")[fold]
        assert question.example.id not in {e.id for e in folds.taught_without(fold)}


def clouds(n: int, seed: int = 0) -> tuple[FloatMatrix, IntArray]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(3, size=n).astype(np.int64)
    return (np.eye(3, 8)[gold] * 2 + rng.standard_normal((n, 8))).astype(np.float32), gold


def test_classifier_and_propagation_are_right_where_vectors_tell_the_labels_apart() -> None:
    vectors, gold = clouds(400)
    probs = classifier(vectors[:60], gold[:60], vectors[60:], 3)
    assert probs.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    assert np.mean(probs.argmax(axis=1) == gold[60:]) > 0.75
    hidden = np.where(np.arange(400) < 60, gold, -1)
    spread = label_propagation(neighbour_graph(vectors), hidden, 3)
    assert np.mean(spread.argmax(axis=1)[60:] == gold[60:]) > 0.7


def test_a_label_that_nobody_taught_keeps_a_small_probability_and_one_label_alone_is_no_error() -> None:
    vectors, gold = clouds(60)
    probs = classifier(vectors, gold, vectors, 5)
    assert np.all(probs[:, 3:] > 0)
    assert probs[:, 3:].max() < 0.05
    only = classifier(vectors, np.zeros(60, dtype=np.int64), vectors[:2], 2)
    assert only.argmax(axis=1).tolist() == [0, 0]


def test_propagation_abstains_where_no_label_reaches() -> None:
    near, far = np.eye(2, 4, dtype=np.float32)[[0] * 5 + [1] * 5], np.full(10, -1, dtype=np.int64)
    far[0] = 1
    spread = label_propagation(neighbour_graph(near, 2), far, 2)
    assert spread[:5].argmax(axis=1).tolist() == [1] * 5
    assert np.isnan(spread[5:]).all() or spread[5:].max() <= spread[:5].max()


def crew(n: int, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """A good annotator, a mediocre one, and one that guesses with confidence; float64 (n, 3, 4)."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(4, size=n).astype(np.int64)
    signal = np.eye(4)[gold][:, None, :] * np.array([4.0, 1.5, 0.0])[:, None]
    logits = signal + rng.standard_normal((n, 3, 4)) * np.array([1.0, 1.0, 4.0])[:, None]
    raised = np.exp(logits - logits.max(axis=2, keepdims=True))
    return raised / raised.sum(axis=2, keepdims=True), gold


def test_an_annotator_that_guesses_gets_no_weight_and_the_better_one_more() -> None:
    probs, gold = crew(100)
    weights = fitted_weights(probs, gold)
    assert weights[2] == 0
    assert weights[0] > weights[1] > 0
    assert weights[weights > 0].mean() == pytest.approx(1.0)
    assert np.isnan(weighted(probs, weights)[:, 2]).all()


def test_a_strong_pull_and_few_labels_make_all_count_alike() -> None:
    probs, gold = crew(100)
    assert fitted_weights(probs[:, :2], gold, pull=1e6) == pytest.approx(1.0, abs=1e-3)
    assert fitted_weights(probs[:19], gold[:19]).tolist() == [1.0, 1.0, 1.0]
    assert fitted_weights(probs[:, 2:], gold).tolist() == [1.0], "where nobody is good, nobody is left out"


def test_weights_leave_options_that_an_item_does_not_have_and_abstentions_alone() -> None:
    probs, gold = crew(60)
    gold = np.minimum(gold, 1)
    probs[:, :, 2:] = 0.0
    probs /= probs.sum(axis=2, keepdims=True)
    probs[:10, 0] = np.nan
    weights = fitted_weights(probs, gold)
    assert np.all(np.isfinite(weights))
    found = weighted(probs, np.array([0.5, 1.5, 1.0]))
    assert np.all(found[10:, :, 2:] == 0)
    assert np.isnan(found[:10, 0]).all()
    assert found[10:].sum(axis=2) == pytest.approx(1.0)
