"""The pytest plugin, used as an outside project uses it: in another folder, by another pytest."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.transport_server import small_server

OUTSIDE = '''
"""A user's project: one test over the SDK transport, one over a marked folder."""
import os
from importlib import import_module
import openai
import pytest

async def ask(cassette, text):
    library = "httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx"
    transport = cassette.httpx2_transport() if library == "httpx2" else cassette.httpx_transport()
    http_client = import_module(library).AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(
        api_key="k", base_url=os.environ.get("SERVER", "http://nobody.invalid/v1"), http_client=http_client
    ) as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])

@pytest.mark.parametrize("text", ["a b/c", "d"])
async def test_pipeline(cassette, text):
    await ask(cassette, os.environ.get("CHANGED", "") + text)

@pytest.mark.cassette("marked/folder")
async def test_marked(cassette):
    await ask(cassette, "x")
    if "TWICE" not in os.environ:
        await ask(cassette, "y")
    assert "FAIL" not in os.environ
'''


async def outside(folder: Path, environ: dict[str, str], *options: str) -> tuple[int, str]:
    """Run the outside project's tests; exit code and output."""
    command = ["-m", "pytest", "-q", "-p", "semievol_api.cassettes.pytest_plugin", "-W", "error", *options]
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=folder,
        env={**environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await child.communicate()
    return await child.wait(), output.decode()


def recorded_in(project: Path) -> list[str]:
    return sorted(str(file.relative_to(project).parent) for file in project.rglob("manifest.json"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_outside.py").write_text(OUTSIDE)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "addopts = --strict-markers -p pytest_asyncio.plugin -p no:cacheprovider\n"
    )
    return tmp_path


async def test_an_outside_project_records_once_and_then_passes_without_the_server(
    project: Path, child_env: dict[str, str]
) -> None:
    exit_code, output = await outside(project, child_env)
    assert (exit_code, output.count("\nThere is no cassette at")) == (1, 3), output
    async with small_server() as server:
        environ = {**child_env, "SERVER": server.base_url}
        exit_code, output = await outside(project, environ, "--cassette-mode=record")
        assert exit_code == 0, output
    assert recorded_in(project) == [
        "cassettes/test_outside/test_pipeline-a-b-c",
        "cassettes/test_outside/test_pipeline-d",
        "marked/folder",
    ]
    exit_code, output = await outside(project, child_env)
    assert exit_code == 0, output
    exit_code, output = await outside(project, {**child_env, "CHANGED": "now "}, "-k", "pipeline")
    assert (exit_code, "holds no answer to this request" in output) == (1, True), output
    exit_code, output = await outside(project, {**child_env, "TWICE": "no"}, "-k", "marked")
    assert (exit_code, "1 of 2 exchanges of the cassette" in output) == (1, True), output


async def test_a_failing_test_leaves_the_old_recording_alone(project: Path, child_env: dict[str, str]) -> None:
    async with small_server() as server:
        environ = {**child_env, "SERVER": server.base_url, "FAIL": "yes"}
        exit_code, output = await outside(project, environ, "--cassette-mode=record", "-k", "marked")
    assert (exit_code, "1 failed" in output) == (1, True), output
    assert not (project / "marked").exists()
