"""A disk that fails at a chosen step, and a server in this process on it, with a scripted engine and trainer."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from semievol_providers.local.children import PRELOADED
from semievol_providers.server.app import build_app
from semievol_providers.server.disk import Disk
from semievol_providers.server.settings import Limits, ServerSettings

SCRIPTS = Path(__file__).resolve().parent
KEYS = ("alpha", "beta")


class FaultyDisk(Disk):
    """Counts every write from `arm` on, and does `fault` at one of them (and at the next `times - 1`)."""

    def __init__(self) -> None:
        self.steps = 0
        self.full = False
        self._fault: Callable[[str], None] | None = None
        self._at = range(0)
        self.database: sqlite3.Connection | None = None

    def arm(self, step: int, fault: Callable[[str], None] | None, times: int = 1) -> None:
        self.steps, self._fault, self._at = 0, fault, range(step, step + times)

    def step(self, what: str) -> None:
        self.steps += 1
        if self.full:
            no_space(what)
        if self._fault is not None and self.steps in self._at:
            self._fault(what)

    def connect(self, path: Path) -> sqlite3.Connection:
        disk = self

        class Counted(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                if sql.split()[0] in ("INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT"):
                    disk.step("database")
                return super().execute(sql, *values)

        self.database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Counted)
        return self.database

    def write(self, descriptor: int, data: memoryview) -> int:
        """A full disk takes a part first, as a real one does."""
        short = os.write(descriptor, data[: len(data) // 2])
        self.step("write")
        return short + os.write(descriptor, data[short:])

    def sync(self, descriptor: int) -> None:
        self.step("sync")
        super().sync(descriptor)

    def make_folder(self, path: Path) -> None:
        self.step("folder")
        super().make_folder(path)

    def link(self, source: Path, target: Path) -> None:
        self.step("link")
        super().link(source, target)


def no_space(what: str) -> None:
    """There is no room."""
    if what == "database":
        raise sqlite3.OperationalError("database or disk is full")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_quota(what: str) -> None:
    """The owner's quota is used up."""
    if what == "database":
        raise sqlite3.OperationalError("disk I/O error")
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def not_allowed(what: str) -> None:
    """Something that will not mend itself."""
    if what == "database":
        raise sqlite3.OperationalError("attempt to write a readonly database")
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def server_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk | None = None, **settings: Any
) -> Generator[TestClient]:
    """The whole server in this process; its children are scripts that work in milliseconds."""
    folder.mkdir(parents=True, exist_ok=True)
    children = folder / "children"
    children.write_text(
        "#!/bin/sh\n"
        f'export PYTHONPATH="{os.pathsep.join(sys.path)}"\n'
        f'case "$2" in *local.train) exec /bin/sh "{SCRIPTS}/scripted_trainer.sh" "$3" ;; esac\n'
        f'exec "{sys.executable}" "{SCRIPTS}/scripted_engine.py" "$3" "{folder}/asked"\n'
    )
    children.chmod(0o755)
    limits: dict[str, Any] = {"retry_s": 0.05} | settings.pop("limits", {})
    given: dict[str, Any] = {"name": "tiny", "state": folder / "state"} | settings
    server = ServerSettings(model_folder=str(folder), api_keys=KEYS, limits=Limits(**limits), **given)
    with monkeypatch.context() as scripted:
        scripted.setenv(PRELOADED, "off")
        scripted.setattr(sys, "executable", str(children))
        with TestClient(build_app(server, disk), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield client


def until(question: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """The first answer that is true."""
    deadline = time.monotonic() + limit_s
    while not (answer := question()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return answer
