"""Run every cell of a grid that is not done yet, one after the other, over one journal.

A cell is an ordinary run in a folder of its own and resumes like one; a training that another cell
bought is found by its key, a question that another cell asked is in the journal. Knows nothing of servers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from semievol_api.capabilities import JobEvent
from semievol_api.config.settings import Config, load_config
from semievol_api.engine import Progress
from semievol_api.engine.journal import Journal
from semievol_api.errors import RunFolderError, StageError
from semievol_api.experiments.grid import Cell, Experiment, Scalar, arm_named, cell_name, cells, draw, flat
from semievol_api.experiments.recipes import RESULT_OF, pipeline_of
from semievol_api.session import NullWatcher, Watcher, check, config_key, refuse_lost_journal, run_async
from semievol_api.store.artifacts import Answers, EvidenceTable, TunedModel, Verdict
from semievol_api.store.run_store import load_artifact, stages_done
from semievol_api.tasks import load_task
from semievol_api.training.fine_tuning import expected_epochs
from semievol_api.training.jobs import file_artifact

_PROC = Path("/proc")
_TICK_FIELDS = slice(11, 15)
"""utime, stime and those of children that have ended, in /proc/PID/stat after the command's name."""


def tree_cpu_s() -> float:
    """CPU seconds so far of this process, its living descendants, and their ended children."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    stats = _stats()
    ticks = sum(stats[pid][1] for pid in _descendants(stats, os.getpid()))
    return own + ticks / ticks_per_s


def _stats() -> dict[int, tuple[int, int]]:
    """For every process its parent and its ticks."""
    found: dict[int, tuple[int, int]] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:  # it has ended in the meantime
            continue
        found[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[_TICK_FIELDS]))
    return found


def _descendants(stats: dict[int, tuple[int, int]], root: int) -> set[int]:
    found: set[int] = set()
    fresh = {root}
    while fresh:
        fresh = {pid for pid, (parent, _) in stats.items() if parent in fresh} - found
        found |= fresh
    return found


_CELL = "cell.json"
_CPU = "cpu_seconds.json"


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


def _read_cell(cell: Cell, config: Config) -> DoneCell:
    """The cell whose run has ended in its folder.

    Raises:
        StageError: the run measured nothing: it has no test questions.
    """
    folder = config.run.folder
    found = _result(folder, cell)
    verdict = load_artifact(folder, "verdict", Verdict)
    selection, oracle = (verdict.selection, verdict.oracle) if verdict else (None, None)
    cpu: dict[str, float] = _json(folder / _CPU)
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
        kept=selection.kept if selection else None,
        unlabeled=selection.unlabeled if selection else None,
        false_share=oracle.false_share if oracle else None,
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


def _keep_cell(folder: Path, key: str, done: DoneCell) -> None:
    """Write it to its run's folder, under the key of the settings that made it."""
    document = {"key": key, **asdict(done)}
    draft = folder / f".{_CELL}.draft"
    draft.write_text(json.dumps(document), "utf-8")
    draft.replace(folder / _CELL)


def _kept_cell(folder: Path, key: str) -> DoneCell | None:
    """The cell, where it was finished with the same settings."""
    path = folder / _CELL
    if not path.is_file():
        return None
    document = _json(path)
    return msgspec.convert(document, DoneCell) if document["key"] == key else None


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
    path = config.run.journal_path
    journal = Journal.read_only(path)
    try:
        return sum(total.requests for total in journal.totals() if total.source.run == str(config.run.folder))
    finally:
        journal.close()


def _json(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes()) if path.is_file() else {}


JOURNAL = "journal.sqlite"
_MOST_EPOCHS = 50
"""The fine-tuning API's limit (its specification, `hyperparameters.n_epochs`)."""


class CellWatcher(Protocol):
    """Is called with the cell that runs, and watches the run within it."""

    def on_cell(self, cell: Cell, number: int, of: int, done: DoneCell | None) -> None:
        """A cell begins (`done` is None), or has ended, or was found done."""
        ...

    @property
    def run(self) -> Watcher:
        """Who watches the run within."""
        ...


@dataclass(frozen=True)
class _NullCellWatcher:
    """A watcher that does nothing."""

    run: Watcher = field(default_factory=NullWatcher)

    def on_cell(self, cell: Cell, number: int, of: int, done: DoneCell | None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class ExperimentContext:
    """The config that the arms change, and changes that hold for all of them, such as a server's address."""

    base: Path
    changes: Mapping[str, object] = field(default_factory=dict[str, object])
    accept_lost_journal: bool = False


async def run_experiment(
    experiment: Experiment, context: ExperimentContext, watcher: CellWatcher | None = None
) -> tuple[DoneCell, ...]:
    """All cells in the grid's order; those that are done already are read.

    Raises:
        UserError: the experiment, an arm's config or the data needs mending.
    """
    seen = watcher or _NullCellWatcher()
    grid = cells(experiment)
    _check_all(experiment, grid, context)
    done: list[DoneCell] = []
    for number, cell in enumerate(grid, start=1):
        config, copies = _with_steps(experiment, cell, _plain_config(experiment, cell, context))
        key = _key(cell, config)
        found = _kept_cell(config.run.folder, key)
        if found is None:
            seen.on_cell(cell, number, len(grid), None)
            if not context.accept_lost_journal:
                refuse_lost_journal(config)
            meter = _CpuMeter(config.run.folder, seen.run)
            await run_async(config, watcher=meter, accept_change=True, pipeline=pipeline_of(cell.arm.recipe, copies))
            found = _read_cell(cell, config)
            _keep_cell(config.run.folder, key, found)
        seen.on_cell(cell, number, len(grid), found)
        done.append(found)
    return tuple(done)


def _check_all(experiment: Experiment, grid: Sequence[Cell], context: ExperimentContext) -> None:
    """Refuse a wrong arm before the first one runs."""
    for cell in grid:
        if cell.seed == experiment.experiment.seeds[0]:
            check(_plain_config(experiment, cell, context))


def _plain_config(experiment: Experiment, cell: Cell, context: ExperimentContext) -> Config:
    head = experiment.experiment
    changes: dict[str, object] = {
        "run.folder": str(head.folder / "runs" / cell.name),
        "run.seed": cell.seed,
        **context.changes,
        **flat(experiment.overrides),
        **flat(cell.arm.overrides),
    }
    if head.share:
        changes["run.journal"] = str(head.folder / JOURNAL)
    if experiment.axis is not None and cell.value is not None:
        changes[experiment.axis.setting] = cell.value
    if experiment.draw is not None:
        plain = load_config(context.base, changes)
        settings = experiment.draw.model_copy(update={"pool": context.base.parent / experiment.draw.pool})
        place = head.folder / "draws" / f"seed-{cell.seed}"
        drawn = draw(settings, load_task(plain.data.task), plain.data, cell.seed, place)
        changes |= {"data.labeled": str(drawn.labeled), "data.unlabeled": str(drawn.unlabeled)}
    return load_config(context.base, changes)


def _with_steps(experiment: Experiment, cell: Cell, config: Config) -> tuple[Config, int]:
    """The config, and the copies of every label, that give the steps of another arm's final training.

    To the next whole epoch; a job has 50 at most, so more are copies.

    Raises:
        RunFolderError: that arm has trained nothing.
    """
    if cell.arm.steps_of is None:
        return config, 1
    other = arm_named(experiment, cell.arm.steps_of)
    folder = experiment.experiment.folder / "runs" / cell_name(other.name, cell.value, cell.seed)
    files = [folder / file_artifact(model) / "train.jsonl" for model in ("semievol", "warm", "sft")]
    trained = [len(path.read_bytes().splitlines()) for path in files if path.is_file()]
    if len(trained) < 2:
        raise RunFolderError(
            f"The arm {cell.arm.name!r} takes the steps of {other.name!r}, which has no final training in "
            f"{str(folder)!r}: it kept too little. Take the steps of another arm."
        )
    roles, spec = config.roles, config.train.final.spec(config.run.seed)
    provider = check(config, planning=True).provider(roles.trainer or roles.student)
    epochs = expected_epochs(spec, trained[0], provider) * trained[0] / trained[1]
    copies = math.ceil(epochs / _MOST_EPOCHS)
    train = config.train.model_copy(update={"n_epochs": max(1, round(epochs / copies))})
    return config.model_copy(update={"train": train}), copies


def _key(cell: Cell, config: Config) -> str:
    text = json.dumps([cell.arm.recipe, config_key(config)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _CpuMeter:
    """A watcher that notes each stage's CPU seconds in the run's folder and passes every call on to another."""

    def __init__(self, folder: Path, then: Watcher) -> None:
        self._path = folder / _CPU
        self._then = then
        self._since: dict[str, float] = {}
        self._spent: dict[str, float] = {}

    def on_stage(self, name: str, state: str) -> None:
        """See `Watcher`."""
        if state == "started":
            self._since[name] = tree_cpu_s()
        elif state == "made" and name in self._since:
            if not self._spent and self._path.is_file():
                self._spent = json.loads(self._path.read_text("utf-8"))
            self._spent[name] = round(tree_cpu_s() - self._since.pop(name), 3)
            self._path.write_text(json.dumps(self._spent), "utf-8")
        self._then.on_stage(name, state)

    def on_row(self, progress: Progress) -> None:
        """See `Watcher`."""
        self._then.on_row(progress)

    def on_job(self, name: str, event: JobEvent) -> None:
        """See `Watcher`."""
        self._then.on_job(name, event)
