"""The paper's percentile rule on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol_api.errors import ConfigError
from semievol_api.selection.rule_percentile import percentile, percentile_of_score

values = st.lists(st.one_of(st.floats(0, 5), st.sampled_from([0.0, 0.5, float("nan")])), min_size=1, max_size=60)


def test_half_of_distinct_values_is_kept_by_the_linear_percentile() -> None:
    mean_nll = np.array([0.4, 0.1, 0.3, 0.2])
    selected = percentile(mean_nll, 0.5)
    assert selected.kept.tolist() == [False, True, False, True]
    assert selected.threshold == pytest.approx(np.percentile(mean_nll, 50))
    assert selected.coverage == 0.5


@settings(deadline=None)
@given(values, st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]))
def test_kept_is_everything_at_most_the_interpolated_percentile(raw: list[float], share: float) -> None:
    mean_nll = np.array(raw)
    selected = percentile(mean_nll, share)
    valid = mean_nll[~np.isnan(mean_nll)]
    if not valid.size:
        assert selected.count == 0
        return
    tau = np.percentile(valid, 100 * share)
    clear = np.abs(mean_nll - tau) > 1e-9
    assert (selected.kept[clear] == (mean_nll <= tau)[clear]).all()
    assert selected.abstained == mean_nll.size - valid.size
    assert not selected.kept[np.isnan(mean_nll)].any()


@settings(deadline=None)
@given(values, st.floats(0, 1))
def test_ties_are_kept_or_left_as_a_whole_and_order_does_not_matter(raw: list[float], share: float) -> None:
    mean_nll = np.array(raw)
    selected = percentile(mean_nll, share)
    worst_kept = np.max(mean_nll[selected.kept], initial=-np.inf)
    assert (selected.kept == (mean_nll <= worst_kept)).all()
    order = np.random.default_rng(0).permutation(mean_nll.size)
    assert (percentile(mean_nll[order], share).kept == selected.kept[order]).all()


@settings(deadline=None)
@given(values, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_a_superset(raw: list[float], one: float, other: float) -> None:
    mean_nll = np.array(raw)
    small, large = (percentile(mean_nll, share).kept for share in sorted((one, other)))
    assert not (small & ~large).any()


def test_equal_values_are_all_kept() -> None:
    selected = percentile(np.zeros(7), 0.3)
    assert selected.count == 7
    assert "Ties" in selected.messages[0]


def test_theta_zero_keeps_nothing_and_says_so() -> None:
    selected = percentile(np.array([0.0, 0.1]), 0.0)
    assert selected.count == 0
    assert selected.threshold is None
    assert "theta is 0" in selected.messages[0]


def test_theta_one_keeps_everything_that_has_a_value() -> None:
    selected = percentile(np.array([0.0, np.nan, 9.0, np.inf]), 1.0)
    assert selected.kept.tolist() == [True, False, True, True]
    assert selected.coverage == 0.75


@pytest.mark.parametrize("mean_nll", [np.array([]), np.full(4, np.nan)])
def test_a_pool_without_values_keeps_nothing_and_says_so(mean_nll: np.ndarray) -> None:
    selected = percentile(mean_nll, 0.5)
    assert selected.count == 0
    assert "no item has a log-probability" in selected.messages[0]


def test_one_item_is_kept() -> None:
    assert percentile(np.array([0.7]), 0.5).count == 1


def test_a_cut_that_falls_on_an_item_keeps_it_in_spite_of_rounding() -> None:
    assert 0.29 * 100 < 29  # the float product that loses an item
    assert percentile(np.arange(101) / 10, 0.29).count == 30


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_the_unit_interval_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        percentile(np.zeros(3), share)


def test_on_scores_the_highest_are_kept() -> None:
    selected = percentile_of_score(np.array([0.9, 0.2, np.nan, 0.7, 0.1]), 0.5)
    assert selected.kept.tolist() == [True, False, False, True, False]
    assert selected.threshold == pytest.approx(0.45)


def test_the_labelled_items_may_place_the_threshold() -> None:
    selected = percentile(np.array([0.1, 0.24, 0.26, 0.9]), 0.5, reference=np.array([0.2, 0.3, np.nan]))
    assert selected.kept.tolist() == [True, True, False, False]
    assert selected.threshold == pytest.approx(0.25)
    assert percentile(np.array([0.1]), 0.5, reference=np.array([np.nan])).count == 0


@pytest.mark.parametrize(("interpolation", "count"), [("lower", 2), ("linear", 2), ("higher", 3)])
def test_the_interpolation_is_a_setting(interpolation, count: int) -> None:  # type: ignore[no-untyped-def]
    assert percentile(np.array([0.4, 0.1, 0.3, 0.2]), 0.5, interpolation=interpolation).count == count
