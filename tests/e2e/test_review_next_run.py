"""What a person decided in `semievol review` is what the next run learns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from semievol_api.errors import DataError
from semievol_api.report.labels import Decision, DecisionLog
from semievol_api.session import RunResult, run
from tests.e2e.conftest import WORDS, Project


def question_ids(folder: Path, part: str) -> list[str]:
    return pq.read_table(folder / f"{part}.parquet")["id"].to_pylist()


def right(name: str) -> str:
    """The cue's own letter, as `write_rows` makes it."""
    return "ABCD"[WORDS.index(WORDS[int(name.removeprefix("q")) * 7 % 4])]


def decide(result: RunResult, count: int) -> list[str]:
    """So many decisions in the run's folder, as the page writes them; two are taken back, one is skipped."""
    names = question_ids(result.folder / "prepare", "unlabeled")[: count + 3]
    with DecisionLog.open(result.folder / "review.jsonl") as log:
        for name in names[:count]:
            log.append(Decision(example_id=name, action="correct", answer=right(name), proposed="A"))
        log.append(Decision(example_id=names[count], action="skip", proposed="A"))
        for name in names[count + 1 :]:
            log.append(Decision(example_id=name, action="accept", answer="A", proposed="A"))
            log.undo()
    return names[:count]


def next_run(project: Project, **changes: str) -> RunResult:
    project.change(("near_duplicates = false", 'near_duplicates = false\nreviewed = "out/review.jsonl"'))
    project.change(*((old, new) for old, new in changes.items()))
    return run(project.config, accept_change=True)


def taught(path: Path, numbers: list[str]) -> int:
    text = path.read_text("utf-8")
    return sum(f"Item number {name.removeprefix('q')} of" in text for name in numbers)


def test_the_next_run_trains_on_every_decision_and_asks_nobody_about_those_rows(project: Project) -> None:
    first = run(project.config)
    names = decide(first, 20)
    second = next_run(project)
    for file in ("warm_up", "evolve"):
        assert taught(second.folder / file / "train.jsonl", names) == 20
    lines = [json.loads(line) for line in (second.folder / "warm_up/train.jsonl").read_text().splitlines()]
    assert len(lines) == 40 + 20
    for line in lines:
        number = line["messages"][-2]["content"].partition("Item number ")[2].split(" ")[0]
        assert line["messages"][-1]["content"] == f"Answer: {right(number)}"
    asked = set(pq.read_table(second.folder / "collaborate/evidence.parquet")["example_id"].to_pylist())
    assert not asked & set(names) and len(asked) == 40


def test_reviewed_rows_teach_and_never_calibrate(project: Project) -> None:
    from tests.e2e.conftest import write_rows

    write_rows(project.folder / "labeled.csv", 120, start=5000)
    project.change(('mode = "paper"', 'mode = "calibrated"'))
    first = run(project.config)
    before = question_ids(first.folder / "split", "calibration")
    names = decide(first, 20)
    second = next_run(project)
    assert question_ids(second.folder / "split", "calibration") == before
    assert set(names) <= set(question_ids(second.folder / "split", "warm"))
    assert taught(second.folder / "sft/train.jsonl", names) == 20, "the baseline knows them too"


def test_a_reviewed_row_that_stands_in_the_test_is_not_learned(project: Project) -> None:
    first = run(project.config)
    names = decide(first, 20)
    rows = (project.folder / "unlabeled.csv").read_text().splitlines()
    leaked = next(row for row in rows if row.startswith(f"{names[0]},"))
    with (project.folder / "test.csv").open("a", encoding="utf-8") as file:
        file.write(leaked.replace(f"{names[0]},", "t1,", 1) + "\n")
    second = next_run(project)
    assert taught(second.folder / "warm_up/train.jsonl", names) == 19


def test_a_line_that_is_no_decision_is_named(project: Project) -> None:
    first = run(project.config)
    decide(first, 3)
    with (first.folder / "review.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"action": "accept", "answer": "A"}\n')
    with pytest.raises(DataError, match=r"review\.jsonl, line 9 is no JSON object"):
        next_run(project)
