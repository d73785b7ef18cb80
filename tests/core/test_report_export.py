"""The hand-over: the kept labels, a person's over them, in each format; the model card; the commands."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from semievol_api.cli import report
from semievol_api.errors import RunFolderError, UserError
from semievol_api.report.export import export_labels, selected_labels
from semievol_api.report.labels import Decision, DecisionLog, read_label_table
from tests.synthetic_run import synthetic_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic_run(tmp_path_factory.mktemp("export") / "run", rows=80, tests=20)
    labels = read_label_table(folder)
    kept, dropped = int(np.argmax(labels.kept)), int(np.argmin(labels.kept))
    return _reviewed(folder, labels.examples[kept].id, labels.examples[dropped].id)


def _reviewed(folder: Path, kept: str, dropped: str) -> Path:
    with DecisionLog.open(folder / "review.jsonl") as log:
        log.append(Decision(example_id=kept, action="correct", answer="D", proposed="A"))
        log.append(Decision(example_id=dropped, action="accept", answer="B", proposed="B"))
    return folder


def test_a_persons_labels_stand_over_the_rules(run: Path) -> None:
    table = read_label_table(run)
    found = list(selected_labels(run))
    assert len(found) == int(table.kept.sum()) + 1
    assert {label.answer for label in found if label.source == "person"} == {"D", "B"}


def test_the_chat_file_is_what_a_fine_tuning_api_takes(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    count = export_labels(run, out, "openai")
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(lines) == count == len(list(selected_labels(run)))
    first = next(selected_labels(run))
    assert [m["role"] for m in lines[0]["messages"]] == ["user", "assistant"]
    assert first.example.question in lines[0]["messages"][0]["content"]
    assert lines[0]["messages"][-1]["content"] == f"Answer: {first.answer}"


def test_parquet_and_datasets_hold_the_same_rows(run: Path, tmp_path: Path) -> None:
    export_labels(run, tmp_path / "labels.parquet", "parquet")
    table = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import load_from_disk

        export_labels(run, tmp_path / "labels", "hf")
        assert load_from_disk(str(tmp_path / "labels")).to_list() == table
    assert [row["answer"] for row in table] == [label.answer for label in selected_labels(run)]


def test_the_card_tells_the_verdict_and_its_limits(run: Path, tmp_path: Path) -> None:
    export_labels(run, tmp_path / "card.md", "model-card")
    text = (tmp_path / "card.md").read_text("utf-8")
    verdict = json.loads((run / "verdict/verdict.json").read_text("utf-8"))
    assert verdict["sentence"] in text
    assert "base_model: demo-llama" in text
    assert "| SemiEvol |" in text


def test_a_run_whose_task_is_unknown_says_what_to_try(run: Path, tmp_path: Path) -> None:
    other = synthetic_run(tmp_path / "run", rows=12, labelled=4, tests=4)
    (other / "config_key.json").unlink()
    with pytest.raises(RunFolderError, match="parquet"):
        export_labels(other, tmp_path / "labels.jsonl", "openai")
    with pytest.raises(UserError, match="csv"):
        export_labels(other, tmp_path / "labels.csv", "csv")  # type: ignore[arg-type]


def test_the_commands_write_where_they_are_told(run: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command("report")(report.report)
    app.command("export")(report.export)
    app.command("review")(report.review)
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "SemiEvol report" in (tmp_path / "page.html").read_text("utf-8")
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "x.parquet"), "--format", "parquet"])
    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "x.parquet").num_rows == len(list(selected_labels(run)))
