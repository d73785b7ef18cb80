"""Annotators that say a label too often are brought back to the labels' shares, and only they."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.estimator import Reading
from semievol_api.annotate.pooled import factors_of_crew
from semievol_api.annotate.requests import Corpus
from semievol_api.config.method import JustifySettings, SelectSettings
from semievol_api.config.settings import RetrieveSettings
from semievol_api.data.schemas import evidence_table
from semievol_api.data.table import ChunkedTable
from semievol_api.records import Evidence, Example
from semievol_api.selection import at_label_shares, label_factors
from semievol_api.selection.columns import SelectionInputs, pooled_answers
from semievol_api.selection.stage import select
from semievol_api.store.artifacts import EvidenceTable, Folds, Neighbours, Prepared, Selection
from semievol_api.tasks import Task, TaskDefinition

CHOICE = Task(TaskDefinition(name="c", kind="multiple_choice", instruction="Which?"))
OPTIONS = ("negative", "neutral", "positive")
BIASED = (0.05, 0.45, 0.5)
FAIR = (0.1, 0.6, 0.3)
SILENT_JUDGE = Annotator("justify", "judge", 0, reading="option_prob")


def test_the_factor_is_the_share_over_the_mean_to_the_part_of_the_gap_that_is_not_chance() -> None:
    counts, mean = np.array([10, 60, 30]), np.array(BIASED)
    gap = 4 * sum((a**0.5 - b**0.5) ** 2 for a, b in zip((10, 60, 30), (5, 45, 50), strict=True))
    shares = np.array([10.5, 60.5, 30.5]) / 101.5
    assert label_factors(counts, mean) == pytest.approx((shares / mean) ** (1 - 2 / gap))
    more = label_factors(100 * counts, mean)
    assert more == pytest.approx(np.array(FAIR) / mean, rel=0.01), "many labels correct nearly all of it"


def test_a_gap_within_chance_changes_nothing() -> None:
    assert label_factors(np.array([12, 58, 30]), np.array(FAIR)).tolist() == [1.0, 1.0, 1.0]
    rng = np.random.default_rng(0)
    drawn = np.array([label_factors(rng.multinomial(100, FAIR), np.array(FAIR)) for _ in range(2_000)])
    untouched = float(np.mean(np.all(drawn == 1.0, axis=1)))
    assert 0.55 < untouched < 0.75, "a gap of 2 or less of expectation 2: about 63 %"
    assert np.median(np.abs(np.log(drawn)).max(axis=1)) == 0.0


@pytest.mark.parametrize("counts", [[20, 20, 20], [35, 34, 31], [42, 33, 25], [0, 0, 0], [1, 0, 0]])
def test_labels_about_equally_frequent_say_nothing_of_the_questions(counts: list[int]) -> None:
    assert label_factors(np.array(counts), np.array([0.02, 0.18, 0.8])).tolist() == [1.0, 1.0, 1.0]


def test_equal_shares_are_doubted_in_one_of_twenty_draws() -> None:
    rng, far = np.random.default_rng(0), np.array([0.97, 0.02, 0.01])
    touched = [bool((label_factors(rng.multinomial(90, np.ones(3) / 3), far) != 1).any()) for _ in range(2_000)]
    assert 0.035 < float(np.mean(touched)) < 0.065


def test_a_label_that_nobody_says_and_one_that_nobody_was_taught_stay_finite() -> None:
    factors = label_factors(np.array([0, 80, 20]), np.array([0.4, 0.6, 0.0]))
    assert np.isfinite(factors).all() and (factors > 0).all()
    assert factors[0] < 1 < factors[2]
    assert label_factors(np.array([9]), np.array([1.0])).tolist() == [1.0]


@given(
    st.lists(st.integers(0, 60), min_size=3, max_size=6),
    st.randoms(use_true_random=False),
    st.integers(0, 2**16),
)
def test_the_order_of_labels_does_not_matter(counts: list[int], shuffle: object, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(counts))
    mean = np.random.default_rng(seed + 1).dirichlet(np.ones(len(counts)))
    there = label_factors(np.array(counts), mean)[order]
    assert label_factors(np.array(counts)[order], mean[order]) == pytest.approx(there)


def test_probabilities_stay_distributions_and_abstentions_stay_abstentions() -> None:
    probs = np.array([[0.2, 0.3, 0.5], [np.nan] * 3, [0.0, 0.0, 1.0]])
    moved = at_label_shares(probs, np.array([1.0, 2.0, 0.5]))
    assert moved[0] == pytest.approx(np.array([0.2, 0.6, 0.25]) / 1.05)
    assert np.isnan(moved[1]).all()
    assert moved[2].sum() == pytest.approx(1.0) and moved[2].argmax() == 2


def example(name: str, answer: str | None = None) -> Example:
    return Example(id=name, question=f"{name}?", options=OPTIONS, answer=answer)


def labelled(letters: str, prefix: str = "l") -> tuple[Example, ...]:
    return tuple(example(f"{prefix}{i}", letter) for i, letter in enumerate(letters))


def row(name: str, annotator: str, probs: tuple[float, ...], finish: str = "stop") -> Evidence:
    answer = "ABC"[int(np.argmax(probs))]
    return Evidence(
        example_id=name,
        annotator_id=annotator,
        prompt_hash="",
        text=f"Answer: {answer}",
        answer=answer,
        finish=finish,  # type: ignore[arg-type]
        option_probs=probs,
    )


def corpus(warm: tuple[Example, ...], calibration: tuple[Example, ...] = (), questions: int = 60) -> Corpus:
    unlabeled = tuple(example(f"u{i:03}") for i in range(questions))
    data = Prepared(labeled=(*warm, *calibration), unlabeled=unlabeled, test=(), report={})
    return Corpus(CHOICE, data, Folds(warm, calibration, (), True, ""), Neighbours({}, {}))


def evidence(about: Corpus, **mean: tuple[float, ...]) -> list[Evidence]:
    """Distributions of that mean: half of them surer, half of them less sure."""
    asked = (*about.data.unlabeled, *about.folds.calibration)
    shift = np.array([0.02, -0.04, 0.02])
    return [
        row(e.id, annotator, tuple((np.array(probs) + (shift if i % 2 else -shift)).tolist()))
        for annotator, probs in mean.items()
        for i, e in enumerate(asked)
    ]


def crew(**readings: Reading) -> Crew:
    return Crew(tuple(Annotator(name, "warm", 0, reading=how) for name, how in readings.items()), SILENT_JUDGE)


WARM = labelled("A" * 10 + "B" * 60 + "C" * 30)


def test_only_an_annotator_off_the_shares_and_read_as_a_distribution_gets_factors() -> None:
    here = corpus(WARM)
    said = EvidenceTable.of(evidence(here, biased=BIASED, fair=FAIR, voter=BIASED, justify=BIASED))
    who = crew(biased="option_prob", fair="option_read", voter="votes")
    found = factors_of_crew(here, who, said)
    assert list(found) == ["biased"] and list(found["biased"]) == [3]
    assert found["biased"][3] == pytest.approx(label_factors(np.array([10, 60, 30]), np.array(BIASED)), rel=1e-6)
    open_task = Task(TaskDefinition(name="n", kind="number", instruction="How many?"))
    assert factors_of_crew(replace(here, task=open_task), who, said) == {}


def test_what_calibrates_is_asked_like_the_unlabelled_and_its_labels_are_never_counted() -> None:
    plain = corpus(WARM)
    calibrating = corpus(WARM, labelled("A" * 40, "z"))
    who, rows = crew(biased="option_prob"), evidence(calibrating, biased=BIASED)
    before = factors_of_crew(calibrating, who, EvidenceTable.of(rows))["biased"][3]
    other_gold = corpus(WARM, labelled("C" * 40, "z"))
    assert factors_of_crew(other_gold, who, EvidenceTable.of(rows))["biased"][3].tolist() == before.tolist()
    changed = [replace(r, option_probs=(0.9, 0.05, 0.05)) if r.example_id.startswith("z") else r for r in rows]
    assert factors_of_crew(calibrating, who, EvidenceTable.of(changed))["biased"][3].tolist() != before.tolist()
    extra = [*rows, *(row(e.id, "biased", (0.9, 0.05, 0.05)) for e in WARM), row("u000", "biased#2", (1.0, 0.0, 0.0))]
    assert factors_of_crew(plain, who, EvidenceTable.of(extra))["biased"][3].tolist() == before.tolist()


def test_pseudo_labels_and_examples_chosen_for_a_person_are_not_counted() -> None:
    earlier, chosen = labelled("C" * 200, "t"), labelled("C" * 200, "p")
    here = replace(corpus((*WARM, *earlier, *chosen)), pseudo_labeled=earlier)
    said, who = EvidenceTable.of(evidence(here, biased=BIASED)), crew(biased="option_prob")
    only = factors_of_crew(corpus(WARM), who, said)["biased"][3].tolist()
    assert factors_of_crew(here, who, said, [e.id for e in chosen])["biased"][3].tolist() == only
    assert factors_of_crew(here, who, said)["biased"][3].tolist() != only


def test_evidence_in_parts_gives_the_same_bits_and_cut_answers_do_not_count() -> None:
    here, who = corpus(WARM), crew(biased="option_prob")
    rows = evidence(here, biased=BIASED)
    whole = factors_of_crew(here, who, EvidenceTable.of(rows))["biased"][3].tolist()
    parts = ChunkedTable.of(evidence_table(rows[40:]), evidence_table(rows[:40]), evidence_table([]))
    assert factors_of_crew(here, who, EvidenceTable(parts))["biased"][3].tolist() == whole
    cut = [*rows, *(row(f"x{i}", "biased", (0.98, 0.01, 0.01), finish="length") for i in range(50))]
    assert factors_of_crew(here, who, EvidenceTable.of(cut))["biased"][3].tolist() == whole


def test_without_factors_the_pool_is_bit_for_bit_what_it_was() -> None:
    here, who = corpus(WARM), crew(fair="option_prob")
    said = EvidenceTable.of(evidence(here, fair=FAIR))
    nothing = EvidenceTable.of([])
    inputs = SelectionInputs(said, nothing, JustifySettings(), None, RetrieveSettings(), {})
    plain = pooled_answers(here, who, inputs)
    found = pooled_answers(here, who, inputs, factors_of_crew(here, who, said))
    assert found.factors == {} and found.score.tobytes() == plain.score.tobytes()


def selected(here: Corpus, who: Crew, said: EvidenceTable, shares: Literal["labeled", "as-read"]) -> Selection:
    heard = SelectionInputs(said, EvidenceTable.of([]), JustifySettings(), None, RetrieveSettings(), {})
    settings = SelectSettings(rule="top-n", n=10, score="pooled", label_shares=shares)
    return asyncio.run(select(here, who, heard, settings, 0))


def test_the_selection_uses_them_says_so_and_leaves_them_where_told() -> None:
    here, who = corpus(WARM), crew(biased="option_prob")
    said = EvidenceTable.of(evidence(here, biased=BIASED))
    raw, moved = selected(here, who, said, "as-read"), selected(here, who, said, "labeled")
    assert raw.summary.label_factors is UNSET
    assert list(moved.summary.label_factors) == ["biased"]
    assert "label_shares" in str(moved.summary.messages) and "label_shares" not in str(raw.summary.messages)
    assert set(raw.scores["answer"].to_pylist()) == {"B", "C"}
    assert set(moved.scores["answer"].to_pylist()) == {"B"}, "C was ahead by a hair in half of the rows"
