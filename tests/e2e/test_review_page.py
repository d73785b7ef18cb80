"""Review in a real browser: decisions by keyboard, undo, and a server that is killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import semievol_api.session
from semievol_api.report.labels import read_decisions
from tests.chromium import chromium, console_errors, serious_violations
from tests.e2e.conftest import Project
from tests.synthetic_run import synthetic_run

SERVE = (
    "import sys\nfrom pathlib import Path\nfrom semievol_api.report.review_server import serve_review\n"
    "serve_review(Path(sys.argv[1]), on_ready=lambda address: print(address, flush=True))\n"
)


class Server:
    """`serve_review` in a process of its own, so that it can be killed."""

    def __init__(self, run: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(run)], env=env, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def run(driver: Any, tmp_path: Path) -> Path:
    return synthetic_run(tmp_path / "run", rows=90, labelled=20, tests=10)


@pytest.fixture
def server(run: Path, child_env: dict[str, str]) -> Iterator[Server]:
    served = Server(run, child_env)
    yield served
    served.kill()


def _until(check: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 20
    while not check():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)


def _open(driver: Any, address: str) -> None:
    driver.get(address)
    _until(lambda: driver.execute_script("return document.body.dataset.ready"), "the page")


def _press(driver: Any, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(keys).perform()


def _decide(driver: Any, key: str) -> str:
    """Press a key and wait until the page, and so the disk, has it; returns the row's id."""
    row = str(driver.find_element("id", "card").get_attribute("data-id"))
    _press(driver, key)
    _until(lambda: driver.find_element("id", "card").get_attribute("data-id") != row, f"the row after {key!r}")
    return row


def _fifty_decisions(driver: Any, run: Path, child_env: dict[str, str]) -> dict[str, str | None]:
    """The answers given by keyboard, by row, none for a skipped one; the server is killed after 25."""
    from selenium.webdriver.common.keys import Keys

    made: dict[str, str | None] = {}
    keys = ["A", "b", Keys.SPACE, "C", "d"]
    answers = ["A", "B", None, "C", "D"]
    first = Server(run, child_env)
    _open(driver, first.address)
    for step in range(25):
        made[_decide(driver, keys[step % 5])] = answers[step % 5]
    first.kill()
    _press(driver, "A")
    _until(lambda: driver.find_element("id", "problem").is_displayed(), "the notice")
    assert "Not saved" in driver.find_element("id", "problem").text
    assert len(read_decisions(run / "review.jsonl")) == 25
    driver.get_log("browser")
    second = Server(run, child_env)
    try:
        _open(driver, second.address)
        for step in range(25):
            made[_decide(driver, keys[step % 5])] = answers[step % 5]
    finally:
        second.kill()
    return made


def test_fifty_decisions_by_keyboard_survive_a_kill_in_the_middle(
    driver: Any, run: Path, child_env: dict[str, str]
) -> None:
    made = _fifty_decisions(driver, run, child_env)
    assert len(made) == 50
    assert {row: d.answer for row, d in read_decisions(run / "review.jsonl").items()} == made


def test_the_next_run_trains_on_what_was_decided_in_the_browser(
    driver: Any, project: Project, child_env: dict[str, str]
) -> None:
    first = semievol_api.session.run(project.config)
    made = _fifty_decisions(driver, first.folder, child_env)
    project.change(("near_duplicates = false", 'near_duplicates = false\nreviewed = "out/review.jsonl"'))
    second = semievol_api.session.run(project.config, accept_change=True)
    for file in ("warm_up", "evolve"):
        learned: dict[str, str] = {}
        for line in (second.folder / file / "train.jsonl").read_text("utf-8").splitlines():
            *_, question, answer = json.loads(line)["messages"]
            number = question["content"].partition("Item number ")[2].split(" ")[0]
            learned[f"q{number}"] = answer["content"].removeprefix("Answer: ")
        decided = {row: answer for row, answer in made.items() if answer is not None}
        assert len(decided) == 40
        assert {row: learned.get(row) for row in decided} == decided, file


def test_enter_accepts_and_backspace_takes_back(driver: Any, run: Path, server: Server) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(driver, server.address)
    while not driver.find_element("id", "accept").is_enabled():
        _decide(driver, Keys.SPACE)
    row = _decide(driver, Keys.ENTER)
    assert read_decisions(run / "review.jsonl")[row].action == "accept"
    _press(driver, Keys.BACKSPACE)
    _until(lambda: driver.find_element("id", "card").get_attribute("data-id") == row, "the row again")
    assert row not in read_decisions(run / "review.jsonl")
    assert console_errors(driver) == []


def test_keys_typed_faster_than_the_disk_are_all_kept_in_order(driver: Any, run: Path, server: Server) -> None:
    _open(driver, server.address)
    _press(driver, "ABCDABCDABCD")
    _until(lambda: len(read_decisions(run / "review.jsonl")) == 12, "twelve decisions")
    assert [d.answer for d in read_decisions(run / "review.jsonl").values()] == list("ABCDABCDABCD")


def test_clicks_work_too_and_the_progress_tells(driver: Any, run: Path, server: Server) -> None:
    _open(driver, server.address)
    driver.find_element("css selector", "#choices li:nth-child(2) button").click()
    _until(lambda: driver.find_element("id", "progress-text").text == "1 of 90 decided", "the count")
    driver.find_element("id", "skip").click()
    _until(lambda: driver.find_element("id", "progress-text").text == "2 of 90 decided", "the count")
    driver.find_element("id", "undo").click()
    _until(lambda: driver.find_element("id", "progress-text").text == "1 of 90 decided", "the undo")
    assert [d.answer for d in read_decisions(run / "review.jsonl").values()] == ["B"]


def test_axe_finds_nothing_serious_in_review(driver: Any, server: Server) -> None:
    _open(driver, server.address)
    for _ in range(2):
        assert serious_violations(driver) == []
        driver.find_element("id", "theme").click()
