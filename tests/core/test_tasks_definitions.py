"""The built-in tasks, and tasks that a user writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semievol_api.errors import ConfigError
from semievol_api.tasks import load_task, task_names

PAPER = ("arc", "convfinqa", "fpb", "mmlu", "mmlu-pro", "pubmedqa", "usmle")


def test_the_papers_seven_tasks_are_built_in() -> None:
    assert task_names() == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_each_built_in_task_names_a_pinned_dataset_and_the_seed_of_its_split(name: str) -> None:
    task = load_task(name)
    hub = task.definition.hub
    assert hub is not None
    assert task.name == name
    assert re.fullmatch(r"[0-9a-f]{40}", hub.revision)
    assert hub.ratio == (2, 6, 2)
    assert hub.seed == 0
    assert hub.columns.answer is not None


def test_an_unknown_task_is_met_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"There is no task 'mmlu-por'\. Did you mean 'mmlu-pro'\?"):
        load_task("mmlu-por")


def test_an_unknown_task_far_from_all_is_met_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="arc, convfinqa, fpb"):
        load_task("zzzzzzz")


def test_a_missing_task_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"There is no task file 'no/such\.toml'"):
        load_task("no/such.toml")


def test_a_user_adds_a_task_by_a_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nkind = "labels"\ninstruction = "Judge."\nlabels = ["ja", "nein"]\n', "utf-8")
    assert load_task(file).definition.labels == ("ja", "nein")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('instuction = "x"', r"unknown key 'instuction'\. Did you mean 'instruction'\?"),
        ('kind = "essay"', "'kind' is wrong"),
        ('kind = "labels"\ninstruction = "x"', "needs at least two labels"),
        ('kind = "number"\ninstruction = "x"\nlabels = ["a", "b"]', "has no labels"),
        ('kind = "labels"\ninstruction = "x"\nlabels = ["a", "A"]', "two labels are the same"),
        (
            'kind = "labels"\ninstruction = "x"\nlabels = ["a", "b"]\n[aliases]\nz = "c"',
            "alias of 'c' points to no label",
        ),
        ('kind = "number"\ninstruction = "x"\n[columns]\nquestoin = "q"', r"Did you mean 'question'\?"),
        ('kind = "number"', "'instruction' is missing"),
        ("kind = ", "is not valid TOML"),
    ],
)
def test_a_wrong_task_file_gets_one_sentence_with_the_key(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'name = "mine"\n{body}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_task(file)
