"""Labels from vectors and a few labelled ones: a linear classifier, and propagation over a graph of neighbours.

    probs = classifier(vectors[:100], labels, vectors[100:], n_labels=6)      # float64 (rows, 6)
    spread = label_propagation(neighbour_graph(vectors), labels_or_minus_one, n_labels=6)

Both learn on the processor in seconds. Knows nothing of runs, texts, tasks or of who embeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semievol_api.annotate.vectors import Directed, VectorIndex
from semievol_api.records import FloatMatrix
from semievol_api.selection.values import FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_STRENGTHS = (1.0, 10.0, 100.0)
"""C of the logistic regression, weakest first; vectors have length one."""
_INNER_FOLDS = 5
NEIGHBOURS = 20
"""Edges from each node of the graph."""
_SHARPNESS = 20.0
"""An edge weighs exp(sharpness * (cosine - 1))."""
_ALPHA = 0.8
"""How much of a node's labels comes from its neighbours at each step; the rest is its own label."""
_STEPS = 60
_GRID = 2.0**24
"""Probabilities are rounded to multiples of 1 / _GRID, below which processors differ."""
_LABELS_AT_ONCE = 16


def classifier(known: FloatMatrix, labels: IntArray, asked: FloatMatrix, n_labels: int, seed: int = 0) -> FloatArray:
    """Multinomial logistic regression on vectors of length one; float64 (m, n_labels), rows sum to 1.

    C is chosen by cross-validated log-loss on the known alone, by the rule of one standard error (Breiman et al.
    1984): the strongest penalty whose loss is within one of the least. Labels that nobody taught share half a count.

    Args:
        known: float32, shape (n, d), of the labelled.
        labels: int64, shape (n,).
        asked: float32, shape (m, d).
        n_labels: K, columns of the result.
        seed: of the folds.
    """
    known, asked = Directed.of(known).unit(), Directed.of(asked).unit()
    return _rounded(_fitted(known, labels, asked, n_labels, _strength(known, labels, n_labels, seed)))


def _strength(vectors: FloatMatrix, labels: IntArray, n_labels: int, seed: int) -> float:
    """C by cross-validation."""
    fold = np.random.default_rng(seed).permutation(labels.size) % _INNER_FOLDS
    if labels.size < 2 * _INNER_FOLDS:
        return _STRENGTHS[1]
    losses = np.empty((labels.size, len(_STRENGTHS)))
    for column, strength in enumerate(_STRENGTHS):
        for out in range(_INNER_FOLDS):
            held = fold == out
            probs = _fitted(vectors[~held], labels[~held], vectors[held], n_labels, strength)
            losses[held, column] = -np.log(probs[np.arange(len(probs)), labels[held]])
    means = losses.mean(axis=0)
    best = int(means.argmin())
    errors = (losses - losses[:, [best]]).std(axis=0, ddof=1) / np.sqrt(labels.size)
    return _STRENGTHS[int(np.flatnonzero(means <= means[best] + errors)[0])]


def _fitted(known: FloatMatrix, labels: IntArray, asked: FloatMatrix, n_labels: int, strength: float) -> FloatArray:
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(labels)
    unseen = 0.5 * (n_labels - seen.size)
    probs = np.full((len(asked), n_labels), 0.5 / (labels.size + unseen))
    share = labels.size / (labels.size + unseen)
    if seen.size < 2:
        probs[:, seen] = share
        return probs
    model = LogisticRegression(C=strength, max_iter=5_000).fit(known.astype(np.float64), labels)
    probs[:, seen] = share * model.predict_proba(asked.astype(np.float64))
    return np.asarray(np.maximum(probs, 1.0 / _GRID), dtype=np.float64)


def neighbour_graph(vectors: FloatMatrix, neighbours: int = NEIGHBOURS) -> csr_matrix:
    """Who is near whom, S = D^-1/2 W D^-1/2: symmetric, sparse (n, n), no loops.

    An edge joins two nodes where either is among the other's nearest (faiss; exact up to 50,000 nodes).

    Args:
        vectors: float32, shape (n, d), of labelled and unlabelled together.
        neighbours: nearest nodes that a node reaches for.
    """
    from scipy import sparse

    count = len(vectors)
    ranking = VectorIndex.of(vectors).ranking(vectors, neighbours + 1)
    rows, columns = np.repeat(np.arange(count), ranking.indices.shape[1]), ranking.indices.ravel()
    weights = np.exp(_SHARPNESS * (ranking.scores.ravel().astype(np.float64) - 1.0))
    real = (columns >= 0) & (columns != rows)
    one_way = sparse.csr_matrix((weights[real], (rows[real], columns[real])), shape=(count, count))
    both = one_way.maximum(one_way.T).tocsr()
    scale = 1.0 / np.sqrt(np.maximum(np.asarray(both.sum(axis=1)).ravel(), 1e-300))
    return sparse.csr_matrix(sparse.diags(scale) @ both @ sparse.diags(scale))


def label_propagation(graph: csr_matrix, labels: IntArray, n_labels: int) -> FloatArray:
    """Labels spread over the graph: F = alpha S F + (1 - alpha) Y until it rests; float64 (n, n_labels).

    Zhou, Bousquet, Lal, Weston and Schoelkopf 2004, "Learning with local and global consistency". What reaches a label
    is then weighted to the labels' own shares (class mass normalisation: Zhu, Ghahramani and Lafferty 2003). Rows that
    no label reaches are NaN.

    Args:
        graph: of `neighbour_graph`, n nodes.
        labels: int64, shape (n,), -1 = unlabelled or hidden: the node stays, its label is not seen.
        n_labels: K, columns of the result.
    """
    known = np.flatnonzero(labels >= 0)
    reached = np.zeros((labels.size, n_labels))
    for start in range(0, n_labels, _LABELS_AT_ONCE):
        own = np.zeros((labels.size, min(_LABELS_AT_ONCE, n_labels - start)))
        here = known[(labels[known] >= start) & (labels[known] < start + own.shape[1])]
        own[here, labels[here] - start] = 1.0 - _ALPHA
        spread = own.copy()
        for _ in range(_STEPS):
            spread = _ALPHA * (graph @ spread) + own
        reached[:, start : start + own.shape[1]] = spread
    counts = np.bincount(labels[known], minlength=n_labels).astype(np.float64)
    mass = reached.sum(axis=0)
    reached *= np.divide(counts, mass, out=np.zeros(n_labels), where=mass > 0)
    total = reached.sum(axis=1, keepdims=True)
    silent = total[:, 0] <= 0
    prior = 0.5 / (known.size + 0.5)
    probs = (1.0 - prior) * reached / np.where(silent[:, None], 1.0, total) + prior / n_labels
    probs[silent] = np.nan
    return _rounded(probs)


def _rounded(probs: FloatArray) -> FloatArray:
    return np.asarray(np.rint(probs * _GRID) / _GRID, dtype=np.float64)
