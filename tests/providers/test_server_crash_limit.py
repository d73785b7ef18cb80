"""A trainer that dies whenever it starts is started three times, then its job fails and the queue goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

from local_samples import training_lines
from server_running import ROOT, RunningServer

from semievol_providers.local.children import PRELOADED

pytest_plugins = ("server_fixtures",)
DEADLY = """
import os, sys
if "semievol_providers.local.train" in sys.orig_argv:
    with open(os.environ["TRAINER_STARTS"], "a") as file:
        file.write(".")
    os.kill(os.getpid(), 9)
"""


def test_a_job_whose_trainer_dies_three_times_fails_and_is_not_started_again(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    starts = tmp_path / "starts"
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "providers")))
    env = {"PYTHONPATH": path, "TRAINER_STARTS": str(starts), PRELOADED: "off"}
    with RunningServer(tiny_model, tmp_path / "s", env=env) as server:
        client = server.client()
        file = client.files.create(file=("t.jsonl", training_lines(12).encode()), purpose="fine-tune")
        for turn in (1, 2):
            job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=turn)
            deadline = time.monotonic() + 30
            while job.status != "failed":
                assert time.monotonic() < deadline, f"{job.status} after {starts.stat().st_size} starts"
                time.sleep(0.02)
                job = client.fine_tuning.jobs.retrieve(job.id)
            assert job.error is not None and job.error.code == "trainer_died"
            assert starts.stat().st_size == 3 * turn
