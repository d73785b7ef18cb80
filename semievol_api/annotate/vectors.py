"""The nearest vectors by cosine, exactly and with the same bytes on every machine.

Knows nothing of texts, of who embeds, or of what is near.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol_api.records import FloatMatrix

CACHED_ROWS = 256
"""Vectors worked on at a time: what stays in the processor's cache is several times faster."""
SEARCHED_ROWS = 1_024
"""Queries faiss searches at a time: of fewer than 400, or of all, the products take longer."""
SPARE = 1
"""Candidates searched beyond those that are wanted: they show whether the last wanted one was a near-tie."""
NEAR_TIE = 4e-6
"""Cosines nearer than this may change places in float32."""


@dataclass(frozen=True)
class Ranking:
    """`indices` int64 and `scores` float32, both (queries, candidates), best first; index -1 is no candidate."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]


def nearest_vectors(candidates: FloatMatrix, queries: FloatMatrix, depth: int) -> Ranking:
    """Exact cosine search: candidates (n, d), queries (q, d) to a ranking (q, depth); equal scores by index."""
    return exact(Directed.of(candidates), Directed.of(queries), depth)


def exact(near: Directed, asked: Directed, depth: int, index: Any = None) -> Ranking:
    """Exact cosine search; `index` is `flat_index(near)`, if there is one already.

    faiss finds the candidates in float32, whose last bits differ from processor to processor. What it found is
    scored again in float64 and rounded, and a query whose last candidates nearly tie is searched deeper, so that a
    run's artifacts have the same bytes on every machine.
    """
    index = flat_index(near) if index is None else index
    candidates = len(near.raw)
    depth = min(depth, candidates)
    wide = min(depth + SPARE, candidates)
    rough, places = searched(index, asked, wide)
    found = np.ascontiguousarray(places[:, :depth], dtype=np.int64)
    scores = cosines(near, asked, found)
    close = np.flatnonzero(rough[:, depth - 1] - rough[:, -1] < NEAR_TIE * asked.lengths)
    looked_at_all = depth == candidates
    while close.size and not looked_at_all:
        wide = min(4 * wide, candidates)
        some = asked.at(close)
        rough, places = searched(index, some, wide)
        again = in_order(places.astype(np.int64), cosines(near, some, places))
        found[close], scores[close] = again.indices[:, :depth], again.scores[:, :depth]
        close = close[rough[:, depth - 1] - rough[:, -1] < NEAR_TIE * some.lengths]
        looked_at_all = wide == candidates
    return in_order(found, scores)


def searched(index: Any, asked: Directed, depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """faiss's products and places (q, depth) of queries as they came: a length moves no candidate past another."""
    parts = [index.search(asked.raw[rows], depth) for rows in _portions(len(asked.raw), SEARCHED_ROWS)]
    products, places = (np.concatenate(part) for part in zip(*parts, strict=True))
    return products, places


def flat_index(near: Directed) -> Any:
    """faiss's exact index of some vectors, at length one."""
    import faiss

    index = faiss.IndexFlatIP(near.raw.shape[1])
    index.add(near.unit())
    return index


@dataclass(frozen=True, eq=False)
class Directed:
    """Vectors as they came, float32 (n, d), and their lengths, float64 (n,), never 0."""

    raw: FloatMatrix
    lengths: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: FloatMatrix) -> Directed:
        """Lengths are summed in float64, so that all machines get the same bytes."""
        lengths = np.empty(len(vectors))
        for rows in _portions(len(vectors), CACHED_ROWS):
            here = vectors[rows]
            lengths[rows] = np.maximum(np.sqrt(np.einsum("ij,ij->i", here, here, dtype=np.float64)), 1e-12)
        return cls(vectors, lengths)

    def unit(self) -> FloatMatrix:
        """The same vectors at length one, float32 (n, d); a vector of zeros stays one."""
        return np.divide(self.raw, self.lengths[:, None], dtype=np.float32)

    def at(self, places: NDArray[np.int64]) -> Directed:
        """Some of them."""
        return Directed(self.raw[places], self.lengths[places])


def cosines(near: Directed, asked: Directed, found: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cosines of queries (q, d) with the candidates at `found` (q, depth): float32 out of float64."""
    scores = np.empty(found.shape, dtype=np.float32)
    for rows in _portions(len(found), CACHED_ROWS):
        products = np.vecdot(near.raw[found[rows]].astype(np.float64), asked.raw[rows, None].astype(np.float64))
        scores[rows] = products / (near.lengths[found[rows]] * asked.lengths[rows, None])
    return scores


def in_order(found: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranking:
    """Every row by falling score, equal scores by index; most rows are already."""
    step = np.diff(scores, axis=1)
    rows = np.flatnonzero(((step > 0) | ((step == 0) & (np.diff(found, axis=1) < 0))).any(axis=1))
    order = np.lexsort((found[rows], -scores[rows]), axis=1)
    found[rows] = np.take_along_axis(found[rows], order, axis=1)
    scores[rows] = np.take_along_axis(scores[rows], order, axis=1)
    return Ranking(found, scores)


def _portions(count: int, size: int) -> Iterator[slice]:
    """`size` of `count` rows after another; one empty portion of no rows."""
    return (slice(at, at + size) for at in range(0, max(count, 1), size))


EXACT_UP_TO = 50_000
"""Candidates that are searched exactly: below, building the inverted file costs more than it saves."""
WANTED_RECALL = 0.985
"""Of the nearest `MEASURED_AT` candidates of the sample's vectors."""
MEASURED_AT = 3
SAMPLE = 1_000
TRAINED_ON = 64
"""Vectors a list that place its centre."""


@dataclass(frozen=True, eq=False)
class VectorIndex:
    """Vectors to search among; `lists` is the inverted file, uint8 as faiss writes it, empty for an exact search.

    `probes` lists are looked into, which found the share `recall` of the sample's nearest.
    """

    near: Directed
    lists: NDArray[np.uint8]
    probes: int = 0
    recall: float = 1.0

    @classmethod
    def of(cls, vectors: FloatMatrix, exact_up_to: int = EXACT_UP_TO) -> VectorIndex:
        """An index of vectors (n, d)."""
        near = Directed.of(vectors)
        if len(vectors) <= exact_up_to:
            return cls(near, np.empty(0, np.uint8))
        return _inverted(near)

    @property
    def note(self) -> str:
        """What a reader of the results has to know; empty for an exact search."""
        if not self.lists.size:
            return ""
        return (
            f"Neighbours were searched approximately among {len(self.near.raw):,} examples, {self.probes} lists of an "
            f"inverted file each: recall@{MEASURED_AT} is {self.recall:.3f}, measured on {SAMPLE:,} of them."
        )

    def ranking(self, queries: FloatMatrix, depth: int) -> Ranking:
        """The nearest of each query (q, d) as a ranking (q, depth); index -1 where the lists held no more."""
        asked, depth = Directed.of(queries), min(depth, len(self.near.raw))
        if not self.lists.size:
            return exact(self.near, asked, depth, self._index)
        self._index.nprobe = self.probes
        _, places = searched(self._index, asked, depth)
        found = np.ascontiguousarray(places, dtype=np.int64)
        scores = cosines(self.near, asked, np.maximum(found, 0))
        scores[found < 0] = -np.inf
        return in_order(found, scores)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_index"}

    @cached_property
    def _index(self) -> Any:
        import faiss

        if not self.lists.size:
            return flat_index(self.near)
        return faiss.deserialize_index(self.lists)


def _inverted(near: Directed) -> VectorIndex:
    """Train, fill, and look into more lists until a sample's nearest are found."""
    import faiss

    unit = near.unit()
    count, width = unit.shape
    cells = int(4 * np.sqrt(count))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(unit[np.linspace(0, count - 1, min(count, TRAINED_ON * cells)).astype(np.int64)])
    index.add(unit)
    sample = np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64)
    _, truth = flat_index(near).search(unit[sample], MEASURED_AT + 1)
    probes, recall = 1, 0.0
    while recall < WANTED_RECALL and probes < cells:
        probes *= 2
        index.nprobe = probes
        _, found = index.search(unit[sample], MEASURED_AT + 1)
        recall = _recall(truth, found)
    return VectorIndex(near, np.asarray(faiss.serialize_index(index)), probes, recall)


def _recall(truth: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """The share of the true nearest (q, k) that was found; a vector's nearest is itself, and counts for nothing."""
    hits = (truth[:, 1:, None] == found[:, None, :]).any(axis=2)
    return float(hits.mean())
