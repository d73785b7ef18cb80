"""What the benchmarks of labels and recipes compute from runs, on runs that are made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.labels import TOGETHER, Answers, Judged, broken_promises, confidences, realised
from benchmarks.recipes import RECIPES, Measured, differences, summary, table
from semievol_api.evaluation.statistics import BootstrapSettings


def judged(informative: bool = True, items: int = 600) -> Judged:
    rng = np.random.default_rng(0)
    right = rng.random(items) < 0.75
    sure = np.clip(0.5 + 0.3 * right + 0.15 * rng.standard_normal(items), 0.2, 1.0)
    noise = rng.random(items)
    ours, theirs = (sure, noise) if informative else (noise, sure)
    return Judged({"warm": answers(ours, theirs, right)}, sure, ~right)


def answers(ours: np.ndarray, theirs: np.ndarray, right: np.ndarray, said: np.ndarray | None = None) -> Answers:
    said = np.zeros(right.size, dtype=np.int64) if said is None else said
    return Answers(ours, ours, theirs, right, said, np.arange(right.size))


def test_a_confidence_that_knows_less_is_named_and_one_that_knows_more_is_not() -> None:
    (better,) = confidences("t", judged())
    assert better.option_prob > 0.8 > 0.6 > better.mean_nll
    assert better.no_worse and better.low > 0
    (worse,) = confidences("t", judged(informative=False))
    assert not worse.no_worse
    assert "worse than mean_nll" in broken_promises([better, worse], [])[0]
    assert len(broken_promises([better, worse], [])) == 1


def test_an_annotator_without_errors_has_no_auroc_and_is_left_out() -> None:
    flawless = np.ones(50, dtype=np.bool_)
    said = answers(np.ones(50), np.ones(50), flawless)
    assert confidences("t", Judged({"a": said}, np.ones(50), ~flawless)) == []


def test_an_interval_for_a_family_is_wider_and_the_question_is_what_is_drawn() -> None:
    alone, twice = judged().annotators["warm"], judged()
    (single,) = confidences("t", twice, family=6)
    assert single.family_low < single.low < single.difference < single.high < single.family_high
    first, second, together = confidences("t", Judged({"a": alone, "b": alone}, twice.score, twice.wrong))
    assert together.annotator == TOGETHER and together.items == 2 * first.items
    assert (together.difference, together.low, together.high) == (first.difference, first.low, first.high)
    assert second.difference == first.difference


def test_what_only_tells_one_answer_from_another_tells_nothing_among_equal_answers() -> None:
    rng = np.random.default_rng(1)
    said = rng.integers(2, size=2_000)
    right = rng.random(2_000) < np.where(said == 0, 0.9, 0.4)
    by_answer = said + 0.01 * rng.random(2_000)
    (row,) = confidences("t", Judged({"a": answers(rng.random(2_000), -by_answer, right, said)}, by_answer, ~right))
    assert row.mean_nll > 0.7 and abs(row.mean_nll_within - 0.5) < 0.05


def test_the_budget_holds_on_average_over_splits_and_more_calibration_keeps_more() -> None:
    rows = realised("t", judged(), 60)
    assert {(row.n_calibration, row.alpha) for row in rows} == {(n, a) for n in (50, 100, 200) for a in (0.1, 0.2)}
    assert broken_promises([], rows) == []
    at = {row.n_calibration: row for row in rows if row.alpha == 0.1}
    assert at[200].coverage > at[50].coverage
    assert all(row.p5 <= row.false_share <= row.p95 or row.empty > 0 for row in rows)
    assert "false labels on average" in broken_promises([], [replace(rows[0], false_share=0.5)])[0]


def test_a_pool_too_small_for_a_calibration_size_has_no_row() -> None:
    assert {row.n_calibration for row in realised("t", judged(items=150), 5)} == {50}


def made_up(gain: float, seeds: int = 5, ceiling: bool = True) -> dict[int, Measured]:
    runs: dict[int, Measured] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        luck = rng.random(480)
        sides = {"base": 0.2, "sft": 0.75, "semievol": 0.75 + gain, **({"ceiling": 0.82} if ceiling else {})}
        correct = {name: (luck < level).astype(np.float64) for name, level in sides.items()}
        runs[seed] = Measured(correct=correct, kept=420, false_share=0.08, promoted=None)
    return runs


def test_a_gain_in_every_seed_excludes_zero_and_none_is_exactly_zero() -> None:
    row = summary("chosen", made_up(0.04))
    assert row.evolved_minus_sft[1] > 0
    assert len(row.by_seed) == 5 and row.questions == 480
    assert row.ceiling is not None and row.ceiling_minus_sft is not None
    assert row.ceiling > row.evolved > row.sft > row.vanilla
    assert summary("paper", made_up(0.0)).evolved_minus_sft == (0.0, 0.0, 0.0)
    assert summary("paper", made_up(0.0, ceiling=False)).ceiling is None


def test_recipes_are_compared_on_the_seeds_that_both_have() -> None:
    runs = {"paper": made_up(0.0, seeds=1), "chosen": made_up(0.04), "calibrated": {}}
    found = differences(runs, BootstrapSettings(resamples=200))
    assert set(found) == {"paper - chosen"}
    assert found["paper - chosen"][0] < 0
    text = table([summary(name, runs[name]) for name in ("paper", "chosen")], found)
    assert "| chosen |" in text and "- paper - chosen:" in text


def test_the_table_holds_the_three_modes_and_the_chosen_recipe() -> None:
    assert list(RECIPES) == ["paper", "calibrated", "official-2025", "auto", "chosen"]
