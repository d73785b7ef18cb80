"""Users' scripts, written from the clients' own documentation, run unchanged against the server, in processes apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server_running import ROOT, RunningServer, environment

pytest_plugins = ("server_fixtures",)
SCRIPTS = ROOT / "tests" / "clients"
NPM = Path(os.environ.get("SEMIEVOL_NPM", ROOT / ".venv-npm"))
"""Where `make .venv-npm/.installed` puts npm's packages."""


def _run(command: list[str], folder: Path = ROOT, **env: str) -> None:
    done = subprocess.run(
        command, env=environment(**env), cwd=folder, capture_output=True, text=True, timeout=240
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all of it works" in done.stdout


def test_a_script_from_the_sdks_documentation_runs_unchanged(server: RunningServer) -> None:
    script = [sys.executable, str(SCRIPTS / "openai_script.py"), "tiny"]
    _run(script, OPENAI_BASE_URL=server.url, OPENAI_API_KEY="none")


def test_functions_are_called_by_the_sdk(tools_server: RunningServer) -> None:
    script = [sys.executable, str(SCRIPTS / "openai_script.py"), "tiny", "tools"]
    _run(script, OPENAI_BASE_URL=tools_server.url, OPENAI_API_KEY="none")


def test_litellm_reaches_the_server_by_its_api_base(server: RunningServer) -> None:
    pytest.importorskip("litellm")
    script = [sys.executable, str(SCRIPTS / "litellm_script.py"), server.url, "tiny"]
    _run(script, LITELLM_LOCAL_MODEL_COST_MAP="True")


def test_langchain_reaches_the_server_by_its_base_url(server: RunningServer) -> None:
    pytest.importorskip("langchain_openai")
    _run([sys.executable, str(SCRIPTS / "langchain_script.py"), server.url, "tiny"], OPENAI_API_KEY="none")


def test_a_script_for_node_runs_unchanged(server: RunningServer) -> None:
    _run_node(server)


def test_functions_are_called_by_a_script_for_node(tools_server: RunningServer) -> None:
    _run_node(tools_server, "tools")


def _run_node(server: RunningServer, *options: str) -> None:
    node = shutil.which("node")
    if node is None or not (NPM / "node_modules" / "openai").is_dir():
        pytest.skip("needs node and the npm package openai: make .venv-npm/.installed")
    script = [node, str(SCRIPTS / "openai.mjs"), "tiny", *options]
    _run(script, NPM, OPENAI_BASE_URL=server.url, OPENAI_API_KEY="none")
