"""Batch mode for real: the engine, the `openai` provider and our server, killed once while waiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server_running import RunningServer, environment

from semievol_api.engine import Journal
from semievol_api.errors import JournalError

pytest_plugins = ("server_fixtures",)

CHILD = """
import asyncio, json, sys
from pathlib import Path
from semievol_api.capabilities import ChatRequest, ProviderSettings
from semievol_api.config.settings import Limits
from semievol_api.engine import Ask, RequestEngine
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect

settings = json.loads(sys.argv[1])


def asks():
    for row in range(settings["rows"]):
        wrong = row % 33 == 5
        yield Ask(f"row-{row}", ChatRequest(
            model="tiny", prompt=Prompt((Message("user", f"Item {row}"),)), max_tokens=settings["tokens"],
            n=2, seed=row, temperature=9.0 if wrong else 1.0, logprobs=True))


async def main():
    options = {"base_url": settings["url"], "vendor": "compatible"} | settings.get("options", {})
    provider = connect(ProviderSettings(name="ours", options=options, environ={"OPENAI_API_KEY": "sk-none"}))
    limits = Limits(mode=settings["mode"], batch_poll_s=0.2, max_attempts=60)
    told = {}
    async with RequestEngine.open(Path(settings["journal"]), limits) as engine:
        async for answer in engine.chat(provider, asks(), stage="annotate"):
            told[answer.id] = answer.failure or [
                [c.text, c.token_logprobs.tobytes().hex()] for c in answer.reply.completions]
        bill = engine.ledger.stages["annotate"]
    await provider.aclose()
    print(json.dumps({"told": told, "attempts": bill.attempts, "cached": bill.cached}))


asyncio.run(main())
"""


def start(**settings: object) -> subprocess.Popen[str]:
    """The engine in a child process."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(settings)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(child: subprocess.Popen[str]) -> dict[str, object]:
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return dict(json.loads(out))


def open_batch_ids(path: Path) -> list[str]:
    """The vendor's ids of open batches in a journal that may not be there yet."""
    if not path.exists():
        return []
    try:
        journal = Journal.read_only(path)
    except JournalError:  # it is being made
        return []
    found = journal.connection.execute("SELECT batch_id FROM batches WHERE open AND batch_id IS NOT NULL").fetchall()
    journal.close()
    return [batch_id for (batch_id,) in found]


@pytest.mark.slow
def test_a_batch_survives_a_kill_and_gives_what_single_requests_give(server: RunningServer, tmp_path: Path) -> None:
    settings = {"url": server.url, "rows": 40, "tokens": 24}
    earlier = len(list(server.client().batches.list()))
    child = start(mode="batch", journal=str(tmp_path / "j"), **settings)
    deadline = time.monotonic() + 60
    while not open_batch_ids(tmp_path / "j"):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    in_batches = finish(start(mode="batch", journal=str(tmp_path / "j"), **settings))
    assert len(list(server.client().batches.list())) == earlier + 1
    one_by_one = finish(start(mode="direct", journal=str(tmp_path / "direct"), **settings))
    told, direct = in_batches["told"], one_by_one["told"]
    assert isinstance(told, dict) and isinstance(direct, dict)
    failed = {name for name, answer in told.items() if isinstance(answer, str)}
    assert failed == {name for name, answer in direct.items() if isinstance(answer, str)} == {
        "row-5", "row-38"
    }  # fmt: skip
    texts = {name: [text for text, _ in answer] for name, answer in told.items() if name not in failed}
    assert texts == {name: [text for text, _ in answer] for name, answer in direct.items() if name not in failed}
    journal = Journal.read_only(tmp_path / "j")
    (total,) = journal.totals()
    journal.close()
    assert (total.requests, total.samples, total.source.mode) == (38, 76, "batch")
    again = finish(start(mode="direct", journal=str(tmp_path / "j"), **settings))
    assert again["cached"] == 38 and again["attempts"] == 2


@pytest.mark.slow
def test_a_batch_that_expires_half_way_is_finished_by_the_next_ones(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("batch_window_s = 2")
    with RunningServer(tiny_model, tmp_path, ("--limits", str(tmp_path / "limits.toml"))) as server:
        client = server.client()
        client.embeddings.create(model="tiny", input="wake up")
        rows = 600
        done = finish(start(mode="batch", journal=str(tmp_path / "j"), url=server.url, rows=rows, tokens=64))
        states = [(b.status, b.request_counts) for b in client.batches.list()]
    told = done["told"]
    assert isinstance(told, dict) and len(told) == rows
    failed = {name for name, answer in told.items() if isinstance(answer, str)}
    assert failed == {f"row-{row}" for row in range(5, rows, 33)}, "3 % of the lines are refused, and said to be"
    assert any(status == "expired" and 0 < counts.completed < counts.total for status, counts in states)
    assert sum(counts.completed for _, counts in states if counts) == rows - len(failed), "no line is answered twice"
