"""A training is bought once: whatever is lost, whoever is killed, and however forgetful the vendor is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Project, Semievol
from tests.e2e.threaded import serving
from tests.providers.openai_loopback import Cut, Hold, LoopbackServer

JOBS = "/fine_tuning/jobs"


@pytest.fixture(params=[True, False], ids=["metadata kept", "metadata dropped"])
def server(request: pytest.FixtureRequest) -> Iterator[LoopbackServer]:
    with serving(LoopbackServer(keep_metadata=request.param)) as up:
        yield up


@pytest.fixture
def at_server(project: Project, server: LoopbackServer) -> Project:
    project.change(
        (
            'kind = "scripted"\nstate = "server"\n',
            f'kind = "openai"\nbase_url = "{server.base_url}"\napi_key_env = ""\n',
        ),
        ("ceiling = true", "ceiling = false"),
        ("near_duplicates = false", "near_duplicates = false\nmax_labeled = 20\nmax_unlabeled = 12\nmax_test = 4"),
        ("[train]", "[annotate]\nn = 1\n\n[train]"),
    )
    return project


def _bought(server: LoopbackServer) -> int:
    """How often a job was ordered; every order was accepted."""
    assert len(server.asked(JOBS)) == len(server.jobs)
    return len(server.jobs)


def test_a_connection_cut_after_the_server_accepted_leads_to_one_job(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    server.faults.append(Cut(on=JOBS, method="POST"))
    assert semievol("run", at_server.config).code == 0
    assert _bought(server) == 2, "warm-up and final, each once"


def test_a_kill_between_acceptance_and_ticket_leads_to_one_job(
    at_server: Project, semievol: Semievol, server: LoopbackServer, child_env: dict[str, str]
) -> None:
    held = Hold(on=JOBS, method="POST")
    server.faults.append(held)
    command = [sys.executable, "-m", "semievol_api.cli.app", "run", str(at_server.config)]
    with subprocess.Popen(command, env=child_env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not server.jobs:
            assert process.poll() is None and time.monotonic() < deadline, "the run never ordered a job"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    held.released = True
    assert not list(at_server.folder.glob("out/jobs/*-ticket")), "it was killed before the receipt was written"
    assert semievol("run", at_server.config).code == 0
    assert _bought(server) == 2
