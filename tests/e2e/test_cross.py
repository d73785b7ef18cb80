"""Labels that teach and calibrate at once, and annotators that they teach: from the config to the verdict."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from semievol_api.errors import ConfigError
from semievol_api.session import RunResult, run
from semievol_api.store.artifacts import Folds
from semievol_api.store.run_store import load_artifact
from tests.e2e.conftest import CONFIG, TASK, Project, write_rows
from tests.e2e.test_modes import add, document, evidence

CREW = """
[[annotators]]
id = "warm"
model = "warm"
[[annotators]]
id = "linear"
model = "classifier"
[[annotators]]
id = "spread"
model = "label_propagation"
"""
CONTROLLED = ("sft", "sft-equal-steps", "evolve")
CROSS = '[split]\ncalibration = "cross"\n'


@pytest.fixture
def labels(tmp_path: Path) -> Project:
    """60 labelled, 90 unlabelled and 20 test questions."""
    write_rows(tmp_path / "labeled.csv", 60)
    write_rows(tmp_path / "unlabeled.csv", 90, start=1000)
    write_rows(tmp_path / "test.csv", 20, start=2000)
    (tmp_path / "semievol.toml").write_text(CONFIG.replace('mode = "paper"\n', ""), "utf-8")
    (tmp_path / "task.toml").write_text(TASK, "utf-8")
    return Project(tmp_path)


def folds(result: RunResult) -> Folds:
    found = load_artifact(result.folder, "split", Folds)
    assert found is not None
    return found


def test_every_label_teaches_and_calibrates_and_is_hidden_from_one_warm_model(labels: Project) -> None:
    add(labels, CROSS)
    result = run(labels.config)
    told, split = document(result)["selection"], folds(result)
    assert len(split.warm) == len(split.calibration) == told["calibration"] == 60
    for fold in range(2):
        taught = (result.folder / f"warm-fold-{fold + 1}" / "train.jsonl").read_text("utf-8")
        for example in split.warm:
            seen = f"{example.question}\\n" in taught
            assert seen == (split.fold_of(example.id, 2) != fold), "each label is in all models but one"
    assert (result.folder / "sft" / "train.jsonl").read_text("utf-8").count("\n") == 60
    assert told["guarantee"] is False
    assert any("measured" in message and "not proved" in message for message in told["messages"])
    assert {m["name"] for m in document(result)["models"]} >= {"base", "sft", "semievol"}
    assert not any(m["name"].startswith("warm") for m in document(result)["models"]), "half-taught models are no result"


def test_a_learner_has_not_seen_the_label_that_it_answers(labels: Project) -> None:
    """Labels that nothing explains can only be known by having seen them."""
    path = labels.folder / "labeled.csv"
    header, *rows = path.read_text("utf-8").splitlines()
    drawn = random.Random(1)
    path.write_text("\n".join([header, *(f"{row[:-1]}{drawn.choice('ABCD')}" for row in rows)]) + "\n", "utf-8")
    add(labels, CROSS + CREW)
    result = run(labels.config)
    gold = {e.id: e.answer for e in folds(result).calibration}
    for learner in ("linear", "spread"):
        said = {row["example_id"]: row["answer"] for row in evidence(result) if row["annotator_id"] == learner}
        assert sum(said[name] == gold[name] for name in gold) < 0.5 * len(gold), learner


def test_classifier_and_propagation_answer_everything_and_ask_no_model(labels: Project) -> None:
    add(labels, CROSS + CREW)
    result = run(labels.config)
    rows = evidence(result)
    for learner in ("linear", "spread"):
        own = {row["example_id"]: row for row in rows if row["annotator_id"] == learner}
        assert len(own) == 150, "90 unlabelled rows and 60 labels"
        assert all(row["prompt_tokens"] == 0 for row in own.values())
        assert all(sum(row["option_probs"]) == pytest.approx(1.0) for row in own.values() if row["option_probs"])
    read = {name: use["read_by"] for name, use in document(result)["selection"]["annotators"].items()}
    assert read["linear"] == "classifier"
    assert read["spread"] == "label_propagation"


def test_without_folds_the_learners_are_taught_by_the_labels_that_do_not_calibrate(labels: Project) -> None:
    add(labels, CREW)
    result = run(labels.config)
    held = {e.id for e in folds(result).calibration}
    answered = {row["example_id"] for row in evidence(result) if row["annotator_id"] == "linear"}
    assert len(held) == 30
    assert held <= answered
    assert len(answered) == 120


def test_fitted_weights_are_told_for_every_annotator(labels: Project) -> None:
    add(labels, CROSS + CREW + '[select]\nweights = "fitted"\n')
    use = document(run(labels.config))["selection"]["annotators"]
    assert all(use[name]["weight"] >= 0 for name in ("warm", "linear", "spread", "justify"))


@pytest.mark.parametrize(("split", "names"), [("", ["warm_up", "warm-seed-2", "warm-seed-3"]), (CROSS, None)])
def test_warm_models_of_several_seeds_are_several_annotators(
    labels: Project, split: str, names: list[str] | None
) -> None:
    add(labels, f'{split}[[annotators]]\nid = "warm"\nmodel = "warm"\nseeds = 3\n')
    result = run(labels.config)
    askers = {row["annotator_id"] for row in evidence(result)}
    assert askers == {"warm", "warm-seed-2", "warm-seed-3"}
    stored = {path.name.removesuffix("-model") for path in (result.folder / "jobs").glob("warm*-model")}
    wanted = names or [f"{name}-fold-{fold}" for name in ("warm", "warm-seed-2", "warm-seed-3") for fold in (1, 2)]
    assert stored == set(wanted)
    tickets = [path.read_text("utf-8") for path in (result.folder / "jobs").glob("warm*-ticket/ticket.json")]
    assert len(set(tickets)) == len(tickets), "trainings of other seeds are other jobs"
    assert not any(m["name"].startswith("warm") for m in document(result)["models"])


def test_a_rerun_computes_nothing_and_other_names_of_a_split_are_the_same_split(labels: Project) -> None:
    add(labels, '[split]\ncalibration = "holdout"\n')
    run(labels.config)
    labels.change(('calibration = "holdout"', 'calibration = "auto"'))
    assert run(labels.config).computed == ()


def test_controls_stand_beside_the_evolved_model_and_change_nothing_else(labels: Project) -> None:
    labels.change(('folder = "out"', 'folder = "plain"'))
    plain = run(labels.config)
    labels.change(('folder = "plain"', 'folder = "out"'))
    add(labels, '[evaluate]\ncontrols = ["equal-steps", "demonstrations", "classifier"]\n')
    result = run(labels.config)
    told = document(result)
    assert {"sft-equal-steps", "demonstrations", "classifier"} <= {m["name"] for m in told["models"]}
    against = {d["against"] for d in told["differences"] if d["of"] == "semievol"}
    assert against >= {"sft", "sft-equal-steps", "demonstrations", "classifier"}
    lines = {name: (result.folder / name / "train.jsonl").read_text("utf-8").splitlines() for name in CONTROLLED}
    assert len(lines["sft-equal-steps"]) == len(lines["evolve"]), "as many steps"
    assert set(lines["sft-equal-steps"]) == set(lines["sft"]), "on the labels alone"
    assert told["selection"] == document(plain)["selection"]


@pytest.mark.parametrize(
    ("trained", "extra", "named"),
    [
        ('start = "warm"', CROSS, "have not seen the labels"),
        ("", '[select]\nweights = "fitted"\n', "cross"),
        ("", CROSS + '[select]\nscore = "mean_nll"\nrule = "percentile"\n', "pooled"),
    ],
)
def test_what_does_not_go_with_cross_fitting_is_refused_before_anything_is_asked(
    labels: Project, trained: str, extra: str, named: str
) -> None:
    labels.change(("[train]\n", f"[train]\n{trained}\n"))
    add(labels, extra)
    with pytest.raises(ConfigError, match=named):
        run(labels.config)


def test_labels_that_share_a_group_are_held_back_instead(labels: Project) -> None:
    for path in labels.folder.glob("*.csv"):
        header, *rows = path.read_text("utf-8").splitlines()
        cases = [f"{row},{path.stem}-{i // 2}" for i, row in enumerate(rows)]
        path.write_text("\n".join([f"{header},case", *cases]) + "\n", "utf-8")
    labels.change(('options = "options"', 'options = "options"\ngroup = "case"'), file="task.toml")
    add(labels, CROSS)
    split = folds(run(labels.config))
    assert not split.cross
    assert "share a group" in split.note
    assert not {e.group for e in split.warm} & {e.group for e in split.calibration}


@pytest.mark.parametrize("count", [9, 10, 25, 59, 60, 100])
def test_the_mode_auto_says_why_and_ends_usefully_with_any_number_of_labels(labels: Project, count: int) -> None:
    write_rows(labels.folder / "labeled.csv", count)
    labels.change(("[run]\n", '[run]\nmode = "auto"\n'))
    told = document(run(labels.config))
    assert told["selection"]["kept"] > 0
    assert any(note.startswith("Annotators chosen: ") for note in told["notes"])
    weighed = any(note.startswith("Annotators count by how right") for note in told["notes"])
    assert weighed == (count >= 30), "fewer labels weigh nobody"
    assert ("no warm model" in " ".join(told["notes"])) == (count < 10)
    asked = set(told["selection"]["annotators"]) - {"justify"}
    assert asked >= {"base-3shot", "classifier", "label-propagation"}


@pytest.mark.parametrize(("count", "calibration", "models"), [(9, 0, 0), (10, 0, 1), (29, 0, 1), (30, 30, 2)])
def test_few_labels_teach_and_calibrate_nothing(labels: Project, count: int, calibration: int, models: int) -> None:
    write_rows(labels.folder / "labeled.csv", count)
    add(labels, CROSS)
    result = run(labels.config)
    assert document(result)["selection"]["calibration"] == calibration
    jobs = [path.name for path in (result.folder / "jobs").glob("warm*-model")] if models else []
    assert len(jobs) == models
