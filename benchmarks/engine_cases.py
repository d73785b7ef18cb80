"""What is measured of the request engine: one function per figure, each against a server of its own.

A case gives numbers; what they must be is said in `engine.py`. Clients run in processes of their own
(`load.py`), pinned to one core, the server to another. Knows nothing of targets.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mock import MockServer
from semievol_api.engine import Journal
from semievol_api.engine.journal import Content, Row, Source
from semievol_api.errors import JournalError

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, float | int | str | None]
PROMPT_TOKENS = 300
"""What the server bills for every prompt."""
INPUT_USD, OUTPUT_USD = 0.15, 0.60
UNBOUND = {"rpm": 10_000_000, "tpm": 2_000_000_000}
"""Quotas that bind nobody, so that headers are sent and read as they would be."""


@dataclass(frozen=True)
class Sizes:
    """How many requests each case sends."""

    cpu: int = 10_000
    slow_peers: int = 2_000
    memory: tuple[int, int] = (20_000, 200_000)
    rpm: int = 1_000
    tpm: int = 1_000
    chaos: int = 20_000
    kill: int = 5_000
    kills: int = 20
    budget: int = 4_000
    journal: int = 1_000_000
    cached: int = 40_000
    repeats: int = 3


QUICK = Sizes(
    cpu=5_000, slow_peers=300, memory=(3_000, 9_000), rpm=150, tpm=150, chaos=1_500, kill=800, kills=3,
    budget=800, journal=100_000, cached=10_000, repeats=2,
)  # fmt: skip


@contextmanager
def journal_path() -> Iterator[str]:
    """A place for a journal that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="semievol-bench-") as folder:
        yield str(Path(folder) / "journal.sqlite")


def start(settings: dict[str, Any], *, python: str = sys.executable) -> subprocess.Popen[str]:
    """A client under load, as a child process."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'providers'}"}
    arguments = [python, "-m", "benchmarks.load", json.dumps(settings)]
    return subprocess.Popen(arguments, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def load(server: MockServer, *, python: str = sys.executable, **settings: Any) -> dict[str, Any]:
    """Run one client to its end; its figures."""
    child = start({"url": server.url, "tokens": 16, "in_flight": 256, **settings}, python=python)
    out, err = child.communicate()
    if child.returncode != 0:
        raise RuntimeError(f"The client {settings['client']!r} ended with {child.returncode}:\n{err[-2000:]}")
    return dict(json.loads(out.splitlines()[-1]))


def engine_load(server: MockServer, rows: int, **settings: Any) -> dict[str, Any]:
    """Run the engine on a fresh journal."""
    with journal_path() as path:
        return load(server, client="engine", rows=rows, journal=path, **settings)


def cpu(sizes: Sizes, tokens: int) -> Figures:
    """CPU seconds per 1,000 requests, 256 in flight, 50 ms: the engine and the least that is possible.

    The two take turns and the best of each counts, since other programs on the machine only ever add.
    """
    ours, raw = [], []
    with MockServer(latency=50, tokens=tokens, **UNBOUND) as server:
        for _ in range(sizes.repeats):
            limits = {"concurrency": 256}
            figures = engine_load(server, sizes.cpu, tokens=tokens, limits=limits)
            assert figures["lost"] == figures["wrong"] == 0, figures
            ours.append(figures["cpu_s"] / sizes.cpu * 1000)
            raw.append(load(server, client="raw", rows=sizes.cpu, tokens=tokens)["cpu_s"] / sizes.cpu * 1000)
    best = min(ours)
    return {
        f"cpu_s_per_1000_at_{tokens}_tokens": best,
        f"raw_cpu_s_per_1000_at_{tokens}_tokens": min(raw),
        f"times_raw_at_{tokens}_tokens": best / min(raw),
    }


def peers(sizes: Sizes, ours: float, litellm_python: str | None) -> Figures:
    """How many times the engine's CPU other clients need; None where one is not installed."""
    figures: Figures = {}
    pythons = {"sdk": sys.executable, "litellm": litellm_python or sys.executable}
    with MockServer(latency=50, **UNBOUND) as server:
        for client, python in pythons.items():
            try:
                done = load(server, client=client, rows=sizes.slow_peers, python=python)
            except RuntimeError as error:
                if "No module named" not in str(error):
                    raise
                figures |= {f"{client}_cpu_s_per_1000": None, f"{client}_times_engine": None}
                continue
            theirs = done["cpu_s"] / sizes.slow_peers * 1000
            figures |= {f"{client}_cpu_s_per_1000": theirs, f"{client}_times_engine": theirs / ours}
    return figures


def memory(sizes: Sizes) -> Figures:
    """Peak memory of a short and a ten times longer run."""
    few, many = sizes.memory
    with MockServer(latency=5, **UNBOUND) as server:
        short = engine_load(server, few)["rss_mb"]
        long = engine_load(server, many)["rss_mb"]
    return {"rss_mb_short": short, "rss_mb_long": long, "rss_ratio": long / short}


def pacing(sizes: Sizes) -> Figures:
    """A request quota, a token quota and both; learned from headers."""
    figures: Figures = {}
    with MockServer(latency=50, rpm=3000) as server:
        done = engine_load(server, sizes.rpm)
        seen = server.stats()
        figures |= {
            "rpm_wall_s": done["wall_s"],
            "rpm_ideal_s": sizes.rpm / 50,
            "rpm_lost": done["lost"],
            "rpm_429": seen["r429"],
        }
    for name, rpm in (("tpm", 0), ("both", 3000)):
        tpm = 600_000
        with MockServer(latency=50, rpm=rpm, tpm=tpm) as server:
            done = engine_load(server, sizes.tpm)
            seen = server.stats()
            share = seen["need"] / (seen["span_s"] * tpm / 60)
            figures |= {f"{name}_share_of_quota": share, f"{name}_lost": done["lost"], f"{name}_429": seen["r429"]}
    return figures


def chaos(sizes: Sizes) -> Figures:
    """10 % 429, 5 % 500, 2 % cut connections, 1 % invalid JSON, 1 % stalls past the timeout."""
    trouble = {"busy": 100_000, "fail": 50_000, "drop": 20_000, "bad": 10_000, "stall": 10_000, "stall_ms": 6000}
    with MockServer(latency=20, **trouble) as server:
        done = engine_load(server, sizes.chaos, limits={"timeout_s": 2.0, "max_attempts": 12})
        seen = server.stats()
    return {
        "chaos_lost": done["lost"],
        "chaos_duplicated": done["duplicated"],
        "chaos_wrong": done["wrong"],
        "chaos_wall_s": done["wall_s"],
        "chaos_trouble": seen["busy"] + seen["r500"] + seen["dropped"] + seen["bad"] + seen["stalled"],
    }


def kill(sizes: Sizes) -> Figures:
    """SIGKILL at random moments; the journal's rows must not be asked again, and the results must be the same."""
    chance = random.Random(7)
    in_flight = 32
    with MockServer(latency=50) as server, journal_path() as path, journal_path() as calm_path:
        settings = {"client": "engine", "rows": sizes.kill, "limits": {"concurrency": in_flight}, "digest": True}
        calm = load(server, journal=calm_path, **settings)
        server.configure(latency=50, zero=1)
        asked_again = kills = 0
        journaled: dict[int, int] = {}
        while True:
            child = start({"url": server.url, "tokens": 16, "in_flight": 0, "journal": path, **settings})
            finished = kills >= sizes.kills or _wait(child, chance.uniform(0.3, 1.2), path)
            if not finished:
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
            out, err = child.communicate()
            if finished and child.returncode != 0:
                raise RuntimeError(err[-2000:])
            counts = server.rows(sizes.kill)
            asked_again += sum(counts[row] != count for row, count in journaled.items())
            journaled = {row: counts[row] for row in _journaled(path)}
            if finished:
                break
        done = json.loads(out.splitlines()[-1])
        total = server.stats()["billed"]
    return {
        "kills": kills,
        "kill_requests_beyond": total - sizes.kill,
        "kill_requests_beyond_allowed": kills * in_flight,
        "kill_journaled_asked_again": asked_again,
        "kill_same_results": int(done["digest"] == calm["digest"] and done["lost"] == 0),
    }


def _wait(child: subprocess.Popen[str], after_s: float, path: str) -> bool:
    """Wait until the child has worked for a while; True where it has finished by then."""
    began = _samples(path)
    deadline_s = time.monotonic() + 60
    while child.poll() is None and _samples(path) == began and time.monotonic() < deadline_s:
        time.sleep(0.01)
    try:
        child.wait(after_s * 0.5)
    except subprocess.TimeoutExpired:
        return False
    return True


def _samples(path: str) -> int:
    if not Path(path).exists():
        return 0
    try:
        journal = Journal.read_only(Path(path))
    except JournalError:  # it is being made
        return 0
    try:
        return sum(total.samples for total in journal.totals())
    finally:
        journal.close()


def _journaled(path: str) -> list[int]:
    journal = Journal.read_only(Path(path))
    rows = [int(ask_id) for (ask_id,) in journal.connection.execute("SELECT ask_id FROM samples")]
    journal.close()
    return rows


def budget(sizes: Sizes) -> Figures:
    """A cap in the middle of a run with 256 in flight; spend by the server's own count."""
    each = (PROMPT_TOKENS * INPUT_USD + 16 * OUTPUT_USD) / 1e6
    cap = each * sizes.budget / 2
    with MockServer(latency=50) as server:
        prices = {"input_usd": INPUT_USD, "output_usd": OUTPUT_USD}
        done = engine_load(server, sizes.budget, limits={"concurrency": 256, "max_usd": cap}, **prices)
        spent = server.stats()["billed"] * each
    return {"budget_cap_usd": cap, "budget_spent_usd": spent, "budget_stopped": int("budget" in done)}


def journal(sizes: Sizes) -> Figures:
    """Opening a big journal, and a rerun that finds everything in it."""
    source = Source("", "http://elsewhere/v1", "m", "chat", "annotate", "direct")
    content = Content("word " * 16, "stop", bytes(64), None)
    with journal_path() as path, MockServer(latency=5, **UNBOUND) as server:
        load(server, client="engine", rows=sizes.cached, journal=path)
        big = Journal.create(Path(path))
        for first in range(0, sizes.journal, 20_000):
            keys = (number.to_bytes(4, "big") + os.urandom(16) for number in range(first, first + 20_000))
            big.write([Row(key, 0, source, "1", 1, 300, 0, 16, 0.0, content) for key in keys])
        big.close()
        began_s = time.perf_counter()
        big = Journal.create(Path(path))
        samples = sum(total.samples for total in big.totals())
        opened_s = time.perf_counter() - began_s
        big.close()
        reruns = [load(server, client="engine", rows=sizes.cached, journal=path) for _ in range(sizes.repeats)]
    assert all(done["cached"] == sizes.cached and done["lost"] == 0 for done in reruns), reruns
    return {
        "journal_rows": samples,
        "journal_open_s": opened_s,
        "cached_rows_per_s": sizes.cached / min(done["wall_s"] for done in reruns),
    }
