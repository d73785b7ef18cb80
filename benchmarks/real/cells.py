"""One cell of the table: a task, a number of labels, a seed, a method; its file, its cost, and the test ledger.

Knows nothing of how a method measures.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.real.method import Measured, Method
from benchmarks.real.splits import Part, Split

RESULTS = Path(__file__).parents[1] / "results" / "real"
ROOT = Path(__file__).parents[2]


class Refused(Exception):
    """A test cell that must not be measured, and why."""


@dataclass(frozen=True, slots=True)
class Cell:
    """`labels` is 0 for a method that needs none."""

    task: str
    labels: int
    seed: int
    method: str

    def path(self, part: Part, results: Path = RESULTS) -> Path:
        """Its file."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.method.lower()).strip("-")
        return results / part / self.task / f"{slug}-{self.labels}-seed-{self.seed}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished cell. `right` has a 1 for every measured row that was labelled right and a 0 for the others.

    `accuracy`, `unreadable` and `ceiling` are in percent of the `n` measured rows; `ceiling` is the share of rows whose
    label a labelled row shows. Seconds are of everything that the cell needed, shared trainings among it once.
    """

    task: str
    labels: int
    seed: int
    method: str
    part: str
    accuracy: float
    unreadable: int
    n: int
    ceiling: float
    covered: int
    cpu_s: float
    wall_s: float
    commit: str
    date: str
    processor: str
    settings: Mapping[str, Any]
    details: Mapping[str, Any]
    right: str


def scored(
    cell: Cell, split: Split, measured: Measured, seconds: tuple[float, float], method: Method, part: Part
) -> Result:
    """The cell's result: a label counts where it equals the gold, an unreadable answer is wrong."""
    gold = [row.label for row in split.measured]
    right = [mine == truth for mine, truth in zip(measured.predicted, gold, strict=True)]
    cpu_s, wall_s = seconds
    return Result(
        **asdict(cell),
        part=part,
        accuracy=round(100 * sum(right) / len(right), 2),
        unreadable=sum(label is None for label in measured.predicted),
        n=len(right),
        ceiling=round(100 * split.ceiling, 2) if cell.labels else 100.0,
        covered=split.covered if cell.labels else len(split.labels),
        cpu_s=round(cpu_s if measured.cpu_s is None else measured.cpu_s, 1),
        wall_s=round(wall_s, 1),
        commit=commit(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        processor=processor(),
        settings=dict(method.settings),
        details=dict(measured.details),
        right="".join(str(int(one)) for one in right),
    )


def keep(result: Result, path: Path) -> None:
    """Write a cell's file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    draft.replace(path)


def finished(part: Part, results: Path = RESULTS) -> list[Result]:
    """All cells on disk."""
    return [Result(**json.loads(path.read_text("utf-8"))) for path in sorted((results / part).rglob("*.json"))]


def minutes_of(cell: Cell, method: Method, done: Sequence[Result]) -> float:
    """Expected CPU minutes: the median of the method's finished cells, nearest in task and labels first."""
    mine = [result for result in done if result.method == cell.method]
    for like in (
        [r for r in mine if (r.task, r.labels) == (cell.task, cell.labels)],
        [r for r in mine if r.labels == cell.labels],
        [r for r in mine if r.task == cell.task],
        mine,
    ):
        if like:
            return statistics.median(result.cpu_s for result in like) / 60
    return method.minutes * (max(cell.labels, 50) / 100 if method.needs_labels else 1.0)


def digest(settings: Mapping[str, object]) -> str:
    """Names a recipe."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def enter(cells: Iterable[Cell], method: Method, ledger: Path, again: str | None, head: str) -> None:
    """Note in the ledger that test rows are looked at, once per cell and recipe, before anything is measured.

    A cell that was entered with the same recipe and not finished goes on.

    Raises:
        Refused: the cell was entered with another recipe, or the commit does not hold the code that would run.
    """
    recipe = digest(method.settings)
    if head.endswith("+"):
        raise Refused("The test rows are measured by committed code only: commit first, then run again.")
    lines = ledger.read_text("utf-8").splitlines() if ledger.is_file() else []
    known = {(e["task"], e["labels"], e["seed"], e["method"]): e["recipe"] for e in map(json.loads, lines)}
    fresh: list[str] = []
    for cell in cells:
        before = known.get((cell.task, cell.labels, cell.seed, cell.method))
        if before == recipe:
            continue
        if before is not None and not again:
            raise Refused(
                f"{cell.method!r} was measured on the test rows of {cell.task} (seed {cell.seed}, {cell.labels} labels)"
                " with another recipe. Choose on the development rows; where it has to be, give --again REASON."
            )
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"date": date, "commit": head, **asdict(cell), "recipe": recipe, "again": again if before else None}
        fresh.append(json.dumps(entry))
    if fresh:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in fresh)


def commit() -> str:
    """The commit that is checked out, with a plus behind it where tracked Python files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", "*.py") else "")


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.strip() or ("unknown" if ran.returncode else "")


def processor() -> str:
    """The machine's processor, or its GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor())
    return f"{name}, avx512_bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else name
