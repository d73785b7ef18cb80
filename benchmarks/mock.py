"""The mock server as a child process on a core of its own: built from C, or in Python where no compiler is.

    with MockServer(latency=50) as server:
        server.configure(rpm=3000)
        ... server.url ... server.stats()

Knows nothing of the clients that are measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent


def cores() -> tuple[set[int], set[int]]:
    """The server's cores and the client's; the same where there is only one."""
    if not hasattr(os, "sched_getaffinity"):  # not on this platform
        return set(), set()
    allowed = sorted(os.sched_getaffinity(0))
    return ({allowed[1]}, {allowed[0]}) if len(allowed) > 1 else ({allowed[0]}, {allowed[0]})


def pin(core: set[int]) -> None:
    """Keep this process on a core."""
    if core:
        os.sched_setaffinity(0, core)


def command(folder: Path) -> list[str]:
    """How to start the server: the compiled one, else the Python one."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    binary = folder / "mock_server"
    if compiler is not None and sys.platform == "linux":
        built = subprocess.run(
            [compiler, "-O2", "-o", str(binary), str(HERE / "mock_server.c"), "-lm"], capture_output=True, check=False
        )
        if built.returncode == 0:
            return [str(binary)]
    return [sys.executable, str(HERE / "mock_server.py")]


class MockServer:
    """A server on a free port of this machine; options are those at the top of mock_server.c."""

    def __init__(self, **options: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="semievol-mock-")
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        server_core, _ = cores()
        self._process = subprocess.Popen(
            [*command(Path(self._folder.name)), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: pin(server_core),
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> MockServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()

    def configure(self, **options: int) -> None:
        """Set options, and reset the counters; `zero=1` also forgets what was answered per row."""
        self._get("/__config?" + "&".join(f"{name}={value}" for name, value in options.items()))

    def stats(self) -> dict[str, float]:
        """The server's counters."""
        return dict(json.loads(self._get("/__stats")))

    def rows(self, n: int) -> list[int]:
        """How often each of the first n rows was answered."""
        return [int(count) for count in json.loads(self._get(f"/__rows?from=0&n={n}"))]

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return bytes(answer.read())
