"""Two rules that cost money or a promise when they slip: a seed is a training, and the gate's answers calibrate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semievol_api.session import run
from tests.e2e.conftest import Project, Semievol, write_rows


def _jobs(project: Project) -> set[str]:
    return set(json.loads((project.folder / "server" / "jobs.json").read_text("utf-8")))


def _run_with(project: Project, seed: int, folder: str) -> Path:
    text = project.config.read_text("utf-8")
    own = project.folder / f"{folder}.toml"
    own.write_text(text.replace('folder = "out"', f'folder = "{folder}"\nseed = {seed}'), "utf-8")
    return run(own).folder


def test_two_seeds_are_two_trainings_of_the_same_file_and_one_seed_is_bought_once(project: Project) -> None:
    project.change(("ceiling = true", "ceiling = false"))
    first = _run_with(project, 1, "first")
    bought = _jobs(project)
    assert _run_with(project, 1, "again") != first
    assert _jobs(project) == bought, "the same file, base, settings and seed"
    other = _run_with(project, 2, "other")
    assert (other / "warm_up/train.jsonl").read_bytes() == (first / "warm_up/train.jsonl").read_bytes()
    warm = [(folder / "jobs/warm_up-ticket/ticket.json").read_text("utf-8") for folder in (first, other)]
    assert warm[0] != warm[1]
    assert len(_jobs(project) - bought) == len(bought) == 2


@pytest.mark.parametrize("test_file", [True, False], ids=["gate and test", "gate alone"])
def test_what_gated_a_model_calibrates_its_predictions(project: Project, semievol: Semievol, test_file: bool) -> None:
    write_rows(project.folder / "labeled.csv", 120, start=5000)
    write_rows(project.folder / "dev.csv", 50, start=3000)
    held_out = 'test = "test.csv"\ndev = "dev.csv"' if test_file else 'dev = "dev.csv"'
    project.change(
        ('mode = "paper"', 'mode = "calibrated"'), ("ceiling = true", "ceiling = false"),
        ('test = "test.csv"', held_out),
    )  # fmt: skip
    run(project.config)
    write_rows(project.folder / "new.csv", 20, start=7000)
    shown = semievol("predict", "semievol", project.folder / "new.csv", "--run", project.config, "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["calibration"] == 50 + 40 * test_file
