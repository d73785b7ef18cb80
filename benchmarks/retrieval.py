"""How much does finding demonstrations cost beyond bare faiss, and how long does the search for near-duplicates take?

    python -m benchmarks.retrieval            a table
    python -m benchmarks.retrieval --json     the same as JSON
    python -m benchmarks.retrieval --check    exit 1 where a limit is exceeded
    python -m benchmarks.retrieval --quick    among fewer vectors, and fewer questions

Bare faiss: unit length, an exact index, its search. Ours: the same exact answers that any processor repeats bit for
bit, without the question itself and its twins, by the examples' ids. Both get raw float32 vectors of 384 numbers,
run on `--threads` threads, take turns, and the quickest of each counts, in CPU seconds. Knows nothing of models.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from semievol_api.annotate.retrieval import nearest_texts
from semievol_api.data.hygiene import near_pairs
from semievol_api.records import Example, FloatMatrix

WIDTH = 384
QUERIES = 10_000
WANTED = 3
RATIO_ALLOWED = 1.1
SECONDS_ALLOWED = 60.0
SEARCHED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """CPU seconds of one search, bare and ours, and their ratio; `recall` of ours against bare faiss."""

    candidates: int
    queries: int
    threads: int
    repeats: int
    bare_s: float
    ours_s: float
    ratio: float
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """CPU seconds of one search for near-duplicates, and how many of the planted pairs it found."""

    questions: int
    planted: int
    found: int
    seconds: float


def measure_retrieval(candidates: int, queries: int, threads: int, repeats: int) -> Found:
    """Both ways in turn on random vectors; a tenth of the queries are candidates themselves."""
    rng = np.random.default_rng(0)
    known = rng.standard_normal((candidates, WIDTH), dtype=np.float32)
    asked = rng.standard_normal((queries, WIDTH), dtype=np.float32)
    examples, questions = _examples("candidate", candidates), _examples("query", queries)
    own = min(queries // 10, candidates)
    asked[:own], questions[:own] = known[:own], examples[:own]
    faiss.omp_set_num_threads(threads)
    bare_s, ours_s = float("inf"), float("inf")
    indices, near = _bare(known, asked), nearest_texts(examples, questions, known, asked, WANTED)
    for _ in range(repeats):
        bare_s = min(bare_s, _seconds(lambda: _bare(known, asked)))
        ours_s = min(ours_s, _seconds(lambda: nearest_texts(examples, questions, known, asked, WANTED)))
    same = [
        len({f"candidate {i}" for i in indices[row].tolist()} & set(near.ids[questions[row].id])) / WANTED
        for row in range(own, queries)
    ]
    return Found(
        candidates=candidates,
        queries=queries,
        threads=threads,
        repeats=repeats,
        bare_s=round(bare_s, 3),
        ours_s=round(ours_s, 3),
        ratio=round(ours_s / bare_s, 3),
        recall=round(float(np.mean(same)), 6),
    )


def measure_near_duplicates(questions: int) -> Searched:
    """Random questions of 16 words, 0.2 % of them once more without their last letter."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 10))) for _ in range(20_000)]
    texts = [" ".join(rng.choices(words, k=16)) for _ in range(questions)]
    planted = rng.sample(range(questions), questions // 500)
    start = time.process_time()
    pairs = near_pairs(texts + [texts[i][:-1] for i in planted], 0.9)
    seconds = time.process_time() - start
    return Searched(questions=questions, planted=len(planted), found=len(pairs), seconds=round(seconds, 2))


def over_the_limits(found: Sequence[Found], searched: Searched) -> list[str]:
    """Every limit that these numbers exceed, in words."""
    over = [
        f"{row.queries:,} queries among {row.candidates:,} took {row.ratio} times what bare faiss takes"
        for row in found
        if row.ratio > RATIO_ALLOWED
    ]
    over += [f"only {row.recall:.4%} of faiss's neighbours were found" for row in found if row.recall < 0.9999]
    if searched.seconds > SECONDS_ALLOWED * searched.questions / SEARCHED:
        over.append(f"near-duplicates of {searched.questions:,} questions took {searched.seconds} s")
    return over


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --check judge; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is exceeded")
    parser.add_argument("--quick", action="store_true", help="among 3,000 and 30,000; 10,000 questions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="only among 3,000")
    chosen = parser.parse_args(arguments)
    sizes = [3_000] if chosen.small else [3_000, 30_000 if chosen.quick else 300_000]
    found = [measure_retrieval(size, QUERIES, chosen.threads, 2 if size > 3_000 else 9) for size in sizes]
    searched = measure_near_duplicates(10_000 if chosen.quick else SEARCHED)
    over = over_the_limits(found, searched)
    if chosen.json:
        print(json.dumps({"retrieval": [asdict(r) for r in found], "near_duplicates": asdict(searched), "over": over}))
    else:
        _print_table(found, searched, over)
    return 1 if chosen.check and over else 0


def _print_table(found: Sequence[Found], searched: Searched, over: Sequence[str]) -> None:
    for row in found:
        print(
            f"{row.queries:,} queries among {row.candidates:,}: bare faiss {row.bare_s} s, ours {row.ours_s} s, "
            f"ratio {row.ratio}"
        )
    print(
        f"near-duplicates of {searched.questions:,} questions: {searched.seconds} s, {searched.found} of "
        f"{searched.planted} planted pairs"
    )
    print("\n".join(over) if over else "Within every limit.")


def _bare(known: FloatMatrix, asked: FloatMatrix) -> NDArray[np.int64]:
    near, query = known.copy(), asked.copy()
    faiss.normalize_L2(near)
    faiss.normalize_L2(query)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(near)
    result: NDArray[np.int64] = index.search(query, WANTED)[1]
    return result


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _examples(name: str, count: int) -> list[Example]:
    return [Example(id=f"{name} {i}", question=f"What is {name} {i}?") for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
