"""Import paths that the documentation of 0.1 showed: until 0.3 they work and warn once where the thing is now."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from semievol_api import transport
from tests.core.test_transport_plugin import OUTSIDE
from tests.transport_server import small_server

ROOT = Path(__file__).resolve().parents[2]
OLD_PLUGIN = "semievol_api.transport.pytest_plugin"


def test_the_import_that_the_documentation_of_0_1_showed_gives_the_same_function() -> None:
    from semievol_api.cassettes.cassette import open_cassette as now

    sys.modules[f"{transport.__name__}.cassette"] = transport.MovedModule(
        f"{transport.__name__}.cassette", "semievol_api.cassettes.cassette"
    )
    with pytest.warns(DeprecationWarning, match=r"has moved to semievol_api\.cassettes\.cassette; .* 0\.3") as warned:
        from semievol_api.transport.cassette import CassetteSettings, open_cassette
    assert open_cassette is now
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert CassetteSettings.__module__ == "semievol_api.cassettes.cassette"


@pytest.mark.parametrize("old", sorted(transport.MOVED))
def test_every_old_module_stands_for_one_that_exists(old: str) -> None:
    standin = importlib.import_module(f"semievol_api.transport.{old}")
    assert isinstance(standin, transport.MovedModule)
    assert importlib.util.find_spec(standin.__name__) is not None
    assert importlib.import_module(f"semievol_api.cassettes.{transport.MOVED[old]}")


def test_importing_an_old_path_warns_a_user_once_and_imports_nothing_else(child_env: dict[str, str]) -> None:
    code = (
        "import sys, semievol_api.transport.store, semievol_api.transport.commands\n"
        "print('typer' in sys.modules, 'msgspec' in sys.modules)\n"
        "from semievol_api.transport.clock import RealClock, VirtualClock\n"
        "from semievol_api.transport import clock\n"
        "print(clock.Clock.__module__)"
    )
    command = [sys.executable, "-W", "always::DeprecationWarning", "-c", code]
    done = subprocess.run(command, env=child_env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "semievol_api.cassettes.clock"]
    assert done.stderr.count("semievol_api.transport.clock has moved to semievol_api.cassettes.clock") == 1


async def test_the_old_name_of_the_pytest_plugin_records_and_replays(tmp_path: Path, child_env: dict[str, str]) -> None:
    """As an outside project of 0.1 has it: with the installed entry point beside it, and with autoloading off."""
    (tmp_path / "test_outside.py").write_text(OUTSIDE)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        f"addopts = --strict-markers -p no:cacheprovider -p {OLD_PLUGIN}\n"
    )
    alone = {**child_env, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    async with small_server() as server:
        exit_code, output = await ran(
            tmp_path, {**alone, "SERVER": server.base_url}, "-p", "pytest_asyncio.plugin", "--cassette-mode=record"
        )
        assert (exit_code, "3 passed" in output) == (0, True), output
    exit_code, output = await ran(tmp_path, child_env)
    assert (exit_code, "3 passed" in output) == (0, True), output
    assert "semievol_api.transport.pytest_plugin has moved to semievol_api.cassettes.pytest_plugin" in output


async def ran(folder: Path, environ: dict[str, str], *options: str) -> tuple[int, str]:
    """The outside project's tests: exit code and output."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "always::DeprecationWarning", "-m", "pytest", "-q", *options),
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await child.communicate()
    return await child.wait(), output.decode()


def test_the_builder_of_the_demo_model_runs_from_its_old_address(child_env: dict[str, str]) -> None:
    """Its own packages may be absent here: then the new builder is what misses them."""
    done = run_module("semievol_api.demo.build", ROOT, child_env)
    assert "has moved to benchmarks/demo_model" in done.stderr
    assert "usage: python -m benchmarks.demo_model" in done.stdout or "benchmarks/demo_model/__main__.py" in done.stderr
    done = run_module("semievol_api.demo.build.evaluate", ROOT, child_env)
    assert done.returncode == 0 or "benchmarks/demo_model/evaluate.py" in done.stderr


def test_outside_a_checkout_the_old_builder_says_where_the_new_one_is(
    tmp_path: Path, child_env: dict[str, str]
) -> None:
    (tmp_path / "semievol_api").symlink_to(ROOT / "semievol_api")
    done = run_module("semievol_api.demo.build", tmp_path, {**child_env, "PYTHONPATH": ""}, "-S")
    assert done.returncode == 1
    assert done.stderr.startswith("semievol: The builder of the demo's model has moved")


def run_module(module: str, folder: Path, environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m module --help`, with warnings shown."""
    command = [sys.executable, *options, "-W", "always::DeprecationWarning", "-m", module, "--help"]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
