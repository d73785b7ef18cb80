"""Servers that answer chats on a CPU, started for a measurement, and how fast they answer.

Knows nothing of `generate`, of models' sizes or of targets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_S = 20
START_TIMEOUT_S = 180
NEAR_GREEDY = 0.01
"""A temperature at which samples are drawn and still come out as the likeliest."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked: `requests` at a time, and one by one `alone` of them, which is enough for a rate."""

    requests: int
    alone: int
    tokens: int
    words: int = 24


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second one by one, all at once, and four samples of one request; `made` counts them."""

    alone: float = 0.0
    together: float = 0.0
    four: float = 0.0
    made: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(**work: Callable[[], int]) -> Rates:
        """Run each kind of work, which returns how many tokens it made, against the clock."""
        rates: dict[str, float] = {}
        made: dict[str, int] = {}
        for name, run in work.items():
            since = time.perf_counter()
            made[name] = run()
            rates[name] = made[name] / (time.perf_counter() - since)
        return Rates(**rates, made=made)

    def best(self, other: Rates) -> Rates:
        """The better rate of each kind."""
        return Rates(
            max(self.alone, other.alone), max(self.together, other.together), max(self.four, other.four), other.made
        )

    def report(self) -> dict[str, Any]:
        """As JSON."""
        rates = {"one_by_one": self.alone, "together": self.together, "n4": self.four or None}
        return rates | {"tokens": dict(self.made)}


def prompts(shape: Shape) -> list[list[dict[str, str]]]:
    """Different chats of about one length."""
    return [
        [
            {
                "role": "user",
                "content": f"Question {i:03d}: " + " ".join(f"w{i * j % 97:02d}" for j in range(shape.words)),
            }
        ]
        for i in range(shape.requests)
    ]


@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """A server process that is ended with the block."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "providers")])
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": path, **env}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def semievol_command(folder: Path, work: Path, threads: int) -> list[str]:
    """Our server on a model folder, by the name `m`; it writes `ready.json` and `state` into `work`."""
    command = [sys.executable, "-m", "semievol_providers.server.command", str(folder), "--name", "m", "--port", "0"]
    command += ["--state", str(work / "state"), "--ready-file", str(work / "ready.json")]
    return [*command, "--threads", str(threads), "--dtype", "float32"]  # as the others here


@contextlib.contextmanager
def semievol_server(folder: Path, work: Path, threads: int) -> Generator[str]:
    """Our server on a model folder; gives its URL."""
    ready = work / "ready.json"
    with running(semievol_command(folder, work, threads), work / "log", {}) as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((work / "log").read_text())
            time.sleep(0.05)
        url: str = json.loads(ready.read_text())["url"]
        yield url


@contextlib.contextmanager
def transformers_server(
    folder: Path, work: Path, threads: int, bin_folder: Path, dtype: str = "float32"
) -> Generator[str]:
    """`transformers serve`; it knows models by their folder."""
    command = [str(bin_folder / "transformers"), "serve", str(folder), "--device", "cpu", "--dtype", dtype]
    env = {"PYTHONPATH": "", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with _other([*command, "--host", "127.0.0.1"], work, env) as url:
        yield url


@contextlib.contextmanager
def vllm_server(folder: Path, work: Path, threads: int, bin_folder: Path) -> Generator[str]:
    """vLLM built for the CPU."""
    command = [str(bin_folder / "vllm"), "serve", str(folder), "--host", "127.0.0.1", "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "64"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192", "--no-enable-prefix-caching"]
    env = {
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with _other(command, work, env) as url:
        yield url


@contextlib.contextmanager
def _other(command: list[str], work: Path, env: dict[str, str]) -> Generator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with running([*command, "--port", str(port)], work / "log", env) as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("it did not start.")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"


async def served_rates(url: str, model: str, shape: Shape, with_n: bool = True) -> Rates:
    """How fast a server answers; the first question waits until it can."""
    import aiohttp

    chats = prompts(shape)
    limits = {"max_tokens": shape.tokens, "temperature": 0}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1800), connector=connector) as session:

        async def ask(chat: list[dict[str, str]], **settings: Any) -> int:
            body = {"model": model, "messages": chat, **limits, **settings}
            async with session.post(url + "/chat/completions", json=body) as answer:
                said = await answer.json()
                if answer.status != 200:
                    raise RuntimeError(str(said))
                return int(said["usage"]["completion_tokens"])

        async def alone(**settings: Any) -> int:
            return sum([await ask(chat, **settings) for chat in chats[: shape.alone]])

        async def together() -> int:
            return sum(await asyncio.gather(*(ask(chat) for chat in chats)))

        async def timed(work: Callable[[], Awaitable[int]]) -> tuple[int, float]:
            since = time.perf_counter()
            made = await work()
            return made, made / (time.perf_counter() - since)

        await ask(chats[0], max_tokens=2)
        made_alone, rate_alone = await timed(alone)
        made_together, rate_together = await timed(together)
        made = {"alone": made_alone, "together": made_together}
        if not with_n:
            return Rates(rate_alone, rate_together, 0.0, made)
        made["four"], rate_four = await timed(lambda: alone(n=4, temperature=NEAR_GREEDY, seed=1))
        return Rates(rate_alone, rate_together, rate_four, made)
