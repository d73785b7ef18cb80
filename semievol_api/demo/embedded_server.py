"""A `semievol serve` of one's own for as long as a block lasts: started, watched, restarted if it dies, stopped.

    with serving(model_folder, "demo-llama", state_folder) as base_url:
        ...

It stops too when this process ends in any way, since its standard input then ends. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from semievol_api.errors import SemievolError

START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_LOOK_EVERY_S = 0.2
_MAX_RESTARTS = 5


@contextlib.contextmanager
def serving(model: Path, name: str, state: Path, options: Sequence[str] = ()) -> Generator[str]:
    """A running server and its base URL; `options` are more of `semievol serve`.

    Raises:
        SemievolError: it ended before it was ready; the message holds its last words.
    """
    server = _EmbeddedServer(model, name, state, options)
    url = server.start()
    stop = threading.Event()
    watcher = threading.Thread(target=server.watch, args=(stop,), name="semievol-server-watch", daemon=True)
    watcher.start()
    try:
        yield url
    finally:
        stop.set()
        watcher.join()
        server.stop()


class _EmbeddedServer:
    """One server process after another, all on one port and one state folder."""

    def __init__(self, model: Path, name: str, state: Path, options: Sequence[str] = ()) -> None:
        self._model, self._name, self._state, self._options = model, name, state, tuple(options)
        self._ready = state / "ready.json"
        self._log = state / "server.log"
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start the server and wait until it is ready; returns its base URL."""
        self._state.mkdir(parents=True, exist_ok=True)
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "semievol_providers.server.command", str(self._model), "--name", self._name]
        command += ["--port", str(self._port), "--state", str(self._state), "--ready-file", str(self._ready)]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *self._options, "--stop-with-stdin"], stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        url = self._wait_until_ready(self._process)
        self._port = int(url.rpartition(":")[2].partition("/")[0])
        return url

    def watch(self, stop: threading.Event) -> None:
        """Start the server again when it dies, a few times."""
        restarts = 0
        while not stop.wait(_LOOK_EVERY_S) and restarts < _MAX_RESTARTS:
            if self._process is not None and self._process.poll() is not None:
                restarts += 1
                with contextlib.suppress(SemievolError):
                    self.start()

    def stop(self) -> None:
        """End the server's input, which stops it; kill it where it does not listen."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if self._ready.is_file():
                url: str = json.loads(self._ready.read_text("utf-8"))["url"]
                return url
            time.sleep(0.05)
        tail = "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-8:])
        raise SemievolError(f"The embedded server did not start. Its last words ({self._log}):\n{tail}")
