"""Grids over one pipeline on the scripted provider: shared answers and trainings, going on, tables, refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from semievol_api.capabilities import JobEvent, Provider, TrainSpec
from semievol_api.engine import Progress
from semievol_api.errors import ConfigError, DataError
from semievol_api.experiments.grid import Experiment, cells, load_experiment
from semievol_api.experiments.results import Results, write_results
from semievol_api.experiments.runner import ExperimentContext, run_experiment
from semievol_api.session import run_blocking
from semievol_api.store.artifacts import Answers
from semievol_api.store.run_store import load_artifact
from semievol_api.training.fine_tuning import expected_epochs
from tests.e2e.conftest import CONFIG, TASK, Project, Semievol, write_rows

GRID = """
[experiment]
name = "arms"
base = "semievol.toml"
folder = "grid"
seeds = [0, 1]
baseline = "SFT"
resamples = 500

[overrides]
run.ceiling = false

[quick]
seeds = [5]

[[arms]]
name = "vanilla"
recipe = "prompt-only"

[[arms]]
name = "SFT"
recipe = "fine-tune"

[[arms]]
name = "SemiEvol"

[[arms]]
name = "SFT, equal steps"
recipe = "fine-tune"
steps_of = "SemiEvol"

[[arms]]
name = "random selection"
overrides.select.rule = "random"

[[arms]]
name = "no justification"
overrides.justify.on = "never"
overrides.justify.unjustified = "majority"

[[arms]]
name = "gold"
recipe = "gold"
"""


@pytest.fixture
def grid(project: Project) -> Path:
    path = project.folder / "grid.toml"
    path.write_text(GRID, "utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Results]:
    """The whole grid, run once for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    for part, count, at in (("labeled", 40, 0), ("unlabeled", 60, 40), ("test", 40, 100)):
        write_rows(folder / f"{part}.csv", count, start=at)
    (folder / "semievol.toml").write_text(CONFIG, "utf-8")
    (folder / "task.toml").write_text(TASK, "utf-8")
    (folder / "grid.toml").write_text(GRID, "utf-8")
    return go(folder / "grid.toml")


@dataclass
class Stopping:
    """A watcher of cells and runs that breaks off when a stage of one cell begins, as a kill would."""

    stage: str = ""
    begun: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    @property
    def run(self) -> Stopping:
        return self

    def on_cell(self, cell: object, number: int, of: int, done: object) -> None:
        if done is None:
            self.begun.append(cell.name)  # type: ignore[attr-defined]

    def on_stage(self, name: str, state: str) -> None:
        if state == "made":
            self.stages.append(f"{self.begun[-1]}/{name}")
        if self.begun and f"{self.begun[-1]}/{name}" == self.stage:
            raise KeyboardInterrupt

    def on_row(self, progress: Progress) -> None: ...

    def on_job(self, name: str, event: JobEvent) -> None: ...


def ids(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_text("utf-8").splitlines()}


def go(path: Path, watcher: Stopping | None = None, *, quick: bool = False) -> tuple[Experiment, Results]:
    experiment = load_experiment(path, quick=quick)
    ground = ExperimentContext(Path(experiment.experiment.base))
    done = run_blocking(run_experiment(experiment, ground, watcher))
    return experiment, write_results(experiment, done, "colours")


def test_no_question_and_no_training_is_paid_for_twice_across_arms(finished: tuple[Experiment, Results]) -> None:
    _, found = finished
    counted = found.counters
    assert counted.answers_repeated == counted.jobs_repeated == 0
    assert counted.answers_needed > 1.5 * counted.answers_paid
    # Per seed: SFT (the warm models of the others are that one), SemiEvol, equal steps, random, no justification, gold.
    assert counted.jobs_paid == 12
    assert counted.trainings_needed == 18
    server = json.loads((found.folder.parent / "runs/server/jobs.json").read_text())
    assert len(server) == 12
    assert json.loads((found.folder / "counters.json").read_text())["jobs_repeated"] == 0


def test_the_tables_hold_every_run_and_every_answer(finished: tuple[Experiment, Results]) -> None:
    import pyarrow.parquet as pq

    experiment, found = finished
    with (found.folder / "cells.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cells(experiment)) == 14
    assert {row["model"] for row in rows} == {"base", "sft", "semievol", "ceiling"}
    answers = pq.read_table(found.folder / "answers.parquet")
    assert answers.num_rows == 14 * 40
    own = [r for r in answers.to_pylist() if r["arm"] == "SemiEvol" and r["seed"] == 1]
    (row,) = [r for r in rows if r["arm"] == "SemiEvol" and r["seed"] == "1"]
    assert sum(r["correct"] for r in own) / 40 == pytest.approx(float(row["accuracy"]))
    text = (found.folder / "results.md").read_text("utf-8")
    assert text.count("\n| ") == 1 + 7 and "| SFT | " in text
    tex = (found.folder / "results.tex").read_text("utf-8")
    assert r"\toprule" in tex and r"95 \% interval" in tex


def test_an_experiment_that_was_broken_off_goes_on_and_a_finished_one_does_nothing(grid: Path) -> None:
    first = Stopping(stage="semievol-seed-1/select")
    with pytest.raises(KeyboardInterrupt):
        go(grid, first)
    again = Stopping()
    _, found = go(grid, again)
    assert not set(first.stages) & set(again.stages), "no stage is computed twice"
    assert again.begun[0] == "semievol-seed-1"
    assert found.counters.answers_repeated == found.counters.jobs_repeated == 0
    finished = Stopping()
    go(grid, finished)
    assert finished.begun == []


def test_equal_steps_means_the_steps_of_the_other_arms_final_training(finished: tuple[Experiment, Results]) -> None:
    runs = finished[1].folder.parent / "runs"
    labels = len((runs / "sft-seed-1/sft/train.jsonl").read_text().splitlines())
    final = len((runs / "semievol-seed-1/evolve/train.jsonl").read_text().splitlines())
    key = json.loads((runs / "sft-equal-steps-seed-1/config_key.json").read_text())["config_key"]["value"]
    assert f"'n_epochs': {round(2 * final / labels)}" in key
    assert final > labels


def test_more_steps_than_a_job_has_epochs_for_are_copies_of_the_labels(grid: Path) -> None:
    few = GRID.replace("[overrides]\n", "[overrides]\ndata.max_labeled = 10\ntrain.final_epochs = 30\n")
    few = few.replace("seeds = [0, 1]", "seeds = [0]").partition('[[arms]]\nname = "random selection"')[0]
    grid.write_text(few, "utf-8")
    _, results = go(grid)
    runs = results.folder.parent / "runs"
    final = len((runs / "semievol-seed-0/evolve/train.jsonl").read_text().splitlines())
    lines = (runs / "sft-equal-steps-seed-0/sft/train.jsonl").read_text().splitlines()
    copies = -(-30 * final // 10 // 50)
    assert copies > 1 and len(lines) == 10 * copies and len(set(lines)) == 10
    key = json.loads((runs / "sft-equal-steps-seed-0/config_key.json").read_text())["config_key"]["value"]
    assert f"'n_epochs': {round(3 * final / copies)}" in key


def test_the_steps_of_a_final_training_whose_epochs_are_auto_are_those_that_its_trainer_takes(grid: Path) -> None:
    few = GRID.replace("[overrides]\n", '[overrides]\ntrain.n_epochs = "auto"\n')
    few = few.replace("seeds = [0, 1]", "seeds = [0]").partition('[[arms]]\nname = "random selection"')[0]
    grid.write_text(few, "utf-8")
    _, results = go(grid)
    runs = results.folder.parent / "runs"
    labels = len((runs / "sft-seed-0/sft/train.jsonl").read_text().splitlines())
    final = len((runs / "semievol-seed-0/evolve/train.jsonl").read_text().splitlines())
    epochs = expected_epochs(TrainSpec(), final, Provider(name="silent", identity="p"))
    key = json.loads((runs / "sft-equal-steps-seed-0/config_key.json").read_text())["config_key"]["value"]
    assert f"'n_epochs': {round(epochs * final / labels)}" in key


def test_random_selection_keeps_as_many_as_the_rule_that_it_controls_for(finished: tuple[Experiment, Results]) -> None:
    _, found = finished
    kept = {arm.arm: arm.kept for arm in found.summary}
    assert kept["random selection"] == pytest.approx(kept["SemiEvol"], abs=2)


def test_an_axis_runs_every_arm_at_every_value_and_seeds_draw_their_own_rows(project: Project) -> None:
    write_rows(project.folder / "pool.csv", 120, start=1000)
    path = project.folder / "axis.toml"
    axis = '[draw]\npool = "pool.csv"\nlabeled = 40\nunlabeled = 60\n\n[axis]\nlabel = "labels"\n'
    axis += 'setting = "data.max_labeled"\nvalues = [12, 40]\n\n[[arms]]\nname = "vanilla"'
    path.write_text(GRID.replace('[[arms]]\nname = "vanilla"', axis, 1).partition('[[arms]]\nname = "SemiEvol"')[0])
    _, found = go(path)
    assert [(arm.arm, arm.value) for arm in found.summary] == [
        ("vanilla", 12), ("SFT", 12), ("vanilla", 40), ("SFT", 40)
    ]  # fmt: skip
    draws = [ids(found.folder.parent / f"draws/seed-{seed}/labeled-40.jsonl") for seed in (0, 1)]
    assert len(draws[0]) == len(draws[1]) == 40 and draws[0] != draws[1]
    pool = ids(found.folder.parent / "draws/seed-0/unlabeled-60.jsonl")
    assert len(pool) == 60 and not pool & draws[0]
    trained = found.folder.parent / "runs/sft-at-12-seed-0/sft/train.jsonl"
    assert len(trained.read_text().splitlines()) == 12


def test_the_command_prints_the_table_and_what_was_shared(grid: Path, semievol: Semievol) -> None:
    done = semievol("experiment", grid, "--quick")
    assert done.code == 0
    assert "| SemiEvol |" in done.out
    assert "0 were paid for twice" in done.out and "0 were bought twice" in done.out
    assert "[7/7] gold, seed 5:" in done.err
    told = json.loads(semievol("experiment", grid, "--quick", "--json").out)
    assert {arm["arm"] for arm in told["arms"]} >= {"SFT", "SemiEvol"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('baseline = "SFT"', 'baseline = "STF"', "is no arm"),
        ('name = "gold"', 'name = "S.F.T?"\n[[arms]]\nname = "s.f.t"', "same name"),
        ('steps_of = "SemiEvol"', 'steps_of = "gold"', "stands not before it"),
        ("seeds = [0, 1]", "seed = 3", "unknown key 'experiment.seed'. Did you mean 'seeds'?"),
    ],
)
def test_a_mistake_in_an_experiment_is_one_paragraph(
    grid: Path, semievol: Semievol, old: str, new: str, said: str
) -> None:
    grid.write_text(grid.read_text().replace(old, new), "utf-8")
    done = semievol("experiment", grid)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err


def test_gold_is_asked_for_where_the_pool_has_none(grid: Path, project: Project) -> None:
    write_rows(project.folder / "unlabeled.csv", 60, start=40, gold=False)
    with pytest.raises(DataError, match="no answer column"):
        go(grid, quick=True)


def test_a_wrong_override_is_refused_before_anything_runs(grid: Path) -> None:
    grid.write_text(grid.read_text().replace('select.rule = "random"', 'select.rules = "random"'), "utf-8")
    with pytest.raises(ConfigError, match="Did you mean 'rule'"):
        go(grid, quick=True)
    assert not (grid.parent / "grid-quick/runs").exists()


READING = """
[experiment]
name = "reading"
base = "semievol.toml"
folder = "reading"
seeds = [0]
baseline = "text"

[[arms]]
name = "text"
recipe = "prompt-only"

[[arms]]
name = "likeliest"
recipe = "prompt-read"
"""


def test_the_base_model_is_measured_by_its_likeliest_label(project: Project) -> None:
    path = project.folder / "reading.toml"
    path.write_text(READING, "utf-8")
    experiment, results = go(path)
    runs = {arm: experiment.experiment.folder / "runs" / f"{arm}-seed-0" for arm in ("text", "likeliest")}
    rows = {arm: list(_answers_of(folder).evidence.rows()) for arm, folder in runs.items()}
    assert len(rows["likeliest"]) == len(rows["text"]) == 40
    assert all(row.option_probs is not None and row.answer is not None for row in rows["likeliest"])
    assert all(row.option_probs.index(max(row.option_probs)) == "ABCD".index(row.answer) for row in rows["likeliest"])
    assert {arm.arm for arm in results.summary} == {"text", "likeliest"}


def _answers_of(folder: Path) -> Answers:
    found = load_artifact(folder, "evaluate/base", Answers)
    assert found is not None
    return found
