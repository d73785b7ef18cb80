"""A real server process for tests: start it, find its address, kill it, start it again on the same state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import openai

ROOT = Path(__file__).resolve().parent.parent.parent
TRAIN = "learning_rate = 3e-3\nrank = 4\nalpha = 8\ntarget_steps = 20\nmax_epochs = 5\n"


def environment(**extra: str) -> dict[str, str]:
    """This checkout's code, and no key of anybody."""
    env = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_TOKEN"))}
    return env | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'providers'}", "OMP_NUM_THREADS": "1"} | extra


@dataclass
class RunningServer:
    """One server on one state folder; a context manager that ends it."""

    model: Path
    folder: Path
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    clients: list[openai.OpenAI] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> RunningServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        ready, train = self.folder / "ready.json", self.folder / "train.toml"
        ready.unlink(missing_ok=True)
        if not train.exists():
            train.write_text(TRAIN)
        command = [
            sys.executable, "-m", "semievol_providers.server.command", str(self.model), "--name", "tiny",
            "--port", "0", "--state", str(self.folder / "state"), "--ready-file", str(ready),
            "--train-config", str(train), *self.options,
        ]  # fmt: skip
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, env=environment(**self.env), stdin=subprocess.PIPE, stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        self.url = json.loads(ready.read_text())["url"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        for client in self.clients:
            client.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "server.log").read_text(errors="replace")

    def client(self, **settings: Any) -> openai.OpenAI:
        """The unmodified SDK, without retries unless asked for."""
        fixed = {"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60}
        self.clients.append(openai.OpenAI(**fixed | settings))
        return self.clients[-1]


def wait_for_job(client: openai.OpenAI, job_id: str, *statuses: str) -> Any:
    """The job as soon as it has one of these statuses (or any final one)."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in (statuses or ("succeeded",)):
            return job
        assert job.status not in ("succeeded", "failed", "cancelled"), job
        time.sleep(0.05)
    raise AssertionError(f"the job stayed {job.status}")


MESSAGES: Any = [{"role": "user", "content": "Item 1 x"}]


@dataclass(frozen=True)
class Deploying:
    """A server that wants deployments, and a model tuned there by the first of two keys."""

    server: RunningServer
    model: str

    def client(self, key: str = "mine") -> openai.OpenAI:
        return self.server.client(api_key=key)

    def ask(self, method: str, path: str = "", body: object = None, key: str = "mine") -> tuple[int, Any]:
        """Status and body of one request to /deployments."""
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.server.url}/deployments{path}", content, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    def until(self, deployment_id: str, status: str) -> Any:
        """The deployment, as soon as it has this status."""
        deadline = time.monotonic() + 20
        while (found := self.ask("GET", f"/{deployment_id}")[1])["status"] != status:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def answer(self) -> str | None:
        """What the tuned model says, or the code of the refusal."""
        try:
            self.client().chat.completions.create(model=self.model, messages=MESSAGES, max_tokens=1)
        except openai.APIStatusError as error:
            return error.code
        return "answered"
