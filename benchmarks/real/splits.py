"""The tasks, and which of their rows a seed gives to learn from, to use without labels, and to be measured on.

    split = draw("trec", Path("data"), labels=100, seed=0, part="dev")
    split.labeled, split.unlabeled, split.measured

FOLDER/TASK/ holds labeled.csv, unlabeled.csv (with the gold, for measuring alone) and test.csv. A row's place in a
seed's order is a hash of the seed and its text, so that it depends on no file order and no library. Of the unlabelled
file the first 400 rows are the development rows, the next 600 the unlabelled ones; labels are the first rows of the
labelled file's order, so that 50 are among 100, and where it is too short the unlabelled file's rows from 1,000 on
follow. Development never opens test.csv. Knows nothing of methods.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Part: TypeAlias = Literal["dev", "test"]
DEVELOPMENT, UNLABELED = 400, 600
LABELS, SEEDS = (50, 100, 200, 500), (0, 1, 2)


class NotYet(Exception):
    """A cell that cannot be measured, and why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text and its gold label."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class RealTask:
    """A task: what is asked, and how a CSV row is read."""

    name: str
    instruction: str
    read: Callable[[Mapping[str, str]], Row]
    licence: str


@dataclass(frozen=True, slots=True)
class Split:
    """One seed's rows. `labels` are all labels of the task, those that no labelled row shows among them."""

    task: RealTask
    labels: tuple[str, ...]
    labeled: tuple[Row, ...]
    unlabeled: tuple[Row, ...]
    measured: tuple[Row, ...]

    @property
    def covered(self) -> int:
        """How many labels the labelled rows show."""
        return len({row.label for row in self.labeled})

    @property
    def ceiling(self) -> float:
        """The share of measured rows whose label a labelled row shows: nobody who learns from them alone is better."""
        shown = {row.label for row in self.labeled}
        return sum(row.label in shown for row in self.measured) / len(self.measured)


def _plain(row: Mapping[str, str]) -> Row:
    return Row(row["text"], row["label"])


def _financial(row: Mapping[str, str]) -> Row:
    return Row(row["question"].partition("\n")[2].strip(), row["gt"])


def _restaurant(row: Mapping[str, str]) -> Row:
    raise NotYet("chat JSONL with JSON answers needs the task kind `json`, which is not there yet")


TASKS: Mapping[str, RealTask] = {
    task.name: task
    for task in (
        RealTask("trec", "What does the question ask for?", _plain, "none stated (Li and Roth 2002)"),
        RealTask("banking77", "What does the bank's customer want?", _plain, "CC BY 4.0 (Casanueva et al. 2020)"),
        RealTask(
            "fpb",
            "What does the sentence mean for the company's investors?",
            _financial,
            "CC BY-NC-SA 3.0 (Malo et al. 2014)",
        ),
        RealTask("restaurant8k", "", _restaurant, "CC BY 4.0 (Coope et al. 2020)"),
    )
}


def draw(name: str, folder: Path, labels: int, seed: int, part: Part) -> Split:
    """The rows of one seed; no text occurs in two of the three groups.

    Raises:
        NotYet: the task has no reader, or too few rows for so many labels.
    """
    task = TASKS[name]
    if task.read is _restaurant:
        _restaurant({})
    files = [_unique(_read(task, folder / name / f"{file}.csv")) for file in ("labeled", "unlabeled")]
    texts = {_key(row) for row in files[0]}
    files[1] = [row for row in files[1] if _key(row) not in texts]
    everything = tuple(sorted({row.label for file in files for row in file}))
    labeled, unlabeled = (_ordered(file, name, seed) for file in files)
    measured = _unique(_read(task, folder / name / "test.csv")) if part == "test" else unlabeled[:DEVELOPMENT]
    texts = {_key(row) for row in measured}
    spare = unlabeled[DEVELOPMENT + UNLABELED :]
    if labels > len(labeled) + len(spare):
        raise NotYet(f"{name} has {len(labeled) + len(spare)} rows to label")
    return Split(
        task=task,
        labels=everything,
        labeled=tuple(row for row in [*labeled, *spare][:labels] if _key(row) not in texts),
        unlabeled=tuple(row for row in unlabeled[DEVELOPMENT : DEVELOPMENT + UNLABELED] if _key(row) not in texts),
        measured=tuple(measured),
    )


def _read(task: RealTask, path: Path) -> list[Row]:
    if not path.is_file():
        raise NotYet(f"{path.parent.name}/{path.name} is not in the data folder")
    with path.open(encoding="utf-8", newline="") as file:
        return [task.read(row) for row in csv.DictReader(file)]


def _key(row: Row) -> str:
    return " ".join(row.text.casefold().split())


def _unique(rows: Iterable[Row]) -> list[Row]:
    return list({_key(row): row for row in rows}.values())


def _ordered(rows: Sequence[Row], task: str, seed: int) -> list[Row]:
    return sorted(rows, key=lambda row: hashlib.blake2b(f"{task}\n{seed}\n{row.text}".encode()).digest())
