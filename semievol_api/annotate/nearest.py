"""Nearest neighbours of plain texts or vectors, without a run: indices and similarities.

    found = nearest(questions, labelled_questions, k=3)

Knows nothing of runs, tasks or prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semievol_api.annotate.retrieval import EmbeddingTool, nearest_among
from semievol_api.annotate.vectors import VectorIndex
from semievol_api.capabilities import Provider
from semievol_api.config.settings import Limits, RetrieveSettings
from semievol_api.engine import RequestEngine
from semievol_api.errors import ConfigError, DataError
from semievol_api.notebook import html_facts, run_blocking
from semievol_api.records import Example
from semievol_api.store.artifacts import Neighbours


@dataclass(frozen=True, eq=False, repr=False)
class Nearest:
    """The nearest candidates of every query, nearest first.

    Attributes
    ----------
    indices : ndarray of int64, shape (queries, k)
        Places in the candidates; -1 where there are no more.
    scores : ndarray of float32, shape (queries, k)
        Cosine in [-1, 1] of vectors and embeddings, BM25 of words (0 and more, without a unit); NaN beside a -1.
    note : str
        How the search was done, where it was not exact.

    Examples
    --------
    >>> semievol_api.nearest([[1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]], k=1)
    Nearest(1 query, k=1)
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    note: str = ""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        queries, k = self.indices.shape
        return f"Nearest({queries} {'query' if queries == 1 else 'queries'}, k={k})"

    def _repr_html_(self) -> str:
        """The first queries' neighbours as a notebook shows them."""
        shown = {f"query {row}": self.indices[row].tolist() for row in range(min(5, len(self)))}
        return html_facts(repr(self), shown, [self.note] if self.note else [])


def nearest(
    queries: Sequence[str] | ArrayLike,
    candidates: Sequence[str] | ArrayLike,
    k: int = 3,
    *,
    provider: Provider | None = None,
    model: str | None = None,
    journal: str | Path = "journal.sqlite",
) -> Nearest:
    """Find the nearest candidates of every query: texts by their words or embeddings, vectors by cosine.

    Parameters
    ----------
    queries : sequence of str, or array-like of shape (queries, d)
        What is looked up.
    candidates : sequence of str, or array-like of shape (candidates, d)
        What is looked among. Vectors need not have unit length; more than 50,000 are searched approximately, which
        `note` tells.
    k : int, default 3
        How many neighbours, at least 1.
    provider, model : Provider, str, optional
        Who embeds texts. Without them they are compared by their words (BM25), which costs nothing.
    journal : path, default "journal.sqlite"
        Keeps paid embeddings, so that none is bought twice.

    Returns
    -------
    Nearest
        Indices and scores of shape (queries, k). A candidate with the same text as the query is left out, so that a
        labelled example is not its own neighbour; vectors are all compared.

    Raises
    ------
    DataError
        Texts and vectors are mixed, or the vectors differ in length.
    ConfigError
        `k` is below 1, or only one of provider and model is given.
    MissingAbilityError
        The provider has no embeddings.

    Notes
    -----
    SemiEvol, section 3.2 (in-context propagation). Exact search gives the same bytes on every machine.

    Examples
    --------
    >>> labelled = ["the cat sat", "stocks fell again", "a cat slept"]
    >>> semievol_api.nearest(["where is the cat"], labelled, k=2).indices
    array([[0, 2]])
    """
    if k < 1:
        raise ConfigError(f"k is {k}; at least one neighbour is looked for.")
    if (provider is None) != (model is None):
        raise ConfigError("To embed texts, nearest() needs both: provider=connect(...) and model='...'.")
    if isinstance(queries, str) or isinstance(candidates, str):
        raise DataError("Queries and candidates are lists; pass one text as [text].")
    asked, among = list(cast("Any", queries)), list(cast("Any", candidates))
    texts = [isinstance(item, str) for item in (*asked, *among)]
    if texts and all(texts):
        return _among_texts(asked, among, k, None if provider is None or model is None else (provider, model, journal))
    if any(texts):
        raise DataError("Queries and candidates are texts or vectors, not both. Embed the texts, or pass texts alone.")
    return _among_vectors(_vectors(queries, "queries"), _vectors(candidates, "candidates"), k)


def _vectors(given: ArrayLike, name: str) -> NDArray[np.float32]:
    try:
        found = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError(f"`{name}` are neither texts nor equally long vectors of numbers.") from None
    if found.ndim != 2:
        raise DataError(f"`{name}` has the shape {found.shape}; vectors come as (rows, d).")
    return found


def _among_vectors(queries: NDArray[np.float32], candidates: NDArray[np.float32], k: int) -> Nearest:
    if queries.shape[1] != candidates.shape[1]:
        raise DataError(
            f"The queries have {queries.shape[1]} numbers each and the candidates {candidates.shape[1]}. Embed both "
            f"with one model."
        )
    indices = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), np.nan, dtype=np.float32)
    if not len(queries) or not len(candidates):
        return Nearest(indices, scores)
    index = VectorIndex.of(candidates)
    ranking = index.ranking(queries, k)
    width = ranking.indices.shape[1]
    indices[:, :width] = ranking.indices
    scores[:, :width] = np.where(ranking.indices < 0, np.nan, ranking.scores)
    return Nearest(indices, scores, index.note)


def _among_texts(
    queries: list[str], candidates: list[str], k: int, by: tuple[Provider, str, str | Path] | None
) -> Nearest:
    asked = [Example(id=f"query {place}", question=text) for place, text in enumerate(queries)]
    among = [Example(id=str(place), question=text) for place, text in enumerate(candidates)]
    found = run_blocking(_searched(asked, among, k, by))
    indices = np.full((len(asked), k), -1, dtype=np.int64)
    scores = np.full((len(asked), k), np.nan, dtype=np.float32)
    for row, query in enumerate(asked):
        near = found.ids[query.id]
        indices[row, : len(near)] = [int(name) for name in near]
        scores[row, : len(near)] = found.similarities[query.id]
    return Nearest(indices, scores, found.note)


async def _searched(
    asked: list[Example], among: list[Example], k: int, by: tuple[Provider, str, str | Path] | None
) -> Neighbours:
    if by is None:
        return await nearest_among(None, among, asked, RetrieveSettings(method="bm25"), k)
    provider, model, journal = by
    try:
        async with RequestEngine.open(Path(journal), Limits(), run="nearest") as engine:
            tool = EmbeddingTool(engine, provider, model)
            return await nearest_among(tool, among, asked, RetrieveSettings(), k)
    finally:
        await provider.aclose()
