"""Every kind of source gives the same examples; every bad one gives a paragraph that says where and what to try."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semievol_api.config.settings import DataSettings
from semievol_api.data import content_id, read_data, read_examples, read_source, read_table
from semievol_api.data.cells import NULL_OPTION, SAME_OPTIONS
from semievol_api.data.examples import DIGIT_ANSWER, HIDDEN_UNREADABLE
from semievol_api.data.sources import SAME_ID, archive_rows, hub_address
from semievol_api.errors import ConfigError, DataError
from semievol_api.records import Example
from semievol_api.tasks import Task, TaskDefinition
from semievol_api.tasks.definition import Archive

ROWS: list[dict[str, object]] = [
    {"question": "Which is red?", "options": ["blood", "grass"], "answer": "A"},
    {"question": 'Which, "quoted",\nis green?', "options": ["blood", "Gräser 草"], "answer": "B"},
]
EXPECTED = tuple(
    Example(
        id=content_id(str(row["question"]), options),
        question=str(row["question"]),
        options=options,
        answer=str(row["answer"]),
    )
    for row, options in zip(ROWS, (("blood", "grass"), ("blood", "Gräser 草")), strict=True)
)


def choice_task(**more: object) -> Task:
    tree = {"name": "t", "kind": "multiple_choice", "instruction": "I.", "columns": {"options": "options"}}
    return Task(TaskDefinition.model_validate(tree | more))


CHOICE = choice_task()


def write_csv(path: Path) -> Path:
    def cell(value: object) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return '"' + text.replace('"', '""') + '"'

    lines = ["question,options,answer", *(",".join(map(cell, row.values())) for row in ROWS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS), encoding="utf-8")
    return path


def write_json(path: Path) -> Path:
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "d.csv": write_csv,
    "d.jsonl": write_jsonl,
    "d.json": write_json,
    "d.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_kind_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    assert tuple(read_examples(read_table(path), CHOICE, "labeled").examples) == EXPECTED


def test_a_byte_order_mark_and_semicolons_and_windows_lines_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes('\ufeffquestion;answer\r\n"a\r\nb";yes\r\n'.encode())
    task = Task(TaskDefinition(name="t", kind="labels", instruction="I.", labels=("yes", "no")))
    (example,) = read_examples(read_table(path), task, "labeled").examples
    assert (example.question, example.answer) == ("a\nb", "yes")


def test_a_dataset_on_disk_gives_the_same_examples_and_class_numbers_become_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        question=datasets.Value("string"),
        options=datasets.Sequence(datasets.Value("string")),
        answer=datasets.ClassLabel(names=["A", "B"]),
    )
    table = datasets.Dataset.from_list([{**row, "answer": "AB".index(str(row["answer"]))} for row in ROWS], features)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "several"))
    assert tuple(read_examples(read_source(tmp_path / "one"), CHOICE, "labeled").examples) == EXPECTED
    assert tuple(read_examples(read_source(f"{tmp_path}/several:train"), CHOICE, "labeled").examples) == EXPECTED
    with pytest.raises(DataError, match=r"has the splits train.*several:train"):
        read_source(tmp_path / "several")


def test_a_hub_address_is_read_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    seen: list[object] = []

    def offline(name: str, config: str | None, *, revision: str | None, split: str) -> object:
        seen.append((name, config, revision, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", offline)
    source = Path("/some/folder") / "hf:owner/name/main@abc123:train+test"
    assert tuple(read_examples(read_source(source), CHOICE, "labeled").examples) == EXPECTED
    assert seen == [("owner/name", "main", "abc123", "train+test")]


def test_a_hub_that_cannot_be_reached_is_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> object:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'owner/name' cannot be loaded from the hub \(no route\)"):
        read_source("hf:owner/name@abc:train")


def test_hub_addresses_that_are_none_are_refused() -> None:
    assert hub_address("data/train.csv") is None
    with pytest.raises(DataError, match="is no hub address"):
        hub_address("hf:owner")
    with pytest.raises(DataError, match="names no split"):
        read_source("hf:owner/name")


def test_an_archive_of_lines_is_split_at_its_last_separator() -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("d/all.txt", "Mail a@b.c rose .@positive\r\nÄnderung .@neutral\r\n".encode("iso-8859-1"))
    archive = Archive(
        path="d.zip", member="d/all.txt", separator="@", encoding="iso-8859-1", names=("sentence", "label")
    )
    assert archive_rows(buffer.getvalue(), archive) == (
        {"sentence": "Mail a@b.c rose .", "label": "positive"},
        {"sentence": "Änderung .", "label": "neutral"},
    )


def table_of(tmp_path: Path, *rows: dict[str, object]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "options",
    [
        ["one", "two"],
        '["one", "two"]',
        "['one', 'two']",
        {"text": ["one", "two"], "label": ["1", "2"]},
        {"B": "two", "A": "one"},
    ],
)
def test_options_may_be_a_list_a_json_list_a_python_list_or_a_mapping(tmp_path: Path, options: object) -> None:
    path = table_of(tmp_path, {"question": "q", "options": options, "answer": "B"})
    (example,) = read_examples(read_table(path), CHOICE, "labeled").examples
    assert example.options == ("one", "two")


def test_options_may_be_several_columns_and_nested_ones(tmp_path: Path) -> None:
    path = table_of(tmp_path, {"question": "q", "a": "one", "b": 2, "c": "", "answer": "2", "n": {"t": ["x", "y"]}})
    several = choice_task(columns={"options": ["a", "b", "c"]})
    nested = choice_task(columns={"options": "n.t"})
    assert read_examples(read_table(path), several, "labeled").examples[0].options == ("one", "2")
    assert read_examples(read_table(path), nested, "labeled").examples[0].options == ("x", "y")


def test_a_tasks_labels_stand_in_for_a_missing_options_column(tmp_path: Path) -> None:
    task = choice_task(labels=["negative", "positive"])
    path = table_of(tmp_path, {"question": "q", "answer": "positive"})
    (example,) = read_examples(read_table(path), task, "labeled").examples
    assert (example.options, example.answer) == (("negative", "positive"), "B")


@pytest.mark.parametrize(("cell", "letter"), [("b", "B"), ("(B)", "B"), ("2", "B"), (2, "B"), ("two", "B")])
def test_a_gold_answer_may_be_letter_position_or_text(tmp_path: Path, cell: object, letter: str) -> None:
    path = table_of(tmp_path, {"question": "q", "options": ["one", "two"], "answer": cell})
    assert read_examples(read_table(path), CHOICE, "labeled").examples[0].answer == letter


def test_positions_may_count_from_zero(tmp_path: Path) -> None:
    path = table_of(tmp_path, {"question": "q", "options": ["one", "two"], "answer": 0})
    assert read_examples(read_table(path), choice_task(first_option_digit=0), "labeled").examples[0].answer == "A"
    with pytest.raises(DataError, match="first_option_digit = 0"):
        read_examples(read_table(path), CHOICE, "labeled")


def test_a_digit_that_is_one_options_text_and_another_ones_position_is_refused(tmp_path: Path) -> None:
    path = table_of(tmp_path, {"question": "q", "options": ["0", "1", "2"], "answer": "2"})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: the answer '2' .* fits more than one"):
        read_examples(read_table(path), CHOICE, "labeled")


def test_the_unlabelled_files_answers_are_hidden_and_a_strange_one_is_noted(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        {"question": "q", "options": ["one", "two"], "answer": "2"},
        {"question": "r", "options": ["one", "two"], "answer": "?"},
        {"question": "s", "options": ["one", "two"], "answer": None},
    )
    reading = read_examples(read_table(path), CHOICE, "unlabeled")
    assert [e.answer for e in reading.examples] == [None] * 3
    assert [e.hidden_answer for e in reading.examples] == ["B", None, None]
    assert "hidden_answer" not in repr(reading.examples[0])
    assert {(n.what, len(n.example_ids)) for n in reading.notes} == {(DIGIT_ANSWER, 1), (HIDDEN_UNREADABLE, 1)}


def test_an_unlabelled_file_needs_no_answer_column(tmp_path: Path) -> None:
    path = table_of(tmp_path, {"question": "q", "options": ["one", "two"]})
    assert read_examples(read_table(path), CHOICE, "unlabeled").examples[0].hidden_answer is None


def test_options_that_a_library_turned_into_nan_are_the_word_none_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('question,options,answer\nq,"[""I only"", NaN, ""I only""]",B\n', encoding="utf-8")
    reading = read_examples(read_table(path), CHOICE, "labeled")
    assert reading.examples[0].options == ("I only", "None", "I only")
    assert [note.what for note in reading.notes] == [NULL_OPTION, SAME_OPTIONS]


def test_ids_come_from_content_and_repeats_get_an_ordinal(tmp_path: Path) -> None:
    row: dict[str, object] = {"question": "q", "options": ["one", "two"], "answer": "A"}
    path = table_of(tmp_path, row, {**row, "answer": "B"}, {**row, "question": "other"})
    first, second, third = (e.id for e in read_examples(read_table(path), CHOICE, "labeled").examples)
    assert second == f"{first}-2"
    assert third not in (first, second)
    assert first == content_id("q", ("one", "two"))


def test_a_context_stands_before_the_question_and_is_the_group(tmp_path: Path) -> None:
    task = Task(
        TaskDefinition.model_validate(
            {"name": "t", "kind": "number", "instruction": "I.", "columns": {"context": "passage"}}
        )
    )
    rows: list[dict[str, object]] = [{"passage": ["A.", "B."], "question": f"q{i}?", "answer": i} for i in range(2)]
    one, two = read_examples(read_table(table_of(tmp_path, *rows)), task, "labeled").examples
    assert one.question == "A.\nB.\n\nq0?"
    assert one.group == two.group is not None


BAD = [
    ("d.csv", b"", "is empty"),
    ("d.csv", b"question,options,answer\n", "is empty"),
    ("d.csv", b"question,options,answer\nq,\xff,A\n", r"not UTF-8: line 2 holds the byte 0xff"),
    ("d.csv", b'question,options,answer\nq,"[1,2]",A\nq,A\n', r"line 3: 2 fields where the header has 3 columns"),
    ("d.csv", b'question,options,answer\n"a\nb","[1,2]",A\nq,A\n', "line 4: 2 fields"),
    ("d.csv", b'question,options,answer\nq,"[1,2],A\n', "line 2: the CSV is broken.*never closed"),
    ("d.csv", b"question,question,answer\nq,q,A\n", "names the column 'question' twice"),
    (
        "d.csv",
        b"quest,options,answer\nq,x,A\n",
        r"no column 'question'.*Did you mean 'quest'\?.*quest, options, answer",
    ),
    ("d.csv", b"question,options\nq,x\n", "no column 'answer'"),
    ("d.csv", b"question,answer\nq,A\n", "no column 'options'"),
    ("d.csv", b"question,options,answer\nq,yes or no,A\n", r"line 2: .* not a list but 'yes or no'.*JSON list"),
    ("d.csv", b'question,options,answer\nq,"[""a""]",A\n', "line 2: .* fewer than two"),
    ("d.csv", b'question,options,answer\nq,"[""a"",""""]",A\n', "line 2: .* empty text"),
    ("d.csv", b'question,options,answer\nq,"[""a"",""b""]",E\n', r"line 2: the answer 'E' is outside .* A to B"),
    ("d.csv", b'question,options,answer\nq,"[""a"",""b""]",\n', "line 2: the answer .* is empty"),
    ("d.csv", b'question,options,answer\n,"[""a"",""b""]",A\n', "line 2: the question .* is empty"),
    ("d.jsonl", b'{"question": "q"\n', r"d\.jsonl, line 1: this is not JSON"),
    ("d.jsonl", b"[1, 2]\n", "item 1: this is a int, not an object"),
    ("d.json", b'{"a": 1}', "holds no list"),
    ("d.json", b"[1,", "line 1: this is not JSON"),
    ("d.parquet", b"PAR0", "no Parquet file"),
    ("d.xlsx", b"x", r"unknown kind. Known endings: \.csv"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_a_bad_file_gets_one_paragraph_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_examples(read_table(path), CHOICE, "labeled")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_ordinary_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no data file '.*gone\.csv'"):
        read_source(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="cannot be read as data"):
        read_source(tmp_path)


def test_a_file_that_the_system_refuses_to_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(DataError, match=r"d\.csv' cannot be read: "):
        read_table(tmp_path / "d.csv")


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    task = choice_task(columns={"options": "options", "id": "id"})
    path = tmp_path / "d.csv"
    path.write_text('id,question,options,answer\n7,q,"[1,2]",A\n7,r,"[1,2]",A\n', encoding="utf-8")
    with pytest.raises(DataError, match="the id '7' stands in line 2 and again in line 3"):
        read_examples(read_table(path), task, "labeled")


def settings_of(tmp_path: Path, **more: object) -> DataSettings:
    tree = {"task": "t", "labeled": tmp_path / "a.csv", "unlabeled": tmp_path / "b.csv"} | more
    return DataSettings.model_validate(tree)


def write_simple(path: Path, n: int, *, start: int = 0) -> Path:
    lines = [f'{i},question {start + i},"[""x"",""y""]",{"AB"[i % 3 == 0]}' for i in range(n)]
    path.write_text("id,question,options,answer\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_same_file_twice_is_refused_by_name_and_by_content(tmp_path: Path) -> None:
    write_simple(tmp_path / "a.csv", 4)
    with pytest.raises(DataError, match="labeled and the unlabeled file are the same"):
        read_data(settings_of(tmp_path, unlabeled=tmp_path / "x" / ".." / "a.csv"), CHOICE)
    (tmp_path / "b.csv").write_bytes((tmp_path / "a.csv").read_bytes())
    with pytest.raises(DataError, match="are the same"):
        read_data(settings_of(tmp_path), CHOICE)


def test_parts_are_thinned_out_with_their_class_balance(tmp_path: Path) -> None:
    write_simple(tmp_path / "a.csv", 60)
    write_simple(tmp_path / "b.csv", 30, start=1000)
    data = read_data(settings_of(tmp_path, max_labeled=12, max_unlabeled=5), CHOICE, seed=1)
    assert len(data.labeled) == 12
    assert sum(e.answer == "B" for e in data.labeled) == 4
    assert len(data.unlabeled) == 5
    assert set(data.gold) == {e.id for e in data.unlabeled}
    assert data.test == ()


def test_one_id_for_two_questions_of_two_files_is_told_apart(tmp_path: Path) -> None:
    write_simple(tmp_path / "a.csv", 3)
    write_simple(tmp_path / "b.csv", 4, start=1)
    data = read_data(settings_of(tmp_path, columns={"id": "id"}), CHOICE)
    ids = [e.id for e in (*data.labeled, *data.unlabeled)]
    assert ids == ["0", "1", "2", "0@unlabeled", "1@unlabeled", "2@unlabeled", "3"]
    assert [(n.what, len(n.example_ids)) for n in data.notes] == [(SAME_ID, 3)]


def test_the_config_overrides_columns_and_a_wrong_key_is_met_with_the_nearest(tmp_path: Path) -> None:
    write_simple(tmp_path / "a.csv", 3)
    write_simple(tmp_path / "b.csv", 3, start=9)
    assert read_data(settings_of(tmp_path, columns={"question": "id"}), CHOICE).labeled[1].question == "1"
    with pytest.raises(ConfigError, match=r"data\.columns: unknown key 'questoin'\. Did you mean 'question'\?"):
        read_data(settings_of(tmp_path, columns={"questoin": "id"}), CHOICE)


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("book.xlsx", b"PK\x03\x04", "saved as 'CSV UTF-8'"),
        ("lines.json", b'{"a": 1}\n{"a": 2}\n', "name the file .jsonl"),
    ],
)
def test_a_file_under_the_wrong_name_is_told_the_right_one(
    tmp_path: Path, name: str, content: bytes, hint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=hint):
        read_table(tmp_path / name)
