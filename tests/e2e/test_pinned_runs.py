"""A run that an older version left, finished or half done, goes on: no training is bought twice, nothing asked twice.

The folders in `tests/data/runs` were made by commit a87899e (`tests/pinned_runs.py`). Where a test here is red, a
name that the stored fingerprints are made of has changed: the message of the stage that was computed anew says where
to look, and `semievol_api/store/fingerprints.py` how to keep the old name.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from semievol_api import run, session
from tests.e2e.threaded import serving
from tests.pinned_runs import FINISHED, KILLED, RUNS, server_of, take_up
from tests.providers.openai_loopback import LoopbackServer

HALF_DONE = sorted(path.name.removesuffix(".tar.xz") for path in RUNS.glob("killed-*"))


def stamps(folder: Path) -> dict[str, Any]:
    """The fingerprint of every artifact, those of later rounds with their folder's name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("stamps.json")):
        room = path.parent.relative_to(folder)
        found |= {str(room / name): stamp for name, stamp in json.loads(path.read_text("utf-8")).items()}
    return found


def journaled(folder: Path) -> int:
    """How many answers the journal holds."""
    if not (folder / "journal.sqlite").is_file():
        return 0
    with sqlite3.connect(folder / "journal.sqlite") as journal:
        return int(journal.execute("SELECT count(*) FROM samples").fetchone()[0])


def asked(server: LoopbackServer) -> int:
    """How many answers a server was asked for, by its own count."""
    chats = sum(seen.body.get("n", 1) for seen in server.asked("/chat/completions"))
    return chats + sum(len(seen.body["input"]) for seen in server.asked("/embeddings"))


def test_every_folder_that_was_kept_is_taken_up() -> None:
    assert {path.name for path in RUNS.glob("finished-*")} == {f"finished-{name}.tar.xz" for name in FINISHED}
    assert len(HALF_DONE) == sum(len(stops) for _, stops in KILLED.values())


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_of_an_older_version_computes_and_asks_nothing(name: str, tmp_path: Path) -> None:
    config = take_up(f"finished-{name}", tmp_path)
    before = stamps(tmp_path / "out")
    assert len(before) > 8
    result = session.run(config, accept_lost_journal=True)  # the kept folders leave it out
    assert result.computed == (), "these stages are known by another fingerprint than before"
    assert stamps(tmp_path / "out") == before
    assert sum(bill.requests for bill in result.ledger.stages.values()) == 0


@pytest.mark.parametrize("name", HALF_DONE)
def test_a_half_done_run_of_an_older_version_buys_and_asks_only_what_is_missing(name: str, tmp_path: Path) -> None:
    take_up(name, tmp_path)
    with serving(server_of(tmp_path)) as server:
        config = take_up(name, tmp_path, server.base_url)
        before, answers, jobs = stamps(tmp_path / "out"), journaled(tmp_path / "out"), len(server.jobs)
        bought = {stamp for stamp in before if stamp.endswith("-ticket")}
        assert jobs == len(bought)
        result = run(config)
        assert not set(before) & set(result.computed), "these stages are known by another fingerprint than before"
        after = stamps(tmp_path / "out")
        tickets = {stamp for stamp in after if stamp.endswith("-ticket")}
        assert len(server.asked("/fine_tuning/jobs")) == len(tickets - bought), "a training was bought twice"
        assert asked(server) == journaled(tmp_path / "out") - answers, "a journaled request was repeated"


@pytest.mark.parametrize("name", [name for name in HALF_DONE if "evaluate" in name or "-ticket" in name])
def test_a_half_done_run_without_its_tickets_finds_its_jobs_by_their_keys(name: str, tmp_path: Path) -> None:
    """What the vendor knows a training by is as old as the training."""
    take_up(name, tmp_path)
    with serving(server_of(tmp_path)) as server:
        config = take_up(name, tmp_path, server.base_url)
        path = tmp_path / "out" / "stamps.json"
        kept = {k: v for k, v in json.loads(path.read_text("utf-8")).items() if not k.startswith("jobs/")}
        path.write_text(json.dumps(kept), "utf-8")
        answers, jobs = journaled(tmp_path / "out"), len(server.jobs)
        run(config)
        tickets = list((tmp_path / "out/jobs").glob("*-ticket"))
        assert len(server.asked("/fine_tuning/jobs")) == len(tickets) - jobs, "a training was bought twice"
        assert asked(server) == journaled(tmp_path / "out") - answers, "a journaled request was repeated"
