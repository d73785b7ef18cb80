"""What one run of a grid came to: read from its folder and the journal, written beside it as one JSON file.

Counts what the arm needed (rows of evidence and their tokens) apart from what was paid for it (requests of the
journal under its name): the difference was shared. Knows nothing of how runs are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from semievol_api.artifacts import Answers, EvidenceTable, TunedModel, Verdict
from semievol_api.config import Config
from semievol_api.engine.journal import Journal
from semievol_api.errors import StageError
from semievol_api.experiments.grid import Cell, Scalar
from semievol_api.experiments.recipes import RESULT_OF
from semievol_api.run_store import load_artifact, stages_done

CELL = "cell.json"
CPU = "cpu_seconds.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRow:
    """One row of the tidy table; seconds and CPU seconds are of all processes that worked on it.

    `model` is the one that counts: the evolved one, or where too little was kept to train it the fine-tuned one.
    `answers`, `prompt_tokens`, `completion_tokens` are what the arm needed, `paid_requests` what was sent for it.
    """

    arm: str
    value: Scalar | None
    seed: int
    model: str
    n_test: int
    accuracy: float
    kept: int | None
    unlabeled: int | None
    false_share: float | None
    answers: int
    prompt_tokens: int
    completion_tokens: int
    paid_requests: int
    trainings: int
    trained_tokens: int
    seconds: float
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class DoneCell:
    """A finished cell: its row, which test questions it got right, and its stages' seconds and CPU seconds."""

    row: CellRow
    correct: Mapping[str, bool]
    stage_seconds: Mapping[str, float]
    stage_cpu_seconds: Mapping[str, float]


class _Kept(msgspec.Struct):
    """A finished cell as it lies on disk, with the key of the settings that made it."""

    key: str
    row: CellRow
    correct: dict[str, bool]
    stage_seconds: dict[str, float]
    stage_cpu_seconds: dict[str, float]


def read_cell(cell: Cell, config: Config) -> DoneCell:
    """The cell whose run has ended in its folder.

    Raises:
        StageError: the run measured nothing: it has no test questions.
    """
    folder = config.run.folder
    found = _result(folder, cell)
    verdict = load_artifact(folder, "verdict", Verdict)
    document: Mapping[str, Any] = {} if verdict is None else verdict.document
    selection, oracle = document.get("selection") or {}, document.get("oracle") or {}
    cpu: dict[str, float] = _json(folder / CPU)
    seconds = stages_done(folder)
    evidence = list(_evidence(folder))
    models = [TunedModel(**_json(path)) for path in sorted(folder.glob("jobs/*-model/model.json"))]
    row = CellRow(
        arm=cell.arm.name,
        value=cell.value,
        seed=cell.seed,
        model=found.label,
        n_test=len(found.correct),
        accuracy=found.accuracy,
        kept=selection.get("kept"),
        unlabeled=selection.get("unlabeled"),
        false_share=oracle.get("false_share"),
        answers=sum(table.table.num_rows for table in evidence),
        prompt_tokens=sum(sum(table.table["prompt_tokens"].to_pylist()) for table in evidence),
        completion_tokens=sum(sum(table.table["completion_tokens"].to_pylist()) for table in evidence),
        paid_requests=_paid(config),
        trainings=len(models),
        trained_tokens=sum(model.trained_tokens or 0 for model in models),
        seconds=sum(seconds.values()),
        cpu_seconds=sum(cpu.values()) if cpu else None,
    )
    return DoneCell(row, dict(found.correct), seconds, cpu)


def keep_cell(folder: Path, key: str, done: DoneCell) -> None:
    """Write it beside its run, under the key of the settings that made it."""
    document = {"key": key, **asdict(done)}
    draft = folder / f".{CELL}.draft"
    draft.write_text(json.dumps(document), "utf-8")
    draft.replace(folder / CELL)


def kept_cell(folder: Path, key: str) -> DoneCell | None:
    """The cell, where it was finished with the same settings."""
    path = folder / CELL
    if not path.is_file():
        return None
    kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    return DoneCell(kept.row, kept.correct, kept.stage_seconds, kept.stage_cpu_seconds) if kept.key == key else None


def _result(folder: Path, cell: Cell) -> Answers:
    for name in RESULT_OF[cell.arm.recipe]:
        for place in (*sorted(folder.glob("round-*"), reverse=True), folder):
            answers = load_artifact(place, f"evaluate/{name}", Answers)
            if answers is not None and answers.correct:
                return answers
    raise StageError(f"The arm {cell.arm.name!r} was run and measured nothing: an experiment needs [data] test.")


def _evidence(folder: Path) -> Iterator[EvidenceTable]:
    for path in sorted((*folder.rglob("collaborate"), *folder.rglob("justify"))):
        table = load_artifact(path.parent, path.name, EvidenceTable)
        if table is not None:
            yield table
    for path in sorted(folder.rglob("evaluate/*")):
        if path.is_dir() and path.name != "majority":
            answers = load_artifact(path.parent, path.name, Answers)
            if answers is not None:
                yield answers.evidence


def _paid(config: Config) -> int:
    """Requests that the journal holds under this run's name."""
    path = config.run.journal or config.run.folder / "journal.sqlite"
    journal = Journal.read_only(path)
    try:
        return sum(total.requests for total in journal.totals() if total.source.run == str(config.run.folder))
    finally:
        journal.close()


def _json(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes()) if path.is_file() else {}
