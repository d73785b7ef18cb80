"""Leaks, duplicates and conflicts leave with a reason; good data stays."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol_api.data import clean
from semievol_api.data.hygiene import jaccard, near_pairs, normalized
from semievol_api.records import Example

OPTIONS = ("an apple", "a pear", "a plum")
PASSAGE = " ".join(f"{word} {i * 7919}" for i, word in enumerate(["apples", "pears", "plums", "figs"] * 60))


def item(id: str, question: str, answer: str | None = None, options: tuple[str, ...] = OPTIONS) -> Example:
    return Example(id=id, question=question, options=options, answer=answer)


def reasons(labeled: list[Example], unlabeled: list[Example], test: list[Example], near: bool = False) -> list[str]:
    report = clean(labeled, unlabeled, test, near=near).report
    return [f"{row.part} {row.example_id}: {row.reason} {row.match_id}" for row in report.dropped]


LONG = "Which of these fruits is the one that keeps the doctor away, according to the old saying?"
LONG_TYPO = LONG.replace("saying", "sayings")


def test_training_items_that_match_test_items_leave() -> None:
    test = [item("t", "What is red?", "A")]
    assert reasons([item("l", "what is RED", "A")], [item("u", "What is red ?")], test) == [
        "labeled l: in test t",
        "unlabeled u: in test t",
    ]


def test_the_order_of_options_does_not_matter() -> None:
    turned = item("l", "What is red?", "C", OPTIONS[::-1])
    assert reasons([turned], [], [item("t", "What is red?", "A")]) == ["labeled l: in test t"]


def test_an_unlabelled_item_that_matches_a_labelled_one_leaves_the_pool() -> None:
    assert reasons([item("l", "What is red?", "A")], [item("u", "What is red?")], []) == ["unlabeled u: in labeled l"]


def test_repeats_inside_a_part_leave_and_the_first_stays() -> None:
    cleaned = clean(
        [item("a", "q?", "A"), item("b", "Q", "A")],
        [item("c", "r?"), item("d", "r"), item("e", "r!")],
        [],
        near=False,
    )
    assert [e.id for e in cleaned.labeled] == ["a"]
    assert [e.id for e in cleaned.unlabeled] == ["c"]


def test_conflicting_labels_are_quarantined_together() -> None:
    assert reasons([item("a", "q?", "A"), item("b", "q?", "B"), item("c", "q?", "A")], [item("u", "q?")], []) == [
        "labeled a: conflicting answers b",
        "labeled b: conflicting answers a",
        "labeled c: conflicting answers b",
    ]


def test_the_same_answer_under_another_letter_is_no_conflict() -> None:
    turned = item("b", "q?", "C", OPTIONS[::-1])
    assert reasons([item("a", "q?", "A"), turned], [], []) == ["labeled b: duplicate a"]


def test_a_question_with_other_options_is_good_data_and_gets_one_group() -> None:
    other = item("u", "Which is right?", None, ("fire", "water"))
    cleaned = clean([item("l", "Which is right?", "A")], [other], [], near=False)
    assert cleaned.report.dropped == ()
    assert cleaned.labeled[0].group == cleaned.unlabeled[0].group is not None
    assert cleaned.report.shared_questions[0].members == (("labeled", "l"), ("unlabeled", "u"))


def test_a_group_of_the_datas_own_is_kept() -> None:
    mine = Example(id="l", question="Which is right?", options=OPTIONS, answer="A", group="article-7")
    assert (
        clean([mine], [item("u", "Which is right?", None, ("x", "y"))], [], near=False).labeled[0].group == "article-7"
    )


def test_hidden_answers_are_never_read() -> None:
    def with_gold(gold: str) -> list[Example]:
        return [Example(id=str(i), question="q?", options=OPTIONS, hidden_answer=gold if i else "A") for i in range(2)]

    one, other = (clean([], with_gold(gold), [], near=True) for gold in "AB")
    assert replace(one, unlabeled=tuple(one.unlabeled)) == replace(other, unlabeled=tuple(other.unlabeled))


def test_near_duplicates_leave_only_when_asked_for() -> None:
    labeled, unlabeled, test = [item("l", LONG, "A")], [item("u", LONG_TYPO)], [item("t", "What else?", "A")]
    assert reasons(labeled, unlabeled, test) == []
    assert reasons(labeled, unlabeled, test, near=True) == ["unlabeled u: in labeled l"]


def test_near_duplicates_with_other_answers_stay() -> None:
    assert reasons([item("l", LONG, "A"), item("m", LONG_TYPO, "B")], [], [], near=True) == []


def test_near_duplicates_with_other_options_stay_and_share_a_group() -> None:
    cleaned = clean([item("l", LONG, "A")], [item("u", LONG_TYPO, None, ("fire", "water"))], [], near=True)
    assert cleaned.report.dropped == ()
    assert cleaned.labeled[0].group == cleaned.unlabeled[0].group is not None


def test_two_short_questions_on_one_long_passage_are_not_one_question() -> None:
    one = Example(id="1", question=f"{PASSAGE}\n\nHow many fruits were sold in 2011 in all shops together?")
    two = Example(id="2", question=f"{PASSAGE}\n\nAnd what did each of them cost on average?")
    assert jaccard(normalized(one.question), normalized(two.question)) >= 0.9
    cleaned = clean([], [one, two], [], near=True)
    assert len(cleaned.unlabeled) == 2
    assert cleaned.unlabeled[0].group == cleaned.unlabeled[1].group is not None


def test_the_test_part_is_never_changed_and_its_repeats_are_counted() -> None:
    test = [item("a", "q?", "A"), item("b", "q?", "A")]
    cleaned = clean([], [], test, near=True)
    assert [e.id for e in cleaned.test] == ["a", "b"]
    assert cleaned.report.repeats_in_test == 1


def test_numbers_signs_and_factorials_keep_questions_apart() -> None:
    different = [
        "What is 3.14?",
        "What is 314?",
        "What is -314?",
        "What is 314!?",
        "What is 31/4?",
        "What is 31*4?",
    ]
    assert len({normalized(text) for text in different}) == len(different)
    assert normalized("x = -y") != normalized("x = y")
    assert normalized("ＡＢＣ, well-known!") == normalized("abc well known")
    assert normalized("___?!") == "___?!"


def test_the_report_is_json_and_always_the_same(tmp_path: Path) -> None:
    labeled = [item(f"l{i}", f"question {i % 7}?", "A") for i in range(20)]
    unlabeled = [item(f"u{i}", f"question {i % 9}?") for i in range(20)]
    first, second = (clean(labeled, unlabeled, [], near=True).report for _ in range(2))
    first.write(tmp_path / "hygiene.json")
    assert json.loads((tmp_path / "hygiene.json").read_text("utf-8")) == second.as_json()
    assert first.counts == {"labeled: duplicate": 13, "unlabeled: duplicate": 2, "unlabeled: in labeled": 16}
    assert sum(first.counts.values()) == len(first.dropped)


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_jaccard_is_symmetric_and_one_for_equal_texts(a: str, b: str) -> None:
    assert jaccard(a, a) == 1.0
    assert jaccard(a, b) == jaccard(b, a)
    assert 0 <= jaccard(a, b) <= 1


def test_near_pairs_finds_all_pairs_and_nothing_else() -> None:
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(150)]
    for i in range(0, 150, 3):
        words_of = texts[i].split()
        words_of[rng.randrange(40)] = rng.choice(words)
        texts.append(" ".join(words_of))
    texts += ["", "a", "a", "日本語のテキスト"]
    expected = [
        (i, j) for i in range(len(texts)) for j in range(i + 1, len(texts)) if jaccard(texts[i], texts[j]) >= 0.9
    ]
    assert len(expected) > 40
    assert near_pairs(texts, 0.9) == expected


@pytest.mark.slow
def test_a_hundred_thousand_questions_are_searched_within_a_minute() -> None:
    import time

    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 10))) for _ in range(20_000)]
    texts = [" ".join(rng.choices(words, k=16)) for _ in range(100_000)]
    planted = rng.sample(range(100_000), 200)
    copies = [texts[i][:-1] for i in planted]
    start = time.process_time()
    pairs = near_pairs(texts + copies, 0.9)
    assert time.process_time() - start < 60
    assert len(pairs) >= 195
    assert {i for i, _ in pairs} <= set(planted)
