"""The statistics agree with scipy and statsmodels, and with the numbers that the design states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from semievol_api.errors import ConfigError, DataError
from semievol_api.evaluation import (
    BootstrapSettings,
    Interval,
    accuracy,
    accuracy_by_category,
    auroc,
    auroc_difference,
    brier,
    confusion,
    cost_per_point,
    cost_per_point_text,
    expected_calibration_error,
    holm,
    mcnemar,
    paired_bootstrap,
    points,
    precision_coverage,
    promotion_gate,
    reliability,
    smallest_detectable_effect,
)

NAN = float("nan")
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)
scored = st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.9, 1.0]), st.booleans()), min_size=2, max_size=60)


def columns(rows: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, dtype=np.bool_)
    return table[:, 0], table[:, 1]


# ------------------------------------------------------------------------------------------- accuracy
@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=500), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_accuracy_interval_agrees_with_statsmodels(right: list[bool], level: float) -> None:
    found = accuracy(np.array(right), level)
    low, high = proportion_confint(sum(right), len(right), alpha=1 - level, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.low <= found.estimate <= found.high


def test_no_items_have_no_accuracy() -> None:
    found = accuracy(np.array([], dtype=bool))
    assert np.isnan([found.estimate, found.low, found.high]).all()
    assert not found.excludes_zero


def test_categories_are_counted_apart() -> None:
    found = accuracy_by_category(np.array([True, False, True]), ["law", "law", "art"])
    assert [(name, part.estimate, part.n) for name, part in found.items()] == [("art", 1.0, 1), ("law", 0.5, 2)]


def test_confusions_and_abstentions_are_counted() -> None:
    counts = confusion(np.array([0, 0, 1, -1]), np.array([1, -1, 1, 0]), 2)
    assert counts.tolist() == [[0, 1, 1], [0, 1, 0]]


# ------------------------------------------------------------------------------------------ bootstrap
def test_the_bootstrap_interval_covers_the_true_gain_in_93_to_97_of_100_worlds() -> None:
    rng = np.random.default_rng(7)
    worlds, n, hits = 1500, 300, 0
    for world in range(worlds):
        kind = rng.choice(4, size=n, p=[0.6, 0.25, 0.1, 0.05])  # both, none, only ours, only theirs
        ours, theirs = np.isin(kind, (0, 2)), np.isin(kind, (0, 3))
        found = paired_bootstrap(ours, theirs, BootstrapSettings(resamples=1000, seed=world))
        hits += found.low <= 0.05 <= found.high
    assert 0.93 <= hits / worlds <= 0.97


def test_the_bootstrap_spread_is_the_textbook_standard_error() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(800) < 0.7, rng.random(800) < 0.6
    found = paired_bootstrap(ours, theirs)
    difference = ours.astype(float) - theirs
    error = difference.std() / np.sqrt(800)
    assert found.estimate == pytest.approx(difference.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.03)
    assert paired_bootstrap(ours, theirs) == found


def test_scipy_gives_the_same_percentile_interval() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.random(120), rng.random(120)
    found = paired_bootstrap(ours, theirs, BootstrapSettings(resamples=40_000))
    theirs_interval = stats.bootstrap(
        (ours - theirs,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(theirs_interval), abs=2e-3)


def test_training_seeds_widen_the_interval_when_they_disagree() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(400) < 0.6
    steady = np.vstack([rng.random(400) < 0.7 for _ in range(3)])
    moody = np.vstack([rng.random(400) < p for p in (0.5, 0.7, 0.9)])
    narrow, wide = (paired_bootstrap(seeds, theirs) for seeds in (steady, moody))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert narrow.estimate == pytest.approx(steady.mean() - theirs.mean())


def test_different_items_cannot_be_paired() -> None:
    with pytest.raises(DataError, match="same items"):
        paired_bootstrap(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(DataError, match="same items"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))


# ---------------------------------------------------------------------------------------------- tests
@settings(deadline=None)
@given(pairs)
def test_mcnemar_agrees_with_statsmodels(rows: list[tuple[bool, bool]]) -> None:
    ours, theirs = columns(rows)
    found = mcnemar(ours, theirs)
    table = [[np.sum(ours & theirs), np.sum(ours & ~theirs)], [np.sum(~ours & theirs), np.sum(~ours & ~theirs)]]
    assert found.p_value == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, abs=1e-9)


def test_mcnemar_of_many_discordant_items_does_not_overflow() -> None:
    ours = np.arange(40_000) < 20_500
    assert mcnemar(ours, ~ours).p_value == pytest.approx(stats.binomtest(19_500, 40_000).pvalue, rel=1e-6)


@pytest.mark.parametrize(
    "p_values", [[0.04], [0.01, 0.02, 0.03, 0.005], [0.3, 0.3, 0.001], [1.0, 0.0], [0.02, 0.02, 0.6, 0.01, 0.9]]
)
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


def test_holm_leaves_a_task_without_a_test_out() -> None:
    adjusted = holm([0.01, NAN, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert np.isnan(adjusted[1])
    assert holm([]) == ()


@pytest.mark.parametrize(("n", "effect"), [(200, 0.062), (518, 0.039), (2800, 0.017)])
def test_the_smallest_detectable_effect_reproduces_the_design(n: int, effect: float) -> None:
    assert round(smallest_detectable_effect(n), 3) == effect


def test_the_smallest_detectable_effect_solves_its_equation() -> None:
    d, n, p = smallest_detectable_effect(400, discordant=0.2), 400, 0.2
    z = stats.norm.ppf([0.975, 0.8])
    assert d == pytest.approx((z[0] * p**0.5 + z[1] * (p - d * d) ** 0.5) / n**0.5, abs=1e-9)


def test_a_tiny_test_set_detects_nothing_and_nonsense_is_refused() -> None:
    assert smallest_detectable_effect(3) == 1.0
    assert smallest_detectable_effect(30) > 0.1
    with pytest.raises(ConfigError):
        smallest_detectable_effect(0)


# ----------------------------------------------------------------------------------------- confidence
@settings(deadline=None)
@given(scored)
def test_auroc_is_the_mann_whitney_statistic_with_ties(rows: list[tuple[float, bool]]) -> None:
    scores, right = np.array([s for s, _ in rows]), np.array([r for _, r in rows])
    if right.all() or not right.any():
        assert np.isnan(auroc(scores, right))
        return
    expected = stats.mannwhitneyu(scores[right], scores[~right]).statistic / (right.sum() * (~right).sum())
    assert auroc(scores, right) == pytest.approx(expected, abs=1e-12)


def test_abstentions_rank_below_everything() -> None:
    assert auroc(np.array([0.1, NAN]), np.array([True, False])) == 1.0


@settings(deadline=None, max_examples=20)
@given(scored, st.integers(0, 5))
def test_resampled_aurocs_are_the_aurocs_of_the_resamples(rows: list[tuple[float, bool]], seed: int) -> None:
    scores, right = np.array([s for s, _ in rows]), np.array([r for _, r in rows])
    if right.all() or not right.any():
        return
    found = auroc_difference(scores, 1 - scores, right, BootstrapSettings(resamples=50, seed=seed))
    draws = np.random.default_rng(seed).integers(right.size, size=(50, right.size))
    values = [auroc(scores[d], right[d]) - auroc(1 - scores[d], right[d]) for d in draws]
    expected = np.nanquantile(values, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)


def test_answers_to_the_same_question_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    right, ours, theirs = rng.random(80) < 0.6, rng.random(80), rng.random(80)
    settings = BootstrapSettings(resamples=200)
    once = auroc_difference(ours, theirs, right, settings)
    about = np.tile(np.arange(80) + 7, 2)
    twice = auroc_difference(np.tile(ours, 2), np.tile(theirs, 2), np.tile(right, 2), settings, about)
    assert twice == replace(once, n=160)


def test_a_confidence_compared_with_itself_differs_by_nothing() -> None:
    scores = np.linspace(0, 1, 50)
    found = auroc_difference(scores, scores, scores > 0.3, BootstrapSettings(resamples=100))
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_precision_and_coverage_step_by_whole_tie_groups_and_count_abstentions() -> None:
    curve = precision_coverage(np.array([0.9, 0.5, 0.5, NAN]), np.array([True, True, False, True]))
    assert curve.threshold.tolist() == [0.9, 0.5]
    assert curve.coverage.tolist() == [0.25, 0.75]
    assert curve.precision == pytest.approx([1.0, 2 / 3])


def test_ece_without_ties_is_the_plain_equal_mass_sum() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(450)
    right = rng.random(450) < confidence**2
    order = np.argsort(confidence)
    bins = np.array_split(order, 15)
    expected = sum(len(b) / 450 * abs(right[b].mean() - confidence[b].mean()) for b in bins)
    assert expected_calibration_error(confidence, right) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(scored, st.randoms(use_true_random=False))
def test_ties_keep_one_bin_in_any_row_order(rows: list[tuple[float, bool]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(rows, len(rows))
    one, other = (
        expected_calibration_error(np.array([s for s, _ in table]), np.array([r for _, r in table]))
        for table in (rows, shuffled)
    )
    assert one == pytest.approx(other, abs=1e-12)


def test_reliability_of_few_values_has_few_bins_that_weigh_everything() -> None:
    bins = reliability(np.array([1.0, 1.0, 0.0, NAN]), np.array([True, False, False, True]))
    assert bins.confidence.tolist() == [0.0, 1.0]
    assert bins.accuracy.tolist() == [0.0, 0.5]
    assert bins.weight.sum() == pytest.approx(1.0)
    assert np.isnan(expected_calibration_error(np.array([NAN]), np.array([True])))


def test_a_tie_group_falls_into_the_bin_of_its_middle_rank() -> None:
    bins = reliability(np.r_[0.1, np.full(9, 0.9)], np.ones(10, bool), bins=2)
    assert bins.weight == pytest.approx([0.1, 0.9])


def test_brier_is_the_mean_squared_gap() -> None:
    assert brier(np.array([0.8, 0.3, NAN]), np.array([True, False, True])) == pytest.approx((0.04 + 0.09) / 2)
    assert np.isnan(brier(np.array([NAN]), np.array([True])))


# ------------------------------------------------------------------------------------------ decisions
def test_the_gate_promotes_above_zero_only_and_prints_the_interval() -> None:
    base = np.repeat([True, False], 50)
    better = base.copy()
    better[50:55] = True
    up, level, down = (promotion_gate(a, b) for a, b in ((better, base), (base, base), (base, better)))
    assert (up.promoted, level.promoted, down.promoted) == (True, False, False)
    assert "+5.0 points (95% interval" in up.message
    assert "kept" in level.message


def test_a_gain_that_may_be_chance_is_promoted_and_its_interval_said() -> None:
    base = np.repeat([True, False], 25)
    little = base.copy()
    little[[0, 25, 26]] = False, True, True
    told = promotion_gate(little, base)
    assert told.promoted and told.gain is not None and told.gain.low < 0 < told.gain.estimate
    assert "interval -" in told.message


def test_without_a_development_set_there_is_no_gate_and_that_is_said() -> None:
    told = promotion_gate(None, None)
    assert told.gain is None
    assert "no development set" in told.message


def test_the_gate_promotes_a_model_five_points_worse_in_about_13_percent_of_cases() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, size=(20_000, 50), p=[0.9, 0.025, 0.075])  # 10 % discordant, 5 points worse
    promoted = np.mean((kinds == 1).sum(axis=1) > (kinds == 2).sum(axis=1))
    ours, theirs = kinds[0] != 2, kinds[0] != 1
    assert promotion_gate(ours, theirs).promoted == (np.sum(kinds[0] == 1) > np.sum(kinds[0] == 2))
    assert promoted < 0.15


def test_a_point_has_a_cost_only_where_the_interval_excludes_zero() -> None:
    sure = Interval(estimate=0.02, low=0.01, high=0.03, n=100)
    unsure = Interval(estimate=0.02, low=-0.01, high=0.05, n=100)
    loss = Interval(estimate=-0.02, low=-0.03, high=-0.01, n=100)
    assert cost_per_point(3.0, sure) == pytest.approx(1.5)
    assert cost_per_point_text(3.0, sure) == "$1.50"
    assert [cost_per_point_text(3.0, gain) for gain in (unsure, loss)] == ["undefined", "undefined"]
    assert points(sure) == "+2.0 points (95% interval +1.0 to +3.0)"
