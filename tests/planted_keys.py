"""The whole suite's output is searched for the keys that its tests planted; one that is found fails the session.

Looked at, when all tests are over: every file below the session's temporary folder (journals, run folders, cassettes,
reports, servers' states and logs), packed ones unpacked, and what each test said. Left out are the files that a test
wrote as a user's own: his data, his key file. Knows nothing of how anything came there.
"""

from __future__ import annotations

import fnmatch
import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AMBIENT = "sk-planted-ambient-" + "7Qx" * 8
"""Stands in the environment of every session: whoever writes his environment down is found."""
PLANTED = tuple(
    key.encode()
    for key in (
        "sk-planted",
        "sk-proj-" + "Ab1_" * 10,
        "org-" + "Qw3rTy" * 4,
        "0123456789abcdef0123456789abcdef",
        "a-local-key-of-no-known-shape",
    )
)
THE_USERS_OWN = (
    "task.toml",
    "labeled.csv",
    "unlabeled.csv",
    "test.csv",
    "*.key",
    "key.txt",
    "labeled.jsonl",
    "unlabeled.jsonl",
)
"""Names of files that a test writes as a user would; the project only reads them."""
WEIGHTS = ("*.safetensors", "*.pt", "*.bin")
TOO_LARGE_BYTES = 30_000_000
said_by_tests: list[str] = []
told_by_workers: dict[str, list[str]] = {}
"""What was found, by the name of the folder in which a process searched."""


def planted_in(path: Path) -> bool:
    """Whether a file holds a planted key, packed or not."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        content = repr(pq.read_table(path).to_pydict()).encode()
    return any(key in content for key in PLANTED)


def files_with_keys(folder: Path, without: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files below a folder, but for these folders in it, that hold a planted key and are not the user's own."""
    looked_in = [path for path in sorted(folder.iterdir()) if path.name not in without]
    for path in (below for top in looked_in for below in (top, *sorted(top.rglob("*")))):
        passed_over = any(fnmatch.fnmatch(path.name, pattern) for pattern in (*THE_USERS_OWN, *WEIGHTS))
        if passed_over or path.is_symlink() or not path.is_file() or path.stat().st_size > TOO_LARGE_BYTES:
            continue
        try:
            found = planted_in(path)
        except (OSError, EOFError, ValueError):  # cut, locked or damaged on purpose: look at it as it is
            found = any(key in path.read_bytes() for key in PLANTED)
        if found:
            yield path


@pytest.hookimpl
def pytest_configure(config: pytest.Config) -> None:
    """Plant one key that no test names."""
    os.environ["SEMIEVOL_AMBIENT_API_KEY"] = AMBIENT


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look at what a test printed, logged or failed with."""
    shown = "\n".join([report.longreprtext, *(text for _, text in report.sections)]).encode("utf-8", "replace")
    if any(key in shown for key in PLANTED):
        said_by_tests.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a session whose output holds a planted key; a process that shares the work tells what it found."""
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    found = [str(path) for path in files_with_keys(factory.getbasetemp(), without=tuple(told_by_workers))]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["leaks"] = found
    leaks = [*found, *(leak for told in told_by_workers.values() for leak in told), *said_by_tests]
    session.config.stash[LEAKS] = leaks
    if leaks and session.exitstatus == 0:
        session.exitstatus = 1


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Keep what a process found in its own folder, so that nothing is searched twice; a crashed one's is searched."""
    if hasattr(node, "workeroutput") and "leaks" in node.workeroutput:
        told_by_workers[f"popen-{node.gateway.id}"] = node.workeroutput["leaks"]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Say where, as the session's last words: a session without a failed test would end in 1 without a reason."""
    leaks = config.stash.get(LEAKS, [])
    if leaks and not hasattr(config, "workeroutput"):
        sys.stderr.write("\n".join(["planted keys were found in:", *leaks[:50], ""]))


LEAKS = pytest.StashKey[list[str]]()
