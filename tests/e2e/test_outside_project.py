"""A user's own project that only installs the wheel: it records its test once, and passes with the network off."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
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
addopts = -p no:cacheprovider -p pytest_asyncio.plugin -p pytest_socket -p semievol_api.transport.pytest_plugin
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout and unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "test_mine.py").write_text(OUTSIDE)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    yield tmp_path


def _pytest(project: Path, site: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the project's tests on the installed wheel and this environment's other packages, not this checkout."""
    environ = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_TOKEN"))}
    others = sysconfig.get_path("purelib")
    environ |= {"PYTHONPATH": f"{site}{os.pathsep}{others}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more}
    command = [sys.executable, "-m", "pytest", "-q", *options]
    return subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_an_outside_project_records_against_our_server_and_passes_with_the_network_off(
    installed: Path, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = "import semievol_api, pathlib; print(pathlib.Path(semievol_api.__file__).parents[1])"
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    told = subprocess.run([sys.executable, "-c", where], cwd=project, env=environ, capture_output=True, text=True)
    assert Path(told.stdout.strip()) == installed, told
    folder = tmp_path_factory.mktemp("server")
    make_tiny_model(folder / "tiny")
    with RunningServer(folder / "tiny", folder) as server:
        done = _pytest(project, installed, "--cassette-mode=record", SERVER=server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "cassettes/test_mine/test_my_pipeline/manifest.json").is_file()
    done = _pytest(project, installed, "--disable-socket", "--allow-unix-socket")
    assert done.returncode == 0, done.stdout + done.stderr
