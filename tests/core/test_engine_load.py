"""The engine against a server on this machine: trouble of all sorts, kills, and the benchmark's own server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import engine, engine_cases, mock

ROOT = Path(__file__).resolve().parents[2]
SMALL = engine_cases.Sizes(chaos=250, kill=300, kills=2, budget=200)


@pytest.fixture(params=["compiled", "python"])
def any_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled server where there is a compiler, and the Python one."""
    if request.param == "python":
        script = str(ROOT / "benchmarks" / "mock_server.py")
        monkeypatch.setattr(mock, "command", lambda folder: [sys.executable, script])
    yield


def holds(figures: engine_cases.Figures) -> None:
    """No promise that these figures are about is broken."""
    assert engine.broken(figures) == []


@pytest.mark.usefixtures("any_server")
def test_no_row_is_lost_doubled_or_moved_whatever_the_server_does() -> None:
    figures = engine_cases.chaos(SMALL)
    assert float(figures["chaos_trouble"] or 0) > 10
    holds(figures)


def test_a_run_killed_again_and_again_asks_nothing_twice_and_ends_the_same() -> None:
    figures = engine_cases.kill(SMALL)
    assert figures["kills"] == 2
    holds(figures)


@pytest.mark.usefixtures("any_server")
def test_the_server_bills_no_more_than_the_cap() -> None:
    holds(engine_cases.budget(SMALL))


def test_a_broken_promise_is_told_and_makes_the_check_fail() -> None:
    figures: engine_cases.Figures = {"chaos_lost": 1, "rpm_wall_s": 30.0, "rpm_ideal_s": 20.0, "sdk_times_engine": None}
    faults = engine.broken(figures)
    assert [fault.split()[0] for fault in faults] == ["chaos_lost", "rpm_wall_s"]


def test_the_benchmark_prints_one_json_object(child_env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--json", "--check", "--quick", "--only", "budget"],
        env=child_env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["broken"] == []
