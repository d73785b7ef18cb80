"""The points of the curves against slow definitions and published figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from statsmodels.stats.proportion import proportion_confint

from semievol_api.evaluation import auroc, precision_coverage, reliability, score_histogram, wilson

SCORES = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.5, 0.9, np.nan]), st.booleans()), min_size=1, max_size=40)


def _arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


@given(SCORES)
def test_precision_and_coverage_count_whole_tie_groups(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = _arrays(pairs)
    curve = precision_coverage(confidence, right)
    for cut, coverage, precision in zip(curve.threshold, curve.coverage, curve.precision, strict=True):
        reached = confidence >= cut
        assert coverage == pytest.approx(reached.sum() / right.size)
        assert precision == pytest.approx(right[reached].mean())
    assert len(curve.threshold) == len(np.unique(confidence[~np.isnan(confidence)]))


@given(SCORES)
def test_reliability_bins_hold_every_answer_once(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = _arrays(pairs)
    found = reliability(confidence, right, bins=4)
    answered = ~np.isnan(confidence)
    assert found.count.sum() == answered.sum()
    if answered.any():
        assert np.average(found.accuracy, weights=found.count) == pytest.approx(right[answered].mean())
        assert np.average(found.confidence, weights=found.count) == pytest.approx(confidence[answered].mean())


def test_a_model_that_is_as_right_as_it_says_has_no_calibration_error() -> None:
    confidence = np.repeat([0.25, 0.75], 8)
    right = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    assert reliability(confidence, right, bins=2).expected_error == pytest.approx(0.0)
    assert reliability(confidence, ~right, bins=2).expected_error == pytest.approx(0.5)


def test_wilson_agrees_with_statsmodels() -> None:
    low, high = wilson(np.array([0.0, 0.3, 1.0]), np.array([10.0, 50.0, 7.0]))
    for place, (count, n) in enumerate([(0, 10), (15, 50), (7, 7)]):
        assert (low[place], high[place]) == pytest.approx(proportion_confint(count, n, method="wilson"), abs=1e-9)


def test_auroc_agrees_with_the_rank_test() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.integers(0, 12, 200) / 12, rng.random(200) < 0.6
    statistic = mannwhitneyu(confidence[right], confidence[~right]).statistic
    assert auroc(confidence, right) == pytest.approx(statistic / (right.sum() * (~right).sum()))
    assert np.isnan(auroc(confidence, np.ones(200, dtype=bool)))


def test_an_abstention_ranks_lowest_or_is_left_out() -> None:
    confidence, right = np.array([np.nan, 0.4, 0.9]), np.array([True, False, True])
    assert auroc(confidence, right) == pytest.approx(0.5)
    assert auroc(confidence, right, abstentions="left-out") == pytest.approx(1.0)


def test_a_thinned_curve_keeps_its_ends_and_its_points() -> None:
    curve = precision_coverage(np.linspace(0, 1, 50), np.arange(50) % 3 > 0, total=100)
    thin = curve.thinned(7)
    assert thin.threshold.size == 7 and set(thin.threshold) <= set(curve.threshold)
    assert (thin.coverage[0], thin.coverage[-1]) == (0.01, 0.5)


@given(SCORES)
def test_the_histogram_counts_every_answer_once(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = _arrays(pairs)
    found = score_histogram(confidence, right)
    answered = ~np.isnan(confidence)
    assert found.right.sum() == (right & answered).sum()
    assert found.wrong.sum() == (~right & answered).sum()
