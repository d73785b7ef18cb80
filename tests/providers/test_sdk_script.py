"""Users' scripts, written from the SDKs' own documentation, run unchanged against the server, in a process apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server_running import RunningServer, environment

pytest_plugins = ("server_fixtures",)
HERE = Path(__file__).resolve().parent


def _run(script: str, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=environment(**env), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_script_from_the_sdks_documentation_runs_unchanged(server: RunningServer) -> None:
    said = _run("sdk_script.py", "tiny", OPENAI_BASE_URL=server.url, OPENAI_API_KEY="none")
    assert "all of it works" in said


def test_litellm_reaches_the_server_by_its_api_base(server: RunningServer) -> None:
    pytest.importorskip("litellm")
    assert "all of it works" in _run("litellm_script.py", server.url, "tiny", LITELLM_LOCAL_MODEL_COST_MAP="True")
