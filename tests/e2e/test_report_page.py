"""The report in a real browser: real clicks and keys, nothing fetched, nothing complained of, quick on 100,000 rows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import semievol_api.demo
from semievol_api.report.page import write_report
from tests.chromium import chromium, console_errors, requested, serious_violations
from tests.synthetic_run import synthetic_run

DEMO = Path(semievol_api.demo.__file__).parent
CASSETTE = Path(__file__).resolve().parents[2] / "cassettes/demo/full"
MANY = 100_000
MAX_BYTES = 4_000_000
FIRST_PAINT_MS = 2_000
FILTER_MS = 200


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def small(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(synthetic_run(tmp_path_factory.mktemp("small") / "run"))


@pytest.fixture(scope="module")
def large(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(synthetic_run(tmp_path_factory.mktemp("large") / "run", rows=MANY))


@pytest.fixture
def page(driver: Any, small: Path) -> Any:
    return _opened(driver, small)


def _opened(driver: Any, path: Path) -> Any:
    driver.get(path.as_uri())
    _until(lambda: driver.execute_script("return document.getElementById('grid').dataset.ready"), "the rows")
    return driver


def _until(check: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.05)


def _choose(driver: Any, select: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", select)).select_by_visible_text(text)


def _cells(driver: Any, column: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#rows .row')].sort((a, b) => a.dataset.at - b.dataset.at)"
        f".map((r) => r.children[{column}].textContent)"
    )
    return list(driver.execute_script(script))


def _count(driver: Any) -> str:
    return str(driver.find_element("id", "count").text)


def test_nothing_is_fetched_and_nothing_complained_of(driver: Any, small: Path) -> None:
    requested(driver)
    _opened(driver, small)
    assert [url for url in requested(driver) if not url.startswith(("file:", "data:"))] == []
    assert console_errors(driver) == []


def test_search_filters_and_their_clearing(page: Any) -> None:
    assert _count(page).startswith("600 of 600 rows")
    page.find_element("id", "search").send_keys("Enzyme NEBULA")
    questions = _cells(page, 1)
    assert questions
    full = page.execute_script("return document.getElementById('count').textContent")
    assert full != "600 of 600 rows"
    _choose(page, "decision", "kept")
    assert set(_cells(page, 5)) <= {"✓ kept"}
    page.find_element("id", "clear").click()
    assert _count(page).startswith("600 of 600 rows")
    _choose(page, "truth", "wrong")
    assert set(_cells(page, 6)) == {"✕ wrong"}
    _choose(page, "truth", "right")
    _choose(page, "agreement", "all agree")
    assert set(_cells(page, 4)) == {"4 of 4"}
    page.find_element("id", "search").send_keys("no such words anywhere")
    assert _count(page).startswith("0 of 600 rows, 0 kept")
    assert console_errors(page) == []


def test_headings_sort_both_ways_and_say_so(page: Any) -> None:
    heading = page.find_element("css selector", '[data-sort="confidence"]')
    heading.click()
    shares = [float(c.removesuffix(" %")) for c in _cells(page, 3) if c != "–"]
    assert shares == sorted(shares, reverse=True)
    assert heading.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    heading.click()
    shares = [float(c.removesuffix(" %")) for c in _cells(page, 3) if c != "–"]
    assert shares == sorted(shares)
    page.find_element("css selector", '[data-sort="question"]').click()
    assert _cells(page, 1) == sorted(_cells(page, 1))


def test_a_click_opens_a_row_with_all_that_was_said_of_it(page: Any) -> None:
    page.find_element("css selector", "#rows .row").click()
    text = page.find_element("id", "row").text
    for piece in (
        "Which statement",
        "A. the",
        "base-0shot",
        "warm-3shot",
        "justification",
        "Answer:",
        "Hidden gold",
        "cut",
    ):
        assert piece in text, piece
    assert ("Kept" in text) or ("Dropped" in text)
    first = page.find_element("id", "row-title").text
    page.find_element("id", "next").click()
    assert page.find_element("id", "row-title").text != first
    page.find_element("id", "close").click()
    assert not page.find_element("id", "row").is_displayed()


def test_the_keyboard_alone_walks_opens_and_closes(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    grid = page.find_element("id", "grid")
    page.execute_script("arguments[0].focus()", grid)
    grid.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    assert page.find_element("id", "row-title").text.startswith("Row 3 ")
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.find_element("id", "row").is_displayed()
    assert page.switch_to.active_element.get_attribute("id") == "grid"
    grid.send_keys(Keys.END)
    assert _cells(page, 0)[-1] == "600"


def test_the_theme_switches_every_colour_of_page_and_plots(page: Any) -> None:
    script = (
        "const s = getComputedStyle(document.body), t = getComputedStyle(document.querySelector('figure svg text'));"
        "return [s.backgroundColor, s.color, t.fill]"
    )
    before = page.execute_script(script)
    page.find_element("id", "theme").click()
    after = page.execute_script(script)
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert page.find_element("id", "theme").get_attribute("aria-pressed") in ("true", "false")
    page.find_element("id", "theme").click()
    assert page.execute_script(script) == before


def test_it_prints_light_without_the_tools(page: Any) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = page.execute_script("return getComputedStyle(document.querySelector('#labels .tools')).display")
        paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert (shown, paper) == ("none", "rgb(255, 255, 255)")


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_searched_filtered_and_sorted_without_lag(driver: Any, large: Path) -> None:
    assert large.stat().st_size < MAX_BYTES
    requested(driver)
    page = _opened(driver, large)
    paints = page.execute_script("return performance.getEntriesByType('paint').map((p) => p.startTime)")
    assert paints
    assert max(paints) < FIRST_PAINT_MS
    assert _count(page).startswith("100,000 of 100,000 rows")
    assert page.find_element("id", "cut-note").text.startswith("To keep this file small")
    grid = page.find_element("id", "grid")
    times: dict[str, float] = {}
    page.find_element("id", "search").send_keys("enzyme")
    times["search"] = float(grid.get_attribute("data-ms"))
    _choose(page, "decision", "dropped")
    times["filter"] = float(grid.get_attribute("data-ms"))
    page.find_element("id", "clear").click()
    times["clear"] = float(grid.get_attribute("data-ms"))
    assert max(times.values()) < FILTER_MS, times
    page.find_element("css selector", '[data-sort="confidence"]').click()
    assert float(grid.get_attribute("data-ms")) < 5 * FILTER_MS
    page.execute_script("arguments[0].scrollTop = arguments[0].scrollHeight", grid)
    _until(lambda: len(_cells(page, 0)) > 5 and _cells(page, 3)[-1] == "–", "the last rows")
    assert len(_cells(page, 0)) < 60
    page.find_element("css selector", "#rows .row:last-child").click()
    assert "justification" in page.find_element("id", "row").text
    page.find_element("id", "close").click()
    assert [url for url in requested(driver) if not url.startswith(("file:", "data:"))] == []
    assert console_errors(driver) == []


@pytest.mark.slow
def test_the_demos_own_report_is_walked_by_clicks(driver: Any, tmp_path: Path, child_env: dict[str, str]) -> None:
    text = (DEMO / "demo.toml").read_text("utf-8")
    for name in ("model", "task.toml", "data/labeled.csv", "data/unlabeled.csv", "data/test.csv"):
        text = text.replace(f'"{name}"', f'"{DEMO / name}"')
    (tmp_path / "semievol.toml").write_text(text, "utf-8")
    replay = ["run", str(tmp_path / "semievol.toml"), "--cassette", str(CASSETTE), "--json"]
    subprocess.run(
        [sys.executable, "-m", "semievol_api.cli.app", *replay], env=child_env, check=True, capture_output=True
    )
    report = write_report(tmp_path / "run")
    requested(driver)
    page = _opened(driver, report)
    assert page.find_element("tag name", "h1").text and _count(page).startswith("600 of 600 rows")
    page.find_element("id", "search").send_keys("market")
    assert 0 < int(_count(page).split(" ")[0]) < 600
    _choose(page, "decision", "kept")
    assert set(_cells(page, 5)) == {"✓ kept"}
    page.find_element("id", "clear").click()
    page.find_element("css selector", '[data-sort="confidence"]').click()
    shares = [float(c.removesuffix(" %")) for c in _cells(page, 3) if c != "–"]
    assert shares == sorted(shares, reverse=True)
    page.find_element("css selector", "#rows .row").click()
    assert "Hidden gold" in page.find_element("id", "row").text
    page.find_element("id", "close").click()
    page.find_element("id", "theme").click()
    assert serious_violations(page) == []
    page.execute_script("localStorage.clear()")
    assert [url for url in requested(driver) if not url.startswith(("file:", "data:"))] == []
    assert console_errors(driver) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_axe_finds_nothing_serious(driver: Any, request: pytest.FixtureRequest, size: str, theme: str) -> None:
    page = _opened(driver, request.getfixturevalue(size))
    if page.execute_script("return document.documentElement.dataset.theme") != theme:
        page.find_element("id", "theme").click()
    for opened in (False, True):
        if opened:
            page.find_element("css selector", "#rows .row").click()
        assert serious_violations(page) == []
    page.find_element("id", "close").click()
    page.execute_script("localStorage.clear()")
