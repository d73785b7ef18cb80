"""The released splits of four of the paper's data sets: their known defects are met, told and put right."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from semievol_api.config.settings import DataSettings
from semievol_api.data import RawData, clean, read_data
from semievol_api.data.cells import NULL_OPTION
from semievol_api.data.examples import DIGIT_ANSWER
from semievol_api.data.hygiene import normalized
from semievol_api.tasks import load_task

SIZES = {"arc": (518, 1554, 518), "fpb": (452, 1359, 453), "mmlu": (2808, 8425, 2809), "pubmedqa": (200, 600, 200)}


@lru_cache
def released(released_data: Path, name: str) -> RawData:
    """Read once for all tests: nothing changes it."""
    folder = released_data / name
    settings = DataSettings(
        task=name,
        labeled=folder / "labeled.csv",
        unlabeled=folder / "unlabeled.csv",
        test=folder / "test.csv",
    )
    return read_data(settings, load_task(name))


@pytest.mark.parametrize("name", SIZES)
def test_every_row_becomes_an_example_and_all_gold_is_readable(released_data: Path, name: str) -> None:
    data = released(released_data, name)
    assert (len(data.labeled), len(data.unlabeled), len(data.test)) == SIZES[name]
    assert len(data.gold) == len(data.unlabeled)
    assert all(e.answer is None for e in data.unlabeled)
    for part in (data.labeled, data.unlabeled, data.test):
        assert len({e.id for e in part}) == len(part)


@pytest.mark.parametrize("name", SIZES)
def test_the_built_in_tasks_read_their_own_target_back(released_data: Path, name: str) -> None:
    task = load_task(name)
    for example in released(released_data, name).labeled:
        assert example.answer is not None
        assert task.parse(task.target(example, example.answer), example) == example.answer


@pytest.mark.parametrize("name", SIZES)
def test_option_text_alone_is_never_read_as_another_letter(released_data: Path, name: str) -> None:
    task = load_task(name)
    for example in released(released_data, name).labeled:
        for letter, text in zip("ABCDEFGHIJ", example.options, strict=False):
            assert task.parse(f"Answer: {letter}. {text}", example) == letter
            read = task.parse(f"Answer: {text}", example)
            if len(normalized(text)) > 1:
                assert read in (letter, None), (example.options, text)


def test_26_arc_answers_that_are_digits_become_letters_and_are_reported(released_data: Path) -> None:
    data = released(released_data, "arc")
    (note,) = [note for note in data.notes if note.what == DIGIT_ANSWER]
    assert len(note.example_ids) == 26
    assert {data.gold[i] for i in note.example_ids} <= set("ABCD")


def test_41_mmlu_test_questions_occur_in_the_unlabelled_and_19_in_the_labelled_file(released_data: Path) -> None:
    data = released(released_data, "mmlu")
    test = [normalized(e.question) for e in data.test]
    for searched, expected in ((data.unlabeled, 41), (data.labeled, 19)):
        questions = {normalized(e.question) for e in searched}
        assert sum(question in questions for question in test) == expected
    report = clean(data.labeled, data.unlabeled, data.test, near=False).report
    leaked = [row for row in report.dropped if row.match_part == "test"]
    kept = {(part, id) for group in report.shared_questions for part, id in group.members}
    in_test = set(test)
    for part, examples in (("labeled", data.labeled), ("unlabeled", data.unlabeled)):
        dropped = {row.example_id for row in report.dropped if row.part == part}
        for example in examples:
            if normalized(example.question) in in_test:
                assert example.id in dropped or (part, example.id) in kept
    assert {row.reason for row in leaked} == {"in test"}
    assert len(leaked) == 9 + 23


def test_ten_mmlu_rows_hold_nan_where_the_option_was_none(released_data: Path) -> None:
    notes = [note for note in released(released_data, "mmlu").notes if note.what == NULL_OPTION]
    assert sum(len(note.example_ids) for note in notes) == 10


def test_fpb_sentences_that_repeat_across_splits_leave(released_data: Path) -> None:
    data = released(released_data, "fpb")
    cleaned = clean(data.labeled, data.unlabeled, data.test, near=False)
    assert cleaned.report.counts == {"labeled: in test": 1, "unlabeled: duplicate": 2, "unlabeled: in labeled": 2}
    near = clean(data.labeled, data.unlabeled, data.test, near=True).report
    assert len(near.dropped) == 14
    again = clean(cleaned.labeled, cleaned.unlabeled, cleaned.test, near=False)
    assert again.report.dropped == ()
