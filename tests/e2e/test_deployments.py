"""A whole run where tuned models answer only while they are deployed: as without, and killed at any step."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from semievol_api.demo.embedded_server import serving
from semievol_api.session import run
from semievol_api.training.deployments import Deployed, deployments_under
from tests.e2e.conftest import TASK, Semievol, write_rows
from tests.providers.local_truths import SHORT_ANSWERS

pytest.importorskip("torch")
MODEL = Path(__file__).resolve().parent.parent.parent / "semievol_api" / "demo" / "model"
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
identity = "one-server"
{deployments}

[deploy]
poll_s = 0.1
usd_per_hour = 3.0

[roles]
student = {{ provider = "server", model = "demo-llama" }}
embedder = {{ provider = "server", model = "demo-llama" }}

[train]
n_epochs = 1
poll_s = 0.1
"""
    + SHORT_ANSWERS
)
SAME = ("collaborate/evidence.parquet", "select/kept.parquet", "evolve/train.jsonl", "verdict/verdict.json")


def new_run(folder: Path, url: str, *, deployments: bool = True) -> Path:
    folder.mkdir()
    write_rows(folder / "labeled.csv", 12)
    write_rows(folder / "unlabeled.csv", 12, start=40)
    write_rows(folder / "test.csv", 8, start=100)
    (folder / "task.toml").write_text(TASK, "utf-8")
    switch = "deployments = true" if deployments else ""
    (folder / "semievol.toml").write_text(CONFIG.format(url=url, deployments=switch), "utf-8")
    return folder / "semievol.toml"


def records_of(run_folder: Path) -> list[Deployed]:
    """The run's deployments; its other folders come and go while it runs."""
    folder = run_folder / "deployments"
    return [Deployed(**json.loads(path.read_text("utf-8"))) for path in folder.glob("*.json")]


def count(state: Path, table: str) -> int:
    """How many rows the server's table has ever had."""
    with closing(sqlite3.connect(f"file:{state / 'state.sqlite'}?mode=ro", uri=True, timeout=5)) as connection:
        found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return 0 if found is None else int(found[0])


@pytest.mark.slow
def test_a_run_over_deployments_is_the_run_without_and_leaves_nothing_that_costs(
    tmp_path: Path, semievol: Semievol
) -> None:
    with serving(MODEL, "demo-llama", tmp_path / "plain-state") as url:
        plain = run(new_run(tmp_path / "plain", url, deployments=False))
    with serving(MODEL, "demo-llama", tmp_path / "state", ("--deployments",)) as url:
        config = new_run(tmp_path / "deployed", url)
        done = run(config)
        for name in SAME:
            assert (done.folder / name).read_bytes() == (plain.folder / name).read_bytes(), name
        records = [record for _, record in deployments_under(done.folder)]
        assert {record.status for record in records} == {"asleep"} and len(records) >= 2
        listed = [job for job in json.loads(semievol("jobs", config, "--json").out) if job["kind"] == "deployment"]
        assert len(listed) == len(records) and all(0 < job["hours"] < 1 and job["usd"] > 0 for job in listed)
        assert "deployment" in semievol("jobs", config).out
        made = count(tmp_path / "state", "deployments")
        assert run(config).computed == () and count(tmp_path / "state", "deployments") == made
        left = json.loads(semievol("clean", config, "--remote", "--json").out)["items"]
        assert [item["kind"] for item in left[: len(records)]] == ["deployment"] * len(records)
        assert "it is asleep" in left[0]["why"]
        assert json.loads(semievol("clean", config, "--remote", "--yes", "--json").out)["failures"] == []
        assert {record.status for _, record in deployments_under(done.folder)} == {"deleted"}


@pytest.mark.slow
def test_a_run_killed_at_any_step_of_a_deployment_makes_each_once(tmp_path: Path, child_env: dict[str, str]) -> None:
    (tmp_path / "limits.toml").write_text("deployment_start_s = 0.5\n")
    options = ("--deployments", "--limits", str(tmp_path / "limits.toml"))
    with serving(MODEL, "demo-llama", tmp_path / "state", options) as url:
        config = new_run(tmp_path / "killed", url)
        command = [sys.executable, "-m", "semievol_api.cli.app", "run", str(config), "--yes"]
        out = config.parent / "out"
        for status in ("creating", "awake", "asleep"):
            child = subprocess.Popen(command, env=child_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 120
            while child.poll() is None and not any(r.status == status for r in records_of(out)):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
            child.wait()
        done = run(config)
        records = records_of(out)
        assert {record.status for record in records} == {"asleep"}
        assert count(tmp_path / "state", "deployments") == len(records)
        assert count(tmp_path / "state", "jobs") == len(list((done.folder / "jobs").glob("*-ticket")))
