"""Generated tables: whatever is read equals what was written, or the file is refused; nothing is misread in silence."""

from __future__ import annotations

import csv
import io
import json
import os
import string
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from semievol_api.config.settings import load_config
from semievol_api.data import read_data, start
from semievol_api.data.delimited import PLAIN, FileFormat
from semievol_api.data.doubts import Told
from semievol_api.errors import UserError
from semievol_api.records import Example
from semievol_api.tasks import load_task
from semievol_api.tasks.replies import exact

SIGNS = string.punctuation + "abC 19" + "é\u0301\u00a0★好"
WORDS = ("kettle", "lamp", 'a 5" screen', "it's; odd", "tabs | bars", "née Gräf", "好的", "#1, 2%", 'say "so"', "-1")


@dataclass(frozen=True)
class Written:
    """Rows of question and answer as they were meant, and the file that holds them."""

    rows: tuple[tuple[str, str | None], ...]
    name: str
    content: bytes
    told: Told
    kind: str


def questions(draw: st.DrawFn, n: int, *, several_lines: bool) -> list[str]:
    ends = (
        [" and\nmore", " and, then", ' "quoted"', "", "?"] if several_lines else [" and, then", "?", "", ' "so"', "\"'"]
    )
    begins = ['"', "", "", "'", "(", "[1] "]
    return [
        f"{draw(st.sampled_from(begins))}{draw(st.sampled_from(WORDS))} number {i}{draw(st.sampled_from(ends))}"
        for i in range(n)
    ]


def delimited(header: list[str], rows: list[list[str]], separator: str, quoting: Literal[0, 1, 3]) -> str:
    sink = io.StringIO()
    if quoting == csv.QUOTE_NONE:
        return "".join(separator.join(row) + "\n" for row in [header, *rows] if row)
    writer = csv.writer(sink, delimiter=separator, quoting=quoting, lineterminator="\n")
    writer.writerows(row for row in [header, *rows] if row)
    return sink.getvalue()


def encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode()


def file_of(draw: st.DrawFn, columns: list[str], rows: list[list[str]]) -> tuple[str, bytes, FileFormat, bool]:
    """A name, the content, what is told of it, and whether a header is missing."""
    shape = draw(
        st.sampled_from(["csv", "csv", "tsv", "tsv-plain", "jsonl", "json", "list.jsonl", "wrapped", "parquet"])
    )
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "gbk", "cp1252", "utf-16"]))
    how = PLAIN if encoding.startswith("utf-8") or draw(st.booleans()) else FileFormat(encoding)
    header = columns if draw(st.integers(0, 5)) else []
    if shape == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(objects), sink)
        return "data.parquet", sink.getvalue().to_pybytes(), PLAIN, False
    if shape in ("csv", "tsv", "tsv-plain"):
        plain = shape == "tsv-plain"
        separator = "\t" if shape != "csv" else draw(st.sampled_from(",;\t|"))
        quoting: Literal[0, 1, 3] = (
            csv.QUOTE_NONE if plain else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        )
        rows = [[cell.replace("\n", " ").replace("\t", " ") for cell in row] for row in rows] if plain else rows
        text = delimited(header, rows, separator, quoting)
        how = how if header or draw(st.booleans()) else FileFormat(how.encoding, tuple(columns))
        return f"data.{shape.partition('-')[0]}", encoded(text, encoding), how, not header
    if shape == "jsonl":
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)
    else:
        text = json.dumps({"v": 1, "examples": objects} if shape == "wrapped" else objects, ensure_ascii=False)
    name = "data.jsonl" if shape in ("jsonl", "list.jsonl") else "data.json"
    return name, encoded(text, encoding), how, False


@st.composite
def label_tables(draw: st.DrawFn) -> Written:
    signs = st.text(alphabet=SIGNS, min_size=1, max_size=3).filter(lambda label: bool(exact(label)))
    labels = draw(st.lists(signs, min_size=2, max_size=4, unique_by=lambda label: exact(label).casefold()))
    n = draw(st.integers(9, 14))
    asked = questions(draw, n, several_lines=True)
    golds = [None if i % 4 == 3 and i > 4 else labels[i % len(labels)] for i in range(n)]
    placeholder = draw(st.sampled_from(["", "", "-1", "?", "nan", "todo"]))
    said = draw(st.sampled_from([None, placeholder or None, ""]))
    if placeholder in labels or exact(placeholder).casefold() in {exact(label).casefold() for label in labels}:
        placeholder, said = "", ""
    columns = ["text", "label"] if draw(st.booleans()) else ["label", "text"]
    cells = [{"text": q, "label": placeholder if g is None else g} for q, g in zip(asked, golds, strict=True)]
    name, content, how, _ = file_of(draw, columns, [[cell[column] for column in columns] for cell in cells])
    # A question mark among labels of signs alone is taken for one of them, and a remark says so.
    a_class = said == "" or (said is None and placeholder == "?" and not any(map(str.isalnum, "".join(labels))))
    meant = [
        (q, placeholder if g is None and a_class and placeholder else g) for q, g in zip(asked, golds, strict=True)
    ]
    return Written(tuple(meant), name, content, Told(how, placeholder=said), "labels")


STYLES: dict[str, Callable[[Decimal], str]] = {
    "plain": lambda v: f"{v}",
    "grouped": lambda v: f"{v:,}",
    "money": lambda v: f"${v:,}",
    "unit": lambda v: f"{v} apples",
    "gsm8k": lambda v: f"First 3 and 4, so 3*4=<<3*4=12>>12.\nThen more.\n#### {v:,}",
    "boxed": lambda v: f"So it is \\boxed{{{v}}}.",
    "answer": lambda v: f"The answer is {v}.",
    "several": lambda v: f"{v} or {v + 1}",
    "reasoned": lambda v: f"There are {v} apples.\nSo 7 are left.",
    "european": lambda v: f"{v:,}".replace(",", " ").replace(".", ",").replace(" ", "."),
}


@st.composite
def number_tables(draw: st.DrawFn) -> Written:
    n = draw(st.integers(9, 14))
    asked = questions(draw, n, several_lines=False)
    whole = st.integers(-5000, 2_000_000).map(Decimal)
    cents = st.integers(-500_000, 5_000_000).map(lambda value: Decimal(value) / 100)
    european = draw(st.booleans())
    values = draw(st.lists(cents if european else st.one_of(whole, cents), min_size=n, max_size=n, unique=True))
    styles = (
        ["european"]
        if european
        else draw(st.lists(st.sampled_from(sorted(set(STYLES) - {"european"})), min_size=1, max_size=3))
    )
    cells = [STYLES[styles[i % len(styles)]](value) for i, value in enumerate(values)]
    if european and not any("," in cell for cell in cells):
        cells[0], values[0] = "0,5", Decimal("0.5")
    name, content, how, _ = file_of(draw, ["question", "answer"], [list(row) for row in zip(asked, cells, strict=True)])
    return Written(tuple((q, str(v)) for q, v in zip(asked, values, strict=True)), name, content, Told(how), "number")


@st.composite
def choice_tables(draw: st.DrawFn) -> Written:
    n, k = draw(st.integers(9, 12)), draw(st.integers(2, 5))
    texts = st.text(alphabet=SIGNS, min_size=2, max_size=5).filter(lambda text: len(exact(text)) > 1)
    asked = questions(draw, n, several_lines=False)
    golds = [(i * 7 + n) % k for i in range(n - k)] + list(range(k))
    by = draw(st.sampled_from(["letter", "text", "one", "zero"]))
    form = draw(st.sampled_from(["columns", "list", "mapping", "listed", "prefixed", "dict of lists"]))
    rows: list[dict[str, object]] = []
    for question, gold in zip(asked, golds, strict=True):
        options = draw(st.lists(texts, min_size=k, max_size=k, unique_by=lambda text: exact(text).casefold()))
        keys = string.ascii_uppercase[:k]
        cell = {"letter": keys[gold], "text": options[gold], "one": str(gold + 1), "zero": str(gold)}[by]
        given = {
            "columns": dict(zip(keys, options, strict=True)),
            "list": {"options": options},
            "mapping": {"options": dict(zip(keys, options, strict=True))},
            "listed": {"options": [{"label": a, "text": b} for a, b in zip(keys, options, strict=True)]},
            "prefixed": {"options": [f"({a}) {b}" for a, b in zip(keys, options, strict=True)]},
            "dict of lists": {"options": {"text": options, "label": list(keys)}},
        }[form]
        nested = {"question": {"stem": question, **given}} if form == "listed" else {"question": question, **given}
        rows.append({**nested, "answer": cell})
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    meant = tuple((q, string.ascii_uppercase[g]) for q, g in zip(asked, golds, strict=True))
    return Written(meant, "data.jsonl", content, Told(), "multiple_choice")


OUTCOMES: Counter[str] = Counter()


def read_back(written: Written) -> dict[str, str | None] | None:
    """The golds by question as a run would have them; None where the file is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / written.name
        path.write_bytes(written.content)
        try:
            starter = start(path, told=written.told)
            for name, text in starter.files.items():
                (Path(folder) / name).write_text(text, "utf-8")
            config = load_config(Path(folder) / "semievol.toml")
            data = read_data(config.data, load_task(config.data.task))
        except UserError as error:
            assert "\n" not in str(error) or "\n" in written.content.decode("utf-8", "replace")
            OUTCOMES[f"{written.kind} refused"] += 1
            return None
        OUTCOMES[f"{written.kind} read"] += 1
        if starter.understanding.kind != written.kind:
            return {}
        parts: list[Example] = [*data.labeled, *data.unlabeled, *data.test]
        return {e.question: e.answer if e.answer is not None else e.hidden_answer for e in parts}


def same(kind: str, read: str | None, meant: str | None) -> bool:
    if read is None or meant is None:
        return read is None and (meant is None or not exact(meant))
    if kind == "number":
        return Decimal(read) == Decimal(meant)
    return exact(read) == exact(meant)


def check(written: Written) -> None:
    read = read_back(written)
    if not read:  # refused, or taken for another kind, which the screen shows with three rows
        return
    plain = {" ".join(question.split()): gold for question, gold in read.items()}
    assert len(plain) == len(written.rows)
    for question, meant in written.rows:
        key = " ".join(question.split())
        assert key in plain, f"{question!r} is not among {list(plain)}"
        assert same(written.kind, plain[key], meant), f"{question!r}: {meant!r} was read as {plain[key]!r}"


EXAMPLES = int(os.environ.get("SEMIEVOL_FUZZ_EXAMPLES", "0"))
"""How many tables of each kind to try; without it a fixed choice of few, the same in every run."""

QUICK = settings(
    max_examples=EXAMPLES or 150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    derandomize=not EXAMPLES,
    phases=[Phase.generate],
)


@given(label_tables())
@QUICK
def test_a_generated_table_of_labels_is_read_as_written_or_refused(written: Written) -> None:
    check(written)


@given(number_tables())
@QUICK
def test_a_generated_table_of_numbers_is_read_as_written_or_refused(written: Written) -> None:
    check(written)


@given(choice_tables())
@QUICK
def test_a_generated_table_of_options_is_read_as_written_or_refused(written: Written) -> None:
    check(written)


def test_most_generated_tables_are_read() -> None:
    if not OUTCOMES:
        pytest.skip("the generated tables were read in another process")
    read = {kind: OUTCOMES[f"{kind} read"] for kind in ("labels", "number", "multiple_choice")}
    assert all(count > 0.4 * (EXAMPLES or 150) for count in read.values()), OUTCOMES
