"""The nearest vectors by cosine, exactly and with the same bytes on every machine.

Knows nothing of texts, of who embeds, or of what is near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol_api.records import FloatMatrix

CACHED_ROWS = 256
"""Vectors worked on at a time: what stays in the processor's cache is several times faster."""
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
    """Exact cosine search; `index` is a flat one of `near.unit`, if there is one already.

    faiss finds the candidates in float32, whose last bits differ from processor to processor. What it found is
    scored again in float64 and rounded, and a query whose last candidates nearly tie is searched deeper, so that a
    run's artifacts have the same bytes on every machine.
    """
    index = flat_index(near) if index is None else index
    candidates = len(near.raw)
    depth = min(depth, candidates)
    wide = min(depth + SPARE, candidates)
    rough, places = index.search(asked.unit, wide)
    found = np.ascontiguousarray(places[:, :depth], dtype=np.int64)
    scores = cosines(near, asked, found)
    close = np.flatnonzero(rough[:, depth - 1] - rough[:, -1] < NEAR_TIE)
    looked_at_all = depth == candidates
    while close.size and not looked_at_all:
        wide = min(4 * wide, candidates)
        some = asked.at(close)
        rough, places = index.search(some.unit, wide)
        again = in_order(places.astype(np.int64), cosines(near, some, places))
        found[close], scores[close] = again.indices[:, :depth], again.scores[:, :depth]
        close = close[rough[:, depth - 1] - rough[:, -1] < NEAR_TIE]
        looked_at_all = wide == candidates
    return in_order(found, scores)


def flat_index(near: Directed) -> Any:
    """faiss's exact index of some vectors."""
    import faiss

    index = faiss.IndexFlatIP(near.unit.shape[1])
    index.add(near.unit)
    return index


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


def cosines(near: Directed, asked: Directed, found: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cosines of queries (q, d) with the candidates at `found` (q, depth): float32 out of float64."""
    scores = np.empty(found.shape, dtype=np.float32)
    for at in range(0, len(found), CACHED_ROWS):
        rows = slice(at, at + CACHED_ROWS)
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
