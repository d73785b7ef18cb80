"""The controls of selection and justification: keeping at random, and a majority vote in the judge's place."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from semievol_api.annotate.requests import Corpus
from semievol_api.config.method import JustifySettings, SelectSettings
from semievol_api.config.settings import RetrieveSettings
from semievol_api.records import Evidence, Example
from semievol_api.selection import RuleSettings, at_random
from semievol_api.selection import select as apply_rule
from semievol_api.selection.columns import SelectionInputs
from semievol_api.selection.stage import by_mean_nll
from semievol_api.store.artifacts import EvidenceTable, Folds, Neighbours, Prepared
from semievol_api.tasks import load_task

IDS = [f"q{i}" for i in range(100)]


def test_a_random_share_of_what_has_a_score_is_kept_whatever_the_scores_or_the_order() -> None:
    scores = np.where(np.arange(100) % 10 == 0, np.nan, np.arange(100.0))
    chosen = at_random(scores, IDS, 0.5, seed=3)
    kept = {IDS[i] for i in np.flatnonzero(chosen.kept)}
    assert chosen.rule == "random" and chosen.count == 45 and chosen.threshold is None
    backwards = at_random(scores[::-1], IDS[::-1], 0.5, seed=3)
    assert {IDS[::-1][i] for i in np.flatnonzero(backwards.kept)} == kept
    assert {IDS[i] for i in np.flatnonzero(at_random(-scores, IDS, 0.5, seed=3).kept)} == kept
    assert {IDS[i] for i in np.flatnonzero(at_random(scores, IDS, 0.5, seed=4).kept)} != kept
    assert not any(name in kept for name in IDS[::10])


def test_the_rule_is_one_of_the_pooled_scores_rules_too() -> None:
    chosen = apply_rule(np.linspace(0, 1, 100), IDS, None, RuleSettings(rule="random", share=0.3, seed=1))
    assert chosen.rule == "random" and chosen.count == 30
    low = np.flatnonzero(chosen.kept).mean()
    assert 30 < low < 70, "the best are not preferred"


def said(name: str, annotator: str, answer: str | None, nll: float) -> Evidence:
    return Evidence(
        example_id=name, annotator_id=annotator, prompt_hash="", text="", answer=answer, finish="stop", mean_nll=nll
    )


@pytest.mark.parametrize(
    ("votes", "answer", "score"),
    [
        ([("B", 0.9), ("A", 0.1), ("A", 0.3)], "A", 0.2),
        ([("B", 0.2), ("A", 0.5)], "B", 0.2),
        ([(None, 0.1), ("C", 0.4)], "C", 0.4),
        ([(None, 0.1), (None, 0.4)], None, None),
    ],
)
def test_without_a_justification_the_majority_answers_and_its_voters_mean_scores_it(
    votes: list[tuple[str | None, float]], answer: str | None, score: float | None
) -> None:
    example = Example(id="q0", question="Which?", options=("one", "two", "three"))
    corpus = Corpus(load_task("arc"), Prepared((), (example,), (), {}), Folds((), (), (), True, ""), Neighbours({}, {}))
    rows = [said("q0", f"a{i}", vote, nll) for i, (vote, nll) in enumerate(votes)]
    justify = JustifySettings(on="never", unjustified="majority")
    heard = SelectionInputs(EvidenceTable.of(rows), EvidenceTable.of([]), justify, None, RetrieveSettings(), {})
    found = by_mean_nll(corpus, heard, SelectSettings(share=1.0))
    (row,) = found.scores.whole().to_pylist()
    assert row["answer"] == answer
    assert row["mean_nll"] == (None if score is None else pytest.approx(score, abs=1e-6))
    assert row["kept"] is (answer is not None)


@pytest.mark.parametrize(("share", "kept"), [(1.0, 4), (0.5, 2), (0.0, 0)])
@pytest.mark.parametrize("interpolation", ["linear", "lower", "higher"])
def test_the_labelled_place_the_threshold_and_theta_of_one_keeps_all_that_is_answered(
    share: float, kept: int, interpolation: Literal["linear", "lower", "higher"]
) -> None:
    unlabeled = tuple(Example(id=f"q{i}", question=f"Which {i}?", options=("one", "two")) for i in range(5))
    labeled = tuple(replace(e, id=f"l{i}", answer="A") for i, e in enumerate(unlabeled[:3]))
    data = Prepared(labeled, unlabeled, (), {})
    corpus = Corpus(load_task("arc"), data, Folds(labeled, (), (), True, ""), Neighbours({}, {}))
    rows = [said(f"q{i}", "a", "A", nll) for i, nll in enumerate((0.1, 0.3, 0.5, 0.9))]
    rows += [said(f"l{i}", "a", "A", nll) for i, nll in enumerate((0.2, 0.4, 0.6))]
    heard = SelectionInputs(
        EvidenceTable.of(rows), EvidenceTable.of([]), JustifySettings(on="never"), None, RetrieveSettings(), {}
    )
    found = by_mean_nll(corpus, heard, SelectSettings(share=share, pool="labeled", interpolation=interpolation))
    assert len(found.kept) == kept
