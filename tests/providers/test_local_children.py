"""Children that are forked from a process with torch imported are what started ones would be."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from semievol_providers.local.children import PRELOADED, Child, ChildProcesses

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
TELL = (
    "import os, sys; names = ('OWN', 'OMP_NUM_THREADS', 'HF_HUB_OFFLINE'); "
    "print(os.getcwd(), sys.argv[1:3], [os.environ.get(name) for name in names], __name__); "
    "print(sys.stdin.read(), flush=True); print('log', file=sys.stderr, flush=True); os._exit(7)"
)


def _run(children: ChildProcesses, code: str, *, answers: bool = True) -> Child:
    """A child that runs this code once."""
    return children.start("timeit", ["-n", "1", "-r", "1", code], 3, answers=answers)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_forked_child_has_the_folder_environment_pipes_and_status_of_a_started_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _run(ChildProcesses(forks=True), "pass", answers=False)  # by now the fork server is in another folder
    assert first.wait(60) == 0
    assert first.stdin is not None
    first.stdin.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OWN", "value")
    told: list[tuple[bytes, bytes, int]] = []
    for way in (os.environ[PRELOADED], "off"):
        monkeypatch.setenv(PRELOADED, way)
        children = ChildProcesses(forks=True)
        with (tmp_path / way.rpartition("/")[2]).open("wb") as log:
            child = children.start("timeit", ["-n", "1", "-r", "1", TELL], 3, answers=True, log=log)
        assert (_parent(child.pid) == os.getpid()) == (way == "off")
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"hello")
        child.stdin.close()
        told.append((child.stdout.read(), (tmp_path / way.rpartition("/")[2]).read_bytes(), child.wait(30)))
        child.stdout.close()
        children.close()
    assert told[0] == told[1]
    assert b"hello" in told[0][0] and b"value" in told[0][0] and told[0][1:] == (b"log\n", 7)


def test_a_forked_child_is_killed_and_an_error_is_in_its_log(tmp_path: Path) -> None:
    children = ChildProcesses(forks=True)
    child = _run(children, "input()", answers=False)
    assert child.poll() is None and child.stdout is None
    child.kill()
    assert (child.wait(30), child.poll()) == (-signal.SIGKILL, -signal.SIGKILL)
    with (tmp_path / "log").open("wb") as log:
        failing = children.start("semievol_providers.local.train", [str(tmp_path / "none.json")], 1, log=log)
    assert failing.wait(30) == 1 and "FileNotFoundError" in (tmp_path / "log").read_text()
    for ended in (child, failing):
        assert ended.stdin is not None
        ended.stdin.close()
    children.close()


def test_where_the_fork_server_is_killed_its_child_is_lost_and_the_next_one_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PRELOADED)
    children = ChildProcesses(forks=True)
    child = _run(children, "input()", answers=False)
    server = _parent(child.pid)
    assert server != os.getpid()
    os.kill(server, signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL
    later = _run(children, "import os; os._exit(5)", answers=False)
    assert later.wait(60) == 5
    for ended in (child, later):
        assert ended.stdin is not None
        ended.stdin.close()
    children.close()
