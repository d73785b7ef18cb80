"""CPU seconds that `semievol serve` spends on work, beside those of plain `generate`: for machines that are busy.

    python -m benchmarks.serve_cpu --json           # demo model; Linux only, since it reads /proc
    python -m benchmarks.serve_cpu --random --rounds 2     # a 100 M-parameter random Llama

The work is that of `benchmarks.serve`: 64 chats at once, single requests of four samples, requests one by one. Both
sides take turns, the least of each counts. `share` is the CPU time of `generate` divided by that of all of the
server's processes, HTTP included; `engine_share` looks at the engine's process only. Knows
nothing of time on the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.serve import DEMO_MODEL, Plain, make_model
from benchmarks.serve_servers import NEAR_GREEDY, Shape, prompts, semievol_server


def descendants() -> list[int]:
    """Processes below this one that run our server, parents first."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, new = [], [os.getpid()]
    while new:
        new = sorted(pid for pid, parent in parents.items() if parent in new)
        found += new
    return found


def cpu_s(pid: int) -> float:
    """What a process's living threads have run so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Asker:
    """The three kinds of work, over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, url: str, shape: Shape) -> None:
        self._session = session
        self._url = url + "/chat/completions"
        self._shape = shape
        self._chats = prompts(shape)

    async def ask(self, chat: list[dict[str, str]], **settings: Any) -> None:
        """One request."""
        limits = {"model": "m", "max_tokens": self._shape.tokens, "temperature": 0}
        async with self._session.post(self._url, json={**limits, "messages": chat, **settings}) as answer:
            answer.raise_for_status()
            await answer.read()

    async def together(self) -> None:
        """All chats at once."""
        await asyncio.gather(*(self.ask(chat) for chat in self._chats))

    async def alone(self, **settings: Any) -> None:
        """One by one."""
        for chat in self._chats[: self._shape.alone]:
            await self.ask(chat, **settings)

    async def four(self) -> None:
        """One by one, four samples of each."""
        await self.alone(n=4, temperature=NEAR_GREEDY, seed=1)


async def measure(url: str, plain: Plain, shape: Shape, rounds: int) -> dict[str, Any]:
    """The least CPU seconds of each kind of work, and the shares."""
    least: dict[str, list[float]] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1800)) as session:
        asker = Asker(session, url, shape)
        await asker.together()
        servers = descendants()
        work: Mapping[str, tuple[Callable[[], object], Callable[[], Awaitable[None]]]] = {
            "together": (plain.together, asker.together),
            "n4": (plain.four, asker.four),
            "one_by_one": (plain.alone, asker.alone),
        }
        for _ in range(rounds):
            for name, (generate, ask) in work.items():
                before = time.process_time()
                generate()
                spent = [time.process_time() - before]
                marks = [cpu_s(pid) for pid in servers]
                await ask()
                spent += [cpu_s(pid) - mark for pid, mark in zip(servers, marks, strict=True)]
                least[name] = [min(pair) for pair in zip(least.get(name, spent), spent, strict=True)]
    return {name: _shares(*found) for name, found in least.items()}


def _shares(generate_s: float, *server_s: float) -> dict[str, float]:
    return {
        "generate_cpu_s": round(generate_s, 3),
        "server_cpu_s": round(sum(server_s), 3),
        "share": round(generate_s / sum(server_s), 3),
        "engine_share": round(generate_s / max(server_s), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--random", action="store_true", help="a random Llama of 100 M parameters instead")
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder, shape = DEMO_MODEL, Shape(64, 16, 32)
        if asked.random:
            folder, shape = Path(work) / "model", Shape(64, 2, 16, words=8)
            make_model(folder, 14, 768)
        with semievol_server(folder, Path(work), 1) as url:
            found = asyncio.run(measure(url, Plain(folder, shape, 1), shape, asked.rounds))
    report = {"model": "random Llama, 100 M" if asked.random else "demo", **found}
    sys.stdout.write(json.dumps(report, indent=None if asked.json else 2) + "\n")


if __name__ == "__main__":
    main()
