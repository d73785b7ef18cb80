"""The binomial tail against its exact sum, the interval against statsmodels."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from semievol_api.selection.promises import binomial_tail, clopper_pearson


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 999))
def test_the_lower_tail_is_the_sum_of_its_terms(one: int, other: int, thousandths: int) -> None:
    count, trials = sorted((one, other))
    share = Fraction(thousandths, 1000)
    terms = (comb(trials, i) * share**i * (1 - share) ** (trials - i) for i in range(count + 1))
    assert binomial_tail(count, trials, float(share)) == pytest.approx(float(sum(terms)), abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 5000), st.sampled_from([0.8, 0.95, 0.99]))
def test_clopper_pearson_agrees_with_statsmodels(one: int, other: int, level: float) -> None:
    count, trials = sorted((one, other))
    if trials == 0:
        return
    share = clopper_pearson(count, trials, level)
    low, high = proportion_confint(count, trials, alpha=1 - level, method="beta")
    assert share.low == pytest.approx(low, abs=1e-6)
    assert share.high == pytest.approx(high, abs=1e-6)


def test_zero_errors_need_29_items_for_half_and_36_for_a_quarter_of_delta() -> None:
    assert binomial_tail(0, 29, 0.1) <= 0.05 < binomial_tail(0, 28, 0.1)
    assert binomial_tail(0, 36, 0.1) <= 0.025 < binomial_tail(0, 35, 0.1)


def test_no_items_have_no_interval() -> None:
    share = clopper_pearson(0, 0)
    assert share.low != share.low
