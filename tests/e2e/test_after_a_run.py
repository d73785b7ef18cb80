"""What users do the day after: compare two runs or models, and label new rows with abstention."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from semievol_api.engine.journal import Journal
from semievol_api.report.comparison import compare_pairs, read_side
from semievol_api.report.read_run import read_report_data
from semievol_api.session import run
from semievol_api.store.artifacts import Answers
from semievol_api.store.run_store import load_artifact
from tests.e2e.conftest import Project, Semievol, write_rows


def labelled(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paid(project: Project) -> int:
    """Answers that the run's journal was paid for."""
    with closing(Journal.read_only(project.folder / "out/journal.sqlite")) as journal:
        return sum(total.samples for total in journal.totals())


def test_two_models_of_a_run_are_compared_as_scipy_would(done: Project) -> None:
    folder = done.folder / "out"
    (contest,) = compare_pairs([(f"{folder}:semievol", f"{folder}:base")])
    ours, theirs = (load_artifact(folder, f"evaluate/{name}", Answers) for name in ("semievol", "base"))
    assert ours is not None and theirs is not None
    a, b = (np.array([side.correct[i] for i in sorted(side.correct)]) for side in (ours, theirs))
    assert contest.ours.accuracy.estimate == pytest.approx(a.mean())
    assert contest.gain.estimate == pytest.approx(a.mean() - b.mean())
    expected = stats.binomtest(int((a & ~b).sum()), int((a ^ b).sum()), 0.5).pvalue
    assert contest.test.p_value == pytest.approx(expected, abs=1e-9)
    assert contest.gain.low > 0 and "is better than" in contest.sentence
    assert sum(c.gain.n for c in contest.categories) == 240
    assert 0 <= contest.ours.ece <= 1 and 0 <= contest.ours.brier <= 1


def test_several_tasks_are_tested_together(done: Project) -> None:
    folder = done.folder / "out"
    pairs = [(f"{folder}:semievol", f"{folder}:base"), (f"{folder}:semievol", f"{folder}:warm")]
    contests = compare_pairs(pairs)
    expected = multipletests([c.test.p_value for c in contests], method="holm")[1]
    assert [c.holm_p for c in contests] == pytest.approx(expected, abs=1e-9)


def test_a_model_against_itself_shows_nothing_and_says_what_could_be_shown(done: Project) -> None:
    (contest,) = compare_pairs([(str(done.folder / "out"), f"{done.folder / 'out'}:semievol")])
    assert contest.gain.estimate == 0 and contest.test.p_value == 1
    assert "No difference" in contest.sentence and "the smallest one" in contest.sentence


def test_a_runs_result_is_what_a_folder_alone_stands_for(done: Project) -> None:
    assert read_side(str(done.folder / "out")).name == "out:semievol"


def test_the_evaluate_command_shows_pairs_and_refuses_an_odd_one(done: Project, semievol: Semievol) -> None:
    folder = done.folder / "out"
    shown = semievol("evaluate", folder, f"{folder}:base")
    assert shown.code == 0 and "McNemar p" in shown.out and "Holm p" in shown.out and "category" in shown.out
    (told,) = json.loads(semievol("evaluate", folder, f"{folder}:base", "--json").out)
    assert told["gain"]["n"] == 240
    odd = semievol("evaluate", folder)
    assert odd.code == 2 and "in pairs" in odd.err
    nowhere = semievol("evaluate", done.folder / "nowhere", folder)
    assert nowhere.code == 2 and "is no run that was evaluated" in nowhere.err
    wrong = semievol("evaluate", folder, f"{folder}:semivol")
    assert wrong.code == 2 and "Did you mean 'semievol'?" in wrong.err


def test_models_of_a_provider_are_asked_on_the_configs_test_and_only_once(done: Project, semievol: Semievol) -> None:
    run_folder = done.folder / "out"
    (by_run,) = compare_pairs([(f"{run_folder}:semievol", f"{run_folder}:base")])
    before = paid(done)
    shown = semievol("evaluate", "semievol", "tiny", "--run", done.config, "--json")
    assert shown.code == 0, shown.err
    (told,) = json.loads(shown.out)
    assert told["gain"]["estimate"] == pytest.approx(by_run.gain.estimate)
    assert told["ours"]["name"] == "semievol" and told["theirs"]["name"] == "tiny"
    assert paid(done) == before, "the run asked all of it already"


def test_new_rows_are_labelled_with_a_confidence_and_a_cut_that_keeps_its_promise(
    done: Project, semievol: Semievol
) -> None:
    write_rows(done.folder / "new.csv", 200, start=5000)
    gold = {row["id"]: row["answer"] for row in labelled(done.folder / "new.csv")}
    shown = semievol("predict", "semievol", done.folder / "new.csv", "--run", done.config, "--alpha", "0.2", "--json")
    assert shown.code == 0, shown.err
    told = json.loads(shown.out)
    assert told["rows"] == 200 and told["calibration"] == 240 and 0 < told["accepted"] <= 200
    rows = labelled(done.folder / "new.predicted.csv")
    assert [row["id"] for row in rows] == list(gold)
    accepted = [row for row in rows if row["accepted"] == "True"]
    assert len(accepted) == told["accepted"]
    wrong = np.mean([row["prediction"] != gold[row["id"]] for row in accepted])
    assert wrong <= 0.3, "alpha 0.2 on average; a single file of 200 rows strays by a few points"
    assert all(float(row["confidence"]) >= told["cut"] - 1e-6 for row in accepted)
    assert {row["prediction_text"] for row in accepted} <= {"red", "green", "blue", "gold"}


def test_a_cut_for_fewer_errors_accepts_fewer_rows(done: Project, semievol: Semievol) -> None:
    write_rows(done.folder / "new.csv", 200, start=5000)
    counts = []
    for alpha in ("0.05", "0.5"):
        shown = semievol("predict", "warm", done.folder / "new.csv", "--run", done.config, "--alpha", alpha, "--json")
        counts.append(json.loads(shown.out)["accepted"])
    assert counts[0] < counts[1]


def test_rows_are_asked_once(done: Project, semievol: Semievol) -> None:
    write_rows(done.folder / "new.csv", 30, start=5000)
    before = paid(done)
    semievol("predict", "semievol", done.folder / "new.csv", "--run", done.config)
    first = (done.folder / "new.predicted.csv").read_bytes()
    assert paid(done) == before + 30
    semievol("predict", "semievol", done.folder / "new.csv", "--run", done.config)
    assert paid(done) == before + 30
    assert (done.folder / "new.predicted.csv").read_bytes() == first


def test_without_held_out_answers_every_answer_counts_and_that_is_said(project: Project, semievol: Semievol) -> None:
    project.change(('test = "test.csv"\n', ""))
    run(project.config)
    write_rows(project.folder / "new.csv", 20, start=5000)
    shown = semievol("predict", "semievol", project.folder / "new.csv", "--run", project.config)
    assert shown.code == 0 and "nothing is promised" in shown.out
    assert all(row["accepted"] == "True" for row in labelled(project.folder / "new.predicted.csv"))


def test_a_model_that_the_run_has_not_made_is_refused_with_those_that_it_has(
    project: Project, semievol: Semievol
) -> None:
    project.change(("ceiling = true", "ceiling = false"))
    run(project.config)
    write_rows(project.folder / "new.csv", 20, start=5000)
    shown = semievol("predict", "ceiling", project.folder / "new.csv", "--run", project.config)
    assert shown.code == 2 and "It has: base, semievol, warm" in shown.err


def test_a_notebook_gets_models_evidence_and_labels_as_data_frames(project: Project) -> None:
    result = run(project.config)
    report = result.report.set_index("name")
    assert report.loc["semievol", "low"] <= report.loc["semievol", "accuracy"] <= report.loc["semievol", "high"]
    evidence = result.evidence
    asked = evidence[evidence["stage"] == "evaluate/semievol"]
    assert asked["correct"].mean() == pytest.approx(report.loc["semievol", "accuracy"])
    assert set(evidence["stage"]) >= {"collaborate", "justify", "evaluate/base"}
    assert len(evidence[evidence["stage"] == "collaborate"]) == 4 * 60
    labels = result.labels
    assert len(labels) == 60 and labels["kept"].sum() == result.verdict.document["selection"]["kept"]  # type: ignore[index]


def test_the_report_of_a_calibrated_run_compares_with_the_sft_model_and_not_with_the_smaller_warm_one(
    project: Project,
) -> None:
    write_rows(project.folder / "labeled.csv", 120, start=5000)
    project.change(('mode = "paper"', 'mode = "calibrated"'))
    result = run(project.config)
    found = read_report_data(result.folder)
    assert found.main_difference is not None and found.main_difference.against == "sft"
    assert found.main_difference.against_label == "SFT"
    assert {model.name for model in found.models} >= {"base", "sft", "semievol"}


def test_new_rows_come_in_by_the_door_of_all_files(done: Project, semievol: Semievol) -> None:
    """A key in a cell reaches neither the wire nor the written file, and an empty row stops nothing."""
    write_rows(done.folder / "new.csv", 3, start=6000, gold=False)
    key = "sk-proj-" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789abcd"
    with (done.folder / "new.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    place = rows[0].index("question")
    rows[1][place] = f"My login is {key}. {rows[1][place]}"
    rows[2][place] = ""
    with (done.folder / "new.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    shown = semievol("predict", "semievol", done.folder / "new.csv", "--run", done.config)
    assert shown.code == 0, shown.err
    assert "rows without a question were left out" in shown.out and "line 3" in shown.out
    assert "what looks like an API key was taken out" in shown.out
    first, empty, last = labelled(done.folder / "new.predicted.csv")
    assert "[removed-key-" in first["question"] and key not in (done.folder / "new.predicted.csv").read_text("utf-8")
    assert first["prediction"] and last["prediction"] and not empty["prediction"] and empty["accepted"] == "False"
    with closing(Journal.read_only(done.folder / "out/journal.sqlite")) as journal:
        assert key.encode() not in (done.folder / "out/journal.sqlite").read_bytes() and journal is not None
