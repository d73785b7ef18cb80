"""Splits are stratified, seeded, independent of the file's order, and keep groups whole."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from semievol_api.data import split, subsample
from semievol_api.records import Example


def examples(n: int, classes: str = "AAAAAABBBC") -> list[Example]:
    return [Example(id=f"e{i}", question="q", answer=classes[i % len(classes)]) for i in range(n)]


def test_two_six_two_holds_in_every_class() -> None:
    parts = split(examples(1000), (2, 6, 2), seed=0)
    assert [len(part) for part in parts] == [200, 600, 200]
    for name, count in (("A", 600), ("B", 300), ("C", 100)):
        shares = [Counter(e.answer for e in part)[name] / count for part in parts]
        assert all(abs(share - wanted) <= 0.02 for share, wanted in zip(shares, (0.2, 0.6, 0.2), strict=True))


def test_a_split_is_a_partition_in_the_files_order() -> None:
    data = examples(57)
    parts = split(data, (2, 6, 2), seed=3)
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in data)
    for part in parts:
        assert list(part) == [e for e in data if e in part]


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    data = examples(200)
    assert split(data, (1, 1), seed=1) == split(data, (1, 1), seed=1)
    assert split(data, (1, 1), seed=1) != split(data, (1, 1), seed=2)


def test_the_order_of_the_file_does_not_matter() -> None:
    data = examples(200)
    turned = random.Random(0).sample(data, len(data))
    for one, other in zip(split(data, (2, 6, 2), 0), split(turned, (2, 6, 2), 0), strict=True):
        assert {e.id for e in one} == {e.id for e in other}


@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_group_is_never_torn(groups: list[int], seed: int) -> None:
    data = [Example(id=str(i), question="q", answer="AB"[i % 2], group=f"g{g}") for i, g in enumerate(groups)]
    seen = [{e.group for e in part} for part in split(data, (2, 6, 2), seed)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_a_group_named_like_an_id_is_not_mixed_up_with_it() -> None:
    data = [Example(id="x", question="q", answer="A"), Example(id="y", question="q", answer="A", group="x")]
    assert sorted(map(len, split(data, (1, 1), 0))) == [1, 1]


def test_a_subsample_keeps_the_class_shares() -> None:
    assert Counter(e.answer for e in subsample(examples(1000), 100, 0)) == {"A": 60, "B": 30, "C": 10}


def test_a_small_subsample_still_holds_every_class() -> None:
    data = examples(990, "A" * 98 + "B")
    assert Counter(e.answer for e in subsample(data, 10, 0)) == {"A": 9, "B": 1}


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_subsample_has_exactly_the_size_asked_for(n: int, size: int, seed: int) -> None:
    data = examples(n, "ABCDE")
    chosen = subsample(data, size, seed)
    assert len(chosen) == min(n, size)
    assert list(chosen) == [e for e in data if e in chosen]
