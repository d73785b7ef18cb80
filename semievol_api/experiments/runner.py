"""Run every cell of a grid that is not done yet, one after the other, over one journal.

A cell is an ordinary run in a folder of its own: killed, it goes on where it was; a training that another cell
bought is found by its key, a question that another cell asked is in the journal. Knows nothing of servers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from semievol_api.capabilities import JobEvent
from semievol_api.config import Config, load_config
from semievol_api.engine import Progress
from semievol_api.errors import RunFolderError
from semievol_api.experiments.cell import CPU, DoneCell, keep_cell, kept_cell, read_cell
from semievol_api.experiments.cpu import tree_cpu_s
from semievol_api.experiments.draws import draw
from semievol_api.experiments.grid import Cell, Experiment, arm_named, cell_name, cells, flat
from semievol_api.experiments.recipes import walk_of
from semievol_api.session import Silent, Watcher, check, config_key, refuse_lost_journal, run_async
from semievol_api.tasks import load_task

JOURNAL = "journal.sqlite"
MOST_EPOCHS = 50
"""The fine-tuning API's limit (its specification, `hyperparameters.n_epochs`)."""


class CellWatcher(Protocol):
    """Hears which cell is at work, and what it does."""

    def on_cell(self, cell: Cell, number: int, of: int, done: DoneCell | None) -> None:
        """A cell begins (`done` is None), or has ended, or was found done."""
        ...

    @property
    def run(self) -> Watcher:
        """Who watches the run within."""
        ...


@dataclass(frozen=True)
class SilentCells:
    """A watcher that looks away."""

    run: Watcher = field(default_factory=Silent)

    def on_cell(self, cell: Cell, number: int, of: int, done: DoneCell | None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Ground:
    """Where an experiment stands: the config that its arms change, and what holds for all of them (an address)."""

    base: Path
    changes: Mapping[str, object] = field(default_factory=dict[str, object])
    accept_lost_journal: bool = False


async def run_experiment(
    experiment: Experiment, ground: Ground, watcher: CellWatcher | None = None
) -> tuple[DoneCell, ...]:
    """All cells in the grid's order; those that are done already are read.

    Raises:
        UserError: the experiment, an arm's config or the data needs mending.
    """
    seen = watcher or SilentCells()
    grid = cells(experiment)
    _check_all(experiment, grid, ground)
    done: list[DoneCell] = []
    for number, cell in enumerate(grid, start=1):
        config, copies = _with_steps(experiment, cell, _plain_config(experiment, cell, ground))
        key = _key(cell, config)
        found = kept_cell(config.run.folder, key)
        if found is None:
            seen.on_cell(cell, number, len(grid), None)
            if not ground.accept_lost_journal:
                refuse_lost_journal(config)
            meter = CpuMeter(config.run.folder, seen.run)
            await run_async(config, watcher=meter, accept_change=True, walk=walk_of(cell.arm.recipe, copies))
            found = read_cell(cell, config)
            keep_cell(config.run.folder, key, found)
        seen.on_cell(cell, number, len(grid), found)
        done.append(found)
    return tuple(done)


def _check_all(experiment: Experiment, grid: Sequence[Cell], ground: Ground) -> None:
    """Refuse a wrong arm before the first one runs."""
    for cell in grid:
        if cell.seed == experiment.experiment.seeds[0]:
            check(_plain_config(experiment, cell, ground))


def _plain_config(experiment: Experiment, cell: Cell, ground: Ground) -> Config:
    head = experiment.experiment
    changes: dict[str, object] = {
        "run.folder": str(head.folder / "runs" / cell.name),
        "run.seed": cell.seed,
        **ground.changes,
        **flat(experiment.overrides),
        **flat(cell.arm.overrides),
    }
    if head.share:
        changes["run.journal"] = str(head.folder / JOURNAL)
    if experiment.axis is not None and cell.value is not None:
        changes[experiment.axis.setting] = cell.value
    if experiment.draw is not None:
        plain = load_config(ground.base, changes)
        settings = experiment.draw.model_copy(update={"pool": ground.base.parent / experiment.draw.pool})
        place = head.folder / "draws" / f"seed-{cell.seed}"
        drawn = draw(settings, load_task(plain.data.task), plain.data, cell.seed, place)
        changes |= {"data.labeled": str(drawn.labeled), "data.unlabeled": str(drawn.unlabeled)}
    return load_config(ground.base, changes)


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
    files = [folder / name / "train.jsonl" for name in ("evolve", "warm_up", "sft")]
    trained = [len(path.read_bytes().splitlines()) for path in files if path.is_file()]
    if len(trained) < 2:
        raise RunFolderError(
            f"The arm {cell.arm.name!r} takes the steps of {other.name!r}, which has no final training in "
            f"{str(folder)!r}: it kept too little. Take the steps of another arm."
        )
    epochs = (config.train.final.n_epochs or 1) * trained[0] / trained[1]
    copies = math.ceil(epochs / MOST_EPOCHS)
    train = config.train.model_copy(update={"n_epochs": max(1, round(epochs / copies))})
    return config.model_copy(update={"train": train}), copies


def _key(cell: Cell, config: Config) -> str:
    text = json.dumps([cell.arm.recipe, config_key(config)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class CpuMeter:
    """A run's watcher that notes each stage's CPU seconds in the run's folder, and tells the next watcher."""

    def __init__(self, folder: Path, then: Watcher) -> None:
        self._path = folder / CPU
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
