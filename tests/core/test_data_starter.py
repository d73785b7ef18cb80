"""`init`: what a user's own file is understood to be, and the files to start with."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from semievol_api.config.settings import load_config
from semievol_api.data import clean, read_data, start, understand
from semievol_api.errors import DataError
from semievol_api.tasks import load_task


def rows_file(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def choice_rows(n: int) -> list[dict[str, object]]:
    return [
        {"stem": f"Long question number {i}, isn't it?", "A": "x", "B": "y", "C": "z", "label": "ABC"[i % 3]}
        for i in range(n)
    ]


def write_all(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "semievol.toml"


def test_options_in_several_columns_make_a_multiple_choice_task(tmp_path: Path) -> None:
    found = understand(rows_file(tmp_path / "d.jsonl", choice_rows(9)))
    assert found.kind == "multiple_choice"
    assert found.columns.question == "stem"
    assert found.columns.options == ("A", "B", "C")
    assert found.columns.answer == "label"
    assert "Columns 'A', 'B', 'C' hold the options." in found.reasons


@pytest.mark.parametrize(
    ("answers", "kind", "labels"),
    [
        (["pos", "neg", "pos", "neg", "pos", "neg"], "labels", ("neg", "pos")),
        (["1", "5", "1", "5", "5", "1"], "labels", ("1", "5")),
        (["1.5", "20%", "3,000", "-4", "0.7", "12"], "number", ()),
        (["Paris", "Rome", "Oslo", "Bern", "Kiel", "Lodz"], "free_text", ()),
        ([None, None], "free_text", ()),
    ],
)
def test_the_answers_tell_the_kind(tmp_path: Path, answers: list[object], kind: str, labels: tuple[str, ...]) -> None:
    rows = [{"text": f"t{i}", "label": answer} for i, answer in enumerate(answers)]
    found = understand(rows_file(tmp_path / "d.jsonl", rows))
    assert (found.kind, found.labels) == (kind, labels)
    assert found.answered == sum(answer is not None for answer in answers)


def test_an_id_column_that_repeats_is_not_taken(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": 1, "text": "a", "label": "x"}, {"id": 1, "text": "b", "label": "y"}]
    assert understand(rows_file(tmp_path / "d.jsonl", rows)).columns.id is None


def test_a_file_without_any_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column that looks like a question"):
        understand(rows_file(tmp_path / "d.jsonl", [{"a": 1, "label": 2}]))


def test_a_file_with_all_answers_is_split_and_the_written_files_load(tmp_path: Path) -> None:
    starter = start(rows_file(tmp_path / "data.jsonl", choice_rows(60)))
    config = load_config(write_all(tmp_path, starter.files))
    assert config.train.n_epochs is None, "auto: the trainer decides"
    data = read_data(config.data, load_task(config.data.task))
    assert (len(data.labeled), len(data.unlabeled), len(data.test)) == (12, 36, 12)
    assert len(data.gold) == 36
    assert clean(data.labeled, data.unlabeled, data.test, near=False).report.dropped == ()
    assert "2 : 6 : 2" in starter.remarks[0]


def test_rows_without_an_answer_are_the_unlabelled_part(tmp_path: Path) -> None:
    rows = choice_rows(30)
    for row in rows[10:]:
        row["label"] = None
    starter = start(rows_file(tmp_path / "data.jsonl", rows))
    config = load_config(write_all(tmp_path, starter.files))
    data = read_data(config.data, load_task(config.data.task))
    assert (len(data.labeled), len(data.unlabeled), len(data.test)) == (10, 20, 0)
    assert config.data.test is None


def test_files_of_the_users_own_stay_where_they_are(tmp_path: Path) -> None:
    rows = [{"id": i, **row} for i, row in enumerate(choice_rows(20))]
    labeled = rows_file(tmp_path / "l.jsonl", rows)
    bare = [{k: v for k, v in row.items() if k not in ("id", "label")} for row in choice_rows(40)[20:]]
    starter = start(labeled, unlabeled=rows_file(tmp_path / "u.jsonl", bare))
    assert set(starter.files) == {"task.toml", "semievol.toml"}
    config = load_config(write_all(tmp_path, starter.files))
    assert (config.run.mode, config.select.rule, config.limits.max_usd) == ("calibrated", "fdr", 5.0)
    data = read_data(config.data, load_task(config.data.task))
    assert (len(data.labeled), len(data.unlabeled)) == (20, 20)


def test_quotes_and_other_scripts_survive_the_task_file(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {'a "column"': f"text {i}", "label": ['say "no"', "良い\\"][i % 2]} for i in range(8)
    ]
    starter = start(rows_file(tmp_path / "data.jsonl", rows))
    tree = tomllib.loads(starter.files["task.toml"])
    assert tree["labels"] == ['say "no"', "良い\\"]
    assert tree["columns"]["question"] == 'a "column"'


@pytest.mark.parametrize("name", ["arc", "fpb", "mmlu", "pubmedqa"])
def test_the_released_files_are_understood(released_data: Path, name: str) -> None:
    found = understand(released_data / name / "unlabeled.csv")
    assert found.kind == "multiple_choice"
    assert found.columns.options == "options"
    assert found.columns.answer == "answer"


def test_spellings_of_a_label_that_differ_by_case_are_one_label(tmp_path: Path) -> None:
    answers = ["positive", "negative", "positive", "Negative", "positive ", "negative"]
    rows: list[dict[str, object]] = [{"text": f"text {i}", "label": answer} for i, answer in enumerate(answers)]
    starter = start(rows_file(tmp_path / "data.jsonl", rows))
    assert starter.understanding.labels == ("negative", "positive")
    config = load_config(write_all(tmp_path, starter.files))
    data = read_data(config.data, load_task(config.data.task))
    assert {e.answer for e in data.labeled} <= {"negative", "positive"}


def test_a_labelled_file_without_answers_says_how_to_name_their_column(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"q": f"text number {i}", "gist": "no" if i % 2 else "yes"} for i in range(12)]
    data = rows_file(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError, match=r"no column looks like the answer.*q, gist.*--answer COLUMN"):
        start(data)
    with pytest.raises(DataError, match="no column 'gits'"):
        start(data, answer="gits")
    found = start(data, answer="gist").understanding
    assert (found.columns.question, found.columns.answer, found.labels) == ("q", "gist", ("no", "yes"))
    assert start(data, question="gist", answer="q").understanding.columns.question == "gist"


def test_the_parts_are_counted_and_a_label_that_no_part_teaches_is_told(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {i}", "label": "ab"[i % 2] if i else "rare"} for i in range(50)]
    rows[1]["label"] = "rare"
    starter = start(rows_file(tmp_path / "data.jsonl", rows))
    assert "Rows: 10 labelled, 30 unlabelled, 10 for the test." in starter.remarks
    assert any("No labelled row is left for 1 of 3 labels ('rare')" in remark for remark in starter.remarks)


def test_seventy_intents_are_labels_and_numbers_as_labels_ask_for_words(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {i}", "label": f"intent {i % 70}"} for i in range(210)]
    assert len(understand(rows_file(tmp_path / "many.jsonl", rows)).labels) == 70
    rows = [{"text": f"text {i}", "label": i % 3} for i in range(30)]
    found = understand(rows_file(tmp_path / "ints.jsonl", rows))
    assert "write into the task's instruction what each of them means" in found.reasons[-1]


def test_one_answer_for_all_rows_asks_whether_it_is_the_right_column(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {i}", "label": "x"} for i in range(9)]
    assert "All 9 answers are 'x'" in understand(rows_file(tmp_path / "d.jsonl", rows)).reasons[-1]


def test_labels_that_only_the_test_file_knows_are_labels_too(tmp_path: Path) -> None:
    def rows(*labels: str) -> list[dict[str, object]]:
        return [{"text": f"text {i} {label}", "label": label} for i, label in enumerate(labels * 6)]

    data, pool = rows_file(tmp_path / "d.jsonl", rows("a", "b")), rows_file(tmp_path / "u.jsonl", rows("c"))
    starter = start(data, unlabeled=pool, test=rows_file(tmp_path / "t.jsonl", rows("A", "rare")))
    assert starter.understanding.labels == ("a", "b", "rare")
    assert "No labelled row is left for 1 of 3 labels ('rare')" in starter.remarks[0]
    config = load_config(write_all(tmp_path, starter.files))
    assert len(read_data(config.data, load_task(config.data.task)).test) == 12
