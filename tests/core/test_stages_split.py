"""The split of the labelled data: sizes, strata, groups, and that nothing is used twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol_api.config.method import SplitSettings
from semievol_api.records import Example
from semievol_api.selection.holdout import split_labels
from semievol_api.store.artifacts import Folds, Prepared

AUTO = SplitSettings(calibration="auto", development="auto")


def labelled(count: int, groups: int = 0) -> Prepared:
    examples = tuple(
        Example(id=f"q{i}", question=f"Q{i}?", answer="ABCD"[i % 4], group=f"g{i % groups}" if groups else None)
        for i in range(count)
    )
    return Prepared(labeled=examples, unlabeled=(), test=(), report={})


async def folds_of(count: int, settings: SplitSettings = AUTO, groups: int = 0, seed: int = 0) -> Folds:
    return await split_labels(labelled(count, groups), (), (), (), settings, seed)


@pytest.mark.parametrize(
    ("count", "warm", "calibration", "development"),
    [
        (8, 8, 0, 0),
        (10, 10, 0, 0),
        (25, 25, 0, 0),
        (59, 59, 0, 0),
        (60, 30, 30, 0),
        (100, 50, 50, 0),
        (140, 90, 50, 0),
        (400, 320, 80, 0),
        (500, 350, 100, 50),
        (5000, 4000, 500, 500),
    ],
)
async def test_the_sizes_are_those_of_the_method(count: int, warm: int, calibration: int, development: int) -> None:
    folds = await folds_of(count)
    assert (len(folds.warm), len(folds.calibration), len(folds.development)) == (warm, calibration, development)
    assert folds.tunable == (warm >= 10)


async def test_a_gate_that_leaves_too_few_to_calibrate_leaves_all_of_them_to_teach() -> None:
    folds = await folds_of(100, SplitSettings(calibration="auto", development=50))
    assert (len(folds.warm), len(folds.calibration), len(folds.development)) == (50, 0, 50)
    folds = await folds_of(100, SplitSettings(calibration="auto", development=40))
    assert (len(folds.warm), len(folds.calibration), len(folds.development)) == (30, 30, 40)


async def test_the_paper_holds_nothing_back() -> None:
    data = labelled(600)
    folds = await split_labels(data, (), (), (), SplitSettings(), 0)
    assert folds.warm == data.labeled
    assert folds.calibration == folds.development == ()
    assert folds.tunable


@given(count=st.integers(1, 700), seed=st.integers(0, 9))
async def test_every_label_is_in_exactly_one_fold(count: int, seed: int) -> None:
    folds = await folds_of(count, seed=seed)
    names = [e.id for part in (folds.warm, folds.calibration, folds.development) for e in part]
    assert sorted(names) == sorted(f"q{i}" for i in range(count))


async def test_folds_are_stratified_and_groups_stay_whole() -> None:
    folds = await folds_of(200, groups=50)
    counts = Counter(e.answer for e in folds.calibration)
    assert max(counts.values()) - min(counts.values()) <= 4
    assert not {e.group for e in folds.calibration} & {e.group for e in folds.warm}


async def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    assert await folds_of(100, seed=1) == await folds_of(100, seed=1)
    assert (await folds_of(100, seed=1)).calibration != (await folds_of(100, seed=2)).calibration


async def test_the_users_own_development_file_leaves_the_labels_alone() -> None:
    own = (Example(id="d1", question="Mine?", answer="A"),)
    folds = await split_labels(labelled(500), own, (), (), AUTO, 0)
    assert folds.development == own
    assert len(folds.warm) + len(folds.calibration) == 500


def test_folds_survive_packing() -> None:
    example = Example(id="q", question="Q?", answer="A", options=("x", "y"))
    folds = Folds(warm=(example,), calibration=(), development=(example,), tunable=True, note="said")
    assert Folds.unpack(folds.pack()) == folds
