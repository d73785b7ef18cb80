"""The data of the demo with a real model: as described, cut by a rule, chosen on other intents, and understood."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.demo_llm import INTENTS, Message, cut, intents_of, read, spoken, write
from semievol_api.cli.demo import HERE, QUICK
from semievol_api.config.settings import load_config
from semievol_api.data import read_data
from semievol_api.tasks import load_task

LLM = HERE / "llm"
SIZES = {"labeled": 150, "unlabeled": 800, "test": 400}


def rows_of(name: str, folder: Path = LLM) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_shipped_messages_have_the_stated_sizes_and_no_message_twice() -> None:
    assert {name: len(rows_of(name)) for name in SIZES} == SIZES
    messages = [row["message"].casefold() for name in SIZES for row in rows_of(name)]
    assert len(set(messages)) == len(messages)
    assert all(list(row) == ["id", "message", "intent"] for name in SIZES for row in rows_of(name))


def test_every_intent_is_taught_and_tested() -> None:
    task = load_task(str(LLM / "task.toml"))
    assert len(task.definition.labels) == INTENTS
    for name in SIZES:
        assert set(Counter(row["intent"] for row in rows_of(name))) == set(task.definition.labels), name


def test_the_config_reads_its_data_and_embeds_with_minilm() -> None:
    config = load_config(LLM / "demo.toml", QUICK)
    raw = read_data(config.data, load_task(config.data.task))
    assert (len(raw.labeled), len(raw.unlabeled), len(raw.test)) == (150, 60, 60)
    assert config.roles.embedder is not None and config.roles.embedder.model == "minilm"
    assert len(load_config(LLM / "demo.toml").data.task) > 0 and config.run.mode == "calibrated"


def test_the_licence_names_the_dataset_and_its_terms() -> None:
    text = (HERE / "LICENSES.md").read_text("utf-8")
    assert "Banking77" in text and "creativecommons.org/licenses/by/4.0" in text and "Casanueva" in text


def test_the_development_has_other_intents_than_the_demo() -> None:
    messages = [Message(f"{intent} {i}", f"intent_{intent}") for intent in range(30) for i in range(105 + intent % 2)]
    demo, development = (intents_of(messages, part) for part in (0, 1))
    assert len(demo) == len(development) == INTENTS and not set(demo) & set(development)
    parts = cut(messages, demo)
    assert {name: len(rows) for name, rows in parts.items()} == SIZES


def test_the_shipped_files_are_those_that_the_builder_cuts(released_data: Path, tmp_path: Path) -> None:
    if not (released_data / "banking77").is_dir():
        pytest.skip("Banking77 is not there")
    messages = read(released_data / "banking77")
    intents = intents_of(messages, 0)
    write(cut(messages, intents), tmp_path)
    for name in SIZES:
        assert (tmp_path / f"{name}.csv").read_bytes() == (LLM / f"{name}.csv").read_bytes()
    assert tuple(map(spoken, intents)) == load_task(str(LLM / "task.toml")).definition.labels
