"""Small holes, each for a kind: texts that take for ever, bodies that grow, cells that run, files that all may read."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path

import pytest
from aiohttp import web

from semievol_api.cassettes import http
from semievol_api.cli.models import defused
from semievol_api.engine import Journal
from semievol_api.errors import ProviderError
from semievol_api.report.labels import DecisionLog
from semievol_api.store.run_store import RunStore
from semievol_api.tasks.replies import find_answer


@pytest.mark.parametrize(
    "text",
    [
        "answer" + "*" * 64_000,
        "answer" + " " * 64_000 + "x",
        "x" + "\n" * 64_000 + "y",
        "answer: B" + "\n" * 64_000 + "y",
        "answer is" + "*" * 64_000,
        "final" + " " * 64_000,
        "\\boxed{" * 16_000,
        "answer " * 16_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_an_answer_is_found_in_a_time_that_grows_with_its_length_alone(text: str) -> None:
    begun = time.process_time()
    find_answer(text)
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("Answer - B", "B"),
        ("**Answer** - B", "B"),
        ("**Answer:** B", "B"),
        ("Answer is: C", "C"),
        ("The answer is - D", "D"),
        ("# Final answer\n\nB", "B"),
        ("Answer-B", "Answer-B"),
    ],
)
def test_markers_are_found_in_every_dress(text: str, claim: str) -> None:
    found = find_answer(text)
    assert found is not None
    assert found.text == claim


async def test_a_small_body_that_unpacks_to_a_huge_one_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LARGEST_BODY_BYTES", 2**20)

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(bytes(8 * 2**20)), headers={"content-encoding": "gzip"})

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    send = http.AiohttpSend()
    try:
        with pytest.raises(ProviderError, match="more than 1 MiB"):
            await send("GET", f"http://127.0.0.1:{runner.addresses[0][1]}/", None, {}, 10.0)
    finally:
        await send.aclose()
        await runner.cleanup()


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\tx", "\rx"])
def test_a_cell_that_a_spreadsheet_would_run_is_defused(cell: str) -> None:
    assert defused(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-5", "+1,319.5", "-1.2e-3", "-12 %", "plain", "a=b", "", None, 3])
def test_numbers_and_plain_cells_stay_as_they_are(cell: object) -> None:
    assert defused(cell) is cell


def test_run_folders_journals_and_reviews_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with RunStore.open(tmp_path / "run", "k"):
            pass
        Journal.create(tmp_path / "run" / "journal.sqlite").close()
        with DecisionLog.open(tmp_path / "run" / "review.jsonl"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    for name in ("journal.sqlite", "review.jsonl"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o600, name


def test_an_event_is_logged_once_and_reads_its_file_once(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "run", "k") as store:
        for number in (1, 2, 1, 3, 2):
            store.log_event("warm_up", str(number), json.dumps({"id": str(number)}))
        path = tmp_path / "run" / "jobs" / "warm_up-events.jsonl"
        path.write_text(path.read_text("utf-8") + "no event\n", "utf-8")
        store.log_event("warm_up", "4", json.dumps({"id": "4"}))
    assert [line for line in path.read_text("utf-8").split("\n") if line] == [
        *(json.dumps({"id": str(number)}) for number in (1, 2, 3)), "no event", json.dumps({"id": "4"}),
    ]  # fmt: skip
    path.write_text(json.dumps({"id": "1"}) + "\n", "utf-8")
    with RunStore.open(tmp_path / "run", "k") as store:
        store.log_event("warm_up", "1", json.dumps({"id": "1"}))
    assert path.read_text("utf-8") == json.dumps({"id": "1"}) + "\n"
