"""Selection by the pooled probability: a person's audit calibrates, what is missing is counted, quotas and verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from msgspec import UNSET

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.replies import UNSEEN
from semievol_api.annotate.requests import Corpus, reworded, shuffled_order
from semievol_api.config.method import JustifySettings, SelectSettings
from semievol_api.config.settings import RetrieveSettings
from semievol_api.errors import StageError
from semievol_api.records import Evidence, Example
from semievol_api.selection import Calibration, fdr, human_budget
from semievol_api.selection.columns import SelectionInputs
from semievol_api.selection.stage import select
from semievol_api.store.artifacts import EvidenceTable, Folds, Neighbours, Prepared, Selection
from semievol_api.tasks import Task, TaskDefinition

CHOICE = Task(TaskDefinition(name="c", kind="multiple_choice", instruction="Which?"))
CREW = Crew((Annotator("a", "warm", 0, reading="option_prob"),), Annotator("judge", "judge", 0, reading="option_prob"))
UNLABELED, CALIBRATING = 200, 60


def example(name: str, answer: str | None = None) -> Example:
    return Example(id=name, question=f"{name}?", options=("one", "two", "three"), answer=answer)


def corpus() -> Corpus:
    """Every fifth calibration item is answered wrongly: the crew always says B."""
    unlabeled = tuple(example(f"u{i:03}") for i in range(UNLABELED))
    calibration = tuple(example(f"c{i:03}", "A" if i % 5 == 0 else "B") for i in range(CALIBRATING))
    data = Prepared(labeled=calibration, unlabeled=unlabeled, test=(), report={})
    return Corpus(CHOICE, data, Folds((), calibration, (), True, ""), Neighbours({}, {}))


def said_b(name: str, surety: float) -> Evidence:
    rest = (1 - surety) / 2
    return Evidence(
        example_id=name,
        annotator_id="a",
        prompt_hash="",
        text="Answer: B",
        answer="B",
        finish="stop",
        option_probs=(rest, surety, rest),
    )


def evidence(here: Corpus) -> list[Evidence]:
    """Each item with a surety of its own; wrong calibration items are the least sure."""
    rows = [said_b(e.id, 0.4 + 0.5 * (i + 1) / UNLABELED) for i, e in enumerate(here.data.unlabeled)]
    sureties = [0.41 + i / 1_000 if e.answer == "A" else 0.6 + i / 1_000 for i, e in enumerate(here.folds.calibration)]
    return [*rows, *(said_b(e.id, s) for e, s in zip(here.folds.calibration, sureties, strict=True))]


def selected(
    rows: Sequence[Evidence],
    settings: SelectSettings,
    reviewed: Mapping[str, str] | None = None,
    pseudo_labeled: tuple[Example, ...] = (),
) -> Selection:
    heard = SelectionInputs(
        EvidenceTable.of(rows), EvidenceTable.of([]), JustifySettings(), None, RetrieveSettings(), reviewed or {}
    )
    return asyncio.run(select(replace(corpus(), pseudo_labeled=pseudo_labeled), CREW, heard, settings, 0))


@pytest.mark.parametrize("person", ["B", "C"])
def test_only_the_audited_answers_calibrate_and_they_leave_the_pool(person: str) -> None:
    settings = SelectSettings(rule="human-budget", score="pooled", budget=40, audit_share=0.2, alpha=0.25)
    here = corpus()
    first = selected(evidence(here), settings)
    scores = np.array(first.scores["score"].to_pylist())
    asked = human_budget(scores, [e.id for e in here.data.unlabeled], 40, 0.2, 0)
    assert first.queue.count(b"\n") == 40
    reviewed = {e.id: person for e, yes in zip(here.data.unlabeled, asked.asked, strict=True) if yes}
    second = selected(evidence(here), settings, reviewed)
    found = second.summary
    assert found.answered_by_a_person == 40 and second.queue == b""
    assert found.calibration == CALIBRATING + 8, "the other 32 were chosen for their doubt"
    assert found.calibration_error == pytest.approx((12 + (8 if person == "C" else 0)) / (CALIBRATING + 8))
    threshold = found.threshold
    assert isinstance(threshold, float)
    cal = np.array([row.option_probs[1] for row in evidence(here)[UNLABELED:] if row.option_probs])
    wrong = np.array([e.answer == "A" for e in here.folds.calibration])
    above = int(np.sum(wrong & (cal >= threshold - 1e-9)))
    above += int(np.sum(scores[asked.audit] >= threshold - 1e-9)) if person == "C" else 0
    reached = int(np.sum(scores[~asked.audit] >= threshold - 1e-9))
    assert found.estimated_false_share == pytest.approx(
        (UNLABELED - 8) * (1 + above) / ((CALIBRATING + 8 + 1) * reached)
    )
    answers = {label.example_id: label.answer for label in second.kept}
    assert all(answers[name] == person for name in reviewed), "a person's words count more than the crew's"


def test_what_earlier_rounds_kept_counts_in_the_pool_of_fdr() -> None:
    settings = SelectSettings(rule="fdr", score="pooled", alpha=0.25)
    pseudo_labeled = tuple(example(f"t{i}", "B") for i in range(120))
    first, later = (
        selected(evidence(corpus()), settings),
        selected(evidence(corpus()), settings, pseudo_labeled=pseudo_labeled),
    )
    assert len(first.kept) > len(later.kept) > 0
    scores = np.array(later.scores["score"].to_pylist())
    threshold = later.summary.threshold
    assert isinstance(threshold, float)
    cal = np.array([row.option_probs[1] for row in evidence(corpus())[UNLABELED:] if row.option_probs])
    wrong = np.array([e.answer == "A" for e in corpus().folds.calibration])
    above, reached = int(np.sum(wrong & (cal >= threshold - 1e-9))), int(np.sum(scores >= threshold - 1e-9))
    assert later.summary.estimated_false_share == pytest.approx(
        (UNLABELED + 120) * (1 + above) / ((CALIBRATING + 1) * reached)
    )
    assert later.summary.false_share_range is None and first.summary.false_share_range is not None


def test_more_than_five_percent_of_answers_without_probabilities_fail_the_run() -> None:
    settings, rows = SelectSettings(rule="fdr", score="pooled"), evidence(corpus())
    few = [replace(row, option_probs=None) if i % 20 == 0 else row for i, row in enumerate(rows)]
    assert selected(few, settings).summary.answered == UNLABELED - UNLABELED // 20
    many = [replace(row, option_probs=None) if i % 18 == 0 else row for i, row in enumerate(rows)]
    with pytest.raises(StageError, match="without log-probabilities"):
        selected(many, settings)


def test_a_class_that_vanishes_and_answers_without_relation_to_the_gold_are_in_the_summary() -> None:
    rows = evidence(corpus())
    doubtful = {f"u{i:03}" for i in range(0, UNLABELED, 3)}
    swapped = [replace(r, option_probs=(0.36, 0.33, 0.31)) if r.example_id in doubtful else r for r in rows]
    found = selected(swapped, SelectSettings(rule="top-n", n=60, score="pooled")).summary.warnings
    assert "vanished-class" in {warning.kind for warning in found}
    torn = [
        replace(r, option_probs=((0.49, 0.47, 0.04), (0.47, 0.49, 0.04))[i // 5 % 2])
        if r.example_id.startswith("c")
        else r
        for i, r in enumerate(rows)
    ]
    said = selected(torn, SelectSettings(rule="top-n", n=60, score="pooled")).summary.warnings
    assert "uninformative" in {warning.kind for warning in said}


def test_answers_with_labels_that_the_server_did_not_show_are_counted() -> None:
    rows = [replace(row, failure=f"{UNSEEN}: C") if i < 7 else row for i, row in enumerate(evidence(corpus()))]
    assert selected(rows, SelectSettings(rule="fdr", score="pooled")).summary.labels_filled_in == {"a": 7}


def test_every_question_and_every_annotator_has_an_order_of_its_own() -> None:
    four = [Example(id=f"q{i}", question="?", options=("w", "x", "y", "z")) for i in range(60)]
    one, other = (Annotator(name, "base", 0, permute=True) for name in ("one", "other"))
    orders = [shuffled_order(CHOICE, e, one, 0) for e in four]
    assert len(set(orders)) > 15 and all(sorted(order or ()) == [0, 1, 2, 3] for order in orders)
    assert orders != [shuffled_order(CHOICE, e, other, 0) for e in four]
    assert orders == [shuffled_order(CHOICE, e, one, 0) for e in four]
    assert shuffled_order(CHOICE, four[0], replace(one, permute=False), 0) is None


def test_questions_with_the_same_demonstrations_follow_each_other_behind_one_prefix() -> None:
    warm = tuple(example(f"w{i}", "ABC"[i % 3]) for i in range(3))
    asked = tuple(example(f"q{i:02}") for i in range(40))
    near = {e.id: tuple(f"w{(i * 7 + j) % 3}" for j in range(3)) for i, e in enumerate(asked)}
    here = Corpus(CHOICE, Prepared(warm, asked, (), {}), Folds(warm, (), (), True, ""), Neighbours(near, {}))
    other_words = reworded(CHOICE, "Choose.", (2, 0, 1))
    for shots in (1, 2, 3):
        ordered = here.by_shot_set(asked, shots)
        assert sorted(e.id for e in ordered) == sorted(e.id for e in asked)
        prefixes = [here.prompt(e, shots).messages[0] for e in ordered]
        assert {message.role for message in prefixes} == {"system"}
        changes = sum(a != b for a, b in pairwise(prefixes))
        assert changes == len(set(prefixes)) - 1 < 6, "every set of demonstrations once"
        assert here.prompt(ordered[0], shots, other_words, (2, 0, 1)).messages[0] == prefixes[0]
    assert list(here.by_shot_set(asked, 0)) == list(asked)


# ------------------------------------------------------------------------------------- a way out, and what is taught
STRICT = SelectSettings(rule="fdr", score="pooled", alpha=0.01)


def test_where_no_cut_meets_alpha_the_verdict_names_the_least_alpha_and_the_best_half_is_kept() -> None:
    rows = evidence(corpus())
    found = selected(rows, STRICT)
    summary = found.summary
    assert summary.best_half is True and not summary.guarantee and summary.alpha is None
    assert (len(found.kept), summary.applied_rule, summary.enough) == (UNLABELED // 2, "percentile", True)
    least = summary.smallest_alpha
    assert isinstance(least, float)
    there = selected(rows, STRICT.model_copy(update={"alpha": least}))
    assert len(there.kept) == summary.kept_at_smallest_alpha >= 20
    below = STRICT.model_copy(update={"alpha": round(least - 0.001, 3), "on_empty": "stop"})
    assert len(selected(rows, below).kept) < 20
    assert any(f"alpha = {least:g} is the smallest" in said for said in summary.messages)
    assert any("nothing is promised of it" in said for said in summary.messages)


def test_an_empty_selection_stays_empty_where_that_is_wanted_and_in_later_rounds() -> None:
    stopped = selected(evidence(corpus()), STRICT.model_copy(update={"on_empty": "stop"})).summary
    assert (stopped.kept, stopped.enough, stopped.applied_rule) == (0, False, "fdr")
    assert stopped.best_half is UNSET and isinstance(stopped.smallest_alpha, float)
    earlier = tuple(example(f"t{i}", "B") for i in range(120))
    assert selected(evidence(corpus()), STRICT, pseudo_labeled=earlier).summary.kept == 0
    enough = selected(evidence(corpus()), SelectSettings(rule="fdr", score="pooled", alpha=0.25)).summary
    assert enough.best_half is UNSET and enough.smallest_alpha is UNSET


def test_the_summary_tells_what_kept_labels_can_teach() -> None:
    """The student says C where the others overrule it, every tenth time, and is the less sure the later the row."""
    crew = Crew(
        (
            Annotator("shown", "warm", 3, reading="option_prob"),
            Annotator("own", "warm", 0, reading="option_prob"),
            Annotator("other", "base", 1, reading="option_prob"),
        ),
        CREW.judge,
    )
    rows: list[Evidence] = []
    for i, row in enumerate(evidence(corpus())):
        sure = 0.9 - 0.4 * i / UNLABELED if i < UNLABELED else 0.7
        rest = (1 - sure) / 2
        own = (rest, rest, sure) if i % 10 == 0 and i < UNLABELED else (rest, sure, rest)
        rows += [replace(row, annotator_id="shown", option_probs=(0.01, 0.98, 0.01))]
        rows += [replace(row, annotator_id="other", option_probs=(0.01, 0.98, 0.01))]
        rows += [replace(row, annotator_id="own", answer="ABC"[own.index(sure)], option_probs=own)]
    here = corpus()
    heard = SelectionInputs(
        EvidenceTable.of(rows), EvidenceTable.of([]), JustifySettings(), None, RetrieveSettings(), {}
    )
    settings = SelectSettings(rule="top-n", n=150, score="pooled", label_shares="as-read")
    found = asyncio.run(select(here, crew, heard, settings, 0))
    taught = found.summary.teaching
    assert taught is not UNSET
    kept = {label.example_id for label in found.kept}
    expected = sum(f"u{i:03}" in kept for i in range(0, UNLABELED, 10))
    assert (taught.asked, taught.compared, taught.differ) == ("own", 150, expected)
    hardest = sum(f"u{i:03}" in kept for i in range(UNLABELED - UNLABELED // 4, UNLABELED))
    assert taught.hardest_quarter == pytest.approx(hardest / 150)
    assert found.summary.kept_by_label == {"two": (150, UNLABELED)}
    assert any("differ from what the student says by itself (own)" in said for said in found.summary.messages)


def by_category(settings: SelectSettings, neighbours: Neighbours | None = None, named: bool = True) -> Selection:
    """All answers are equally sure but a few; where those are (odd rows), the others are less often right."""
    here, rows = corpus(), list[Evidence]()
    place = {e.id: i for i, e in enumerate((*here.data.unlabeled, *here.folds.calibration))}

    def told(e: Example) -> Example:
        i = place[e.id]
        answer = e.answer and ("A" if i % 2 and i % 4 == 1 else "B")
        return replace(e, answer=answer, category=("easy", "hard")[i % 2] if named else None)

    unlabeled, calibration = (tuple(map(told, es)) for es in (here.data.unlabeled, here.folds.calibration))
    for e in (*unlabeled, *calibration):
        rows.append(said_b(e.id, 0.6 if place[e.id] % 14 == 1 else 1.0))
    data = Prepared(labeled=calibration, unlabeled=unlabeled, test=(), report={})
    corpus_ = Corpus(CHOICE, data, Folds((), calibration, (), True, ""), neighbours or Neighbours({}, {}))
    heard = SelectionInputs(
        EvidenceTable.of(rows), EvidenceTable.of([]), JustifySettings(), None, RetrieveSettings(), {}
    )
    return asyncio.run(select(corpus_, CREW, heard, settings, 0))


def test_equal_answers_are_told_apart_by_their_category() -> None:
    found = by_category(SelectSettings(rule="top-n", n=100, score="pooled"))
    assert found.summary.kept_by_category == {"easy": (100, 100), "hard": (0, 100)}
    promised = by_category(SelectSettings(rule="fdr", score="pooled", alpha=0.1))
    assert promised.summary.kept_by_category == {"easy": (100, 100), "hard": (0, 100)}
    assert promised.summary.guarantee
    assert promised.calibration is not None
    scores, held = (np.array(t["score"].to_pylist()) for t in (promised.scores, promised.calibration))
    wrong = np.array(
        [
            a != g
            for a, g in zip(
                promised.calibration["answer"].to_pylist(), promised.calibration["gold"].to_pylist(), strict=True
            )
        ]
    )
    again = fdr(scores, Calibration(scores=held, wrong=wrong), 0.1)
    assert again.kept.tolist() == promised.scores["kept"].to_pylist(), "what is stored selects the same anew"
    assert promised.summary.threshold == min(scores[again.kept])


def test_equal_answers_are_told_apart_by_their_nearest_questions_where_there_are_no_categories() -> None:
    ids = [*(f"u{i:03}" for i in range(UNLABELED)), *(f"c{i:03}" for i in range(CALIBRATING))]
    near = Neighbours({name: (f"w{i % 2}",) for i, name in enumerate(ids)}, dict.fromkeys(ids, (1.0,)))
    found = by_category(SelectSettings(rule="top-n", n=100, score="pooled"), near, named=False)
    assert all(int(label.example_id[1:]) % 2 == 0 for label in found.kept)
    assert found.summary.kept_by_category is UNSET


def test_answers_that_nothing_tells_apart_are_told_and_drawn_by_lot() -> None:
    found = by_category(SelectSettings(rule="top-n", n=100, score="pooled"), named=False)
    assert any("answers cannot be told apart" in said for said in found.summary.messages)
    odd = sum(int(label.example_id[1:]) % 2 for label in found.kept)
    assert 30 < odd < 70


def test_a_floor_by_category_keeps_some_of_each_and_takes_the_promise_back() -> None:
    found = by_category(SelectSettings(rule="fdr", score="pooled", alpha=0.1, category_floor=0.2))
    assert found.summary.kept_by_category == {"easy": (100, 100), "hard": (20, 100)}
    assert not found.summary.guarantee
    assert any("minimum share by class or category" in said for said in found.summary.messages)
