"""Recipes of the method on the demo's task, side by side: what each keeps, and what its evolved model gains over SFT.

    python -m benchmarks.recipes --json                          the three modes and the chosen recipe, five seeds
    python -m benchmarks.recipes --recipes chosen --seeds 0 1    some of it; what is done is not done again
    python -m benchmarks.recipes --split dev                     on the development questions, where choices are made

Seed 0 is the shipped data; every other seed draws its 100 labelled and 600 unlabelled questions anew from the pool and
trains with its own random numbers. Intervals resample seeds and questions together, both models of a seed as a pair.
The ceiling learns the gold answers of the very rows that the recipe kept. Knows nothing of how a recipe works.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import semievol_api.demo
from benchmarks.demo_model.splits import Row, draw_labeled, draw_unlabeled, read_split, write_rows
from semievol_api.config.settings import load_config
from semievol_api.demo.embedded_server import serving
from semievol_api.evaluation.statistics import BootstrapSettings, Interval, paired_bootstrap
from semievol_api.selection.values import FloatArray
from semievol_api.session import run_async, run_blocking
from semievol_api.store.artifacts import Answers
from semievol_api.store.run_store import load_artifact

DEMO = Path(semievol_api.demo.__file__).parent
LABELED, UNLABELED = 100, 600
RECIPES: Mapping[str, Mapping[str, object]] = {
    "paper": {"run.mode": "paper"},
    "calibrated": {"run.mode": "calibrated"},
    "official-2025": {"run.mode": "official-2025"},
    "auto": {"run.mode": "auto", "retrieve.text": "question", "evaluate.controls": []},
    # Chosen on development questions alone; docs/labels.md tells how.
    "chosen": {
        "run.mode": "calibrated",
        "split": {"calibration": 0, "development": 0},
        "retrieve.text": "question",
        "annotators": [{"id": "neighbours", "model": "neighbour_vote", "neighbours": 20, "sharpness": 5.0}],
        "justify.on": "never",
        "select": {"rule": "percentile", "score": "pooled", "share": 0.7},
    },
}


@dataclass(frozen=True, eq=False)
class Measured:
    """One recipe with one seed: right answers by model, float64 (questions,), and what the selection was like."""

    correct: Mapping[str, FloatArray]
    kept: int
    false_share: float | None
    promoted: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRow:
    """One recipe over its seeds: accuracies in percent, differences in points with 95 % intervals.

    Where nothing was kept, the recipe's result is the SFT model. `ceiling` is None where a seed has none.
    """

    recipe: str
    seeds: tuple[int, ...]
    questions: int
    vanilla: float
    sft: float
    evolved: float
    ceiling: float | None
    evolved_minus_sft: tuple[float, float, float]
    by_seed: tuple[float, ...]
    ceiling_minus_sft: tuple[float, float, float] | None
    kept: float
    false_share: float | None
    promised: str


def measure(recipe: str, seed: int, split: str, folder: Path, url: str) -> Measured:
    """Run one recipe with one seed, or read what an earlier call left."""
    place = folder / f"{recipe}-{seed}-{split}"
    changes: dict[str, object] = {
        "run.folder": str(place),
        "run.journal": str(folder / "journal.sqlite"),
        "run.seed": seed,
        "run.ceiling": True,
        "providers.server.base_url": url,
        **_files(seed, split, folder),
        **RECIPES[recipe],
    }
    result = run_blocking(run_async(load_config(DEMO / "demo.toml", changes), accept_change=True))
    document: dict[str, Any] = dict(result.verdict.document)
    correct: dict[str, FloatArray] = {}
    for name in ("base", "warm", "sft", "semievol", "ceiling"):
        answers = load_artifact(place, f"evaluate/{name}", Answers)
        if answers is not None:
            ids = sorted(answers.correct)
            correct[name] = np.array([answers.correct[i] for i in ids], dtype=np.float64)
    correct.setdefault("sft", correct.get("warm", correct["base"]))
    correct.setdefault("semievol", correct["sft"])
    oracle = document["oracle"]
    return Measured(
        correct=correct,
        kept=document["selection"]["kept"],
        false_share=oracle["false_share"] if oracle else None,
        promoted=document.get("promoted"),
    )


def _files(seed: int, split: str, folder: Path) -> dict[str, object]:
    """The data of one seed."""
    files: dict[str, object] = {"data.test": str(DEMO / f"data/{split}.csv")}
    if seed == 0:
        return files
    pool = read_split(DEMO / "data/pool.csv")
    labeled = draw_labeled(pool, LABELED, seed)
    drawn: dict[str, Sequence[Row]] = {
        "labeled": labeled,
        "unlabeled": draw_unlabeled(pool, labeled, UNLABELED, seed),
    }
    place = folder / f"data-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    for name, rows in drawn.items():
        write_rows(place / f"{name}.csv", rows)
        files[f"data.{name}"] = str(place / f"{name}.csv")
    return files


def summary(recipe: str, runs: Mapping[int, Measured]) -> RecipeRow:
    """The seeds of one recipe together."""
    sides = {
        name: np.stack([run.correct[name] for run in runs.values()])
        for name in ("base", "sft", "semievol", "ceiling")
        if all(name in run.correct for run in runs.values())
    }
    gain = sides["semievol"] - sides["sft"]
    shares = [run.false_share for run in runs.values() if run.false_share is not None]
    ceiling = sides.get("ceiling")
    return RecipeRow(
        recipe=recipe,
        seeds=tuple(runs),
        questions=gain.shape[1],
        vanilla=_percent(sides["base"]),
        sft=_percent(sides["sft"]),
        evolved=_percent(sides["semievol"]),
        ceiling=None if ceiling is None else _percent(ceiling),
        evolved_minus_sft=_points(gain),
        by_seed=tuple(round(100 * float(row.mean()), 1) for row in gain),
        ceiling_minus_sft=None if ceiling is None else _points(ceiling - sides["sft"]),
        kept=round(float(np.mean([run.kept for run in runs.values()])), 1),
        false_share=round(float(np.mean(shares)), 3) if shares else None,
        promised={"calibrated": "alpha 0.1 on average", "auto": "alpha 0.1, measured"}.get(recipe, "nothing"),
    )


def differences(runs: Mapping[str, Mapping[int, Measured]], settings: BootstrapSettings) -> dict[str, list[float]]:
    """Evolved models of every two recipes on the seeds that both have: points and 95 % interval."""
    found: dict[str, list[float]] = {}
    names = list(runs)
    for i, of in enumerate(names):
        for against in names[i + 1 :]:
            seeds = [seed for seed in runs[of] if seed in runs[against]]
            if seeds:
                gap = np.stack([runs[of][s].correct["semievol"] - runs[against][s].correct["semievol"] for s in seeds])
                found[f"{of} - {against}"] = list(_points(gap, settings))
    return found


def _percent(correct: FloatArray) -> float:
    return round(100 * float(correct.mean()), 1)


def _points(gap: FloatArray, settings: BootstrapSettings | None = None) -> tuple[float, float, float]:
    """Estimate, low and high of mean differences (seeds, questions), in points."""
    found: Interval = paired_bootstrap(gap, np.zeros((1, gap.shape[1])), settings)
    return round(100 * found.estimate, 1), round(100 * found.low, 1), round(100 * found.high, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "semievol-recipes")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--split", choices=["test", "dev"], default="test")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.folder.resolve()
    runs: dict[str, dict[int, Measured]] = {}
    with serving(DEMO / "model", "demo-llama", folder / "server") as url:
        for recipe in chosen.recipes:
            runs[recipe] = {seed: measure(recipe, seed, chosen.split, folder, url) for seed in chosen.seeds}
    rows = [summary(recipe, found) for recipe, found in runs.items()]
    between = differences(runs, BootstrapSettings())
    if chosen.json:
        print(
            json.dumps({"split": chosen.split, "recipes": [asdict(r) for r in rows], "differences": between}, indent=1)
        )
    else:
        print(table(rows, between))
    return 0


def table(rows: Sequence[RecipeRow], between: Mapping[str, Sequence[float]]) -> str:
    """Markdown: recipes as rows, and the differences between their evolved models below."""
    lines = [
        "| recipe | vanilla | SFT | evolved | gold on the same rows | evolved − SFT | by seed | kept | false |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.recipe} | {row.vanilla} | {row.sft} | {row.evolved} | {_or_dash(row.ceiling)} "
            f"| {_interval(row.evolved_minus_sft)} | {', '.join(f'{v:+.1f}' for v in row.by_seed)} | {row.kept:.0f} "
            f"| {_or_dash(row.false_share)} |"
        )
    return "\n".join([*lines, "", *(f"- {name}: {_interval(values)}" for name, values in between.items())])


def _interval(values: Sequence[float]) -> str:
    return f"{values[0]:+.1f} [{values[1]:+.1f}, {values[2]:+.1f}]"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


if __name__ == "__main__":
    raise SystemExit(main())
