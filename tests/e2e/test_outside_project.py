"""A user's own project that only installs the wheel: it records its test once, and passes with the network off."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.providers.local_samples import make_tiny_model
from tests.providers.server_running import RunningServer

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("hatchling", reason="builds the wheel offline")
pytest.importorskip("torch", reason="our own server needs a model")

OUTSIDE = """
import os
from semievol_api.capabilities import ChatRequest, ProviderSettings
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect

async def test_my_pipeline(cassette):
    options = {"base_url": os.environ.get("SERVER", "http://192.0.2.1:9/v1"), "api_key_env": ""}
    provider = connect(ProviderSettings(name="mine", options=options, environ={}, wire=cassette.send))
    prompt = Prompt((Message("user", "Which letter?"),))
    reply = await provider.chat.complete(ChatRequest(model="tiny", prompt=prompt, max_tokens=4, seed=1))
    assert reply.completions
    models = [model async for model in _models(provider)]
    assert models

async def _models(provider):
    yield await provider.remote.model("tiny")
"""
SETTINGS = """[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
addopts = -p no:cacheprovider
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment of its own into which pip installed the wheel.

    Its dependencies come from this environment's packages, for lack of a network; the plugin comes by the entry point.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env/bin/python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "test_mine.py").write_text(OUTSIDE)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    yield tmp_path


def _run(python: Path, project: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the outside environment in the project: nothing there knows of this checkout."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.endswith(("_API_KEY", "_TOKEN"))}
    command = (str(python), *command)
    return subprocess.run(
        command, cwd=project, env=environ | more, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_outside_project_records_against_our_server_and_passes_with_the_network_off(
    python: Path, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = _run(python, project, "-c", "import semievol_api; print(semievol_api.__file__)")
    assert told.stdout.startswith(str(python.parents[1])), told
    folder = tmp_path_factory.mktemp("server")
    make_tiny_model(folder / "tiny")
    with RunningServer(folder / "tiny", folder) as server:
        done = _run(python, project, "-m", "pytest", "-q", "--cassette-mode=record", SERVER=server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "cassettes/test_mine/test_my_pipeline/manifest.json").is_file()
    done = _run(python, project, "-m", "pytest", "-q", "--disable-socket", "--allow-unix-socket")
    assert done.returncode == 0, done.stdout + done.stderr
