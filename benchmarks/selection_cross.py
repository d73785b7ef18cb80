"""All labels teach and all calibrate: do the kept labels stay within alpha? Crews that learn from simulated labels.

    python -m benchmarks.selection --check         this section beside the others
    python -m benchmarks.selection_cross           this section alone
    python -m benchmarks.selection_cross --draws 50 --labels 100

A draw is a task of its own: labels, a pool, and annotators of three kinds. Some are taught by the labels (ridge
regression on what they see of a question, each training with a random view of its own, so that they overfit and differ
from training to training), some know the answer without labels, some know nothing. Ways to calibrate:

    holdout      half of the labels teach (method.md), the others calibrate; nothing below 60 labels
    cross-2, -5  folds; each label and each pool row is answered by one model, that of its fold
    cross-5x3    three times five folds, three models averaged on both sides
    fitted-5     five folds, annotators weighted by how right they are on the labels of the other folds
    uneven-5     the trap: five models averaged on the pool, one on each label

The last three with 100 labels only.

Uses the selection package as a stage would. Knows nothing of models, providers or files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from semievol_api.selection import Calibration, fdr, pool
from semievol_api.selection.promises import calibration_size
from semievol_api.selection.ranking import ranks
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.selection.weights import fitted_weights, weighted

ALPHA = 0.1
LABELS = (30, 50, 100, 200, 500)
PROMISED = ("holdout", "cross-2", "cross-5", "cross-5x3", "fitted-5")
"""The ways whose mean must stay within alpha."""
BUILT = ("cross-2", "cross-5", "fitted-5")
"""What a run does: two warm models, five of those that cost nothing."""
ALL_WAYS_AT = 100
"""Labels at which the ways that a run does not offer are tried too."""
EMPTY_ALLOWED = 0.05
POOL = 600
DIMENSIONS = 24
_SURE_AND_RIGHT = 0.93


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCrew:
    """A simulated crew: `taught` annotators see so many dimensions with a penalty and a sharpness; `known` are skills.

    `ties` items are answered by all with probability 1. `spread` is how far apart the classes lie.
    """

    name: str
    taught: tuple[tuple[int, float, float], ...] = ()
    known: tuple[float, ...] = ()
    useless: int = 0
    ties: float = 0.0
    spread: float = 2.2
    class_shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)


CREWS = (
    CrossCrew(name="heterogeneous", taught=((16, 3.0, 6.0), (8, 3.0, 6.0)), known=(2.6, 1.8)),
    CrossCrew(name="identical", taught=((16, 3.0, 6.0),) * 3),
    CrossCrew(
        name="imbalanced", taught=((16, 3.0, 6.0), (12, 3.0, 6.0)), known=(2.2,), class_shares=(0.75, 0.15, 0.07, 0.03)
    ),
    CrossCrew(name="ties-60-percent", taught=((16, 3.0, 6.0), (8, 3.0, 6.0)), known=(2.2,), ties=0.6),
    CrossCrew(name="one-useless", taught=((20, 3.0, 6.0), (16, 3.0, 6.0)), known=(3.0,), useless=1),
    CrossCrew(name="overfitting", taught=((24, 0.05, 25.0), (24, 0.05, 25.0))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossRow:
    """What one way did over all draws of a crew; shares are false labels among the kept, 0 where nothing is kept.

    `room` is the share of rows that a cut with a true false share of alpha / 2 keeps, over all draws.
    """

    crew: str
    way: str
    labels: int
    draws: int
    error: float
    false_share: float
    standard_error: float
    false_share_p95: float
    coverage: float
    empty: float
    room: float

    @property
    def promise_kept(self) -> bool:
        """At most alpha on average, three standard errors allowed."""
        return self.way not in PROMISED or self.false_share <= ALPHA + 3 * self.standard_error


@dataclass(frozen=True, eq=False)
class _Draw:
    """Questions of one draw, the n labels first: what taught annotators see, what the others say, the gold."""

    crew: CrossCrew
    seen: FloatArray
    said: FloatArray
    gold: IntArray
    sure: IntArray
    n: int

    def answers(self, labels: IntArray, rng: np.random.Generator) -> FloatArray:
        """float64 (items, annotators, K): every item by annotators that these labels taught, and by the others."""
        taught = [self._taught(recipe, labels, rng)[:, None] for recipe in self.crew.taught]
        return self._with_ties(np.concatenate([*taught, self.said], axis=1))

    def of_every_model(self, fold: IntArray, models: int, rng: np.random.Generator) -> FloatArray:
        """float64 (models, items, annotators, K): each model was taught by the labels of all folds but its own."""
        return np.stack([self.answers(np.flatnonzero(fold[: self.n] != model), rng) for model in range(models)])

    def _taught(self, recipe: tuple[int, float, float], taught: IntArray, rng: np.random.Generator) -> FloatArray:
        """One training: ridge regression on a random view, its scores sharpened; float64 (items, K)."""
        width, penalty, sharpness = recipe
        view = rng.choice(DIMENSIONS, size=width, replace=False) if width < DIMENSIONS else slice(None)
        seen, k = self.seen[:, view], self.said.shape[2]
        x, y = seen[taught], np.eye(k)[self.gold[taught]]
        mean = y.mean(axis=0)
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - mean))
        return _softmax(sharpness * (seen @ weights + mean))

    def _with_ties(self, probs: FloatArray) -> FloatArray:
        sure = self.sure >= 0
        probs[sure] = 0.0
        probs[np.flatnonzero(sure), :, self.sure[sure]] = 1.0
        return probs


def measure_cross(crew: CrossCrew, labels: Sequence[int], draws: int, seed: int) -> list[CrossRow]:
    """Every way to calibrate on one crew."""
    rows: list[CrossRow] = []
    for n in labels:
        rng = np.random.default_rng([seed, n])
        found: dict[str, list[tuple[float, float, float]]] = {}
        ranked: dict[str, list[BoolArray]] = {}
        for _ in range(draws):
            draw = _draw(crew, n, rng)
            for way, (score, wrong, calibration) in _ways(draw, rng).items():
                kept = fdr(score, calibration, ALPHA).kept
                share = float(wrong[kept].mean()) if kept.any() else 0.0
                found.setdefault(way, []).append((share, float(kept.mean()), float(wrong.mean())))
                ranked.setdefault(way, []).append(wrong[np.argsort(-score, kind="stable")])
        rows += [_row(crew.name, way, n, np.array(values), ranked[way]) for way, values in found.items()]
    return rows


def broken_cross(rows: Sequence[CrossRow]) -> list[str]:
    """What these numbers do not keep, in words."""
    broken = [
        f"{row.way} on {row.crew} with {row.labels} labels: {row.false_share:.4f} false labels"
        for row in rows
        if not row.promise_kept
    ]
    return broken + [
        f"{row.way} on {row.crew} with 100 labels keeps nothing in {row.empty:.0%} of the draws"
        for row in rows
        if row.way in BUILT and row.labels == 100 and row.room >= 0.2 and row.empty > EMPTY_ALLOWED
    ]


def _draw(crew: CrossCrew, n: int, rng: np.random.Generator) -> _Draw:
    size, k = n + POOL, len(crew.class_shares)
    gold = rng.choice(k, size=size, p=crew.class_shares).astype(np.int64)
    ease = rng.gamma(2.0, 0.5, size=size)[:, None]
    centres = rng.standard_normal((k, DIMENSIONS))
    centres *= crew.spread / np.linalg.norm(centres, axis=1, keepdims=True)
    seen = ease * centres[gold] + rng.standard_normal((size, DIMENSIONS))
    signal, said = np.eye(k)[gold], np.empty((size, len(crew.known) + crew.useless, k))
    shared = rng.standard_normal((size, k))
    for column, skill in enumerate(crew.known):
        noise = np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.standard_normal((size, k))
        said[:, column] = _softmax(skill * ease * signal + 1.3 * noise)
    for column in range(len(crew.known), said.shape[1]):
        said[:, column] = _softmax(4.0 * rng.standard_normal((size, k)))
    tied = rng.random(size) < crew.ties
    right = rng.random(size) < _SURE_AND_RIGHT
    sure = np.where(tied, np.where(right, gold, (gold + rng.integers(1, k, size)) % k), -1)
    return _Draw(crew, seen, said, gold, sure, n)


def _ways(draw: _Draw, rng: np.random.Generator) -> Mapping[str, tuple[FloatArray, BoolArray, Calibration]]:
    """Scores and errors on the pool, and the calibration, of every way."""
    n, items = draw.n, draw.gold.size
    found: dict[str, tuple[FloatArray, BoolArray, Calibration]] = {}
    held = calibration_size(n)
    if held:
        found["holdout"] = _calibrated(draw, draw.answers(np.arange(held, n), rng), held)
    rows, fold = np.arange(items), _folds(n, items, 2, rng)
    found["cross-2"] = _calibrated(draw, draw.of_every_model(fold, 2, rng)[fold, rows], n)
    folds = [_folds(n, items, 5, rng) for _ in range(3 if n == ALL_WAYS_AT else 1)]
    models = [draw.of_every_model(fold, 5, rng) for fold in folds]
    own = [every[fold, rows] for every, fold in zip(models, folds, strict=True)]
    found["cross-5"] = _calibrated(draw, own[0], n)
    if n != ALL_WAYS_AT:
        return found
    found["cross-5x3"] = _calibrated(draw, np.mean(own, axis=0), n)
    found["fitted-5"] = _calibrated(draw, _reweighted(draw, own[0], folds[0]), n)
    uneven = models[0].mean(axis=0)
    uneven[:n] = own[0][:n]
    found["uneven-5"] = _calibrated(draw, uneven, n)
    return found


def _reweighted(draw: _Draw, probs: FloatArray, fold: IntArray) -> FloatArray:
    """Every fold's probabilities by the weights that the other folds' labels fit."""
    found, n = np.empty_like(probs), draw.n
    for out in range(int(fold.max()) + 1):
        others = np.flatnonzero(fold[:n] != out)
        found[fold == out] = weighted(probs[fold == out], fitted_weights(probs[others], draw.gold[others]))
    return found


def _folds(n: int, items: int, models: int, rng: np.random.Generator) -> IntArray:
    """Labels in equal folds, pool rows each in one at random."""
    fold = rng.integers(models, size=items).astype(np.int64)
    fold[:n] = rng.permutation(n) % models
    return fold


def _calibrated(draw: _Draw, probs: FloatArray, size: int) -> tuple[FloatArray, BoolArray, Calibration]:
    pooled = pool(probs, np.full(len(probs), probs.shape[2], dtype=np.int64))
    wrong = np.asarray(pooled.label != draw.gold, dtype=np.bool_)
    ranked = ranks(pooled.score, pooled.log_odds)
    calibration = Calibration(scores=ranked[:size], wrong=wrong[:size])
    return ranked[draw.n :], wrong[draw.n :], calibration


def _row(crew: str, way: str, n: int, values: FloatArray, ranked: Sequence[BoolArray]) -> CrossRow:
    share, coverage, error = values.T
    false_above = np.mean([np.cumsum(wrong) for wrong in ranked], axis=0) / np.arange(1, POOL + 1)
    within = np.flatnonzero(false_above <= ALPHA / 2)
    return CrossRow(
        crew=crew,
        way=way,
        labels=n,
        draws=len(values),
        error=round(float(error.mean()), 4),
        false_share=round(float(share.mean()), 4),
        standard_error=round(float(share.std(ddof=1) / np.sqrt(len(values))), 5),
        false_share_p95=round(float(np.quantile(share, 0.95)), 4),
        coverage=round(float(coverage.mean()), 4),
        empty=round(float(np.mean(coverage == 0)), 4),
        room=round(float((within[-1] + 1) / POOL) if within.size else 0.0, 3),
    )


def _softmax(logits: FloatArray) -> FloatArray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)


def print_cross(rows: Sequence[CrossRow]) -> None:
    """The rows as a table."""
    print(
        f"{'crew':<17}{'way':<11}{'labels':>7}{'error':>7}{'false':>8}{'+-3se':>8}{'p95':>7}{'cover':>7}{'empty':>7}"
        f"{'room':>7}  promise"
    )
    for row in rows:
        promise = "kept" if row.promise_kept else "BROKEN"
        print(
            f"{row.crew:<17}{row.way:<11}{row.labels:>7}{row.error:>7.3f}{row.false_share:>8.4f}"
            f"{3 * row.standard_error:>8.4f}{row.false_share_p95:>7.3f}{row.coverage:>7.3f}{row.empty:>7.3f}"
            f"{row.room:>7.2f}  {promise if row.way in PROMISED else 'none'}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection_cross", description=__doc__)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--labels", nargs="+", type=int, default=list(LABELS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    chosen = parser.parse_args(arguments)
    rows = [row for seed, crew in enumerate(CREWS) for row in measure_cross(crew, chosen.labels, chosen.draws, seed)]
    if chosen.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "broken": broken_cross(rows)}, indent=1))
        return
    print_cross(rows)
    print("\n".join(broken_cross(rows)) or "Every promise was kept.")


if __name__ == "__main__":
    main()
