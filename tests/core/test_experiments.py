"""An experiment's arithmetic: seeds paired, skipped arms counted, the paper's figures, CPU seconds of children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from semievol_api.errors import DataError
from semievol_api.evaluation import BootstrapSettings
from semievol_api.experiments.grid import Experiment
from semievol_api.experiments.results import compare_arms, latex, markdown, result_table, summarise
from semievol_api.experiments.runner import CellRow, DoneCell, tree_cpu_s

N = 300
SETTINGS = BootstrapSettings(resamples=2000)


def cell(arm: str, seed: int, right: Any, **changes: Any) -> DoneCell:
    values: dict[str, Any] = {
        "arm": arm, "value": None, "seed": seed, "model": "semievol", "n_test": len(right),
        "accuracy": float(np.mean(right)), "kept": 30, "unlabeled": 60, "false_share": 0.1, "answers": 1,
        "prompt_tokens": 1, "completion_tokens": 1, "paid_requests": 1, "trainings": 1, "trained_tokens": 1,
        "seconds": 1.0, "cpu_seconds": 1.0,
    }  # fmt: skip
    correct = {f"t{i}": bool(ok) for i, ok in enumerate(right)}
    return DoneCell(CellRow(**values | changes), correct, {}, {})


def experiment(*arms: str, published: str | None = None) -> Experiment:
    head = {"name": "x", "folder": "x", "baseline": arms[0], "resamples": 2000}
    return Experiment.model_validate(
        {
            "experiment": head,
            "arms": [{"name": arm, "published": published if arm == arms[-1] else None} for arm in arms],
        }
    )


def outcomes(rate: float, seed: int) -> Any:
    return np.random.default_rng(seed).random(N) < rate


def test_the_gain_of_one_seed_has_the_interval_of_the_plain_paired_bootstrap() -> None:
    ours, theirs = outcomes(0.8, 1), outcomes(0.6, 2)
    gain = compare_arms([cell("a", 0, ours)], [cell("b", 0, theirs)], BootstrapSettings(resamples=20_000))
    difference = ours.astype(float) - theirs.astype(float)
    expected = stats.bootstrap((difference,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    assert gain.estimate == pytest.approx(difference.mean(), abs=1e-12)
    assert gain.low == pytest.approx(expected.confidence_interval.low, abs=0.006)
    assert gain.high == pytest.approx(expected.confidence_interval.high, abs=0.006)


def test_seeds_are_paired_so_a_draw_that_is_hard_for_both_arms_does_not_widen_the_gain() -> None:
    rates = (0.5, 0.7, 0.9)
    theirs = [outcomes(rate, 10 + i) for i, rate in enumerate(rates)]
    ours = [np.where(np.arange(N) % 20 == 0, ~right, right) for right in theirs]
    gain = compare_arms(
        [cell("a", i, right) for i, right in enumerate(ours)],
        [cell("b", i, right) for i, right in enumerate(theirs)],
        SETTINGS,
    )
    assert gain.high - gain.low < 0.12, "unpaired, the spread of the seeds alone would be 0.3"


def test_the_interval_of_arms_covers_the_true_gain_in_about_95_of_100_worlds() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        both, only = rng.random((2, N)) < 0.6, rng.random(N) < 0.05
        ours, theirs = both[0] | only, both[0]
        gain = compare_arms([cell("a", 0, ours)], [cell("b", 0, theirs)], BootstrapSettings(resamples=1000))
        hits += gain.low <= 0.05 * 0.4 <= gain.high
    assert 0.92 <= hits / 400 <= 0.98


def test_arms_on_other_questions_or_without_a_common_seed_are_refused() -> None:
    with pytest.raises(DataError, match="other questions"):
        compare_arms([cell("a", 0, [True] * 5)], [cell("b", 0, [True] * 4)], SETTINGS)
    with pytest.raises(DataError, match="seeds that both have run"):
        compare_arms([cell("a", 0, [True] * 5)], [cell("b", 1, [True] * 5)], SETTINGS)


def test_seeds_in_which_too_little_was_kept_are_counted() -> None:
    found = summarise(
        experiment("SFT", "SemiEvol"),
        [
            *(cell("SFT", i, outcomes(0.7, i), kept=None, model="sft") for i in (0, 1)),
            cell("SemiEvol", 0, outcomes(0.7, 5), kept=40),
            cell("SemiEvol", 1, outcomes(0.7, 6), kept=0, model="sft"),
        ],
    )
    assert [(arm.arm, arm.skipped) for arm in found] == [("SFT", 0), ("SemiEvol", 1)]
    assert found[1].kept == 20 and found[0].gain is None and found[1].gain is not None


@pytest.mark.parametrize(("task", "shown"), [("mmlu", "68.8"), ("field-routing", None)])
def test_the_papers_figure_stands_beside_ours_only_for_its_own_task(task: str, shown: str | None) -> None:
    asked = experiment("SFT", "SemiEvol", published="Llama-3.1-8B SemiEvol")
    done = [cell("SFT", 0, outcomes(0.6, 1)), cell("SemiEvol", 0, outcomes(0.7, 2))]
    text = markdown(result_table(asked, summarise(asked, done), task))
    assert ("paper %" in text) is (shown is not None)
    if shown:
        assert text.splitlines()[-1].endswith(f"| {shown} |")


def test_latex_escapes_what_it_must() -> None:
    asked = experiment("SFT", "α_1 & 50 %")
    done = [cell("SFT", 0, outcomes(0.6, 1)), cell("α_1 & 50 %", 0, outcomes(0.7, 2))]
    text = latex(result_table(asked, summarise(asked, done), "x"), "a_b")
    assert r"$\alpha$\_1 \& 50 \%" in text and r"\caption{a\_b}" in text


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
def test_cpu_seconds_of_a_running_child_are_counted() -> None:
    before = tree_cpu_s()
    code = "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        running = tree_cpu_s() - before
        child.stdin.write(b"\n")
        child.stdin.close()
        child.wait()
    assert running >= 0.5
    assert tree_cpu_s() - before >= 0.5, "and after it has ended"
