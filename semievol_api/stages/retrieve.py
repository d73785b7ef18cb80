"""In-context propagation: the nearest labelled examples of every question (paper §3.2).

Exact search with faiss over unit vectors, or BM25 over words. An item is never its own neighbour, nor is
anything with its text. Knows nothing of prompts or of who embeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol_api.artifacts import Folds, Neighbours, Prepared
from semievol_api.capabilities import Provider
from semievol_api.config import RetrieveSettings
from semievol_api.engine import RequestEngine
from semievol_api.records import Example, FloatMatrix

CACHED_ROWS = 256
"""Vectors worked on at a time: what stays in the processor's cache is several times faster."""
SPARE = 1
"""Candidates searched beyond those that are wanted: they show whether the last wanted one was a near-tie."""
NEAR_TIE = 4e-6
"""Cosines nearer than this may change places in float32."""
MOST_TWINS = 64
"""Copies of a question among the candidates that are looked past."""


@dataclass(frozen=True)
class EmbeddingTool:
    """Who embeds: a provider, its model, and the engine between."""

    engine: RequestEngine
    provider: Provider
    model: str

    @property
    def identity(self) -> str:
        """Endpoint and model; enters fingerprints."""
        return f"{self.provider.identity}|{self.model}"


@dataclass(frozen=True)
class Ranking:
    """`indices` int64 and `scores` float32, both (queries, candidates), best first; index -1 is no candidate."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]


async def retrieve(
    embedder: EmbeddingTool | None, data: Prepared, folds: Folds, settings: RetrieveSettings, k: int
) -> Neighbours:
    """The `k` nearest examples of D_warm to every question, nearest first; what calibrates or gates is nobody's."""
    return await nearest_among(embedder, folds.warm, every_question(data, folds), settings, k)


def every_question(data: Prepared, folds: Folds) -> tuple[Example, ...]:
    """The unlabelled, the test, the labelled questions, and those of the user's own development file."""
    labeled = {e.id for e in data.labeled}
    own = tuple(e for e in folds.development if e.id not in labeled)
    return (*data.unlabeled, *data.test, *data.labeled, *own)


async def nearest_among(
    embedder: EmbeddingTool | None,
    candidates: Sequence[Example],
    queries: Sequence[Example],
    settings: RetrieveSettings,
    k: int,
) -> Neighbours:
    """The `k` nearest candidates of every query, nearest first."""
    if not candidates or not queries or k == 0:
        return Neighbours(ids={q.id: () for q in queries}, similarities={q.id: () for q in queries})
    if settings.method == "bm25" or embedder is None:
        twins = Twins.among(candidates, queries)
        return named(candidates, queries, _bm25(candidates, queries, twins.depth(k), settings), twins, k)
    vectors = await embedded(embedder, (*candidates, *queries), settings)
    return nearest_texts(candidates, queries, vectors[: len(candidates)], vectors[len(candidates) :], k)


async def embedded(embedder: EmbeddingTool, examples: Sequence[Example], settings: RetrieveSettings) -> FloatMatrix:
    """One vector per example; what was embedded before comes from the journal."""
    texts = [_text(e, settings) for e in examples]
    return await embedder.engine.embed(
        embedder.provider, embedder.model, texts, stage="retrieve", batch_size=settings.batch_size
    )


def nearest_texts(
    candidates: Sequence[Example], queries: Sequence[Example], near: FloatMatrix, asked: FloatMatrix, k: int
) -> Neighbours:
    """The `k` nearest candidates of every query by their vectors (candidates, d) and (queries, d), twins left out."""
    twins = Twins.among(candidates, queries)
    return named(candidates, queries, nearest_vectors(near, asked, twins.depth(k)), twins, k)


def nearest_vectors(candidates: FloatMatrix, queries: FloatMatrix, depth: int) -> Ranking:
    """Exact cosine search: candidates (n, d), queries (q, d) to a ranking (q, depth); equal scores by index.

    faiss finds the candidates in float32, whose last bits differ from processor to processor. What it found is
    scored again in float64 and rounded, and a query whose last candidates nearly tie is searched deeper, so that a
    run's artifacts have the same bytes on every machine.
    """
    import faiss

    near, asked = Directed.of(candidates), Directed.of(queries)
    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(near.unit)
    depth = min(depth, len(candidates))
    wide = min(depth + SPARE, len(candidates))
    rough, places = index.search(asked.unit, wide)
    found = np.ascontiguousarray(places[:, :depth], dtype=np.int64)
    scores = _cosines(near, asked, found)
    close = np.flatnonzero(rough[:, depth - 1] - rough[:, -1] < NEAR_TIE)
    looked_at_all = depth == len(candidates)
    while close.size and not looked_at_all:
        wide = min(4 * wide, len(candidates))
        some = asked.at(close)
        rough, places = index.search(some.unit, wide)
        again = _sorted(places.astype(np.int64), _cosines(near, some, places))
        found[close], scores[close] = again.indices[:, :depth], again.scores[:, :depth]
        close = close[rough[:, depth - 1] - rough[:, -1] < NEAR_TIE]
        looked_at_all = wide == len(candidates)
    return _sorted(found, scores)


@dataclass(frozen=True, eq=False)
class Directed:
    """Vectors as they came, float32 (n, d); their lengths, float64 (n,), never 0; and the same at length one."""

    raw: FloatMatrix
    lengths: NDArray[np.float64]
    unit: FloatMatrix

    @classmethod
    def of(cls, vectors: FloatMatrix) -> Directed:
        """Lengths are summed in float64, so that all machines get the same bytes."""
        lengths, unit = np.empty(len(vectors)), np.empty(vectors.shape, dtype=np.float32)
        for at in range(0, len(vectors), CACHED_ROWS):
            rows, here = vectors[at : at + CACHED_ROWS], slice(at, at + CACHED_ROWS)
            lengths[here] = np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)), 1e-12)
            np.divide(rows, lengths[here, None].astype(np.float32), out=unit[here])
        return cls(vectors, lengths, unit)

    def at(self, places: NDArray[np.int64]) -> Directed:
        """Some of them."""
        return Directed(self.raw[places], self.lengths[places], self.unit[places])


def _cosines(near: Directed, asked: Directed, found: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cosines of queries (q, d) with the candidates at `found` (q, depth): float32 out of float64."""
    scores = np.empty(found.shape, dtype=np.float32)
    for at in range(0, len(found), CACHED_ROWS):
        rows = slice(at, at + CACHED_ROWS)
        products = np.vecdot(near.raw[found[rows]].astype(np.float64), asked.raw[rows, None].astype(np.float64))
        scores[rows] = products / (near.lengths[found[rows]] * asked.lengths[rows, None])
    return scores


def _sorted(found: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranking:
    """Every row by falling score, equal scores by index; most rows are already."""
    step = np.diff(scores, axis=1)
    rows = np.flatnonzero(((step > 0) | ((step == 0) & (np.diff(found, axis=1) < 0))).any(axis=1))
    order = np.lexsort((found[rows], -scores[rows]), axis=1)
    found[rows] = np.take_along_axis(found[rows], order, axis=1)
    scores[rows] = np.take_along_axis(scores[rows], order, axis=1)
    return Ranking(found, scores)


def _bm25(candidates: Sequence[Example], queries: Sequence[Example], depth: int, settings: RetrieveSettings) -> Ranking:
    import bm25s

    def words(items: Sequence[Example]) -> list[list[str]]:
        texts = [_text(e, settings) for e in items]
        return [re.findall(r"\w+", text.lower()) for text in texts]

    model = bm25s.BM25()
    model.index(words(candidates), show_progress=False)
    indices, scores = model.retrieve(words(queries), k=depth, show_progress=False, sorted=True)
    return Ranking(np.asarray(indices, dtype=np.int64), np.asarray(scores, dtype=np.float32))


def _text(example: Example, settings: RetrieveSettings) -> str:
    if settings.text == "question":
        return example.question
    return "\n".join((example.question, *example.options))


@dataclass(frozen=True, eq=False)
class Twins:
    """Which candidates are the query itself or have its text.

    `texts` int64 (candidates,) numbers their texts; `text` and `itself` int64 (queries,): the number of a query's
    text and its own place among the candidates, -1 = not there. `most` is the largest number of copies.
    """

    texts: NDArray[np.int64]
    text: NDArray[np.int64]
    itself: NDArray[np.int64]
    most: int

    @classmethod
    def among(cls, candidates: Sequence[Example], queries: Sequence[Example]) -> Twins:
        """Look every query up among the candidates."""
        numbers: dict[str, int] = {}
        texts = np.array([numbers.setdefault(e.question, len(numbers)) for e in candidates], dtype=np.int64)
        places = {e.id: place for place, e in enumerate(candidates)}
        text = np.array([numbers.get(q.question, -1) for q in queries], dtype=np.int64)
        itself = np.array([places.get(q.id, -1) for q in queries], dtype=np.int64)
        copies = np.append(np.bincount(texts), 0)[text]
        return cls(texts, text, itself, int(copies.max(initial=0)))

    def depth(self, k: int) -> int:
        """How many candidates to look at, so that `k` are left without the twins."""
        return min(self.texts.size, k + min(MOST_TWINS, self.most))

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each candidate of a ranking, shape (queries, candidates), is a twin or no candidate at all."""
        same = (self.texts[indices] == self.text[:, None]) | (indices == self.itself[:, None])
        return np.asarray(same | (indices < 0), dtype=np.bool_)


def named(
    candidates: Sequence[Example], queries: Sequence[Example], ranking: Ranking, twins: Twins, k: int
) -> Neighbours:
    """The first `k` of every row of the ranking that are no twins, by their ids."""
    skipped = twins.at(ranking.indices)
    order = np.argsort(skipped, axis=1, kind="stable")[:, :k]
    counts = np.minimum(np.count_nonzero(~skipped, axis=1), k)
    names = np.array([e.id for e in candidates], dtype=np.object_)
    near = _rows(names[np.take_along_axis(ranking.indices, order, axis=1)], counts)
    scores = _rows(np.take_along_axis(ranking.scores, order, axis=1), counts)
    asked = [q.id for q in queries]
    return Neighbours(ids=dict(zip(asked, near, strict=True)), similarities=dict(zip(asked, scores, strict=True)))


def _rows(table: NDArray[Any], counts: NDArray[np.intp]) -> list[tuple[Any, ...]]:
    """The first `counts[i]` entries of each row i."""
    rows = list(zip(*(column.tolist() for column in table.T), strict=True))
    for place in np.flatnonzero(counts < table.shape[1]).tolist():
        rows[place] = rows[place][: counts[place]]
    return rows
