"""Shared by all tests: no network but this machine's own loopback; no planted key in what the tests leave behind."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pytest_socket import enable_socket, socket_allow_hosts

from semievol_providers.local.children import PRELOADED, start_fork_server
from tests.planted_keys import (  # noqa: F401  # hooks: the session's output is searched for planted keys
    pytest_configure,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_testnodedown,
    pytest_unconfigure,
)

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("suite", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("suite")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _one_process_forks_engines_and_trainers() -> Iterator[None]:
    """torch and transformers are imported once for all children of this session, when the first is asked for."""
    if sys.platform != "linux":
        yield
        return
    folder = tempfile.mkdtemp(prefix="semievol-")  # a socket's path is short
    control, enough = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), threading.Event()
    control.bind(f"{folder}/forks")
    started: list[subprocess.Popen[bytes]] = []

    def start_when_asked() -> None:
        while not enough.is_set():
            if select.select([control], [], [], 0.1)[0]:
                started.append(start_fork_server(control))
                return

    waiting = threading.Thread(target=start_when_asked)
    waiting.start()
    os.environ[PRELOADED] = f"{folder}/forks"
    yield
    del os.environ[PRELOADED]
    enough.set()
    waiting.join()
    control.close()
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _only_loopback() -> None:
    """Any connection to an address outside this machine fails the test."""
    enable_socket()
    socket_allow_hosts(["127.0.0.1", "localhost", "::1"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def _no_table_of_the_developers(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A table of vendors that was refreshed on this machine plays no part in a test."""
    monkeypatch.setenv("SEMIEVOL_DATA_DIR", str(tmp_path_factory.getbasetemp() / "no-user-data"))


@pytest.fixture
def child_env() -> dict[str, str]:
    """The environment of a child process that runs this checkout's code, without any real key."""
    env = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_TOKEN"))}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'providers'}"
    return env


@pytest.fixture(scope="session")
def session_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 32 recordings of api.openai.com as their authors published them, one JSON file each."""
    folder = tmp_path_factory.mktemp("session_records")
    with tarfile.open(ROOT / "tests" / "data" / "session_records.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def collected_cases(released_data: Path) -> Path:
    """Files from public reports, one folder each, where somebody has laid them beside the paper's data sets."""
    folder = released_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"files from public reports, which are not in {folder}")
    return folder


@pytest.fixture(scope="session")
def released_data() -> Path:
    """The paper's data sets, one folder each, where somebody has laid them beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"evidence on the paper's real data sets, which are not in {folder}")
    return folder
