"""`semievol run` on the scripted provider: the whole loop, repeated, killed, varied."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semievol_api import run
from tests.e2e.conftest import Project, Semievol, tree, write_rows

NOT_ARTIFACTS = ("journal", "stamps", "config_key", ".lock", "jobs", "oracle", "spend")


def artifacts(folder: Path) -> dict[str, bytes]:
    return tree(folder, without=NOT_ARTIFACTS)


def test_the_whole_loop_ends_with_a_table_and_one_sentence(project: Project, semievol: Semievol) -> None:
    done = semievol("run", project.config)
    assert done.code == 0, done.err
    for word in ("vanilla", "SFT", "SemiEvol", "gold-label ceiling", "n = 40", "SemiEvol"):
        assert word in done.out


def test_a_second_run_asks_nothing_and_computes_nothing(project: Project, semievol: Semievol) -> None:
    assert semievol("run", project.config).code == 0
    before = artifacts(project.folder / "out")
    done = semievol("run", project.config, "--json")
    told = json.loads(done.out)["this_process"]
    assert told == {"requests": 0, "attempts": 0, "computed": []}
    assert artifacts(project.folder / "out") == before


def test_the_journal_answers_where_an_artifact_is_gone(project: Project, semievol: Semievol) -> None:
    assert semievol("run", project.config).code == 0
    before = artifacts(project.folder / "out")
    stamps = project.folder / "out" / "stamps.json"
    stamps.write_text("{}")
    told = json.loads(semievol("run", project.config, "--json").out)["this_process"]
    assert told["requests"] == 0
    assert len(told["computed"]) > 5
    assert artifacts(project.folder / "out") == before


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_lost_journal_beside_finished_stages_is_told_before_anything_is_bought_again(
    project: Project, semievol: Semievol, how: str
) -> None:
    assert semievol("run", project.config).code == 0
    out = project.folder / "out"
    journal = out / "journal.sqlite"
    journal.unlink()
    if how == "empty":
        journal.write_bytes(b"")
    before = tree(project.folder)
    told = semievol("run", project.config)
    assert told.code == 2 and f"is {how}" in told.err and "--accept-lost-journal" in told.err
    assert tree(project.folder) == before
    done = semievol("run", project.config, "--accept-lost-journal", "--json")
    assert json.loads(done.out)["this_process"]["computed"] == []


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    project: Project, semievol: Semievol, child_env: dict[str, str]
) -> None:
    project.change(('state = "server"', 'state = "server"\nidentity = "here"\nskill = 0.2\nlatency_s = 0.01'))
    undisturbed = run(project.config)
    expected = artifacts(undisturbed.folder)
    project.change(('folder = "out"', 'folder = "killed"'), ('state = "server"', 'state = "server2"'))
    chance = random.Random(0)
    command = [sys.executable, "-m", "semievol_api.cli.app", "run", str(project.config)]
    for _ in range(5):
        with subprocess.Popen(command, env=child_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            time.sleep(0.6 + chance.random())
            os.kill(child.pid, signal.SIGKILL)
    assert semievol("run", project.config).code == 0
    assert artifacts(project.folder / "killed") == expected
    jobs = json.loads((project.folder / "server2" / "jobs.json").read_text())
    assert len(jobs) == 3, "warm-up, final, ceiling: none was bought twice"
    assert jobs == json.loads((project.folder / "server" / "jobs.json").read_text())


def test_hidden_gold_changes_no_byte_of_the_selection(project: Project) -> None:
    project.change(("ceiling = true", "ceiling = false"))
    with_gold = artifacts(run(project.config).folder)
    write_rows(project.folder / "unlabeled.csv", 60, start=40, gold=False)
    project.change(('folder = "out"', 'folder = "blind"'))
    without = artifacts(run(project.config).folder)
    assert {k: v for k, v in with_gold.items() if "verdict" not in k} == {
        k: v for k, v in without.items() if "verdict" not in k
    }


@pytest.mark.parametrize("propagation", ["in-weight", "in-context"])
def test_each_half_of_propagation_works_alone(project: Project, propagation: str) -> None:
    project.change(("[run]", f'[run]\npropagation = "{propagation}"'))
    document = run(project.config).verdict.document
    names = [model["name"] for model in document["models"]]  # type: ignore[index, union-attr]
    assert ("warm" in names) == (propagation == "in-weight")


def test_without_a_test_split_the_run_says_that_nothing_was_measured(project: Project, semievol: Semievol) -> None:
    project.change(('test = "test.csv"', ""))
    done = semievol("run", project.config)
    assert done.code == 0
    assert "There is no test split" in done.out


def test_a_warm_model_of_the_users_own_skips_the_first_job(project: Project) -> None:
    project.change(("[roles]", '[roles]\nwarm = "ft:mine"'))
    result = run(project.config)
    assert not any(name.startswith("jobs/warm_up") for name in result.computed)
    assert any(name.startswith("jobs/semievol") for name in result.computed)


def test_bm25_needs_no_embedder(project: Project) -> None:
    project.change(
        ('embedder = { provider = "mine", model = "tiny" }', ""), ("[train]", '[retrieve]\nmethod = "bm25"\n[train]')
    )
    assert run(project.config).verdict.document["n_test"] == 40


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("annotate", 'draw = "with-replacement"'),
        ("justify", 'on = "disagreements"'),
        ("justify", 'on = "disagreements"\nscore = "first-annotator"'),
        ("justify", 'show = "answer"'),
        ("train", 'data = "selected"'),
        ("select", 'pool = "labeled"'),
        ("select", 'interpolation = "higher"'),
        ("select", "share = 0.0"),
        ("select", "share = 1.0"),
        ("retrieve", 'text = "question+options"'),
    ],
)
def test_every_named_ambiguity_of_the_paper_can_be_chosen(project: Project, section: str, line: str) -> None:
    header = f"[{section}]"
    if section == "train":
        project.change((header, f"{header}\n{line}"))
    else:
        project.change(("[train]", f"{header}\n{line}\n\n[train]"))
    if line == "share = 0.0":
        result = run(project.config)
        assert result.verdict.document["selection"]["kept"] == 0  # type: ignore[index]
    else:
        assert run(project.config).verdict.document["n_test"] == 40


async def test_run_works_inside_a_running_loop(project: Project) -> None:
    await asyncio.sleep(0)
    assert run(project.config).verdict.document["n_test"] == 40


def test_a_vendor_that_ignores_logprobs_fails_with_the_reason(project: Project, semievol: Semievol) -> None:
    project.change(('state = "server"', "ignore_logprobs = true"))
    done = semievol("run", project.config)
    assert done.code == 1
    assert "log-probabilities" in done.err
