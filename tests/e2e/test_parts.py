"""A pool that lies in parts: the same labels as in one, whatever the mode, and a report that says what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from semievol_api import run
from semievol_api.data import read_files, table
from semievol_api.report import labels
from semievol_api.store.artifacts import EvidenceTable, Selection
from semievol_api.store.run_store import load_artifact
from tests.e2e.conftest import Project, Semievol, tree, write_rows

MODES = {
    "calibrated": ('mode = "paper"\nceiling = true', ""),
    "paper": ("ceiling = true", "ceiling = true"),
    "official": ('mode = "paper"', 'mode = "official-2025"'),
    "random": ("[train]", '[select]\nrule = "random"\n[train]'),
    "labelled pool": ("[train]", '[select]\npool = "labeled"\n[train]'),
}


@pytest.fixture
def larger(project: Project) -> Project:
    """100 labelled and 150 unlabelled questions."""
    write_rows(project.folder / "labeled.csv", 100)
    write_rows(project.folder / "unlabeled.csv", 150, start=100)
    write_rows(project.folder / "test.csv", 40, start=300)
    return project


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_in_parts_gives_the_labels_of_a_pool_in_one(
    larger: Project, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger.change(MODES[mode])
    whole = run(larger.change(('folder = "out"', 'folder = "whole"'))).folder
    monkeypatch.setattr(table, "PART_ROWS", 40)
    monkeypatch.setattr(read_files, "LARGE_BYTES", 0)
    cut = run(larger.change(('folder = "whole"', 'folder = "cut"'))).folder
    assert len(list((cut / "prepare" / "unlabeled").iterdir())) == 4
    assert len(list((cut / "collaborate" / "evidence").iterdir())) == 5
    assert _labels(cut) == _labels(whole)
    assert _scores(cut) == _scores(whole)
    assert _lines(cut) == _lines(whole)
    assert _figures(cut) == _figures(whole)


def test_a_part_s_evidence_is_about_the_part_s_examples(larger: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PART_ROWS", 40)
    folder = run(larger.config).folder
    said = load_artifact(folder, "collaborate", EvidenceTable)
    assert said is not None
    for place in range(4):
        own = set(pq.read_table(folder / f"prepare/unlabeled/part-{place:05d}.parquet")["id"].to_pylist())
        assert set(said.by_example(place)) == own
        assert {table.part_of(name, 4) for name in own} == {place}


def test_a_run_in_parts_is_repeated_without_computing_anything(
    larger: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "PART_ROWS", 40)
    before = tree(run(larger.config).folder, without=("journal", "spend"))
    again = run(larger.config)
    assert again.computed == ()
    assert tree(again.folder, without=("journal", "spend")) == before


def test_the_report_of_a_large_pool_shows_a_sample_and_says_so(
    larger: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "PART_ROWS", 40)
    monkeypatch.setattr(labels, "SHOWN", 60)
    folder = run(larger.config).folder
    assert semievol("report", folder).code == 0
    page = next(folder.glob("*.html")).read_text("utf-8")
    assert "those of 60 of 150 unlabelled examples" in page


@pytest.mark.parametrize("form", ["openai", "parquet"])
def test_all_labels_of_a_pool_in_parts_are_handed_over(
    larger: Project, semievol: Semievol, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(table, "PART_ROWS", 40)
    monkeypatch.setattr(labels, "SHOWN", 60)
    folder = run(larger.config).folder
    out = tmp_path / "handed" / "over"
    assert semievol("export", folder, "--format", form, "--out", out).code == 0
    count = len(pq.read_table(out)) if form == "parquet" else len(out.read_text("utf-8").splitlines())
    assert count == len(_labels(folder))


def _labels(folder: Path) -> set[tuple[str, str, str, float]]:
    chosen = load_artifact(folder, "select", Selection)
    assert chosen is not None and len(chosen.kept)
    return {(p.example_id, p.answer, p.text, p.score) for p in chosen.kept}


def _scores(folder: Path) -> list[dict[str, object]]:
    chosen = load_artifact(folder, "select", Selection)
    assert chosen is not None and isinstance(chosen.scores, table.ChunkedTable)
    return sorted(chosen.scores.whole().to_pylist(), key=lambda row: str(row["example_id"]))


def _lines(folder: Path) -> list[str]:
    return sorted((folder / "evolve" / "train.jsonl").read_text("utf-8").splitlines())


def _figures(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "select" / "summary.json").read_text("utf-8"))
    simulated = ("messages", "false_share_range")  # draws rows by their places
    return {name: value for name, value in found.items() if name not in simulated}
