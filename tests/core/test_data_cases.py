"""Files as people have them: each is read as it is meant, or refused with what to do; content of the tests' own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semievol_api.config.settings import load_config
from semievol_api.data import Starter, read_data, start
from semievol_api.data.delimited import FileFormat
from semievol_api.data.doubts import NOTHING_TOLD, PlaceholderError, Told
from semievol_api.errors import DataError, UserError
from semievol_api.records import Example
from semievol_api.tasks import load_task

EXAMPLE = Example(id="q", question="?")
_WORDS = ("works very well", "came scratched and late", "is better than I hoped", "never switched on at all")


@dataclass(frozen=True)
class Case:
    """A file's name and content, and what is right: labels, another kind, or the words of the refusal."""

    name: str
    content: bytes
    labels: tuple[str, ...] = ()
    kind: str = "labels"
    refused: str = ""
    told: Told = NOTHING_TOLD
    counts: tuple[int, int] | None = None
    """Rows and labelled rows of the folder's file; of the tests' own the same shares."""
    said: str = ""


def texts(n: int) -> list[str]:
    return [f"The lamp I bought in week {i} {_WORDS[i % 4]}." for i in range(n)]


def delimited(*labels: str, separator: str = ",", header: str = "text,label", n: int = 24) -> bytes:
    rows = [f"{text}{separator}{labels[i % len(labels)]}" for i, text in enumerate(texts(n))]
    return "\n".join([header, *rows, ""]).encode()


def lines_of(*rows: Mapping[str, object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def labelled(*labels: object, n: int = 24) -> list[dict[str, object]]:
    return [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(texts(n))]


def parquet(rows: list[dict[str, object]], metadata: dict[bytes, bytes] | None = None) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


def choices(options: Callable[[int], object], answer: Callable[[int], object], **more: str) -> list[dict[str, object]]:
    return [
        {"question": f"Which number comes right after {i}?", "options": options(i), "answer": answer(i), **more}
        for i in range(12)
    ]


TWO = ("complaint", "praise")
PRAISE = ("praise", "complaint")
HEADERLESS = "\n".join(f"Which number comes right after {i}?,{i + 1},{i + 2},{i - 1},{i},A" for i in range(10, 30))
LONE_QUOTES = "\n".join(
    [
        "label\ttext",
        *(("ham\t" if i % 2 else 'spam\t"') + text + '"' * (i % 6 == 5) for i, text in enumerate(texts(24))),
    ]
)
CLASSES = {b"huggingface": json.dumps(
    {"info": {"features": {"label": {"names": ["praise", "complaint"], "_type": "ClassLabel"}}}}
).encode()}  # fmt: skip

CASES: dict[str, Case] = {
    "04-mixed-yes-no-true": Case(
        "data.csv", delimited("yes", "no", "Yes", "No", "TRUE", "FALSE", "1", "0"),
        said="Labels that may be one.*aliases",
    ),
    "07-json-boolean-labels": Case("data.jsonl", lines_of(*labelled(True, False)), labels=("False", "True")),
    "08-nfc-nfd-labels": Case(
        "data.csv", delimited("Caf\u00e9", "H\u00f4tel", "Cafe\u0301", "Ho\u0302tel", "Caf\u00e9\u00a0"),
        labels=("Caf\u00e9", "H\u00f4tel"), said="look the same",
    ),
    "10-excel-empty-headers": Case(
        "data.csv", delimited("ham,,,", "spam,,,", header="v1,v2,,,"), refused=r"Its columns: v1, v2\. Name the one"
    ),
    "11-utf16-tab": Case("data.csv", delimited(*PRAISE).decode().encode("utf-16"), refused="UTF-16.*Save it as UTF-8"),
    "12-semicolon-with-commas-in-header": Case(
        "data.csv", delimited(*PRAISE, separator=";", header="text, as written, unedited;label"), labels=TWO
    ),
    "13-pipe-separated": Case("data.csv", delimited(*PRAISE, separator="|", header="text|label"), labels=TWO),
    "14-jsonl-nan-answer": Case(
        "data.jsonl", lines_of(*labelled("praise", "complaint", "praise", float("nan"))), labels=TWO, counts=(24, 18)
    ),
    "15-jsonl-trailing-commas": Case("data.jsonl", json.dumps(labelled(*PRAISE), indent=0).encode(), labels=TWO),
    "16-headerless-mmlu-csv": Case(
        "data.csv", HEADERLESS.encode(), refused="first line looks like data.*--names .*--header"
    ),
    "18-tsv-lone-quotes": Case("data.tsv", LONE_QUOTES.encode(), labels=("ham", "spam"), counts=(24, 24)),
    "22-numpy-list-options": Case(
        "data.csv",
        "\n".join(["question,choices,answer", *(f"town {i}?,['Ulm' 'Kiel' 'Trier'],Kiel" for i in range(12))]).encode(),
        refused="no commas between them",
    ),
    "23-dict-options": Case(
        "data.jsonl",
        lines_of(*choices(lambda i: {"A": f"{i + 1}", "B": f"{i + 2}"}, lambda i: f"{i + 1}", answer_idx="A")),
        kind="multiple_choice", said="'answer_idx' holds the answer",
    ),
    "25-reasoning-then-hash-answer": Case(
        "data.jsonl",
        lines_of(*({"question": f"{i} boxes of 6?", "answer": f"6 each.\n{i}*6=<<{i}*6={6 * i}>>\n#### {6 * i}"}
                   for i in range(2, 40))),
        kind="number", said="end with ####",
    ),
    "26-chinese-csv-gbk": Case(
        "data.csv", "文本,标签\n这个水壶很好,好评\n灯坏了,差评\n".encode("gbk"),
        refused="文本,标签' in gbk.*--encoding gbk",
    ),
    "27-text-category": Case("data.csv", delimited(*PRAISE, header="text,category"), labels=TWO),
    "29-100k-character-question": Case(
        "data.csv", ("text,label\n" + "".join(f"{t * (3000 if i == 4 else 1)},{PRAISE[i % 2]}\n"
                                              for i, t in enumerate(texts(24)))).encode(), labels=TWO,
    ),
    "30-labels-differ-by-punctuation": Case(
        "data.csv", delimited("C", "C++", "C#", "Java", "Java.", "N/A", n=36),
        labels=("C", "C#", "C++", "Java", "Java.", "N/A"), said="'Java', 'Java.'",
    ),
    "31-emoji-star-labels": Case("data.csv", delimited("★", "★★", "★★★", "👍", "👎", "?", n=36), labels=(
        "?", "★", "★★", "★★★", "👍", "👎")),
    "33-cr-only-line-ends": Case("data.csv", delimited(*PRAISE).replace(b"\n", b"\r"), labels=TWO),
    "34-jsonl-u2028": Case(
        "data.jsonl",
        lines_of(*({**row, "text": f"{row['text']}\u2028(second\u000bline"} for row in labelled(*PRAISE))),
        labels=TWO,
    ),
    "36-nli-premise-hypothesis": Case(
        "data.csv",
        delimited("It is indoors.,neutral", "It is indoors.,entailment", header="premise,hypothesis,label"),
        labels=("entailment", "neutral"), said="Columns 'premise' and 'hypothesis' make the question",
    ),
    "37-cmmlu-index-column": Case(
        "data.csv",
        "\n".join(
            [",Question,A,B,C,D,Answer", *(f"{i},What follows {i}?,{i + 1},9,8,{i},A" for i in range(20))]
        ).encode(),
        kind="multiple_choice", said="Not used: 'column 1'",
    ),
    "38-ragged-option-columns": Case(
        "data.csv", b"question,A,B,C,D,E,answer\nq one?,1,2,,0,,A\nq two?,1,2,3,0,,A\nq three?,1,2,3,0,,B\n",
        refused="line 2: the options .* empty text",
    ),
    "39-parquet-nested": Case(
        "data.parquet",
        parquet([{"question": f"q{i}?", "answerKey": "1",
                  "choices": {"text": [f"{i + 1}", "2", "0"], "label": ["1", "2", "3"]}} for i in range(12)]),
        kind="multiple_choice",
    ),
    "40-parquet-dictionary": Case("data.parquet", parquet(labelled(*PRAISE, None, n=30)), labels=TWO),
    "42-best-and-incorrect-answers": Case(
        "data.csv", b"Question,Best Answer,Incorrect Answers\nWhat falls?,It falls,It flies\n",
        refused="Question, Best Answer.*--answer COLUMN",
    ),
    "43-price-labels-dollars": Case("data.csv", delimited("$", "$$", "$$$"), labels=("$", "$$", "$$$")),
    "45-pandas-floats-and-blanks": Case("data.csv", delimited("1.0", "", "0.0", ""), labels=("0", "1")),
    "46-minus-one-means-unlabelled": Case(
        "data.csv", delimited("0", "-1", "1", "-1", "-1"), refused=r"--placeholder -1 .*--no-placeholder"
    ),
    "49-hub-parquet-classlabel": Case(
        "train-00000-of-00001.parquet", parquet(labelled(0, 1), CLASSES), labels=("complaint", "praise")
    ),
    "50-label-and-label-text": Case(
        "data.jsonl", lines_of(*({**row, "label_text": PRAISE[i % 2]} for i, row in enumerate(labelled(0, 1)))),
        labels=TWO, said="'label' holds the same as codes",
    ),
}  # fmt: skip


def check_case(case: Case, path: Path) -> Starter | None:
    if case.refused:
        with pytest.raises(DataError, match=case.refused) as caught:
            start(path, told=case.told)
        assert "\n" not in str(caught.value)
        return None
    starter = start(path, told=case.told)
    found = starter.understanding
    assert found.kind == case.kind
    if case.labels:
        assert found.labels == tuple(sorted(case.labels))
    assert len(starter.shown) == 3
    said = "\n".join((*found.reasons, *starter.remarks))
    if case.said:
        assert re.search(case.said, said)
    return starter


@pytest.mark.parametrize("name", CASES)
def test_a_file_as_people_have_it_is_read_as_meant_or_refused(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = tmp_path / case.name
    path.write_bytes(case.content)
    starter = check_case(case, path)
    if starter is None:
        return
    if case.counts is not None:
        assert (starter.understanding.rows, starter.understanding.answered) == case.counts
    for file, text in starter.files.items():
        (tmp_path / file).write_text(text, "utf-8")
    config = load_config(tmp_path / "semievol.toml")
    read_data(config.data, load_task(config.data.task))


@pytest.mark.parametrize("name", CASES)
def test_the_collected_files_are_read_as_meant_or_refused(collected_cases: Path, name: str) -> None:
    check_case(CASES[name], collected_cases / name / CASES[name].name)


def test_every_collected_file_has_a_test(collected_cases: Path) -> None:
    elsewhere = {"60-provider-behaviours", "61-predict-key-and-empty-row", "63-serve-training-files"}
    elsewhere |= {"65-merged-labels-whole-run", "01-openai-messages-jsonl", "02-sharegpt-json", "19-multi-label"}
    assert {path.name for path in collected_cases.iterdir() if path.is_dir()} == set(CASES) | elsewhere


def test_labels_that_a_reply_cannot_tell_apart_are_refused_with_the_pair(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    task = 'name = "t"\nkind = "labels"\ninstruction = "I."\nlabels = ["{}", "{}", "x"]\n'
    for labels in (("C", "C#"), ("$", "$$"), ("Java", "Java.")):
        path.write_text(task.format(*labels), "utf-8")
        read = [load_task(path).parse(f"Answer: {label}", EXAMPLE) for label in labels]
        assert read == list(labels)
    path.write_text(task.format("Café", "Cafe\u0301"), "utf-8")
    with pytest.raises(UserError, match="differ only in bytes"):
        load_task(path)
    path.write_text(task.format("so", "Answer: so"), "utf-8")
    with pytest.raises(UserError, match="'Answer: so' and 'so' cannot be told apart"):
        load_task(path)


def begun(tmp_path: Path, name: str, content: bytes, told: Told = NOTHING_TOLD) -> Starter:
    (tmp_path / name).write_bytes(content)
    return start(tmp_path / name, told=told)


MINUS_ONE = delimited("0", "-1", "1", "-1", "-1", n=60)


def test_a_placeholder_is_the_unlabelled_part_on_confirmation_only(tmp_path: Path) -> None:
    found = begun(tmp_path, "d.csv", MINUS_ONE, Told(placeholder="-1")).understanding
    assert (found.rows, found.answered, found.labels) == (60, 24, ("0", "1"))
    assert "36 answers are '-1': those rows have no label." in found.reasons
    assert begun(tmp_path, "d.csv", MINUS_ONE, Told(placeholder="")).understanding.labels == ("-1", "0", "1")
    for word in ("nan", "NULL", "unlabelled", "?", "todo"):
        with pytest.raises(PlaceholderError, match=re.escape(f"--placeholder {word}")):
            begun(tmp_path, "d.csv", delimited("good", "bad", word))
    with pytest.raises(PlaceholderError, match="--placeholder -1"):  # a sign alone makes no signed code
        begun(tmp_path, "d.csv", delimited("+good", "-bad", "-1"))
    with pytest.raises(DataError, match=r"no answer .* is 'x'"):
        begun(tmp_path, "d.csv", MINUS_ONE, Told(placeholder="x"))


@pytest.mark.parametrize("labels", [("-1", "0", "+1"), ("-2", "-1", "0", "1"), ("-1", "1"), ("none", "other", "good")])
def test_signed_codes_and_real_classes_are_no_placeholders(tmp_path: Path, labels: tuple[str, ...]) -> None:
    assert begun(tmp_path, "d.csv", delimited(*labels)).understanding.labels == tuple(sorted(labels))


def test_minus_one_beside_0_and_1_in_like_shares_is_a_class_and_that_is_said(tmp_path: Path) -> None:
    found = begun(tmp_path, "d.csv", delimited("-1", "0", "1")).understanding
    assert found.labels == ("-1", "0", "1")
    assert "'-1' is taken for a class. If it means that a row has no label: --placeholder -1" in found.reasons


def test_a_file_without_a_header_is_read_with_the_names_that_its_owner_gives(tmp_path: Path) -> None:
    names = ("question", "A", "B", "C", "D", "answer")
    starter = begun(tmp_path, "d.csv", HEADERLESS.encode(), Told(FileFormat(names=names)))
    assert (starter.understanding.rows, starter.understanding.kind) == (20, "multiple_choice")
    assert json.loads(starter.files["labeled.jsonl"].splitlines()[0]).keys() == set(names)
    (tmp_path / "years.csv").write_text("2019,2020\n" + "".join(f"{i},{i}\n" for i in range(9)), "utf-8")
    with pytest.raises(DataError, match="first line looks like data"):
        start(tmp_path / "years.csv")
    with pytest.raises(DataError, match="no column looks like"):
        start(tmp_path / "years.csv", told=Told(header=True))


def test_the_encoding_is_asked_for_and_the_parts_are_written_as_utf_8(tmp_path: Path) -> None:
    content = (
        "文本,标签\n" + "".join(f"第{i}周买的水壶很好用,{'好评' if i % 2 else '差评'}\n" for i in range(20))
    ).encode("gbk")
    starter = begun(tmp_path, "d.csv", content, Told(FileFormat("gbk")))
    assert starter.understanding.labels == ("好评", "差评")
    assert "水壶" in starter.files["labeled.jsonl"]
    with pytest.raises(DataError, match=r"is UTF-8: .*Leave the encoding 'cp1252' out"):
        begun(tmp_path, "d.csv", "text,label\nnée,a\n".encode(), Told(FileFormat("cp1252")))
    with pytest.raises(DataError, match="There is no encoding 'gbq'"):
        begun(tmp_path, "d.csv", content, Told(FileFormat("gbq")))


def test_quotes_that_swallow_rows_are_read_as_quotes_in_tsv_and_refused_in_csv(tmp_path: Path) -> None:
    rows = [f'"{t}' if i in (3, 9) else t for i, t in enumerate(texts(12))]
    rows = [f'{t}"' if i in (6, 11) else t for i, t in enumerate(rows)]
    for name, separator in (("d.tsv", "\t"), ("d.csv", ",")):
        lines = [separator.join(("label", "text")), *("ab"[i % 2] + separator + t for i, t in enumerate(rows))]
        content = "\n".join(lines).encode()
        if name == "d.tsv":
            assert begun(tmp_path, name, content).understanding.rows == 12
        else:
            with pytest.raises(DataError, match="lines 5 to 8 can be read in two ways"):
                begun(tmp_path, name, content)


def test_a_second_text_goes_into_the_prompt_and_unused_columns_are_named(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sort the review.", "input": text, "output": PRAISE[i % 2], "source": "shop"}
        for i, text in enumerate(texts(24))
    ]
    starter = begun(tmp_path, "d.jsonl", lines_of(*rows))
    assert 'prompt = "{instruction}\\n{input}"' in starter.files["task.toml"]
    assert starter.shown[0].question == f"Sort the review.\n{texts(1)[0]}"
    assert "Not used: 'source'." in starter.understanding.reasons
    notes = [{**row, "note": f"A customer's longer note number {i}"} for i, row in enumerate(labelled(*PRAISE))]
    said = "\n".join(begun(tmp_path, "d.jsonl", lines_of(*notes)).understanding.reasons)
    assert "If 'note' belongs to the question, write into task.toml: prompt = \"{text}\\n{note}\"" in said
    pictures = [{**row, "image": f"pictures/{i}.png"} for i, row in enumerate(labelled(*PRAISE))]
    with pytest.raises(DataError, match="the column 'image' holds images"):
        begun(tmp_path, "d.jsonl", lines_of(*pictures))


def test_nested_cells_are_opened_or_refused_and_never_printed_as_python(tmp_path: Path) -> None:
    rows = [
        {
            "question": {
                "stem": f"What follows {i}?",
                "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}],
            },
            "answerKey": "AB"[i % 2],
        }
        for i in range(12)
    ]
    starter = begun(tmp_path, "d.jsonl", lines_of(*rows))
    columns = starter.understanding.columns
    assert (columns.question, columns.options) == ("question.stem", "question.choices")
    assert "Options:\nA. x\nB. y" in starter.shown[0].prompt
    with pytest.raises(DataError, match=r"holds named values.*question\.stem"):
        start(tmp_path / "d.jsonl", question="question", answer="answerKey")


def test_a_filled_column_wins_over_an_empty_one_with_the_usual_name(tmp_path: Path) -> None:
    rows = [{"text": text, "answer": None, "intent": PRAISE[i % 2]} for i, text in enumerate(texts(24))]
    found = begun(tmp_path, "d.jsonl", lines_of(*rows)).understanding
    assert (found.columns.answer, found.labels) == ("intent", TWO)


def test_european_numbers_are_told_by_the_column_and_a_mixed_one_is_refused(tmp_path: Path) -> None:
    def rows(*cells: str) -> bytes:
        return lines_of(*({"question": f"How much is {i}?", "answer": cell} for i, cell in enumerate(cells * 4)))

    starter = begun(tmp_path, "d.jsonl", rows("1,234", "3,5", "1.234,56"))
    assert 'decimal = ","' in starter.files["task.toml"]
    assert [row.gold for row in starter.shown] == ["1.234", "3.5", "1234.56"]
    with pytest.raises(DataError, match=r"'3,5' has a decimal comma and '2\.75' a decimal point"):
        begun(tmp_path, "d.jsonl", rows("3,5", "2.75", "1,234"))


def test_examples_inside_an_object_are_found_and_several_lists_are_refused(tmp_path: Path) -> None:
    inner = labelled(*PRAISE)
    assert begun(tmp_path, "d.json", json.dumps({"v": 1, "examples": inner}).encode()).understanding.rows == 24
    with pytest.raises(DataError, match="several lists of objects: a, b"):
        begun(tmp_path, "d.json", json.dumps({"a": inner, "b": inner}).encode())
