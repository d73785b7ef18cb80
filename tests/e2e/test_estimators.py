"""Every estimator and every script of labels through a whole run on the scripted provider."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semievol_api.errors import MissingAbilityError
from semievol_api.session import run
from tests.e2e.conftest import Project
from tests.e2e.test_modes import add, document, evidence, labels

__all__ = ["labels"]

COLOURS = ("red", "green", "blue", "gold")


def listed(estimator: str) -> str:
    """A crew of two models, both read by one estimator."""
    return "".join(
        f'[[annotators]]\nid = "{model}"\nmodel = "{model}"\nestimator = "{estimator}"\n' for model in ("warm", "base")
    )


def write_words(project: Project, kind: str, words: tuple[str, ...], extra: str = "") -> None:
    """A task whose answers are words, and its three files."""
    (project.folder / "task.toml").write_text(
        f'name = "c"\nkind = "{kind}"\ninstruction = "Which colour?"\n{extra}\n[columns]\nid = "id"\n', "utf-8"
    )
    for name, count, start in (("labeled", 140, 0), ("unlabeled", 240, 1000), ("test", 40, 2000)):
        lines = ["id,question,answer"]
        for i in range(start, start + count):
            word = words[i * 7 % len(words)]
            lines.append(f"q{i},Item number {i} of the survey has cue: {word},{word}")
        (project.folder / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")


def mean_by_truth(rows: list[dict[str, Any]], field: str, gold: dict[str, str]) -> tuple[float, float]:
    """The mean confidence of right answers and of wrong ones."""
    sides: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        if row["example_id"] in gold:
            sides[row["answer"] == gold[row["example_id"]]].append(row[field])
    return float(np.mean(sides[True])), float(np.mean(sides[False]))


def gold_of(folder: Path) -> dict[str, str]:
    """The unlabelled questions' answers by id."""
    with (folder / "unlabeled.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["answer"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("reads", ["true", "false"])
@pytest.mark.parametrize("kind", ["multiple_choice", "free_text"])
def test_p_true_asks_about_each_answer_once_more_and_selects_by_it(labels: Project, kind: str, reads: str) -> None:
    labels.change(('state = "server"', f'state = "server"\ncan_read_options = {reads}'))
    if kind == "free_text":
        write_words(labels, kind, COLOURS)
    add(labels, listed("p_true"))
    result = run(labels.config)
    told = document(result)["selection"]
    assert {how["read_by"] for name, how in told["annotators"].items() if name != "justify"} == {"p_true"}
    assert told["kept"] >= 20
    rows = evidence(result)
    assert all(0.0 < row["p_true"] < 1.0 for row in rows if row["answer"] is not None)
    right, wrong = mean_by_truth(rows, "p_true", gold_of(labels.folder))
    assert right > wrong + 0.05
    assert run(labels.config).computed == ()


def test_p_true_is_refused_by_name_where_no_probabilities_come(labels: Project) -> None:
    labels.change(('state = "server"', 'state = "server"\nignore_logprobs = true'))
    add(labels, listed("p_true"))
    with pytest.raises(MissingAbilityError, match="p_true"):
        run(labels.config)


@pytest.mark.parametrize("kind", ["multiple_choice", "free_text"])
def test_words_of_confidence_need_nothing_of_the_server(labels: Project, kind: str) -> None:
    labels.change(('state = "server"', 'state = "server"\nrefuse_logprobs = true'))
    if kind == "free_text":
        write_words(labels, kind, COLOURS)
    add(labels, listed("verbal"))
    result = run(labels.config)
    told = document(result)["selection"]
    assert told["annotators"]["warm"]["read_by"] == "verbal"
    assert told["kept"] >= 20
    right, wrong = mean_by_truth(evidence(result), "verbal", gold_of(labels.folder))
    assert right > wrong


@pytest.mark.parametrize(
    "words",
    [("红色", "绿色", "蓝色", "金色"), ("أحمر", "أخضر", "أزرق", "ذهبي")],
    ids=["chinese", "arabic"],
)
@pytest.mark.parametrize("way", ["", "\ncan_read_options = false", "\nrefuse_logprobs = true"])
def test_labels_of_any_script_are_read_pooled_and_kept(labels: Project, words: tuple[str, ...], way: str) -> None:
    listed_words = ", ".join(f'"{word}"' for word in words)
    write_words(labels, "labels", words, f"labels = [{listed_words}]")
    labels.change(('state = "server"', f'state = "server"{way}'))
    result = run(labels.config)
    told = document(result)
    assert told["selection"]["answered"] >= 0.9 * 240
    assert told["selection"]["kept"] >= 20
    assert {row["answer"] for row in evidence(result)} - {None} == set(words)
    assert all(word in (result.folder / "sft" / "train.jsonl").read_text("utf-8") for word in words)


def test_a_crew_of_neighbours_alone_asks_no_model_and_still_selects(labels: Project) -> None:
    add(
        labels,
        """
[split]
calibration = 0
development = 0
[[annotators]]
id = "neighbours"
model = "neighbour_vote"
neighbours = 20
sharpness = 5.0
[justify]
on = "never"
[select]
rule = "percentile"
share = 0.7
""",
    )
    result = run(labels.config)
    told = document(result)
    assert evidence(result) == []
    assert told["selection"]["annotators"]["neighbours"]["read_by"] == "neighbour_vote"
    assert 168 <= told["selection"]["kept"] <= 180, "whole tie groups"
    assert {m["label"] for m in told["models"]} >= {"SFT", "SemiEvol", "gold-label ceiling"}
    assert any(d["of"] == "semievol" and d["against"] == "warm" for d in told["differences"])
