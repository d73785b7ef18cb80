"""The pages of docs/howto are followed: their code is taken from the page as it stands and used in a run."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Project, Semievol

ROOT = Path(__file__).resolve().parents[2]
HOWTO = ROOT / "docs" / "howto"


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (HOWTO / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_a_provider_made_by_the_page_annotates_in_a_run(
    project: Project, tmp_path: Path, semievol: Semievol, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module,) = blocks("provider.md", "python")
    entry_point, config = blocks("provider.md", "toml")
    package = tmp_path / "package"
    (package / "overlap-1.dist-info").mkdir(parents=True)
    (package / "overlap.py").write_text(module)
    (package / "overlap-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: overlap\nVersion: 1\n")
    group, _, line = entry_point.strip().partition("\n")
    assert group == '[project.entry-points."semievol.providers"]'
    (package / "overlap-1.dist-info" / "entry_points.txt").write_text(
        f"[semievol.providers]\n{line.replace(chr(34), '')}\n"
    )
    monkeypatch.syspath_prepend(str(package))
    project.change(('mode = "paper"', 'mode = "calibrated"'))
    project.config.write_text(f'{project.config.read_text()}\n[[annotators]]\nid = "warm"\nmodel = "warm"\n\n{config}')
    done = semievol("run", project.config, "--yes")
    assert done.code == 0, done.err
    rows = pq.read_table(project.folder / "out" / "collaborate" / "evidence.parquet").to_pylist()
    answers = {row["example_id"]: row["answer"] for row in rows if row["annotator_id"] == "words"}
    right = {f"q{i}": "ABCD"[i * 7 % 4] for i in range(40, 100)}
    assert {name: answers[name] for name in right} == right
    project.change(('kind = "overlap"', 'kind = "overlap"\nspeed = 3'))
    refused = semievol("check", project.config)
    assert refused.code == 2
    assert "[providers.words]: overlap has no settings but kind." in refused.err


def test_a_rule_made_by_the_page_chooses_in_a_run(project: Project, tmp_path: Path, child_env: dict[str, str]) -> None:
    checkout = copy_of_the_package(tmp_path)
    (module,) = blocks("rule.md", "python")
    (config,) = blocks("rule.md", "toml")
    (checkout / "semievol_api/selection/rule_confident.py").write_text(module)
    rules, method = checkout / "semievol_api/selection/rules.py", checkout / "semievol_api/config/method.py"
    for file, change in zip((rules, rules, method), blocks("rule.md", "diff"), strict=True):
        apply(file, change)
    project.change(('mode = "paper"', 'mode = "calibrated"'))
    project.config.write_text(f"{project.config.read_text()}\n{config}")
    done = run_in(checkout, project, child_env)
    assert done.returncode == 0, done.stderr
    summary = json.loads((project.folder / "out" / "select" / "summary.json").read_text())
    assert summary["applied_rule"] == "confident"
    scores = pq.read_table(project.folder / "out" / "select" / "scores.parquet").to_pylist()
    assert 0 < summary["kept"] < summary["unlabeled"]
    assert all(row["kept"] == (row["score"] is not None and row["score"] >= 0.6) for row in scores)


def test_a_task_kind_made_by_the_page_is_read_in_a_run(
    project: Project, tmp_path: Path, child_env: dict[str, str]
) -> None:
    (module,) = blocks("task-kind.md", "python")
    (task,) = blocks("task-kind.md", "toml")
    checkout = copy_of_the_package(tmp_path)
    (checkout / "semievol_api/tasks/kind_date.py").write_text(module)
    for change in blocks("task-kind.md", "diff"):
        apply(checkout / "semievol_api/tasks/definition.py", change)
    (project.folder / "task.toml").write_text(f'{task}\n[columns]\nid = "id"\n')
    for name, first, count in (("labeled", 0, 40), ("unlabeled", 40, 60), ("test", 100, 40)):
        write_dates(project.folder / f"{name}.csv", range(first, first + count))
    done = run_in(checkout, project, child_env)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(project.folder / "out" / "collaborate" / "evidence.parquet").to_pylist()
    days = {f"q{i}": day_of(i).isoformat() for i in range(40, 100)}
    read = [(row["answer"], days[row["example_id"]]) for row in rows if row["example_id"] in days]
    assert all(answer in (day, None) for answer, day in read)
    assert 0.5 < sum(answer == day for answer, day in read) / len(read) < 1
    models = json.loads((project.folder / "out" / "verdict" / "verdict.json").read_text())["models"]
    assert all(model["accuracy"] > 0.5 for model in models if model["name"] != "majority")


def day_of(number: int) -> date:
    """The day that a question asks for."""
    return date(2024, 1, 1 + number * 11 % 28)


def write_dates(path: Path, numbers: Iterable[int]) -> None:
    """Questions that the scripted provider answers in one way of writing dates, and gold in another."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "answer"])
        for i in numbers:
            day = day_of(i)
            writer.writerow([f"q{i}", f"Item number {i} has cue: {day.isoformat()}", f"{day:%B} {day.day}, {day.year}"])


def copy_of_the_package(folder: Path) -> Path:
    """A checkout that a page may change."""
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "semievol_api", checkout / "semievol_api", ignore=shutil.ignore_patterns("model", "*.pyc"))
    return checkout


def run_in(checkout: Path, project: Project, child_env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`semievol run` by the checkout's code."""
    environ = {**child_env, "PYTHONPATH": f"{checkout}{os.pathsep}{ROOT / 'providers'}"}
    command = [sys.executable, "-m", "semievol_api.cli", "run", str(project.config), "--yes"]
    return subprocess.run(command, cwd=project.folder, env=environ, capture_output=True, text=True, check=False)


def apply(file: Path, change: str) -> None:
    """A change of the page: the lines with a minus or a blank give way to those with a plus or a blank."""
    lines = change.splitlines()
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    text = file.read_text("utf-8")
    assert text.count(before) == 1, f"{file.name} has changed: {before!r} stands there {text.count(before)} times"
    file.write_text(text.replace(before, after), "utf-8")
