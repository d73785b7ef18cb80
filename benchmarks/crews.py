"""How the demo's recipe was chosen: crews and shares compared on questions that are neither pool nor test.

    python -m benchmarks.crews --json                     who is right, and how right are the surest (no final training)
    python -m benchmarks.crews --train 0.5 0.7 0.85       and models trained on what the neighbours' vote keeps

    python -m benchmarks.crews --texts                    what is embedded: questions, with options, as chat turns
    python -m benchmarks.crews --test --seeds 0 1 2 3 4   the chosen recipe on the test questions

For every seed 100 labels teach a warm model in this process; annotators answer the 300 development questions and the
pool's rows that the seed uses neither as labels nor as unlabelled questions. Only `--test` sees test. Knows nothing of
servers or of the package's own pipeline.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import semievol_api.demo
from benchmarks.demo_model import wording
from benchmarks.demo_model.evaluate import read_task
from benchmarks.demo_model.finetune import (
    Recipe,
    TrainingRow,
    embed_texts,
    embed_tokens,
    fine_tune,
    load_base,
    read_letters,
)
from benchmarks.demo_model.splits import FIELD_NAMES, Row, read_split
from benchmarks.demo_model.tokenizer import load_encoder
from semievol_api.evaluation.statistics import paired_bootstrap
from semievol_api.selection import neighbour_vote, pool
from semievol_api.selection.values import FloatArray, IntArray

DEMO = Path(semievol_api.demo.__file__).parent
K = len(FIELD_NAMES)
COVERAGES = (0.3, 0.5, 0.7, 0.85, 1.0)
VOTES = {"vote 5, sharp 10": (5, 10.0), "vote 20, sharp 10": (20, 10.0), "vote 20, sharp 5": (20, 5.0)}
CREWS: Mapping[str, tuple[str, ...]] = {
    "warm": ("warm, 0 shots",),
    "warm and base, 0 and 3 shots": ("warm, 0 shots", "warm, 3 shots", "base, 3 shots"),
    "the calibrated mode's crew": ("warm, 0 shots", "vote 5, sharp 10", "warm, 3 shots", "base, 3 shots"),
    **{name: (name,) for name in VOTES},
    "warm + vote 5": ("warm, 0 shots", "vote 5, sharp 10"),
    "warm + vote 20, sharp 5": ("warm, 0 shots", "vote 20, sharp 5"),
    "base, 3 shots + vote 20, sharp 5": ("base, 3 shots", "vote 20, sharp 5"),
}
CHOSEN = "vote 20, sharp 5"
CHOSEN_SHARE = 0.7
LABELED = 100


@dataclass(frozen=True, eq=False)
class Answered:
    """One seed: its rows, and every annotator's probabilities on `asked`, unlabelled rows first; float64 (rows, K)."""

    labeled: Sequence[Row]
    unlabeled: Sequence[Row]
    asked: Sequence[Row]
    probs: Mapping[str, FloatArray]
    sft: float

    @property
    def gold(self) -> IntArray:
        """Of `asked`."""
        return np.array([row.field for row in self.asked], dtype=np.int64)


class Bench:
    """The demo's model in this process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._encoder, self._base = load_encoder(DEMO / "model"), load_base(DEMO / "model")

    def answer(self, seed: int) -> Answered:
        """Warm up and ask everybody."""
        task = read_task(DEMO / "data", "dev", seed)
        used = {row.question for row in (*task.labeled, *task.unlabeled)}
        spare = [row for row in read_split(DEMO / "data/pool.csv") if row.question not in used]
        asked = (*task.unlabeled, *task.measured, *spare)
        vectors = embed_texts(self._base, self._encoder, [row.question for row in (*task.labeled, *asked)])
        near = vectors[len(task.labeled) :] @ vectors[: len(task.labeled)].T
        order = np.argsort(-near, axis=1, kind="stable")
        probs: dict[str, FloatArray] = {}
        fields = np.array([row.field for row in task.labeled], dtype=np.int64)
        for name, (count, sharpness) in VOTES.items():
            chosen = order[:, :count]
            cosine = np.take_along_axis(near, chosen, axis=1).astype(np.float64)
            probs[name] = neighbour_vote(fields[chosen], cosine, K, sharpness)
        warm = fine_tune(DEMO / "model", self._encoder, _lines(task.labeled), Recipe(seed=seed))
        for name, model, shots in (("warm", warm, 0), ("warm", warm, 3), ("base", self._base, 3)):
            items = [
                wording.Item(row.question, FIELD_NAMES, _shots(task.labeled, order[i, :shots]))
                for i, row in enumerate(asked)
            ]
            read = np.maximum(read_letters(model, self._encoder, items).letter_probs, 1e-6)
            probs[f"{name}, {shots} shots"] = read / read.sum(axis=1, keepdims=True)
        m = len(task.unlabeled)
        gold = np.array([row.field for row in asked])
        sft = float(np.mean(probs["warm, 0 shots"].argmax(axis=1)[m:] == gold[m:]))
        return Answered(task.labeled, task.unlabeled, asked, probs, sft)

    def by_text(self, seed: int) -> dict[str, list[float]]:
        """How often the chosen vote is right beyond the pool, of all and of the surest, by what is embedded."""
        task = read_task(DEMO / "data", "dev", seed)
        used = {row.question for row in (*task.labeled, *task.unlabeled)}
        spare = [row for row in read_split(DEMO / "data/pool.csv") if row.question not in used]
        rows = [*task.labeled, *task.measured, *spare]
        fields = np.array([row.field for row in rows], dtype=np.int64)
        count, sharpness = VOTES[CHOSEN]
        found: dict[str, list[float]] = {}
        for what, options in (("question", ""), ("question and options", "\n" + "\n".join(FIELD_NAMES))):
            texts = [row.question + options for row in rows]
            turns = self._encoder.texts([self._encoder.turn(text) for text in texts])
            for form, tokens in (("bare", self._encoder.embedding_inputs(texts)), ("as a user's turn", turns)):
                vectors = embed_tokens(self._base, self._encoder, tokens)
                near = vectors[LABELED:] @ vectors[:LABELED].T
                chosen = np.argsort(-near, axis=1, kind="stable")[:, :count]
                cosine = np.take_along_axis(near, chosen, axis=1).astype(np.float64)
                votes = neighbour_vote(fields[chosen], cosine, K, sharpness)
                right = (votes.argmax(axis=1) == fields[LABELED:])[np.argsort(-votes.max(axis=1), kind="stable")]
                found[f"{what}, {form}"] = [float(right[: round(c * right.size)].mean()) for c in COVERAGES]
        return found

    def on_test(self, seed: int) -> dict[str, FloatArray]:
        """Right answers, float64 (questions,): of SFT, of the chosen recipe, of gold labels on its rows."""
        task = read_task(DEMO / "data", "test", seed)
        vectors = embed_texts(self._base, self._encoder, [row.question for row in (*task.labeled, *task.unlabeled)])
        near = vectors[len(task.labeled) :] @ vectors[: len(task.labeled)].T
        count, sharpness = VOTES[CHOSEN]
        chosen = np.argsort(-near, axis=1, kind="stable")[:, :count]
        fields = np.array([row.field for row in task.labeled], dtype=np.int64)
        cosine = np.take_along_axis(near, chosen, axis=1).astype(np.float64)
        votes = neighbour_vote(fields[chosen], cosine, K, sharpness)
        kept = np.argsort(-votes.max(axis=1), kind="stable")[: round(CHOSEN_SHARE * len(votes))]
        pseudo = [replace(task.unlabeled[i], field=int(votes[i].argmax())) for i in kept]
        gold = [task.unlabeled[i] for i in kept]
        correct: dict[str, FloatArray] = {}
        for name, added, epochs in (("sft", [], 10), ("evolved", pseudo, 4), ("ceiling", gold, 4)):
            rows = _lines((*task.labeled, *added))
            model = fine_tune(DEMO / "model", self._encoder, rows, Recipe(n_epochs=epochs, seed=seed))
            items = [wording.Item(row.question, FIELD_NAMES) for row in task.measured]
            best = read_letters(model, self._encoder, items).best
            correct[name] = (best == np.array([row.field for row in task.measured])).astype(np.float64)
        return correct

    def trained(self, seed: int, found: Answered, share: float) -> float:
        """The accuracy beyond the pool of a model trained on all labels and the surest share of the pool."""
        m = len(found.unlabeled)
        votes = found.probs[CHOSEN][:m]
        kept = np.argsort(-votes.max(axis=1), kind="stable")[: round(share * m)]
        pseudo = [replace(found.unlabeled[i], field=int(votes[i].argmax())) for i in kept]
        rows = _lines((*found.labeled, *pseudo))
        model = fine_tune(DEMO / "model", self._encoder, rows, Recipe(n_epochs=4, seed=seed))
        items = [wording.Item(row.question, FIELD_NAMES) for row in found.asked[m:]]
        return float(np.mean(read_letters(model, self._encoder, items).best == found.gold[m:]))


def at_coverages(found: Answered, crew: Sequence[str]) -> list[float]:
    """How often the crew's label is right among its surest, beyond the pool."""
    m = len(found.unlabeled)
    probs = np.stack([found.probs[name][m:] for name in crew], axis=1)
    pooled = pool(probs, np.full(len(probs), K, dtype=np.int64))
    right = (pooled.label == found.gold[m:])[np.argsort(-pooled.score, kind="stable")]
    return [float(right[: round(coverage * right.size)].mean()) for coverage in COVERAGES]


def measured(runs: Mapping[int, Mapping[str, FloatArray]]) -> dict[str, object]:
    """Accuracies in percent, and paired differences in points that resample seeds and questions together."""
    sides = {name: np.stack([run[name] for run in runs.values()]) for name in ("sft", "evolved", "ceiling")}
    found: dict[str, object] = {"seeds": list(runs), "questions": sides["sft"].shape[1]}
    for name, correct in sides.items():
        found[name] = {"by_seed": _percent(correct.mean(axis=1)), "mean": round(100 * float(correct.mean()), 1)}
    for name in ("evolved", "ceiling"):
        gap = paired_bootstrap(sides[name] - sides["sft"], np.zeros((1, sides["sft"].shape[1])))
        found[f"{name} - sft"] = [round(100 * value, 1) for value in (gap.estimate, gap.low, gap.high)]
    return found


def _lines(rows: Sequence[Row]) -> list[TrainingRow]:
    return [TrainingRow(wording.Item(row.question, FIELD_NAMES), row.field) for row in rows]


def _shots(labeled: Sequence[Row], nearest: IntArray) -> tuple[wording.Shot, ...]:
    return tuple(wording.Shot(labeled[i].question, wording.LETTERS[labeled[i].field]) for i in reversed(nearest))


def main() -> None:
    """Ask, pool, and train where wanted; percentages, means over seeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crews", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", nargs="*", type=float, default=[])
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    bench = Bench()
    if chosen.test:
        print(json.dumps(measured({seed: bench.on_test(seed) for seed in chosen.seeds})))
        return
    if chosen.texts:
        seeds = [bench.by_text(seed) for seed in chosen.seeds]
        print(json.dumps({name: _percent(np.mean([seed[name] for seed in seeds], axis=0)) for name in seeds[0]}))
        return
    crews: dict[str, list[list[float]]] = {name: [] for name in CREWS}
    trained: dict[float, list[float]] = {share: [] for share in chosen.train}
    sft: list[float] = []
    for seed in chosen.seeds:
        found = bench.answer(seed)
        sft.append(found.sft)
        for name, crew in CREWS.items():
            crews[name].append(at_coverages(found, crew))
        for share in chosen.train:
            trained[share].append(bench.trained(seed, found, share))
    document = {
        "seeds": chosen.seeds,
        "coverages": COVERAGES,
        "right_among_the_surest": {name: _percent(np.mean(rows, axis=0)) for name, rows in crews.items()},
        "sft": _percent(np.array(sft)),
        "trained_by_share": {str(share): _percent(np.array(rows)) for share, rows in trained.items()},
    }
    print(json.dumps(document, indent=None if chosen.json else 1))


def _percent(shares: FloatArray) -> list[float]:
    return [round(100 * float(share), 1) for share in shares]


if __name__ == "__main__":
    main()
