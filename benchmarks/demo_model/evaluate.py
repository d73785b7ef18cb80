"""Measure the demo model: `python -m benchmarks.demo_model.evaluate --seeds 0,1,2`.

Runs the paper's method in one process (four of eight annotators, self-justification, the more certain half)
and prints accuracies on dev as a line of JSON for every seed. Test is for the end: `--split test`.
Knows nothing of servers or of the package's own pipeline.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.demo_model import wording
from benchmarks.demo_model.finetune import Reading, Recipe, TrainingRow, embed_texts, fine_tune, load_base, read_letters
from benchmarks.demo_model.splits import FIELD_NAMES, Row, draw_labeled, draw_unlabeled, read_split
from benchmarks.demo_model.tokenizer import load_encoder

N_ANNOTATORS = 4
SHOT_COUNTS = (0, 1, 2, 3)
KEPT_PERCENTILE = 50

Letters = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """The rows of one seed."""

    labeled: tuple[Row, ...]
    unlabeled: tuple[Row, ...]
    measured: tuple[Row, ...]


@dataclass(frozen=True)
class Neighbours:
    """For every row of a set, the labeled rows by similarity, the nearest first."""

    labeled: tuple[Row, ...]
    order: NDArray[np.int64]

    def shots(self, i: int, n: int) -> tuple[wording.Shot, ...]:
        """The `n` nearest of row `i` as solved examples, the nearest last."""
        nearest = [self.labeled[j] for j in self.order[i, :n]]
        return tuple(wording.Shot(row.question, wording.LETTERS[row.field]) for row in reversed(nearest))


@dataclass(frozen=True)
class Pseudo:
    """A letter for every unlabeled row, and which of them are worth learning from."""

    letters: Letters
    kept: NDArray[np.bool_]


class Experiment:
    """One seed of the comparison; every part returns accuracies in percent."""

    def __init__(self, folder: Path, task: Task, first: Recipe, final: Recipe) -> None:
        self._folder, self._task, self._first, self._final = folder, task, first, final
        self._encoder = load_encoder(folder)
        self._base = load_base(folder)
        self._gold = np.array([row.field for row in task.unlabeled])

    def run(self) -> dict[str, float]:
        """Vanilla, SFT, SemiEvol and its controls."""
        task, results = self._task, dict[str, float]()
        pool, measured = self._neighbours(task.unlabeled), self._neighbours(task.measured)
        results["neighbour_vote"] = self._vote(measured)
        for n in (0, 3):
            results[f"vanilla_{n}_shots"] = self._accuracy(self._base, n, measured)
        started = time.monotonic()
        warm = fine_tune(self._folder, self._encoder, self._rows(task.labeled), self._first)
        results["sft_train_s"] = time.monotonic() - started
        for n in (0, 3):
            results[f"sft_{n}_shots"] = self._accuracy(warm, n, measured)
        pseudo_labels = self._annotate(warm, pool, results)
        letters, kept = pseudo_labels.letters, pseudo_labels.kept
        chosen = [task.unlabeled[i] for i in np.flatnonzero(kept)]
        pseudo = [replace(row, field=int(letter)) for row, letter in zip(chosen, letters[kept], strict=True)]
        started = time.monotonic()
        results["semievol"] = self._final_accuracy(pseudo)
        results["final_train_s"] = time.monotonic() - started
        results["gold_same_rows"] = self._final_accuracy(chosen)
        results["gold_all_rows"] = self._final_accuracy(task.unlabeled)
        return {name: round(value, 1) for name, value in results.items()}

    def _annotate(self, warm: Any, pool: Neighbours, results: dict[str, float]) -> Pseudo:
        drawn = np.random.default_rng(self._first.seed).permutation(2 * len(SHOT_COUNTS))[:N_ANNOTATORS]
        answers = []
        for j, i in enumerate(drawn):
            model = (self._base, warm)[i // len(SHOT_COUNTS)]
            items = self._items(self._task.unlabeled, SHOT_COUNTS[i % len(SHOT_COUNTS)], pool)
            answers.append(read_letters(model, self._encoder, items).sampled(1000 * self._first.seed + j))
            results[f"annotator_{j}"] = 100 * float((answers[-1] == self._gold).mean())
        votes = np.stack(answers, axis=1)
        most = np.array([np.bincount(row, minlength=len(FIELD_NAMES)).argmax() for row in votes])
        results["majority"] = 100 * float((most == self._gold).mean())
        plain = self._items(self._task.unlabeled, 0, pool)
        items = [
            replace(item, proposals=tuple(wording.LETTERS[v] for v in row))
            for item, row in zip(plain, votes, strict=True)
        ]
        return self._select(read_letters(warm, self._encoder, items), results)

    def _select(self, justified: Reading, results: dict[str, float]) -> Pseudo:
        letters = justified.best
        nll = justified.mean_nll(letters)
        kept = nll <= np.percentile(nll, KEPT_PERCENTILE)
        right = letters == self._gold
        results["justified"] = 100 * float(right.mean())
        results["selected"] = 100 * float(right[kept].mean())
        return Pseudo(letters, kept)

    def _final_accuracy(self, added: Sequence[Row]) -> float:
        rows = self._rows((*self._task.labeled, *added))
        model = fine_tune(self._folder, self._encoder, rows, self._final)
        return self._accuracy(model, 0, self._neighbours(self._task.measured))

    def _accuracy(self, model: Any, n_shots: int, measured: Neighbours) -> float:
        reading = read_letters(model, self._encoder, self._items(self._task.measured, n_shots, measured))
        return 100 * float((reading.best == np.array([row.field for row in self._task.measured])).mean())

    def _vote(self, measured: Neighbours) -> float:
        fields = np.array([row.field for row in self._task.labeled])[measured.order[:, :5]]
        most = [np.bincount(row, minlength=len(FIELD_NAMES)).argmax() for row in fields]
        return 100 * float((np.array(most) == [row.field for row in self._task.measured]).mean())

    def _neighbours(self, rows: Sequence[Row]) -> Neighbours:
        questions = [row.question for row in (*self._task.labeled, *rows)]
        vectors = embed_texts(self._base, self._encoder, questions)
        n = len(self._task.labeled)
        return Neighbours(self._task.labeled, np.argsort(-(vectors[n:] @ vectors[:n].T), axis=1, kind="stable"))

    def _items(self, rows: Sequence[Row], n_shots: int, neighbours: Neighbours) -> list[wording.Item]:
        return [wording.Item(row.question, FIELD_NAMES, neighbours.shots(i, n_shots)) for i, row in enumerate(rows)]

    def _rows(self, rows: Sequence[Row]) -> list[TrainingRow]:
        return [TrainingRow(wording.Item(row.question, FIELD_NAMES), row.field) for row in rows]


def read_task(folder: Path, split: str, seed: int) -> Task:
    """Seed 0 is the shipped labeled and unlabeled files; other seeds are drawn from the pool."""
    pool, measured = read_split(folder / "pool.csv"), read_split(folder / f"{split}.csv")
    if seed == 0:
        return Task(read_split(folder / "labeled.csv"), read_split(folder / "unlabeled.csv"), measured)
    labeled = draw_labeled(pool, 100, seed)
    return Task(labeled, draw_unlabeled(pool, labeled, 600, seed), measured)


def main() -> None:
    """One JSON line per seed, then the means."""
    here, recipe = Path(__file__).resolve().parents[2] / "semievol_api" / "demo", Recipe()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model.evaluate", description=__doc__)
    parser.add_argument("--folder", type=Path, default=here, help="holds data/ and model/")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=recipe.n_epochs)
    parser.add_argument("--final-epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=recipe.batch_size)
    parser.add_argument("--lr", type=float, default=recipe.learning_rate)
    parser.add_argument("--rank", type=int, default=recipe.rank)
    parser.add_argument("--alpha", type=int, default=recipe.alpha)
    parser.add_argument("--train-embeddings", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = []
    for seed in map(int, given.seeds.split(",")):
        first = Recipe(given.epochs, given.batch, given.lr, given.rank, given.alpha, given.train_embeddings, seed)
        task = read_task(given.folder / "data", given.split, seed)
        final = replace(first, n_epochs=given.final_epochs)
        lines.append(Experiment(given.folder / "model", task, first, final).run())
        print(json.dumps({"seed": seed} | lines[-1]), flush=True)
    means = {name: round(float(np.mean([line[name] for line in lines])), 1) for name in lines[0]}
    print(json.dumps({"mean_of_seeds": len(lines)} | means))


if __name__ == "__main__":
    main()
