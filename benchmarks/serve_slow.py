"""Does a run on a slow server end, with nothing computed twice?

    python -m benchmarks.serve_slow --json --check      # exit 1 where a row has no answer, or one was computed twice

A server on the demo model answers the same chats and embeddings twice: undisturbed, and with its engine stopped nine
tenths of the time. The client's time-out is as long as the processor worked for the undisturbed run, so that the slow
one takes ten of them and every request waits behind the others. What was computed is read from the server's own
counters; a request that the client left counts as computed whole. Knows nothing of how the client decides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serve import DEMO_MODEL
from benchmarks.serve_servers import semievol_server
from semievol_api.capabilities import ChatRequest, ProviderSettings
from semievol_api.config.settings import Limits
from semievol_api.engine import Ask, RequestEngine
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect

SLOWER = 10
MOST_COMPUTED = 1.05
PERIOD_S = 0.1
EMBED_GROUP, TOKENS = 64, 48


@dataclass(frozen=True)
class Work:
    """So many texts to embed and chats to answer."""

    texts: int
    chats: int

    def questions(self) -> Generator[Ask[ChatRequest]]:
        """The chats."""
        for i in range(self.chats):
            prompt = Prompt((Message("user", f"Question {i}: " + " ".join(f"w{i * j % 97}" for j in range(20))),))
            yield Ask(str(i), ChatRequest(model="m", prompt=prompt, max_tokens=TOKENS, seed=i))

    def passages(self) -> list[str]:
        """The texts."""
        return [f"Text {i}: " + " ".join(f"v{i * j % 89}" for j in range(40)) for i in range(self.texts)]


@dataclass(frozen=True)
class Count:
    """What the server says that it did; `left` requests had no client any more when they were done."""

    answered: int
    left: int
    tokens: float

    def since(self, before: Count) -> Count:
        """The difference."""
        return Count(self.answered - before.answered, self.left - before.left, self.tokens - before.tokens)

    @property
    def computed(self) -> float:
        """Tokens, those of requests that were left among them, each as large as the others on the average."""
        return self.tokens * (1 + self.left / max(1, self.answered))


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=600) as answer:
        text: str = answer.read().decode()
        return text


def count(root: str) -> Count:
    """The counters of chats and embeddings."""
    statuses = {"200": 0, "499": 0}
    tokens = 0.0
    for family in text_string_to_metric_families(_get(root + "/metrics")):
        for sample in family.samples:
            if sample.name == "semievol_tokens_total":
                tokens += sample.value
            elif sample.name == "semievol_requests_total" and sample.labels["method"] == "POST":
                status = sample.labels["status"]
                statuses[status] = statuses.get(status, 0) + int(sample.value)
    return Count(statuses["200"], statuses["499"], tokens)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def slowed(pid: int) -> Generator[None]:
    """Stop a process nine tenths of the time."""
    over = threading.Event()

    def throttle() -> None:
        with suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(PERIOD_S * (1 - 1 / SLOWER))
                os.kill(pid, signal.SIGCONT)
                over.wait(PERIOD_S / SLOWER)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def ask_all(url: str, journal: Path, work: Work, timeout_s: float) -> dict[str, Any]:
    """A run's two kinds of request, one after the other; returns rows without an answer and what was retried."""
    provider = connect(ProviderSettings(name="p", options={"base_url": url, "api_key_env": ""}, environ=os.environ))
    failures: list[str] = []
    since = time.monotonic()
    try:
        async with RequestEngine.open(journal, Limits(timeout_s=timeout_s)) as engine:
            try:
                await engine.embed(provider, "m", work.passages(), stage="embed", batch_size=EMBED_GROUP)
            except Exception as error:  # noqa: BLE001 - reported
                failures.append(str(error))
            async for answer in engine.chat(provider, work.questions(), stage="chat"):
                if answer.failure is not None:
                    failures.append(answer.failure)
            attempts = {name: bill.attempts for name, bill in engine.ledger.stages.items()}
    finally:
        await provider.aclose()
    return {"seconds": time.monotonic() - since, "unanswered": len(failures), "attempts": attempts, "why": failures[:2]}


def run(work: Work) -> dict[str, Any]:
    """Both runs on one server."""
    with tempfile.TemporaryDirectory() as folder, semievol_server(DEMO_MODEL, Path(folder), 1) as url:
        root = url.removesuffix("/v1")
        asyncio.run(ask_all(url, Path(folder) / "warm.sqlite", Work(64, 16), 600.0))
        before, engine = count(root), int(json.loads(_get(root + "/healthz"))["engine_pid"])
        began_s = _cpu_s(engine)
        plain = asyncio.run(ask_all(url, Path(folder) / "plain.sqlite", work, 600.0))
        asked, timeout_s = count(root), _cpu_s(engine) - began_s
        with slowed(engine):
            slow = asyncio.run(ask_all(url, Path(folder) / "slow.sqlite", work, timeout_s))
        time.sleep(2)  # what was left is noted when its connection is closed
        done = count(root).since(asked)
    computed = done.computed / asked.since(before).computed
    return {
        "timeout_s": timeout_s,
        "undisturbed": plain,
        "slow": slow | {"took_time_outs": slow["seconds"] / timeout_s, "left_requests": done.left},
        "computed_of_asked": computed,
        "most_allowed": MOST_COMPUTED,
        "met": slow["unanswered"] == 0 and computed <= MOST_COMPUTED,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> int:
    """Measure, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is missed")
    parser.add_argument("--quick", action="store_true", help="a quarter of the work")
    asked = parser.parse_args()
    found = run(Work(320, 100) if asked.quick else Work(1280, 400))
    sys.stdout.write(json.dumps(_rounded(found), indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not found["met"] else 0


if __name__ == "__main__":
    sys.exit(main())
