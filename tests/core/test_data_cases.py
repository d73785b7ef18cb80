"""Files as people have them: each is read as it is meant, or refused with what to do; content of the tests' own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semievol_api.config.settings import load_config
from semievol_api.data import Starter, read_data, start
from semievol_api.data.doubts import Told
from semievol_api.errors import DataError, UserError
from semievol_api.records import Example
from semievol_api.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent.parent
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
    told: Told = Told()
    counts: tuple[int, int] | None = None
    """Rows and labelled rows of the folder's file; of the tests' own the same shares."""
    said: str = ""


def texts(n: int) -> list[str]:
    return [f"The lamp I bought in week {i} {_WORDS[i % 4]}." for i in range(n)]


def delimited(*labels: str, separator: str = ",", header: str = "text,label", n: int = 24) -> bytes:
    rows = [f"{text}{separator}{labels[i % len(labels)]}" for i, text in enumerate(texts(n))]
    return "\n".join([header, *rows, ""]).encode()


def lines_of(*rows: dict[str, object]) -> bytes:
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
        "data.csv", delimited("yes", "no", "Yes", "No", "TRUE", "FALSE", "1", "0"), said="Labels that may be one.*aliases",
        kind="labels",
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
        "data.csv", "文本,标签\n这个水壶很好,好评\n灯坏了,差评\n".encode("gbk"), refused="文本,标签' in gbk.*--encoding gbk"
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
        "data.jsonl", lines_of(*({**row, "text": f"{row['text']}\u2028(second\u000bline"} for row in labelled(*PRAISE))),
        labels=TWO,
    ),
    "36-nli-premise-hypothesis": Case(
        "data.csv",
        delimited("It is indoors.,neutral", "It is indoors.,entailment", header="premise,hypothesis,label"),
        labels=("entailment", "neutral"), said="Columns 'premise' and 'hypothesis' make the question",
    ),
    "37-cmmlu-index-column": Case(
        "data.csv",
        "\n".join([",Question,A,B,C,D,Answer", *(f"{i},What follows {i}?,{i + 1},9,8,{i},A" for i in range(20))]).encode(),
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
def test_the_collected_files_are_read_as_meant_or_refused(name: str) -> None:
    folder = ROOT.parent / "shared" / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"files from public reports, which are not in {folder.parent}")
    check_case(CASES[name], folder / CASES[name].name)


def test_every_collected_file_has_a_test() -> None:
    folder = ROOT.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"files from public reports, which are not in {folder}")
    elsewhere = {"60-provider-behaviours", "61-predict-key-and-empty-row", "63-serve-training-files"}
    elsewhere |= {"65-merged-labels-whole-run", "01-openai-messages-jsonl", "02-sharegpt-json", "19-multi-label"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(CASES) | elsewhere


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
