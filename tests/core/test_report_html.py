"""The report without a browser: what it says, what it leaves out, how large it is."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from semievol_api.errors import RunFolderError
from semievol_api.report.labels import read_label_table, same_answer
from semievol_api.report.page import _DIGITS, _digits, pack_labels, render_report, write_report
from semievol_api.report.read_run import read_report_data
from tests.synthetic_run import LETTERS, synthetic_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("report") / "run", rows=300)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text("utf-8")


def _rows(page: str) -> dict[str, object]:
    found = re.search(r'id="label-data">([^<]*)<', page)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def _undigits(packed: dict[str, object]) -> list[int]:
    text, width = str(packed["text"]), int(str(packed["width"]))
    size = len(text) // width
    values = [0] * size
    for plane in range(width):
        values = [v * len(_DIGITS) + _DIGITS.index(text[plane * size + i]) for i, v in enumerate(values)]
    return [v - 1 for v in values]


def test_the_verdicts_sentence_comes_first(page: str, run: Path) -> None:
    verdict = json.loads((run / "verdict/verdict.json").read_text("utf-8"))
    heading = re.search(r"<h1[^>]*>([^<]*)</h1>", page)
    assert heading is not None
    assert heading[1] == verdict["sentence"].replace("+", "+")
    assert page.index("<h1") < page.index("<h2")


def test_the_share_of_prompts_read_from_the_cache_stands_beside_each_stage_that_asked(page: str, run: Path) -> None:
    stages = {stage.name: stage.cached_share for stage in read_report_data(run).stages}
    assert stages["collaborate"] == 48 / 120
    assert stages["prepare"] is None
    row = re.search(r'<th scope="row">collaborate</th>.*?</tr>', page)
    assert row is not None and "40.0 %" in row[0]


def test_the_page_names_no_address_that_it_could_fetch(page: str) -> None:
    shell = re.sub(r'id="label-data">[^<]*<', "", page)
    allowed = ("http://www.w3.org/",)
    assert [u for u in re.findall(r"https?://[^\s\"'<>)]+", shell) if not u.startswith(allowed)] == []
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=\"(?!data:)", shell)


def test_every_part_that_the_run_has_is_there(page: str) -> None:
    for title in (
        "Accuracy of every model",
        "Paired differences",
        "Change by category",
        "Confusion of SemiEvol",
        "Precision against coverage",
        "Scores by correctness: Pseudo-labels",
        "Reliability: SemiEvol on the test",
        "Learning curve: train loss",
        "Time, tokens and cost by stage",
        "Dropped: unlabeled: in test",
        "percentile",
        "3.11" if "3.11" in page else "python",
    ):
        assert title in page, title


def test_the_false_label_share_is_what_hidden_gold_says_of_the_kept(run: Path) -> None:
    data = read_report_data(run)
    kept = [
        (a, data.labels.gold[e.id])
        for e, a, k in zip(data.labels.examples, data.labels.answers, data.labels.kept, strict=True)
        if k
    ]
    assert data.false_share is not None
    assert data.false_share.share == pytest.approx(np.mean([a != g for a, g in kept]))
    assert data.false_share.low is not None
    assert data.false_share.low < data.false_share.share


def test_the_curve_passes_through_the_chosen_cut(run: Path) -> None:
    data = read_report_data(run)
    curve = data.precision_coverage
    assert curve is not None and data.chosen_cut is not None
    coverage, precision = data.chosen_cut
    nearest = int(np.argmin(np.abs(curve.coverage - coverage)))
    assert curve.precision[nearest] == pytest.approx(precision)


def test_the_rows_in_the_page_are_the_runs_rows(page: str, run: Path) -> None:
    labels, rows = read_label_table(run), _rows(page)
    assert rows["questions"] == [e.question for e in labels.examples]
    values = rows["values"]
    assert isinstance(values, list)
    codes = _undigits(rows["answers"])  # type: ignore[arg-type]
    assert [None if c < 0 else values[c] for c in codes] == list(labels.answers)
    shares = _undigits(rows["confidences"])  # type: ignore[arg-type]
    expected = np.nan_to_num(labels.confidences * 10_000, nan=-1)
    assert np.abs(np.array(shares) - expected).max() <= 0.5
    assert _undigits(rows["kept"]) == labels.kept.astype(int).tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[-1], [0, -1, 88, 89, 90, 7920, 8000], [10_000, -1], []])
def test_numbers_survive_the_packing(values: list[int]) -> None:
    assert _undigits(_digits(values)) == values


def test_a_tight_budget_is_kept_and_what_was_cut_is_said(run: Path) -> None:
    data = read_report_data(run)
    whole = render_report(data)
    assert "To keep this file small" not in whole
    limit = len(whole.encode()) - 12_000
    small = render_report(data, limit)
    assert len(small.encode()) <= limit
    assert "To keep this file small" in small
    rows = _rows(small)
    details = rows["details"]
    assert isinstance(details, dict)
    assert len(details["places"]) < len(data.labels)


def test_a_hopeless_budget_lists_fewer_rows_instead_of_failing(run: Path) -> None:
    packed = pack_labels(read_label_table(run), 3_000)
    assert 0 < packed.shown < packed.total
    assert len(packed.base64) <= 3_000


def test_a_run_that_stopped_before_the_verdict_has_a_report_too(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", rows=30, tests=10, gold=False, verdict=False)
    text = write_report(run, tmp_path / "deep/er/page.html").read_text("utf-8")
    assert "This run has no verdict yet." in text
    assert "Precision against coverage needs gold answers" in text


def test_a_folder_that_is_no_run_is_said_calmly(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run"):
        write_report(tmp_path)


def test_hostile_questions_cannot_leave_their_place(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", rows=20, tests=12)
    path = run / "verdict/verdict.json"
    hostile = "</script><script>alert(1)</script>"
    document = json.loads(path.read_text("utf-8")) | {"sentence": hostile, "notes": [hostile]}
    document["models"][0]["label"] = hostile + " $x^2$"
    path.write_text(json.dumps(document), "utf-8")
    text = write_report(run).read_text("utf-8")
    assert hostile not in text
    assert text.count("<script") == 2


def test_writing_twice_gives_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("A", "A", True),
        ("A", "B", False),
        (None, "A", False),
        ("3.14", "3.15", True),
        ("3", "4", False),
        ("", "A", False),
    ],
)
def test_answers_are_the_same_by_text_or_within_one_percent(answer: str | None, gold: str, same: bool) -> None:
    assert same_answer(answer, gold) is same


def test_the_synthetic_gold_has_every_letter(run: Path) -> None:
    assert set(read_label_table(run).gold.values()) == set(LETTERS)
