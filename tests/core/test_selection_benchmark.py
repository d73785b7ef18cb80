"""The benchmark that proves the promises runs, and notices a broken one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

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
