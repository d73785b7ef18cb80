"""The nearest vectors among many: exact up to `EXACT_UP_TO`, above that through an inverted file.

    index = VectorIndex.of(vectors)
    index.ranking(queries, 3), index.note

The inverted file (faiss IVF) looks into as many of its lists as a sample needs to reach `WANTED_RECALL`; what it
reached is in `note`. What it finds is scored again in float64. Built once: other processes get it as one array that
they map. Knows nothing of texts or of who embeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol_api.records import FloatMatrix
from semievol_api.stages.vectors import Directed, Ranking, cosines, exact, flat_index, in_order, searched

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
