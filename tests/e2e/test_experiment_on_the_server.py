"""A grid over the demo's real server, killed in the middle: the server's own counts show that nothing was repeated."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("torch")

GRID = """
[experiment]
name = "tiny"
folder = "grid"
seeds = [0]
baseline = "SFT"
resamples = 200

[draw]
pool = "data/pool.csv"
labeled = 24
unlabeled = 40

[overrides]
run.mode = "paper"
run.ceiling = false
data.max_test = 24
train.n_epochs = 1
train.final_epochs = 1

[[arms]]
name = "SFT"
recipe = "fine-tune"

[[arms]]
name = "SemiEvol"

[[arms]]
name = "random selection"
overrides.select.rule = "random"
"""


def rows(database: Path, query: str) -> int:
    if not database.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
            return int(connection.execute(query).fetchone()[0] or 0)
    except sqlite3.OperationalError:
        return 0


def start(folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "semievol_api.cli.app", "experiment", str(folder / "grid.toml"), "--json"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_killed_experiment_goes_on_and_the_server_was_asked_and_trained_nothing_twice(
    tmp_path: Path, child_env: dict[str, str]
) -> None:
    (tmp_path / "grid.toml").write_text(GRID, "utf-8")
    journal, state = tmp_path / "grid/journal.sqlite", tmp_path / "grid/server/state.sqlite"
    paid = "SELECT sum(requests) FROM sources"
    killed = start(tmp_path, child_env)
    deadline = time.monotonic() + 120
    asked_in_crew = "SELECT count(*) FROM samples JOIN sources s ON s.id = source WHERE s.stage = 'collaborate'"
    while rows(journal, asked_in_crew) < 20:
        assert killed.poll() is None and time.monotonic() < deadline, "the second arm was not reached"
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    before = rows(journal, paid)
    done = start(tmp_path, child_env)
    out, err = done.communicate(timeout=200)
    assert done.returncode == 0, err.decode()
    assert b"[1/3] SFT, seed 0: ..." not in err, "the first arm was finished already"
    counters = json.loads(out)["counters"]
    assert counters["answers_repeated"] == counters["jobs_repeated"] == 0
    assert counters["answers_needed"] > counters["answers_paid"]
    # Chat and embeddings that the second server answered are exactly what the journal gained since the kill.
    processes = [json.loads(path.read_text()) for path in sorted((tmp_path / "grid/tiny/processes").iterdir())]
    served = processes[-1]["served"]
    assert sum(served.get(route, 0) for route in ("create_chat", "create_embedding")) == rows(journal, paid) - before
    # SFT, SemiEvol's final training, the random one; every other training was found.
    assert rows(state, "SELECT count(*) FROM jobs") == counters["jobs_paid"] == 3
    assert counters["trainings_needed"] == 5
