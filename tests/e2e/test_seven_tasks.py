"""The paper's seven tasks from their shipped definitions, each a whole run on small examples of our own.

The scripted models know an answer by a cue in its question, so what is tested is the task: which columns it reads,
how it words a question, what it takes for an answer, when two answers are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from semievol_api.config.settings import load_config
from semievol_api.session import RunResult, run_async, run_blocking
from semievol_api.tasks import task_names
from tests.e2e.conftest import CONFIG

LETTERS = "ABCDEFGHIJ"
Row = dict[str, object]


@dataclass(frozen=True)
class Sample:
    """One task's rows: the i-th question, and the canonical answers that may come of them."""

    row: Callable[[int], Row]
    answers: frozenset[str]


def choices(words: tuple[str, ...], **more: Callable[[int], object]) -> Sample:
    """Multiple choice among `words`, the answer as a letter."""

    def row(i: int) -> Row:
        place = i * 7 % len(words)
        question = f"Case {i}: which one does the text name? cue: {words[place]}"
        extra = {name: make(i) for name, make in more.items()}
        return {"question": question, "options": list(words), "answer": LETTERS[place], **extra}

    return Sample(row, frozenset(LETTERS[: len(words)]))


def worded(words: tuple[str, ...], **more: Callable[[int], object]) -> Sample:
    """Fixed labels, no options in the file, the answer as a word."""

    def row(i: int) -> Row:
        word = words[i * 5 % len(words)]
        extra = {name: make(i) for name, make in more.items()}
        return {"question": f"Sentence {i} of the report. cue: {word}", "answer": word, **extra}

    return Sample(row, frozenset(LETTERS[: len(words)]))


def figures() -> Sample:
    """Numbers as reports write them, the gold in another style than the cue."""
    styles = (
        ("$1,234.5", "1234.5"),
        ("12.5%", "0.125"),
        ("(42.0)", "-42"),
        ("3.14", "3.14"),
        ("-7.25%", "-0.0725"),
        ("2,000,000", "2000000"),
    )

    def row(i: int) -> Row:
        shown, gold = styles[i % len(styles)]
        return {"question": f"Table {i}: revenue 10 | 20. What is the last figure? cue: {shown}", "answer": gold}

    return Sample(row, frozenset())


TEN = ("amber", "birch", "cedar", "dahlia", "ebony", "fern", "ginger", "hazel", "iris", "jasmine")
SAMPLES: Mapping[str, Sample] = {
    "mmlu": choices(TEN[:4], Subject=lambda i: f"subject {i % 3}"),
    "mmlu-pro": choices(TEN),
    "arc": choices(TEN[:5], id=lambda i: f"arc-{i}"),
    "usmle": choices(TEN[:4]),
    "fpb": worded(("negative", "neutral", "positive")),
    "pubmedqa": worded(("No", "Maybe", "Yes"), id=lambda i: f"pm-{i}"),
    "convfinqa": figures(),
}


def whole_run(name: str, folder: Path) -> RunResult:
    """A `paper` run of a built-in task on 40 labelled, 60 unlabelled and 40 test rows."""
    for part, start, count in (("labeled", 0, 40), ("unlabeled", 1000, 60), ("test", 2000, 40)):
        lines = [json.dumps(SAMPLES[name].row(start + i)) for i in range(count)]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    config = folder / "semievol.toml"
    config.write_text(CONFIG.replace(".csv", ".jsonl").replace("task.toml", name), "utf-8")
    return run_blocking(run_async(load_config(config)))


def accuracy(result: RunResult) -> dict[str, float]:
    models: Any = result.verdict.document["models"]
    return {model["name"]: model["accuracy"] for model in models}


def test_every_built_in_task_has_examples_here() -> None:
    assert set(SAMPLES) == set(task_names())


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_built_in_task_runs_end_to_end_on_own_examples(name: str, tmp_path: Path) -> None:
    result = whole_run(name, tmp_path)
    found = accuracy(result)
    assert found["semievol"] > found["base"], "the scripted models learn, so answers are read and scored"
    assert found["semievol"] >= 0.7
    kept = pq.read_table(result.folder / "select/kept.parquet").to_pylist()
    assert len(kept) >= 20
    if SAMPLES[name].answers:
        assert {row["answer"] for row in kept} <= SAMPLES[name].answers
    lines = (result.folder / "evolve/train.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 40 + len(kept)
    assert all(json.loads(line)["messages"][-1]["content"].startswith("Answer: ") for line in lines)


def test_letters_go_to_j(tmp_path: Path) -> None:
    result = whole_run("mmlu-pro", tmp_path)
    answered = pq.read_table(result.folder / "evaluate/semievol/evidence.parquet")["answer"].to_pylist()
    assert set(answered) == set(LETTERS)
    prompt = json.loads((result.folder / "warm_up/train.jsonl").read_text("utf-8").splitlines()[0])
    assert "\nJ. jasmine" in prompt["messages"][0]["content"]


def test_fixed_labels_stand_as_options_in_their_order(tmp_path: Path) -> None:
    result = whole_run("pubmedqa", tmp_path)
    prompt = json.loads((result.folder / "warm_up/train.jsonl").read_text("utf-8").splitlines()[0])
    assert "A. No\nB. Maybe\nC. Yes" in prompt["messages"][0]["content"]


def test_numbers_are_equal_whatever_their_separators_signs_and_percents(tmp_path: Path) -> None:
    """The models answer in the question's style, the gold stands in another; all styles are among the right ones."""
    result = whole_run("convfinqa", tmp_path)
    evidence = pq.read_table(result.folder / "evaluate/semievol/evidence.parquet").to_pylist()
    correct = json.loads((result.folder / "evaluate/semievol/answers.json").read_text())["correct"]
    right = {row["text"].removeprefix("Answer: ") for row in evidence if correct[row["example_id"]]}
    assert {"$1,234.5", "12.5%", "(42.0)", "3.14", "-7.25%", "2,000,000"} <= right
