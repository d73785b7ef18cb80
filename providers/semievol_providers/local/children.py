"""Child processes that start at once: forked from one process that has imported torch and transformers already.

    children = ChildProcesses(forks=device == "cpu")
    child = children.start("semievol_providers.local.train", [str(job_file), "--with-parent"], threads=1)

Importing takes an inference engine or a trainer 5 to 8 seconds. On Linux the first child starts a process that does
so once (`python -m semievol_providers.local.children`), runs nothing, and forks every child; it ends with its owner.
`SEMIEVOL_PRELOADED` names the socket of one that several owners share, or is "off". Where a child cannot be forked it
is started as usual. A GPU cannot be used in a process forked from one that has looked at it, so `forks` is for the
CPU. Knows nothing of what children do.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, TypeAlias

PRELOADED = "SEMIEVOL_PRELOADED"
TRAINER = "semievol_providers.local.train"
_MODULES = (
    "torch",
    "transformers.masking_utils",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "peft",
    "semievol_api.training.chat_jsonl",
    "semievol_providers.local.engine",
    "semievol_providers.local.training_loop",
)
_MOST_BYTES = 2**18
_STOP_WAIT_S = 20.0


class ChildProcesses:
    """Starts modules as child processes; `close` it in the end. Children end on their own, with their input."""

    def __init__(self, *, forks: bool) -> None:
        self._forks = forks and sys.platform == "linux"
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        threads: int,
        *,
        answers: bool = False,
        log: IO[bytes] | None = None,
    ) -> Child:
        """Run a module that computes with so many threads; its standard input is a pipe.

        Its standard output is one where it `answers`; standard error goes to `log`, or where ours goes.

        This may take seconds.

        Raises:
            OSError: the system starts no process.
        """
        environment = {**os.environ, **_worker_environment(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        if self._forks and os.environ.get(PRELOADED) != "off":
            request: dict[str, object] = {"module": module, "arguments": [*arguments], "environment": environment}
            try:
                return self._fork(request, answers, log)
            except OSError:  # none can be forked
                self.close()
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )

    def start_trainer(self, folder: Path, threads: int) -> Child:
        """Train the job in this folder; see `start`."""
        with (folder / "trainer.log").open("ab") as log:
            return self.start(TRAINER, [str(folder / "job.json"), "--with-parent"], threads, log=log)

    def close(self) -> None:
        """End the process that children are forked from."""
        with self._lock:
            server, self._server = self._server, None
            if self._control is not None:
                self._control.close()
                self._control = None
        if server is not None and server.stdin is not None:
            server.stdin.close()
            server.wait()

    def _fork(self, request: dict[str, object], answers: bool, log: IO[bytes] | None) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as unused:
            child_in, to_child = os.pipe()
            from_child, child_out = os.pipe() if answers else (None, os.open(os.devnull, os.O_WRONLY))
            stdin = unused.enter_context(os.fdopen(to_child, "wb"))
            stdout = None if from_child is None else unused.enter_context(os.fdopen(from_child, "rb"))
            unused.callback(ours.close)
            try:
                descriptors = [child_in, child_out, 2 if log is None else log.fileno(), theirs.fileno()]
                message = json.dumps(request | {"folder": str(Path.cwd())}).encode()
                self._send(message, descriptors)
            finally:
                os.close(child_in)
                os.close(child_out)
            theirs.close()
            pid = ours.recv(64)
            if not pid:
                raise ChildProcessError("The process that children are forked from has ended.")
            unused.pop_all()
            return _ForkedChild(ours, int(pid), stdin, stdout)

    def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        """To the fork server that is shared, or to our own, which the first message starts."""
        if shared := os.environ.get(PRELOADED):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
                control.connect(shared)
                socket.send_fds(control, [message], descriptors)
            return
        with self._lock:
            if self._control is None:
                self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                with theirs:
                    self._server = start_fork_server(theirs)
            socket.send_fds(self._control, [message], descriptors)


def start_fork_server(control: socket.socket) -> subprocess.Popen[bytes]:
    """The process that forks a child for each message that comes to `control`; it ends with its standard input."""
    environment = {**os.environ, **_worker_environment(1), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "semievol_providers.local.children", str(control.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        pass_fds=[control.fileno()],
    )


def _worker_environment(threads: int) -> dict[str, str]:
    """Variables of a process that computes: threads wait without spinning, which on shared cores costs 20 x."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def last_log_line(folder: Path) -> str:
    """What a job's trainer wrote last to standard error; empty where it wrote nothing."""
    log = folder / "trainer.log"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else ""


def stop_trainer(trainer: Child) -> None:
    """Ask a trainer to save and end; end it after a while if it does not."""
    if trainer.poll() is None:
        trainer.terminate()
        try:
            trainer.wait(_STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            trainer.kill()
            trainer.wait()
    if trainer.stdin is not None:
        trainer.stdin.close()


class _ForkedChild:
    """A child of the fork server, which tells its exit status through `link`."""

    def __init__(self, link: socket.socket, pid: int, stdin: IO[bytes], stdout: IO[bytes] | None) -> None:
        self._link = link
        self._status: int | None = None
        self.pid = pid
        self.stdin: IO[bytes] | None = stdin
        self.stdout = stdout

    def poll(self) -> int | None:
        """As of `subprocess.Popen`."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """As of `subprocess.Popen`."""
        if self._status is None:
            self._link.settimeout(timeout)
            try:
                told = self._link.recv(64)
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired("child", timeout or 0.0) from None
            self._link.close()
            self._status = int(told) if told else -signal.SIGKILL
            if not told:  # the fork server was killed; nobody will tell how this child ends
                self._send(signal.SIGKILL)
        return self._status

    def terminate(self) -> None:
        """As of `subprocess.Popen`."""
        if self.poll() is None:
            self._send(signal.SIGTERM)

    def kill(self) -> None:
        """As of `subprocess.Popen`."""
        if self.poll() is None:
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


Child: TypeAlias = "subprocess.Popen[bytes] | _ForkedChild"


# ------------------------------------------------------------------------------------------------ the fork server
@dataclass(frozen=True, slots=True)
class _Running:
    pid: int
    link: int


def main() -> None:
    """Import what children need, then fork them until standard input ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; children and owner take it
    for module in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    with selectors.DefaultSelector() as waiting:
        waiting.register(0, selectors.EVENT_READ)
        waiting.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if isinstance(key.data, _Running):
                    waiting.unregister(key.fd)
                    _tell_end(key.data, key.fd)
                elif key.fileobj is control:
                    child = _forked(control)
                    waiting.register(os.pidfd_open(child.pid), selectors.EVENT_READ, child)
                elif not os.read(0, 1):
                    os._exit(0)


def _tell_end(child: _Running, descriptor: int) -> None:
    _, status = os.waitpid(child.pid, 0)
    os.close(descriptor)
    with contextlib.suppress(OSError):  # the owner has gone
        os.write(child.link, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(child.link)


def _forked(control: socket.socket) -> _Running:
    message, descriptors, _, _ = socket.recv_fds(control, _MOST_BYTES, 4)
    pid = os.fork()
    if pid == 0:
        _become(json.loads(message), descriptors)
    for descriptor in descriptors[:3]:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        os.write(descriptors[3], str(pid).encode())
    return _Running(pid, descriptors[3])


def _become(request: dict[str, object], descriptors: Sequence[int]) -> NoReturn:
    """Run the module as `python -m` would, and end the process."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        module, arguments, environment = request["module"], request["arguments"], request["environment"]
        assert isinstance(module, str) and isinstance(arguments, list) and isinstance(environment, dict)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(str(request["folder"]))
        sys.argv = [module, *map(str, arguments)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, as the interpreter's own
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
