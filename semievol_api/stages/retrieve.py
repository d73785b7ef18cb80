"""In-context propagation: the nearest labelled examples of every question (paper §3.2).

Exact search with faiss over unit vectors, or BM25 over words. An item is never its own neighbour, nor is
anything with its text. Knows nothing of prompts or of who embeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semievol_api.artifacts import Folds, Neighbours, Prepared
from semievol_api.capabilities import Provider
from semievol_api.config import RetrieveSettings
from semievol_api.engine import RequestEngine
from semievol_api.records import Example, FloatMatrix

RESCORED_ROWS = 2048
"""Queries scored again at a time: bounds the memory at rows x depth x d float64."""


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
    depth = min(len(candidates), k + 8)
    if settings.method == "bm25" or embedder is None:
        ranking = _bm25(candidates, queries, depth, settings)
    else:
        vectors = await embedded(embedder, (*candidates, *queries), settings)
        ranking = nearest_vectors(vectors[: len(candidates)], vectors[len(candidates) :], depth)
    return _without_twins(candidates, queries, ranking, k)


async def embedded(embedder: EmbeddingTool, examples: Sequence[Example], settings: RetrieveSettings) -> FloatMatrix:
    """One vector per example; what was embedded before comes from the journal."""
    texts = [_text(e, settings) for e in examples]
    return await embedder.engine.embed(
        embedder.provider, embedder.model, texts, stage="retrieve", batch_size=settings.batch_size
    )


def nearest_vectors(candidates: FloatMatrix, queries: FloatMatrix, depth: int) -> Ranking:
    """Exact cosine search: candidates (n, d), queries (q, d) to a ranking (q, depth); equal scores by index.

    faiss finds the candidates in float32, whose last bits differ from processor to processor. What it found is
    scored again in float64 and rounded, so that a run's artifacts have the same bytes on every machine.
    """
    import faiss

    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(_unit(candidates))
    found = index.search(_unit(queries), min(depth, len(candidates)))[1].astype(np.int64)
    scores = np.concatenate(
        [
            _cosines(candidates, queries[at : at + RESCORED_ROWS], found[at : at + RESCORED_ROWS])
            for at in range(0, len(queries), RESCORED_ROWS)
        ]
    )
    order = np.lexsort((found, -scores), axis=1)
    return Ranking(np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1))


def _unit(vectors: FloatMatrix) -> FloatMatrix:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def _cosines(candidates: FloatMatrix, queries: FloatMatrix, found: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cosine of every query (q, d) with the candidates at `found` (q, depth): float32 out of float64."""
    near, asked = candidates[found].astype(np.float64), queries.astype(np.float64)[:, :, None]
    lengths = np.linalg.norm(near, axis=2) * np.linalg.norm(asked, axis=1)
    cosines: NDArray[np.float32] = ((near @ asked)[:, :, 0] / np.maximum(lengths, 1e-24)).astype(np.float32)
    return cosines


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


def _without_twins(labeled: Sequence[Example], queries: Sequence[Example], ranking: Ranking, k: int) -> Neighbours:
    ids: dict[str, tuple[str, ...]] = {}
    similarities: dict[str, tuple[float, ...]] = {}
    for row, query in enumerate(queries):
        kept = [
            (labeled[i].id, float(score))
            for i, score in zip(ranking.indices[row], ranking.scores[row], strict=True)
            if i >= 0 and labeled[i].id != query.id and labeled[i].question != query.question
        ][:k]
        ids[query.id] = tuple(name for name, _ in kept)
        similarities[query.id] = tuple(score for _, score in kept)
    return Neighbours(ids=ids, similarities=similarities)
