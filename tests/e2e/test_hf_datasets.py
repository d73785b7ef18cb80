"""A saved Hugging Face dataset goes into a run, and an exported one reloads equal and goes in again."""

from __future__ import annotations

import csv
import json

import datasets
import pyarrow.parquet as pq

from semievol_api.report.labels import load_prepared
from semievol_api.store.artifacts import Prepared
from tests.e2e.conftest import Project, Semievol


def _saved(project: Project, name: str) -> None:
    """The CSV file as a saved dataset of the same name."""
    with (project.folder / f"{name}.csv").open(newline="") as file:
        rows = [{**row, "options": json.loads(row["options"])} for row in csv.DictReader(file)]
    datasets.Dataset.from_list(rows).save_to_disk(str(project.folder / name))


def _prepared(project: Project, semievol: Semievol) -> Prepared:
    done = semievol("run", project.config)
    assert done.code == 0, done.err
    return load_prepared(project.folder / "out")


def test_saved_datasets_are_as_good_as_files_and_exported_labels_reload_equal(
    project: Project, semievol: Semievol
) -> None:
    project.change(("ceiling = true", "ceiling = false"))
    from_csv = _prepared(project, semievol)
    (project.folder / "out").rename(project.folder / "from_csv")
    for name in ("labeled", "unlabeled", "test"):
        _saved(project, name)
        project.change((f"{name}.csv", name))
    from_saved = _prepared(project, semievol)
    assert from_saved.labeled == from_csv.labeled
    assert tuple(from_saved.unlabeled) == tuple(from_csv.unlabeled)
    assert from_saved.test == from_csv.test

    for format, out in (("hf", "labels"), ("parquet", "labels.parquet")):
        done = semievol("export", project.folder / "out", "--format", format, "--out", project.folder / out)
        assert done.code == 0, done.err
    reloaded = datasets.load_from_disk(str(project.folder / "labels"))
    table = pq.read_table(project.folder / "labels.parquet")
    assert len(reloaded) > 0 and reloaded.to_list() == table.to_pylist()

    project.change(('labeled = "labeled"', 'labeled = "labels"'), ('folder = "out"', 'folder = "again"'))
    done = semievol("run", project.config)
    assert done.code == 0, done.err
    again = load_prepared(project.folder / "again")
    assert [(e.id, e.question, e.options, e.answer) for e in again.labeled] == [
        (row["id"], row["question"], tuple(row["options"]), row["answer"]) for row in reloaded
    ]
