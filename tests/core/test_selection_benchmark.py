"""The benchmark that proves the promises runs, and notices a broken one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import label_counts, ties
from benchmarks.selection import SCENARIOS, Row, Speed, broken_promises, main, measure, measure_speed
from benchmarks.selection_cross import CREWS, broken_cross, measure_cross

FAST = Speed(items=1_000_000, estimate_s=1.0, pool_s=1.0, select_s=0.1, total_s=2.1, peak_gb=0.5)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [row for scenario in SCENARIOS for row in measure(scenario, splits=60, seed=1)]


def test_the_rules_keep_their_promises_on_every_simulated_crew(rows: list[Row]) -> None:
    assert {row.scenario for row in rows} == {scenario.name for scenario in SCENARIOS}
    assert broken_promises(rows, FAST) == []


def test_a_broken_promise_is_named(rows: list[Row]) -> None:
    bad = replace(rows[0], promise_kept=False)
    assert bad.scenario in broken_promises([*rows, bad], FAST)[0]
    assert "keeps something" in broken_promises([replace(row, empty=1.0) for row in rows], FAST)[0]
    assert "took" in broken_promises(rows, replace(FAST, total_s=5.1))[0]


def test_cross_fitting_is_measured_and_a_broken_share_is_named() -> None:
    rows = measure_cross(CREWS[0], [100], draws=40, seed=1)
    assert {row.way for row in rows} == {"holdout", "cross-2", "cross-5", "cross-5x3", "fitted-5", "uneven-5"}
    assert broken_cross(rows) == []
    by_way = {row.way: row for row in rows}
    assert by_way["cross-5"].coverage > by_way["holdout"].coverage, "all labels teach and calibrate"
    assert by_way["cross-5"].coverage > by_way["uneven-5"].coverage
    false = replace(by_way["cross-2"], false_share=0.2)
    empty = replace(by_way["cross-5"], empty=0.3, room=0.5)
    assert ["cross-2" in broken_cross([false])[0], "keeps nothing" in broken_cross([empty])[0]] == [True, True]


def test_the_speed_run_measures_every_step() -> None:
    speed = measure_speed(20_000)
    assert speed.items == 20_000
    assert 0 < speed.estimate_s < speed.total_s


def test_the_command_prints_json_that_anyone_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", "--quick", "--splits", "3"])
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert {"rows", "cross", "speed", "broken"} <= set(told)
    main(["--quick", "--splits", "3"])
    assert "false" in capsys.readouterr().out


def test_ties_broken_without_labels_keep_more_on_the_same_draws_and_within_the_budget() -> None:
    found = [row for row in ties.measure(draws=40) if (row.alpha, row.n_calibration) == (0.05, 200)]
    by_name = {row.scored: row for row in found}
    assert by_name["category"].coverage > 1.5 * by_name["a87899e"].coverage
    assert by_name["nearest"].coverage > 1.3 * by_name["a87899e"].coverage
    assert all(row.false_share <= 0.05 + 3 * row.standard_error for row in found)


def test_ranges_that_hold_too_seldom_or_scores_that_keep_too_little_are_named() -> None:
    row = ties.Row(
        scored="category",
        alpha=0.05,
        n_calibration=200,
        draws=9,
        coverage=0.4,
        false_share=0.03,
        standard_error=0.001,
        empty=0.1,
    )
    rows = [row, replace(row, scored="nearest"), replace(row, scored="a87899e", coverage=0.1)]
    cell = ties.RangeRow(scenario="s", alpha=0.1, n_calibration=50, selections=90, held=0.9, empty_told=0.1, empty=0.1)
    cells = [replace(cell, n_calibration=n) for n in ties.SIZES]
    assert ties.broken_promises(rows, cells) == []
    assert "held 70.0%" in ties.broken_promises(rows, [replace(cells[0], held=0.7), *cells[1:]])[0]
    assert "+20.0% too often" in ties.broken_promises(rows, [replace(cells[0], empty_told=0.3), *cells[1:]])[0]
    assert "keep 0.150, before 0.100" in ties.broken_promises([replace(row, coverage=0.15), *rows[1:]], cells)[0]
    assert "false labels" in ties.broken_promises([replace(row, false_share=0.06), *rows[1:]], cells)[0]


def test_a_run_with_more_labels_is_simulated_as_the_calibrated_mode_splits_it() -> None:
    held_back, all_teach = label_counts.run_once(60, 3), label_counts.run_once(59, 3)
    assert all_teach[0] == 500 and all_teach[4] == all_teach[5], "the best half, without a guarantee"
    assert held_back == label_counts.run_once(60, 3)
    assert held_back[5] >= held_back[3], "kept labels help here"
    rows = [row for row in label_counts.measure(runs=4) if row.labels in (59, 60)]
    assert [row.calibration for row in rows] == [0, 30]
    worse = [replace(rows[0], with_way_out=90.0, se=0.1), replace(rows[1], with_way_out=80.0, se=0.1)]
    assert label_counts.broken_promises(worse) == ["60 labels: 80.00 %, with 59 90.00 %"]
