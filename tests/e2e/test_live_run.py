"""`make live`: says when it does not run, asks before it does, and records who answered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from semievol_api.cassettes.exchange import read_manifest
from semievol_api.config.settings import load_config
from semievol_api.session import run_async, run_blocking
from tests.e2e.threaded import serving
from tests.live import ROOT, live
from tests.providers.openai_loopback import LoopbackServer

OWN = """
[[models]]
vendor = "compatible"
model = "{model}"
checked = 2026-11-21
input_usd = 0.15
output_usd = 0.6
training_usd = 3.0
"""


def never(question: str) -> str:
    raise AssertionError(f"nobody should be asked: {question}")


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, object]:
    """What keeps the run on this machine: few rows, a folder of its own, prices for a server that is no vendor."""
    models = ("gpt-4o-mini-2024-07-18", "text-embedding-3-small")
    (tmp_path / "prices.toml").write_text("".join(OWN.format(model=model) for model in models))
    return {
        "run.folder": str(tmp_path / "run"),
        "catalogue.file": str(tmp_path / "prices.toml"),
        "data.max_unlabeled": 20,
        "data.max_test": 4,
        "train.poll_s": 0.01,
    }


def test_without_a_key_it_says_that_it_was_not_run(child_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "tests.live", "openai"]
    done = subprocess.run(command, env=child_env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "NOT RUN: the variable OPENAI_API_KEY is not set" in done.stdout


@pytest.mark.parametrize(
    ("training_usd", "ask", "words"),
    [("3.0", lambda _: "n", "did not say yes"), ("3000.0", never, "may cost more than 1 USD")],
)
def test_nothing_is_sent_without_a_yes_or_above_one_dollar(
    training_usd: str,
    ask: Callable[[str], str],
    words: str,
    changes: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-live-0123456789")
    said: list[str] = []
    with serving(LoopbackServer()) as server:
        prices = Path(str(changes["catalogue.file"]))
        prices.write_text(prices.read_text().replace("training_usd = 3.0", f"training_usd = {training_usd}"))
        there = {**changes, "providers.hosted.base_url": server.base_url}
        live("openai", tmp_path / "tape", ask, said.append, there)
        assert not server.requests
    assert words in "".join(said)
    assert not (tmp_path / "tape").exists()


def test_a_yes_runs_it_and_leaves_a_cassette_that_replays_and_says_who_answered(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-live-0123456789")
    asked: list[str] = []
    said: list[str] = []
    with serving(LoopbackServer()) as server:
        there = {**changes, "providers.hosted.base_url": server.base_url}
        code = live("openai", tmp_path / "tape", lambda question: asked.append(question) or "y", said.append, there)
        assert code == 0 and len(server.jobs) == 2
        assert {seen.body["model"] for seen in server.asked("/fine_tuning/jobs")} == {"gpt-4o-mini-2024-07-18"}
    assert "1 at the very most" in asked[0]
    assert "127.0.0.1" in read_manifest(tmp_path / "tape").recorded_against
    assert "recorded against 127.0.0.1" in "".join(said)
    monkeypatch.delenv("OPENAI_API_KEY")
    again = {**there, "run.folder": str(tmp_path / "again"), "cassette.path": str(tmp_path / "tape")}
    again |= {"data.max_labeled": 24, "train.n_epochs": 1, "limits.max_usd": 1.0}
    config = load_config(ROOT / "examples" / "gpt-4o-mini.toml", again)
    assert os.environ.get("OPENAI_API_KEY") is None
    assert run_blocking(run_async(config)).verdict.document["n_test"] == 4
