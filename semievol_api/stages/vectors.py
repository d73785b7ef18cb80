"""The nearest vectors by cosine, exactly and with the same bytes on every machine.

Knows nothing of texts, of who embeds, or of what is near.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
