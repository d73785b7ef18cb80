"""Numbers of a run in TensorBoard, W&B and MLflow: what their own readers find afterwards."""

from __future__ import annotations

import pytest

from semievol_api.errors import MissingExtraError
from semievol_api.session import RunResult, run
from semievol_api.store.metric_logs import check_logs
from tests.e2e.conftest import Project, Semievol


def logged(project: Project, target: str) -> RunResult:
    with project.config.open("a", encoding="utf-8") as file:
        file.write(f'\n[log]\nto = ["{target}"]\nproject = "tests"\n')
    return run(project.config)


def accuracy(result: RunResult, name: str) -> float:
    return float(result.report.set_index("name").loc[name, "accuracy"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_logged(project: Project) -> None:
    pytest.importorskip("tensorboard")
    result = logged(project, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(result.folder / "tensorboard"))
    found.Reload()
    tags = found.Tags()["scalars"]
    assert {"warm/train_loss", "semievol/train_loss", "accuracy/semievol", "selection/kept"} <= set(tags)
    (value,) = found.Scalars("accuracy/semievol")
    assert value.value == pytest.approx(accuracy(result, "semievol"), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_what_was_logged(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (project.folder / "tracking").as_uri())
    result = logged(project, "mlflow")
    client = mlflow.MlflowClient((project.folder / "tracking").as_uri())
    (kept,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert kept.info.status == "FINISHED" and kept.data.params["mode"] == "paper"
    assert kept.data.metrics["accuracy/semievol"] == pytest.approx(accuracy(result, "semievol"))
    assert "warm/train_loss" in kept.data.metrics


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_what_was_logged(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = logged(project, "wandb")
    (kept,) = (result.folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"accuracy/semievol" in content and b"warm/train_loss" in content


def test_logging_changes_no_result_and_no_fingerprint(project: Project) -> None:
    pytest.importorskip("tensorboard")
    before = run(project.config).verdict.document
    again = logged(project, "tensorboard")
    assert again.verdict.document == before
    assert again.computed == ()


def test_a_package_that_is_missing_is_refused_before_anything_runs() -> None:
    with pytest.raises(MissingExtraError, match=r"semievol-api\[log\]"):
        check_logs(["no_such_package"])  # type: ignore[list-item]


def test_an_unknown_target_is_one_paragraph(project: Project, semievol: Semievol) -> None:
    with project.config.open("a", encoding="utf-8") as file:
        file.write('\n[log]\nto = ["tensorbord"]\n')
    done = semievol("check", project.config)
    assert done.code == 2 and "log.to" in done.err and "Traceback" not in done.err
