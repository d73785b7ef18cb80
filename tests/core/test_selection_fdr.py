"""The rules with a false-label budget, on arrays."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol_api.errors import ConfigError, DataError
from semievol_api.selection.rule_fdr import fdr
from semievol_api.selection.rule_high_probability import high_probability
from semievol_api.selection.values import Calibration

NAN = float("nan")
tied = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, NAN])
alphas = st.sampled_from([0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5])
pools = st.lists(tied, min_size=1, max_size=40)
slices = st.lists(st.tuples(tied, st.booleans()), max_size=40)


def calibration_of(pairs: list[tuple[float, bool]]) -> Calibration:
    return Calibration(
        scores=np.array([score for score, _ in pairs], dtype=np.float64),
        wrong=np.array([wrong for _, wrong in pairs], dtype=np.bool_),
    )


def benjamini_hochberg_on_conformal_p_values(
    scores: list[float], pairs: list[tuple[float, bool]], alpha: float
) -> list[bool]:
    """The textbook form, item by item, in fractions."""
    n, m = len(pairs), len(scores)
    p_values = [
        Fraction(1 + sum(wrong and cal >= score for cal, wrong in pairs), n + 1) if score == score else Fraction(2)
        for score in scores
    ]
    ordered = sorted(p_values)
    passing = [rank for rank, p in enumerate(ordered, start=1) if p <= Fraction(str(alpha)) * rank / m]
    cut = ordered[max(passing) - 1] if passing else Fraction(-1)
    return [p <= cut for p in p_values]


@settings(max_examples=1000, deadline=None)
@given(pools, slices, alphas)
def test_fdr_equals_benjamini_hochberg_on_conformal_p_values(
    scores: list[float], pairs: list[tuple[float, bool]], alpha: float
) -> None:
    selected = fdr(np.array(scores), calibration_of(pairs), alpha)
    assert selected.kept.tolist() == benjamini_hochberg_on_conformal_p_values(scores, pairs, alpha)


@settings(deadline=None)
@given(pools, slices)
def test_a_larger_budget_keeps_a_superset(scores: list[float], pairs: list[tuple[float, bool]]) -> None:
    strict, loose = (fdr(np.array(scores), calibration_of(pairs), alpha).kept for alpha in (0.1, 0.2))
    assert not (strict & ~loose).any()


@settings(deadline=None)
@given(pools, slices, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(scores: list[float], pairs: list[tuple[float, bool]], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = random.sample(pairs, len(pairs))
    array = np.array(scores)
    for rule in (fdr, high_probability):
        kept = rule(array, calibration_of(pairs), 0.2).kept
        again = rule(array[order], calibration_of(shuffled), 0.2).kept
        assert again.tolist() == kept[order].tolist()


@settings(deadline=None)
@given(pools, slices)
def test_tie_groups_stay_whole_and_abstentions_out(scores: list[float], pairs: list[tuple[float, bool]]) -> None:
    array = np.array(scores)
    for rule in (fdr, high_probability):
        selected = rule(array, calibration_of(pairs), 0.25)
        cut = np.inf if selected.threshold is None else selected.threshold
        assert (selected.kept == (array >= cut)).all()


def test_the_estimate_is_the_formula_at_the_threshold() -> None:
    scores = np.linspace(0, 1, 101)
    calibration = Calibration(scores=np.linspace(0, 1, 50), wrong=np.linspace(0, 1, 50) < 0.4)
    selected = fdr(scores, calibration, 0.1)
    tau = selected.threshold
    assert tau is not None
    wrong_above = int(np.sum(calibration.wrong & (calibration.scores >= tau)))
    assert selected.estimate == pytest.approx(101 * (1 + wrong_above) / 51 / np.sum(scores >= tau))
    assert selected.estimate <= 0.1


def test_a_budget_met_exactly_is_met() -> None:
    # m (1 + 0) / (n + 1) / R = 10 / 100 / 1 = 0.1 exactly
    calibration = Calibration(scores=np.zeros(99), wrong=np.ones(99, dtype=bool))
    scores = np.r_[1.0, np.full(9, NAN)]
    assert fdr(scores, calibration, 0.1).count == 1
    assert fdr(scores, calibration, Fraction(999, 10_000)).count == 0


def test_an_alpha_with_many_digits_is_compared_exactly() -> None:
    calibration = Calibration(scores=np.zeros(99), wrong=np.ones(99, dtype=bool))
    scores = np.r_[1.0, np.full(9, NAN)]
    assert fdr(scores, calibration, Fraction(10**30 - 1, 10**31)).count == 0
    assert fdr(scores, calibration, Fraction(10**30, 10**31)).count == 1


@pytest.mark.parametrize("rule", [fdr, high_probability])
@pytest.mark.parametrize("scores", [np.array([]), np.full(5, NAN)])
def test_a_pool_without_answers_keeps_nothing_and_says_so(rule, scores) -> None:  # type: ignore[no-untyped-def]
    selected = rule(scores, calibration_of([(0.5, False)] * 40), 0.1)
    assert selected.count == 0
    assert selected.messages[0].startswith("Nothing was selected")


@pytest.mark.parametrize("rule", [fdr, high_probability])
def test_without_calibration_labels_nothing_is_kept(rule) -> None:  # type: ignore[no-untyped-def]
    assert rule(np.linspace(0, 1, 50), calibration_of([]), 0.2).count == 0


@pytest.mark.parametrize("rule", [fdr, high_probability])
def test_equal_scores_are_kept_all_or_none(rule) -> None:  # type: ignore[no-untyped-def]
    pool = np.ones(50)
    assert rule(pool, calibration_of([(1.0, False)] * 60), 0.1).count == 50
    assert rule(pool, calibration_of([(1.0, True)] * 60), 0.1).count == 0


@pytest.mark.parametrize("rule", [fdr, high_probability])
@pytest.mark.parametrize("alpha", [0.0, 1.0, NAN, -0.1])
def test_an_impossible_budget_is_refused(rule, alpha: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="alpha"):
        rule(np.zeros(3), calibration_of([]), alpha)


def test_scores_and_verdicts_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="shapes"):
        Calibration(scores=np.zeros(3), wrong=np.zeros(2, dtype=bool))


def test_high_probability_takes_the_loosest_certified_cut() -> None:
    scores = np.arange(1000) / 1000
    calibration = Calibration(scores=np.arange(500) / 500, wrong=np.arange(500) / 500 < 0.25)
    selected = high_probability(scores, calibration, 0.1)
    # errors lie below 0.25: every cut is clean down to 0.75, and looser cuts stay under 10 % for a while
    assert selected.threshold is not None
    assert 0.15 < selected.threshold <= 0.25
    assert selected.estimate is not None
    assert selected.estimate < 0.1


def test_high_probability_with_29_flawless_items_above_mid_coverage_certifies() -> None:
    pool = np.arange(100) / 100
    enough = Calibration(scores=np.r_[np.full(29, 0.5), 0.1], wrong=np.r_[np.zeros(29, bool), True])
    too_few = Calibration(scores=np.r_[np.full(28, 0.5), 0.1], wrong=np.r_[np.zeros(28, bool), True])
    assert high_probability(pool, enough, 0.1).count >= 50
    assert high_probability(pool, too_few, 0.1).count == 0


def test_high_probability_does_not_walk_past_a_failing_cut() -> None:
    pool = np.arange(100) / 100
    # wrong items just above mid-coverage, right ones far below: looser cuts would certify, but the walk stops
    scores = np.r_[np.full(20, 0.52), np.full(600, 0.05)]
    calibration = Calibration(scores=scores, wrong=scores > 0.5)
    assert high_probability(pool, calibration, 0.1).count == 0


@settings(deadline=None)
@given(pools, slices, st.integers(0, 30))
def test_what_earlier_rounds_kept_counts_in_the_pool_like_abstentions(
    scores: list[float], pairs: list[tuple[float, bool]], gone: int
) -> None:
    calibration = calibration_of(pairs)
    left = fdr(np.array(scores), calibration, 0.25, gone=gone)
    whole = fdr(np.array(scores + [NAN] * gone), calibration, 0.25)
    assert left.kept.tolist() == whole.kept[: len(scores)].tolist()
    assert left.estimate == whole.estimate


def test_a_later_round_keeps_the_budget_on_what_the_first_one_left() -> None:
    """The easy items are gone, and a fresh calibration fold is as easy as the whole pool was."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ease = rng.random(1_600)
        wrong = rng.random((2, 1_600)) < np.array([[0.3], [0.17]]) * (1 - ease)
        scores = ease + np.array([[0.05], [1.0]]) * rng.standard_normal((2, 1_600))
        first, second, pool = np.arange(300), np.arange(300, 600), np.arange(600, 1_600)
        kept = fdr(scores[0, pool], Calibration(scores=scores[0, first], wrong=wrong[0, first]), 0.1).kept
        rest, fresh = pool[~kept], Calibration(scores=scores[1, second], wrong=wrong[1, second])
        for counted in shares:
            more = fdr(scores[1, rest], fresh, 0.1, gone=int(kept.sum()) if counted else 0).kept
            shares[counted].append(float(wrong[1, rest][more].mean()) if more.any() else 0.0)
    assert np.mean(shares[True]) <= 0.1
    assert np.mean(shares[False]) > 0.11, "the count of what is left alone breaks the promise"


def certified_by_hand(scores: list[float], pairs: list[tuple[float, bool]], alpha: float) -> list[bool]:
    """Learn-then-Test, cut by cut, in fractions."""
    ranked = sorted((s for s in scores if s == s), reverse=True)
    bound, cuts = Fraction(str(alpha)), list[float]()
    for start, share in (
        (Fraction(1, 2), Fraction(1, 2)),
        (Fraction(3, 10), Fraction(1, 4)),
        (Fraction(3, 20), Fraction(1, 4)),
    ):
        coverage = start
        while coverage <= 1 and max(1, ceil(len(scores) * coverage)) <= len(ranked):
            cut = ranked[max(1, ceil(len(scores) * coverage)) - 1]
            above = [wrong for score, wrong in pairs if score >= cut]
            n = len(above)
            tail = sum(comb(n, i) * bound**i * (1 - bound) ** (n - i) for i in range(sum(above) + 1))
            if not above or tail > share / 10:
                break
            cuts.append(cut)
            coverage += Fraction(1, 20)
    return [bool(cuts) and score >= min(cuts) for score in scores]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.2]), st.sampled_from([5, 20, 1_000]))
def test_high_probability_equals_its_walks_cut_by_cut(seed: int, alpha: float, grid: int) -> None:
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(5, 80)), int(rng.integers(30, 200))
    scores, calibrating = (np.round(rng.random(size) * grid) / grid for size in (m, n))
    scores[rng.random(m) < rng.choice([0.0, 0.3])] = NAN
    wrong = rng.random(n) < rng.choice([0.05, 0.2, 0.6]) * (1 - calibrating) ** 2
    pairs = list(zip(calibrating.tolist(), wrong.tolist(), strict=True))
    kept = high_probability(scores, calibration_of(pairs), alpha).kept
    assert kept.tolist() == certified_by_hand(scores.tolist(), pairs, alpha)
