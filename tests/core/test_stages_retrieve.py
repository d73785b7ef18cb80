"""The nearest labelled examples: exact, in one order on every machine, without the question itself or its twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.retrieval import Found, Searched, main, measure_near_duplicates, measure_retrieval, over_the_limits
from semievol_api.annotate.retrieval import nearest_among, nearest_texts
from semievol_api.annotate.vectors import SEARCHED_ROWS, Directed, nearest_vectors
from semievol_api.config.settings import RetrieveSettings
from semievol_api.records import Example


def _examples(name: str, count: int) -> list[Example]:
    return [Example(id=f"{name}{i}", question=f"{name} {i}?") for i in range(count)]


def cosines(asked: np.ndarray, near: np.ndarray) -> np.ndarray:
    """All of them in double precision, rounded, float32 (queries, candidates)."""
    one, other = asked.astype(np.float64), near.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    return (one @ other.T / lengths).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), depth=st.integers(1, 6), copies=st.integers(1, 4))
def test_the_ranking_is_that_of_double_precision_with_equal_scores_by_index(
    seed: int, n: int, depth: int, copies: int
) -> None:
    rng = np.random.default_rng(seed)
    some = rng.standard_normal((n, 8)).astype(np.float32)
    near = np.concatenate([some] * copies)
    near[::2] *= np.float32(1 + 1e-7)  # nearly the same direction, not the same bits
    asked = rng.standard_normal((5, 8)).astype(np.float32)
    ranking = nearest_vectors(near, asked, depth)
    exact = cosines(asked, near)
    order = np.lexsort((np.broadcast_to(np.arange(len(near)), exact.shape), -exact), axis=1)
    assert (ranking.scores == np.take_along_axis(exact, order, axis=1)[:, :depth]).all()
    assert (ranking.indices == order[:, :depth]).all()


@pytest.mark.parametrize("length", [1e-9, 1.0, 1e9])
def test_near_ties_that_single_precision_confuses_are_searched_deeper(length: float) -> None:
    rng = np.random.default_rng(3)
    one = rng.standard_normal(384)
    near = (one + 1e-6 * rng.standard_normal((80, 384))).astype(np.float32)
    asked = (length * (one + 0.3 * rng.standard_normal((20, 384)))).astype(np.float32)
    exact = cosines(asked, near)
    order = np.lexsort((np.broadcast_to(np.arange(80), exact.shape), -exact), axis=1)
    assert (nearest_vectors(near, asked, 3).indices == order[:, :3]).all()


@pytest.mark.parametrize("count", [0, 1, SEARCHED_ROWS, SEARCHED_ROWS + 1])
def test_portions_of_the_queries_are_joined_in_their_order(count: int) -> None:
    rng = np.random.default_rng(4)
    near = rng.standard_normal((50, 8)).astype(np.float32)
    asked = rng.standard_normal((count, 8)).astype(np.float32)
    order = np.argsort(-cosines(asked, near), axis=1, kind="stable")
    assert (nearest_vectors(near, asked, 3).indices == order[:, :3]).all()


def test_a_question_is_not_its_own_neighbour_nor_is_anything_with_its_text() -> None:
    candidates = [*_examples("c", 6), Example(id="twin", question="c 0?", options=("other", "options"))]
    vectors = np.eye(7, dtype=np.float32) + np.float32(0.1)
    vectors[6] = vectors[0]
    near = nearest_texts(candidates, candidates[:1], vectors, vectors[:1], 3)
    assert near.ids == {"c0": ("c1", "c2", "c3")}


@pytest.mark.parametrize("copies", [1, 12, 40])
def test_many_copies_of_a_question_leave_room_for_its_neighbours(copies: int) -> None:
    twins = [Example(id=f"twin{i}", question="Same?") for i in range(copies)]
    candidates = [*twins, *_examples("c", 5)]
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(candidates), 16)).astype(np.float32)
    vectors[:copies] = 1.0
    near = nearest_texts(candidates, [Example(id="q", question="Same?")], vectors, vectors[:1], 3)
    assert len(near.ids["q"]) == 3
    assert all(name.startswith("c") for name in near.ids["q"])
    assert list(near.similarities["q"]) == sorted(near.similarities["q"], reverse=True)


def test_fewer_candidates_than_wanted_give_as_many_as_there_are() -> None:
    vectors = np.eye(3, dtype=np.float32)
    candidates = _examples("c", 3)
    near = nearest_texts(candidates, [*candidates[:1], *_examples("q", 1)], vectors, vectors[:2], 5)
    assert {name: len(ids) for name, ids in near.ids.items()} == {"c0": 2, "q0": 3}


async def test_words_without_vectors_leave_twins_out_too() -> None:
    candidates = [Example(id=f"c{i}", question=text) for i, text in enumerate(["a red fox", "a red hen", "blue sea"])]
    asked = [Example(id="q", question="a red fox")]
    near = await nearest_among(None, candidates, asked, RetrieveSettings(method="bm25"), 1)
    assert near.ids == {"q": ("c1",)}


def test_a_vector_of_zeros_has_no_direction_and_no_nan() -> None:
    assert not np.isnan(Directed.of(np.zeros((2, 4), dtype=np.float32)).unit()).any()
    assert nearest_vectors(np.zeros((2, 4), dtype=np.float32), np.ones((1, 4), dtype=np.float32), 2).scores.sum() == 0


def test_the_benchmark_finds_what_faiss_finds_and_names_what_is_too_slow() -> None:
    found, searched = measure_retrieval(400, 60, 1, 1), measure_near_duplicates(1_000)
    assert found.recall == 1.0
    assert searched.found == searched.planted == 2
    slow = Found(
        candidates=3_000, queries=10, threads=1, repeats=1, bare_s=1.0, ours_s=1.2, ratio=1.2, recall=0.5
    )  # fmt: skip
    late = Searched(questions=100_000, planted=2, found=2, seconds=61.0)
    assert len(over_the_limits([slow], late)) == 3
    kept = Found(candidates=3_000, queries=10, threads=1, repeats=1, bare_s=1.0, ours_s=1.0, ratio=1.0, recall=1.0)
    assert over_the_limits([kept], searched) == []


def test_the_benchmarks_help_says_what_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Bare faiss" in " ".join(capsys.readouterr().out.split())
