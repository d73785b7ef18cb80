"""Rules with a fixed size, the released code's rule, the fallback and what is said about it."""

from __future__ import annotations

from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol_api.config.method import SelectSettings
from semievol_api.errors import ConfigError, DataError, StageError
from semievol_api.selection.promises import (
    calibration_size,
    error_above_cut,
    feasibility,
    realised_range,
)
from semievol_api.selection.rule_percentile import official_2025, unanimous
from semievol_api.selection.rule_ranking import human_budget, top_n, with_class_quota
from semievol_api.selection.rules import (
    RULES,
    Abstentions,
    budget_per_round,
    check_missing_logprobs,
    count_abstentions,
    select,
    too_few,
)
from semievol_api.selection.values import Calibration, RuleSettings, Selected

NAN = float("nan")
tied = st.sampled_from([0.1, 0.5, 0.9, 1.0, NAN])


def names(count: int) -> list[str]:
    return [f"example {number}" for number in range(count)]


def calibration(n: int, error: float, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return Calibration(scores=scores, wrong=rng.random(n) < 2 * error * (1 - scores))


# ------------------------------------------------------------------------------------------------ top-n
@settings(deadline=None)
@given(st.lists(tied, min_size=1, max_size=30), st.integers(0, 35), st.randoms(use_true_random=False))
def test_top_n_keeps_the_same_examples_in_any_row_order(raw: list[float], n: int, random) -> None:  # type: ignore[no-untyped-def]
    scores, ids = np.array(raw), names(len(raw))
    order = list(range(len(raw)))
    random.shuffle(order)
    kept = top_n(scores, ids, n).kept
    again = top_n(scores[order], [ids[i] for i in order], n).kept
    assert again.tolist() == kept[order].tolist()
    assert kept.sum() == min(n, np.count_nonzero(~np.isnan(scores)))
    if kept.any() and not kept.all():
        left = scores[~kept & ~np.isnan(scores)]
        assert np.min(scores[kept]) >= np.max(left, initial=-np.inf)


def test_another_seed_breaks_ties_differently() -> None:
    scores, ids = np.ones(200), names(200)
    one, other = (top_n(scores, ids, 100, seed=seed).kept for seed in (1, 2))
    assert (one != other).any()
    assert one.sum() == other.sum() == 100


def test_top_n_says_when_there_are_too_few_answers() -> None:
    selected = top_n(np.array([0.5, NAN]), names(2), 2)
    assert selected.kept.tolist() == [True, False]
    assert "only 1" in selected.messages[0]


def test_top_n_refuses_a_negative_number_and_ids_that_do_not_fit() -> None:
    with pytest.raises(ConfigError):
        top_n(np.zeros(2), names(2), -1)
    with pytest.raises(DataError):
        top_n(np.zeros(2), names(3), 1)


# ------------------------------------------------------------------------------------------------ human
def test_a_person_is_asked_a_uniform_audit_sample_and_then_the_least_certain() -> None:
    scores = np.linspace(0, 1, 1000)
    scores[5] = NAN
    queue = human_budget(scores, names(1000), 100, audit_share=0.2)
    assert queue.asked.sum() == 100
    assert queue.audit.sum() == 20
    assert not (queue.audit & ~queue.asked).any()
    chosen = queue.asked & ~queue.audit
    assert chosen[5]
    assert np.nanmax(scores[chosen]) < np.nanmin(scores[~queue.asked])
    assert 0.3 < np.nanmean(scores[queue.audit]) < 0.7


def test_the_audit_sample_does_not_depend_on_the_scores() -> None:
    one, other = (human_budget(values, names(300), 60).audit for values in (np.ones(300), np.linspace(0, 1, 300)))
    assert (one == other).all()


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2])
def test_the_audit_is_ten_to_twenty_percent_of_every_budget_that_allows_it(share: float) -> None:
    for budget in range(5, 120):
        queue = human_budget(np.linspace(0, 1, 300), names(300), budget, share)
        assert queue.asked.sum() == budget
        assert 0.1 <= queue.audit.sum() / budget <= 0.2 or queue.audit.sum() == 1, budget
    assert human_budget(np.zeros(7), names(7), 3, share).audit.sum() == 1


def test_a_budget_larger_than_the_pool_asks_everything() -> None:
    assert human_budget(np.zeros(7), names(7), 100).asked.all()
    assert not human_budget(np.zeros(7), names(7), 0).asked.any()


def test_ties_among_the_least_certain_are_broken_by_another_lot_than_the_audits() -> None:
    queue = human_budget(np.zeros(400), names(400), 100, 0.2)
    alike = human_budget(np.zeros(400), names(400), 20, 0.2)
    rest = queue.asked & ~queue.audit
    assert 5 <= int(np.sum(human_budget(np.zeros(400), names(400), 400, 0.2).audit & rest)) <= 40
    assert (alike.audit <= queue.audit).all()


def test_an_audit_share_outside_ten_to_twenty_percent_is_refused() -> None:
    with pytest.raises(ConfigError, match="audit"):
        human_budget(np.zeros(7), names(7), 3, audit_share=0.5)


# ------------------------------------------------------------------------------------------------ quota
def test_a_quota_brings_a_vanished_class_back_and_drops_the_estimate() -> None:
    scores = np.r_[np.full(50, 0.9), np.linspace(0.1, 0.3, 50)]
    labels = np.repeat([0, 1], 50)
    strict = Selected(rule="fdr", kept=scores > 0.5, abstained=0, threshold=0.9, estimate=0.02)
    completed = with_class_quota(strict, scores, labels, names(100), 0.2)
    assert completed.kept[50:].sum() == 10
    assert completed.kept[90:].all()
    assert completed.estimate is None
    assert "10 items below the cut" in completed.messages[0]


def test_a_quota_tops_up_what_the_rule_has_kept_of_a_class() -> None:
    scores = np.r_[np.full(50, 0.9), np.linspace(0.1, 0.6, 50)]
    labels = np.repeat([0, 1], 50)
    partial = Selected(rule="fdr", kept=scores > 0.55, abstained=0, threshold=0.55)
    assert with_class_quota(partial, scores, labels, names(100), 0.4).kept[50:].tolist() == [False] * 30 + [True] * 20


def test_a_quota_that_is_already_met_changes_nothing() -> None:
    strict = Selected(rule="fdr", kept=np.ones(4, dtype=bool), abstained=0, estimate=0.1)
    assert with_class_quota(strict, np.ones(4), np.zeros(4, dtype=np.int64), names(4), 0.5) is strict


# --------------------------------------------------------------------------------------------- official
def test_the_released_rule_keeps_unanimous_answers_and_the_strictly_lowest_of_the_rest() -> None:
    answers = np.array([[1, 1, 1], [0, 1, 1], [2, 0, 1], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])
    selected = official_2025(answers, np.array([NAN, 0.1, 0.2, 0.3, 0.4, NAN]), share=0.5)
    assert selected.kept.tolist() == [True, True, True, False, False, False]
    assert selected.abstained == 1


def test_four_empty_answers_are_not_an_agreement() -> None:
    assert unanimous(np.array([[-1] * 4, [2] * 4, [2, 2, 2, -1]])).tolist() == [False, True, False]


@pytest.mark.parametrize("nll", [[0.0] * 5, [0.4]])
def test_the_released_rule_keeps_no_ties_and_says_so(nll: list[float]) -> None:
    answers = np.tile([0, 1], (len(nll), 1))
    selected = official_2025(answers, np.array(nll))
    assert selected.count == 0
    assert "values tie" in selected.messages[0]


# ----------------------------------------------------------------------------------------- expectations
def test_feasibility_gives_the_numbers_of_the_formulas() -> None:
    told = feasibility(50, 0.29, 0.1)
    assert told.smallest_coverage == pytest.approx(1 / (0.1 * 51))
    assert told.abstain_share == pytest.approx((0.29 - 0.1) / 0.9)
    assert told.possible
    assert "19.6%" in told.message


def test_too_few_labels_for_any_selection_are_said_with_the_number_needed() -> None:
    told = feasibility(8, 0.1, 0.1)
    assert not told.possible
    assert told.needed_calibration == 9
    assert feasibility(9, 0.1, 0.1).possible


def test_nothing_can_be_kept_below_the_feasible_coverage() -> None:
    perfect = Calibration(scores=np.ones(30), wrong=np.zeros(30, dtype=bool))
    settings = RuleSettings(alpha=0.1)
    needed = feasibility(30, 0.0, 0.1).smallest_coverage
    for answered in (30, 35):
        scores = np.r_[np.ones(answered), np.full(100 - answered, NAN)]
        assert (select(scores, names(100), perfect, settings).count > 0) == (answered / 100 >= needed)


def test_the_simulated_range_is_wider_with_fewer_calibration_labels() -> None:
    pool = np.random.default_rng(1).random(1000)
    few, many = (realised_range(pool, calibration(n, 0.3), 0.1, runs=300) for n in (50, 400))
    assert many.low <= many.median <= many.high
    assert few.high - few.low > many.high - many.low
    assert many.mean <= 0.1 + 3 * 0.05 / 300**0.5
    assert realised_range(pool, calibration(50, 0.3), 0.1, runs=300) == few
    assert "single run may exceed" in few.message


def test_the_printed_range_holds_the_actual_share_in_about_nine_of_ten_runs() -> None:
    rng = np.random.default_rng(4)
    everything = rng.random(20_000)
    wrong = rng.random(20_000) < 0.55 * (1.0 - everything)
    held: list[bool] = []
    for draw in range(300):
        drawn = rng.choice(20_000, size=1_050, replace=False)
        slice_ = Calibration(scores=everything[drawn[:50]], wrong=wrong[drawn[:50]])
        told = realised_range(everything[drawn[50:]], slice_, 0.2, runs=0, seed=draw)
        kept = select(everything[drawn[50:]], names(1_000), slice_, RuleSettings(alpha=0.2)).kept
        if kept.any():
            held.append(told.low <= wrong[drawn[50:]][kept].mean() <= told.high)
    assert len(held) > 250
    assert 0.85 <= np.mean(held) <= 0.96


def test_a_flawless_calibration_slice_does_not_promise_flawless_labels() -> None:
    pool = np.random.default_rng(1).random(1000)
    told = realised_range(pool, calibration(50, 0.0), 0.2, runs=200)
    assert told.high > 0.005


def test_an_empty_pool_or_slice_has_no_range_but_a_message() -> None:
    none = Calibration(scores=np.array([]), wrong=np.array([], dtype=bool))
    told = realised_range(np.array([0.5]), none, runs=3)
    assert told.empty_share == 1.0
    assert "kept nothing in 100%" in told.message
    assert realised_range(np.array([]), none, runs=3).empty_share == 1.0


@pytest.mark.parametrize(
    ("labels", "size"),
    [
        (0, 0),
        (10, 0),
        (25, 0),
        (59, 0),
        (60, 30),
        (80, 40),
        (100, 50),
        (250, 50),
        (400, 80),
        (2500, 500),
        (9999, 500),
    ],
)
def test_the_calibration_split_follows_the_number_of_labels(labels: int, size: int) -> None:
    assert calibration_size(labels) == size


def test_the_error_above_the_cut_is_counted_on_the_calibration_slice() -> None:
    slice_ = Calibration(scores=np.array([0.9, 0.8, 0.7, NAN]), wrong=np.array([False, True, True, True]))
    cut = Selected(rule="fdr", kept=np.ones(3, dtype=bool), abstained=0, threshold=0.8)
    found = error_above_cut(cut, slice_)
    assert found.estimate == 0.5
    assert found.low < 0.5 < found.high
    assert np.isnan(error_above_cut(Selected(rule="fdr", kept=np.zeros(3, bool), abstained=0), slice_).estimate)


# ----------------------------------------------------------------------------------------------- choice
def test_below_thirty_calibration_labels_the_percentile_rule_takes_over_and_says_so() -> None:
    scores = np.linspace(0, 1, 100)
    for few in (None, calibration(29, 0.1)):
        selected = select(scores, names(100), few, RuleSettings(rule="fdr"))
        assert selected.rule == "percentile"
        assert selected.count == 50
        assert "No guarantee" in selected.messages[0]
    assert select(scores, names(100), calibration(30, 0.0), RuleSettings(rule="fdr")).rule == "fdr"


def test_fewer_than_twenty_kept_skip_the_final_stage_and_say_so() -> None:
    scores = np.linspace(0, 1, 100)
    few = select(scores, names(100), None, RuleSettings(rule="top-n", n=19))
    enough = select(scores, names(100), None, RuleSettings(rule="top-n", n=20))
    assert not few.enough
    assert enough.enough
    (said,) = too_few(few.count, scores.size)
    assert "Only 19 of 100" in said and "final stage is skipped" in said
    assert too_few(enough.count, scores.size) == ()


@pytest.mark.parametrize("rule", ["fdr", "high-probability", "percentile", "top-n"])
def test_every_rule_is_reached_by_its_name(rule) -> None:  # type: ignore[no-untyped-def]
    settings = RuleSettings(rule=rule, n=40)
    assert select(np.linspace(0, 1, 200), names(200), calibration(200, 0.1), settings).rule == rule


def test_rounds_share_the_budget_unless_each_has_a_fresh_fold() -> None:
    assert budget_per_round(RuleSettings(alpha=0.1, rounds=3)) == Fraction(1, 10)
    assert budget_per_round(RuleSettings(alpha=0.1, rounds=3, fresh_fold_per_round=False)) == Fraction(1, 30)
    with pytest.raises(ConfigError, match="rounds"):
        budget_per_round(RuleSettings(rounds=0))


def test_abstentions_are_sorted_by_reason() -> None:
    counted = count_abstentions(
        ["stop", "stop", "stop", "length", "refused", "failed"],
        np.array([True, True, False, True, False, False]),
        np.array([True, False, False, True, False, False]),
    )
    assert counted == Abstentions(total=6, truncated=1, refused=1, failed=1, no_answer=1, missing_logprobs=1)
    assert counted.count == 5


def test_more_than_five_percent_of_missing_log_probabilities_fail_the_run() -> None:
    def with_missing(count: int) -> Abstentions:
        return Abstentions(total=100, truncated=9, refused=0, failed=0, no_answer=0, missing_logprobs=count)

    check_missing_logprobs(with_missing(5))
    with pytest.raises(StageError, match="without log-probabilities"):
        check_missing_logprobs(with_missing(6))


def test_every_rule_of_the_config_that_ranks_by_score_is_in_the_table() -> None:
    of_config = set(get_args(SelectSettings.model_fields["rule"].annotation))
    assert of_config - set(RULES) == {"human-budget", "official-2025"}
    assert set(RULES) <= of_config


def test_a_rule_that_is_not_in_the_table_is_refused_with_those_that_are() -> None:
    scores = np.array([0.5, 0.7])
    with pytest.raises(ConfigError, match="no rule 'best'; there are fdr, high-probability, percentile, random, top-n"):
        select(scores, ["a", "b"], None, RuleSettings(rule="best"))
