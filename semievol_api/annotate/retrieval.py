"""In-context propagation: the nearest labelled examples of every question (paper §3.2).

Search with faiss over unit vectors (exact among few, see `vector_index.py`), or BM25 over words. An item is never its
own neighbour, nor is anything with its text. Knows nothing of prompts or of who embeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from semievol_api.annotate.vectors import Ranking, VectorIndex, nearest_vectors
from semievol_api.capabilities import Provider
from semievol_api.config.settings import RetrieveSettings
from semievol_api.data.schemas import chunked_examples, examples_table
from semievol_api.data.table import ChunkedTable
from semievol_api.engine import RequestEngine
from semievol_api.records import Example, FloatMatrix
from semievol_api.scale.executor import Executor, LocalExecutor, Shard
from semievol_api.store.artifacts import Folds, Neighbours, Prepared
from semievol_api.store.fingerprints import stage

MOST_TWINS = 64
"""Copies of a question among the candidates that are looked past."""


@dataclass(frozen=True)
class EmbeddingTool:
    """Who embeds: a provider, its model, and the engine between."""

    engine: RequestEngine
    provider: Provider
    model: str
    executor: Executor = field(default_factory=LocalExecutor)

    @property
    def identity(self) -> str:
        """Endpoint and model; enters fingerprints."""
        return f"{self.provider.identity}|{self.model}"


@stage("retrieve")
async def retrieve(
    embedder: EmbeddingTool | None, data: Prepared, folds: Folds, settings: RetrieveSettings, k: int
) -> Neighbours:
    """The `k` nearest examples of D_warm to every question, nearest first; what calibrates or gates is nobody's."""
    here = embedder is None or isinstance(embedder.executor, LocalExecutor)
    if here and chunked_examples(data.unlabeled).n_parts == 1:
        return await nearest_among(embedder, folds.warm, every_question(data, folds), settings, k)
    if embedder is None or settings.method == "bm25" or not folds.warm or k == 0:
        return Neighbours(making=LocalExecutor().run(None, Retrieval(data, folds, settings, k)))
    index = VectorIndex.of(await embedded(embedder, folds.warm, settings))
    work = Retrieval(data, folds, settings, k, index)
    return Neighbours(making=embedder.executor.run(embedder, work), note=index.note)


def questions_in_parts(data: Prepared, folds: Folds) -> ChunkedTable[Example]:
    """The unlabelled questions, and behind them the test's, the labelled ones and the user's own development file's."""
    labeled = {e.id for e in data.labeled}
    own = tuple(e for e in folds.development if e.id not in labeled)
    return chunked_examples(data.unlabeled).followed_by(examples_table((*data.test, *data.labeled, *own)))


def every_question(data: Prepared, folds: Folds) -> tuple[Example, ...]:
    """The questions of `questions_in_parts`, without unlabelled ones that lie in several parts."""
    questions = questions_in_parts(data, folds)
    return questions.part(questions.n_parts - 1)


@dataclass(frozen=True)
class Retrieval:
    """Finds the nearest examples of D_warm to a shard of all questions; without an index by their words."""

    data: Prepared
    folds: Folds
    settings: RetrieveSettings
    k: int
    index: VectorIndex | None = None
    stage: str = "retrieve"

    @cached_property
    def questions(self) -> ChunkedTable[Example]:
        """All questions, in parts."""
        return questions_in_parts(self.data, self.folds)

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Work`."""
        return self.questions.sizes

    async def __call__(self, embedder: EmbeddingTool | None, shard: Shard, /) -> pa.Table:
        """The shard's neighbours."""
        queries = shard.examples(self.questions)
        if self.index is None or embedder is None or not queries:
            return (await nearest_among(None, self.folds.warm, queries, self.settings, self.k)).table()
        vectors = await embedded(embedder, queries, self.settings)
        twins = Twins.among(self.folds.warm, queries)
        ranking = self.index.ranking(vectors, twins.depth(self.k))
        return named(self.folds.warm, queries, ranking, twins, self.k).table()

    def joined(self, part: int, tables: Sequence[pa.Table]) -> pa.Table:
        """The shards of a part in the order of its questions."""
        order = {e.id: place for place, e in enumerate(self.questions.part(part))}
        whole = pa.concat_tables(tables).combine_chunks()
        places = np.array([order[name] for name in whole["example_id"].to_pylist()], dtype=np.int64)
        return whole.take(pa.array(np.argsort(places)))


@stage("nearest_among")
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
    twins, index = Twins.among(candidates, queries), VectorIndex.of(vectors[: len(candidates)])
    ranking = index.ranking(vectors[len(candidates) :], twins.depth(k))
    return replace(named(candidates, queries, ranking, twins, k), note=index.note)


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
