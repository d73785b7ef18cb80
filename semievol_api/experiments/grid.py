"""An experiment's TOML as settings, and the cells of its grid: arm x value of the axis x seed.

    experiment = load_experiment(Path("examples/ablations.toml"))
    for cell in cells(experiment): ...

An arm is a set of overrides of one config and a recipe. Knows nothing of how a cell is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from semievol_api.config.method import Settings
from semievol_api.config.settings import DataSettings, parse_settings, read_toml
from semievol_api.data import read_examples, read_table, subsample
from semievol_api.data.examples import columns_of
from semievol_api.errors import DataError
from semievol_api.tasks import Task

Recipe: TypeAlias = Literal["semievol", "prompt-only", "prompt-read", "fine-tune", "gold"]
"""What an arm does: the whole pipeline; asks the base model; reads the base model's likeliest label; trains on the
labels; trains on the labels and the gold answers of the whole pool."""
Scalar: TypeAlias = str | int | float | bool
_Tree: TypeAlias = Mapping[str, Any]
DEMO = "demo"


class ArmSettings(Settings):
    """`[[arms]]`: one way of doing it."""

    name: str
    recipe: Recipe = "semievol"
    overrides: Mapping[str, Any] = {}
    """Changes of the config, nested as there: `overrides.select.share = 1.0`."""
    steps_of: str | None = None
    """For `fine-tune`: train for as many steps as that arm's final training took."""
    published: str | None = None
    """The row of the paper that this arm repeats, as `published.toml` names it."""


class AxisSettings(Settings):
    """`[axis]`: one setting of the config through several values, for every arm."""

    label: str
    setting: str = Field(pattern=r"^[a-z_]+(\.[a-z_]+)+$")
    values: tuple[Scalar, ...] = Field(min_length=1)


class DrawSettings(Settings):
    """`[draw]`: every seed draws labelled and unlabelled rows of its own from one labelled pool."""

    pool: Path
    labeled: int = Field(ge=1)
    unlabeled: int = Field(ge=1)


class HeadSettings(Settings):
    """`[experiment]`: what it is called, what it changes, where it lies."""

    name: str
    title: str = ""
    base: str = DEMO
    """The config that arms change: a path, or the demo's own with a server of its own."""
    folder: Path
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    baseline: str
    """The arm that all others are compared with."""
    resamples: int = Field(default=10_000, ge=100)
    share: bool = True
    """Arms share one journal; without, each cell pays for itself, so that its cost can be measured."""


class QuickSettings(Settings):
    """`[quick]`: what `--quick` changes, to see the whole experiment in little time."""

    seeds: tuple[int, ...] = (0,)
    labeled: int | None = None
    unlabeled: int | None = None
    values: tuple[Scalar, ...] = ()
    overrides: Mapping[str, Any] = {}


class Experiment(Settings):
    """The whole file."""

    experiment: HeadSettings
    arms: tuple[ArmSettings, ...] = Field(min_length=1)
    overrides: Mapping[str, Any] = {}
    """Changes of the config for all arms."""
    axis: AxisSettings | None = None
    draw: DrawSettings | None = None
    quick: QuickSettings = QuickSettings()

    @model_validator(mode="after")
    def _arms_are_known(self) -> Experiment:
        names = [arm.name for arm in self.arms]
        if len({_slug(name) for name in names}) < len(names):
            raise ValueError("two [[arms]] have the same name, or names that differ in signs only")
        for i, arm in enumerate(self.arms):
            if arm.steps_of is not None and arm.steps_of not in names[:i]:
                raise ValueError(
                    f"the arm {arm.name!r} takes the steps of {arm.steps_of!r}, which stands not before it"
                )
        if self.experiment.baseline not in names:
            raise ValueError(f"[experiment] baseline = {self.experiment.baseline!r} is no arm")
        return self

    @property
    def values(self) -> tuple[Scalar | None, ...]:
        """The axis's values, or one None."""
        return (None,) if self.axis is None else self.axis.values


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid."""

    arm: ArmSettings
    value: Scalar | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return cell_name(self.arm.name, self.value, self.seed)


def cell_name(arm: str, value: Scalar | None, seed: int) -> str:
    """The folder of an arm's run."""
    at = "" if value is None else f"-at-{_slug(str(value))}"
    return f"{_slug(arm)}{at}-seed-{seed}"


def cells(experiment: Experiment) -> list[Cell]:
    """Every cell, seed by seed, arms in their order: what is shared is made by the first arm that needs it."""
    return [
        Cell(arm, value, seed)
        for seed in experiment.experiment.seeds
        for value in experiment.values
        for arm in experiment.arms
    ]


def load_experiment(path: Path, *, quick: bool = False, folder: Path | None = None) -> Experiment:
    """Read an experiment; its paths are resolved against its own folder, `folder` takes the place of its own.

    Raises:
        ConfigError: the file is missing, is no TOML, or a key or value is wrong.
    """
    found = parse_settings(Experiment, read_toml(path), where=path.name)
    here = path.resolve().parent
    head = found.experiment
    base = head.base if head.base == DEMO else str(here / head.base)
    place = (folder or here / head.folder).resolve()
    found = found.model_copy(update={"experiment": head.model_copy(update={"base": base, "folder": place})})
    if found.draw is not None and found.experiment.base != DEMO:
        found = found.model_copy(update={"draw": found.draw.model_copy(update={"pool": here / found.draw.pool})})
    return _quick(found) if quick else found


def flat(tree: _Tree, above: str = "") -> dict[str, object]:
    """Nested changes by dotted key, as `load_config` takes them."""
    changes: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            changes |= flat(value, f"{above}{name}.")
        else:
            changes[f"{above}{name}"] = value
    return changes


def _slug(name: str) -> str:
    """A name as part of a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def arm_named(experiment: Experiment, name: str) -> ArmSettings:
    """An arm by its name."""
    return next(arm for arm in experiment.arms if arm.name == name)


def _quick(experiment: Experiment) -> Experiment:
    small = experiment.quick
    head = experiment.experiment.model_copy(
        update={
            "seeds": small.seeds,
            "folder": experiment.experiment.folder.with_name(f"{experiment.experiment.folder.name}-quick"),
        }
    )
    changes: dict[str, object] = {
        "experiment": head,
        "overrides": {**flat(experiment.overrides), **flat(small.overrides)},
    }
    if experiment.draw is not None:
        sizes = {"labeled": small.labeled, "unlabeled": small.unlabeled}
        changes["draw"] = experiment.draw.model_copy(update={k: v for k, v in sizes.items() if v is not None})
    if experiment.axis is not None and small.values:
        changes["axis"] = experiment.axis.model_copy(update={"values": small.values})
    return experiment.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The two files of one seed."""

    labeled: Path
    unlabeled: Path


def draw(settings: DrawSettings, task: Task, data: DataSettings, seed: int, folder: Path) -> Drawn:
    """Write the files of a seed: labelled rows with the pool's class shares, unlabelled ones from the rest.

    Raises:
        DataError: the pool has too few rows.
    """
    table = read_table(settings.pool)
    examples = read_examples(table, task, "labeled", columns_of(task, data.columns)).examples
    if len(examples) < settings.labeled + settings.unlabeled:
        raise DataError(
            f"[draw] asks for {settings.labeled} labelled and {settings.unlabeled} unlabelled rows, and "
            f"{settings.pool.name!r} has {len(examples)}. Draw fewer."
        )
    labeled = {e.id for e in subsample(examples, settings.labeled, seed)}
    rest = sorted((e.id for e in examples if e.id not in labeled), key=lambda name: _order(seed, name))
    unlabeled = set(rest[: settings.unlabeled])
    rows = [(e.id, dict(row)) for e, row in zip(examples, table.rows, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = Drawn(folder / f"labeled-{settings.labeled}.jsonl", folder / f"unlabeled-{settings.unlabeled}.jsonl")
    for path, chosen in ((drawn.labeled, labeled), (drawn.unlabeled, unlabeled)):
        lines = [json.dumps(row, ensure_ascii=False, default=str) for name, row in rows if name in chosen]
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return drawn


def _order(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"draw\n{seed}\n{name}".encode(), digest_size=16).digest()
