"""`semievol demo`: start the embedded server, run the shipped config against it, stop the server.

The server is a process of its own and speaks HTTP, as any other would. Knows nothing of its insides.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

from semievol_api.config import load_config
from semievol_api.errors import MissingExtraError, SemievolError
from semievol_api.run import RunResult, run_async, run_blocking
from semievol_api.terminal.bars import Bars, err
from semievol_api.terminal.verdict import show_result

HERE = Path(__file__).parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


def run_demo(folder: Path, *, as_json: bool) -> None:
    """Run the demo in `folder` and print its table; a second run finds everything done."""
    _need_local_packages()
    with serving(HERE / "model", "demo-llama", folder / "server") as base_url:
        result = _run(folder, base_url)
    show_result(result, as_json=as_json)


@contextlib.contextmanager
def serving(model: Path, name: str, state: Path) -> Generator[str]:
    """A running `semievol serve` and its base URL. It stops when the block, or this process, ends.

    Raises:
        SemievolError: it ended before it was ready; the message holds its last words.
    """
    state.mkdir(parents=True, exist_ok=True)
    ready, log = state / "ready.json", state / "server.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "semievol_api.cli", "serve", str(model), "--name", name, "--port", "0"]
    command += ["--state", str(state), "--ready-file", str(ready), "--stop-with-stdin"]
    with log.open("ab") as output:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        yield _wait_until_ready(server, ready, log)
    finally:
        if server.stdin is not None:
            server.stdin.close()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _run(folder: Path, base_url: str) -> RunResult:
    config = load_config(
        HERE / "demo.toml",
        {"run.folder": str(folder.resolve() / "run"), "providers.server.base_url": base_url},
    )
    with Bars(err()) as bars:
        return run_blocking(run_async(config, watcher=bars))


def _wait_until_ready(server: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        if ready.is_file():
            url: str = json.loads(ready.read_text("utf-8"))["url"]
            return url
        time.sleep(0.05)
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:])
    raise SemievolError(f"The embedded server did not start. Its last words ({log}):\n{tail}")


def _need_local_packages() -> None:
    from importlib.util import find_spec

    for package in ("torch", "transformers", "peft", "starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve", "The demo's own server")
