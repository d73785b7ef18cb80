"""Swapping who does the work is a change of `[roles]` and of nothing else.

One config, three times: our server over HTTP, the same model in this process, and a script. The same stages run and
artifacts of the same shapes come out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from semievol_api.demo.embedded_server import serving
from semievol_api.session import run
from tests.e2e.conftest import TASK, tree, write_rows
from tests.providers.local_truths import SHORT_ANSWERS

MODEL = Path(__file__).resolve().parent.parent.parent / "semievol_api" / "demo" / "model"
NOT_ARTIFACTS = ("journal", "stamps", "config_key", ".lock", "spend")
CONFIG = (
    """
[run]
mode = "paper"
folder = "out"

[data]
task = "task.toml"
labeled = "labeled.csv"
unlabeled = "unlabeled.csv"
test = "test.csv"
near_duplicates = false

[providers.server]
kind = "openai"
base_url = "{url}"
api_key_env = ""

[providers.home]
kind = "local"
model = "{model}"
name = "demo-llama"
device = "cpu"

[providers.script]
kind = "scripted"

[roles]
student = {{ provider = "{who}", model = "demo-llama" }}
embedder = {{ provider = "{who}", model = "demo-llama" }}

[train]
n_epochs = 1
poll_s = 0.1
"""
    + SHORT_ANSWERS
)


def _shape(name: str, content: bytes, folder: Path) -> Any:
    """What an artifact is like: a table's columns and types, the keys of an object, or the keys of a file's lines."""
    if name.endswith(".parquet"):
        return str(pq.read_schema(folder / name).remove_metadata())
    if name.endswith(".json"):
        return sorted(json.loads(content))
    if name.endswith(".jsonl"):
        return {tuple(sorted(json.loads(line))) for line in content.splitlines()}
    return "other"


def _run(folder: Path, who: str, url: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    folder.mkdir()
    write_rows(folder / "labeled.csv", 12)
    write_rows(folder / "unlabeled.csv", 12, start=40)
    write_rows(folder / "test.csv", 8, start=100)
    (folder / "task.toml").write_text(TASK, "utf-8")
    (folder / "semievol.toml").write_text(CONFIG.format(who=who, url=url, model=MODEL.as_posix()), "utf-8")
    result = run(folder / "semievol.toml")
    artifacts = tree(result.folder, without=NOT_ARTIFACTS)
    return result.computed, {name: _shape(name, content, result.folder) for name, content in artifacts.items()}


@pytest.mark.slow
def test_roles_are_all_that_a_swap_changes(tmp_path: Path) -> None:
    with serving(MODEL, "demo-llama", tmp_path / "state") as url:
        served = _run(tmp_path / "served", "server", url)
    at_home = _run(tmp_path / "at_home", "home", url)
    scripted = _run(tmp_path / "scripted", "script", url)
    assert any(name.endswith(".parquet") for name in served[1])
    assert any("semievol-model" in name for name in served[0])
    assert served == at_home == scripted
