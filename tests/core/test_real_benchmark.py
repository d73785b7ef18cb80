"""The benchmark on real tasks: fixed draws, scoring, costs, and the ledger that guards the test rows."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.real.cells import Cell, Refused, Result, enter, finished, keep, minutes_of, scored
from benchmarks.real.method import Fitted, Place, Predict
from benchmarks.real.splits import NotYet, Row, draw

METHOD_NAME = "majority"


class Majority(Fitted):
    """The example of the documentation."""

    name = METHOD_NAME
    settings: ClassVar[dict[str, object]] = {"rule": "the most frequent label"}
    minutes = 0.1

    def fit(self, labeled: Sequence[Row], unlabeled: Sequence[str], seed: int) -> Predict:
        label = Counter(row.label for row in labeled).most_common(1)[0][0]
        return lambda texts: [None if "unreadable" in text else label for text in texts]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 labelled, 1,100 unlabelled and 30 test rows, and three rows more whose texts are in another file too."""
    folder = tmp_path / "data" / "trec"
    folder.mkdir(parents=True)
    sizes = {"labeled": 60, "unlabeled": 1100, "test": 30}
    for name, count in sizes.items():
        rows = [{"text": f"{name} {i}", "label": "abc"[i % 3]} for i in range(count)]
        if name == "unlabeled":
            rows += [{"text": "Labeled  7", "label": "b"}, {"text": "test 3", "label": "a"}]
        if name == "test":
            rows.append({"text": "labeled 9", "label": "a"})
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    return tmp_path / "data"


def test_a_seed_draws_the_same_rows_and_fewer_labels_are_among_more(data: Path) -> None:
    few, more = (draw("trec", data, labels, 0, "dev") for labels in (20, 50))
    assert (len(few.labeled), len(few.unlabeled), len(few.measured)) == (20, 600, 400)
    assert more.labeled[:20] == few.labeled and more.measured == few.measured
    assert few.measured[0].text == "unlabeled 748"  # a draw that moves makes all committed cells worthless
    assert draw("trec", data, 20, 1, "dev").measured != few.measured


def test_no_text_is_in_two_groups_and_development_opens_no_test_file(data: Path) -> None:
    (data / "trec" / "test.csv").rename(data / "away.csv")
    split = draw("trec", data, 100, 2, "dev")
    texts = [row.text.lower() for group in (split.labeled, split.unlabeled, split.measured) for row in group]
    assert len(set(texts)) == len(texts) == 1100
    assert "labeled  7" not in texts
    assert sum(row.text.startswith("unlabeled") for row in split.labeled) >= 40  # the labelled file has 60 rows


def test_the_test_rows_are_all_measured_and_nobody_learns_from_their_texts(data: Path) -> None:
    known = {seed: draw("trec", data, 50, seed, "dev") for seed in range(6)}
    assert any("test 3" in {row.text for row in split.unlabeled} for split in known.values())
    assert any("labeled 9" in {row.text for row in split.labeled} for split in known.values())
    for seed, before in known.items():
        split = draw("trec", data, 50, seed, "test")
        assert len(split.measured) == 31
        assert split.labeled == tuple(row for row in before.labeled if row.text != "labeled 9")
        assert split.unlabeled == tuple(row for row in before.unlabeled if row.text != "test 3")


def test_a_task_without_a_reader_and_too_few_rows_say_what_is_missing(data: Path) -> None:
    with pytest.raises(NotYet, match="task kind `json`"):
        draw("restaurant8k", data, 50, 0, "dev")
    with pytest.raises(NotYet, match=r"trec has 1[56][0-9] rows to label"):
        draw("trec", data, 500, 0, "dev")


def result_of(data: Path, seed: int = 0) -> Result:
    split, method = draw("trec", data, 50, seed, "dev"), Majority()
    measured = method.measure(split, seed, Place(data, data))
    return scored(Cell("trec", 50, seed, METHOD_NAME), split, measured, (120.0, 200.0), method, "dev")


def test_a_cell_keeps_what_was_right_and_an_unreadable_answer_is_wrong_and_counted(data: Path, tmp_path: Path) -> None:
    path = data / "trec" / "unlabeled.csv"
    path.write_text(path.read_text("utf-8").replace("unlabeled 7", "unreadable 7"), "utf-8")
    result = result_of(data)
    measured = draw("trec", data, 50, 0, "dev").measured
    assert result.unreadable == sum("unreadable" in row.text for row in measured) > 10
    assert len(result.right) == result.n == len(measured) == 400
    assert result.accuracy == pytest.approx(100 * result.right.count("1") / 400)
    assert 20 < result.accuracy < 42 and result.ceiling == 100.0 and result.covered == 3
    keep(result, Cell("trec", 50, 0, METHOD_NAME).path("dev", tmp_path))
    assert finished("dev", tmp_path) == [result] and finished("test", tmp_path) == []


def test_costs_come_from_the_nearest_cells_that_were_measured(data: Path) -> None:
    done = [result_of(data)]
    assert minutes_of(Cell("trec", 50, 1, METHOD_NAME), Majority(), done) == 2.0
    assert minutes_of(Cell("fpb", 500, 1, METHOD_NAME), Majority(), done) == 2.0
    assert minutes_of(Cell("fpb", 500, 1, METHOD_NAME), Majority(), []) == 0.5


class Tuned(Majority):
    """Another recipe of the same name."""

    settings: ClassVar[dict[str, object]] = {"rule": "tuned on what the test rows showed"}


def test_the_ledger_lets_a_killed_cell_go_on_and_refuses_another_recipe(tmp_path: Path) -> None:
    ledger, cell = tmp_path / "ledger.jsonl", Cell("trec", 100, 0, METHOD_NAME)
    with pytest.raises(Refused, match="commit first"):
        enter([cell], Majority(), ledger, None, "0123456789ab+")
    enter([cell], Majority(), ledger, None, "0123456789ab")
    enter([cell], Majority(), ledger, None, "fedcba987654")
    assert len(ledger.read_text("utf-8").splitlines()) == 1
    with pytest.raises(Refused, match="--again REASON"):
        enter([cell], Tuned(), ledger, None, "0123456789ab")
    enter([cell], Tuned(), ledger, "a fault in the reader", "0123456789ab")
    last = json.loads(ledger.read_text("utf-8").splitlines()[-1])
    assert last["again"] == "a fault in the reader" and last["commit"] == "0123456789ab"
    enter([cell], Tuned(), ledger, None, "0123456789ab")
