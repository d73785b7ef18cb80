"""How long one key waits for another on `semievol serve`: samples, prompts of 15 MB, queued jobs and batches.

    python -m benchmarks.serve_fair --json --check      # exit 1 where a promise is missed
    python -m benchmarks.serve_fair --quick             # fewer questions, a tenth of the jobs and batches

One key holds the engine full (12 requests of 128 samples of 1,500 tokens, then prompts of 15 MB as well); the other asks
for one token again and again. Then one key queues jobs and batches, and the other's first of each is looked for. The demo
model answers; the client is the unmodified SDK. Knows nothing of the model's speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from benchmarks.serve import DEMO_MODEL
from benchmarks.serve_servers import START_TIMEOUT_S, running, semievol_command

KEYS = ("alpha", "beta")
P95_PROMISED_S = 1.0
JOBS_PROMISED = 1
FLOODS, SAMPLES, TOKENS = 12, 128, 1500
PROMPT_BYTES = 15 * 10**6
FINAL = ("succeeded", "failed", "cancelled", "completed", "expired")
CHAT: Any = [{"role": "user", "content": "Go on."}]


@contextmanager
def _in_threads(count: int, client: openai.OpenAI, **body: Any) -> Generator[list[str]]:
    """So many clients that ask again and again until the block ends; gives what the server answered them."""
    stop, said = threading.Event(), list[str]()

    def ask() -> None:
        while not stop.is_set():
            try:
                with client.chat.completions.create(model="m", stream=True, **body) as chunks:
                    for _ in chunks:
                        if stop.is_set():
                            return
                said.append("answered")
            except openai.APIStatusError as error:
                said.append(str(error.code))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield said
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=120)


def _waits(client: openai.OpenAI, count: int) -> dict[str, Any]:
    """Seconds that one token takes."""
    waits_s: list[float] = []
    for _ in range(count):
        since = time.perf_counter()
        client.chat.completions.create(model="m", messages=CHAT, max_tokens=1)
        waits_s.append(time.perf_counter() - since)
        time.sleep(0.05)
    cuts = statistics.quantiles(waits_s, n=20)
    return {"asked": count, "median_s": statistics.median(waits_s), "p95_s": cuts[-1], "worst_s": max(waits_s)}


def samples(full: openai.OpenAI, other: openai.OpenAI, count: int) -> dict[str, Any]:
    """One token beside twelve large requests, and beside prompts that cannot fit as well."""
    alone = _waits(other, count)
    with _in_threads(FLOODS, full, messages=CHAT, n=SAMPLES, max_tokens=TOKENS, temperature=1.0):
        time.sleep(3)
        beside_samples = _waits(other, count)
        long: Any = [{"role": "user", "content": "word and " * (PROMPT_BYTES // 9)}]
        with _in_threads(2, full, messages=long, max_tokens=1) as said:
            time.sleep(1)
            beside_prompts = _waits(other, count)
    return {"alone": alone, "beside_samples": beside_samples, "beside_prompts_too": beside_prompts | {
        "prompts_refused": said.count("context_length_exceeded"), "prompts_otherwise": len(set(said)) - 1}}  # fmt: skip


def jobs(full: openai.OpenAI, other: openai.OpenAI, count: int) -> dict[str, Any]:
    """How many of one key's queued jobs ran before the other's first."""
    turns = [{"role": "user", "content": "Item"}, {"role": "assistant", "content": "B"}]
    rows = (json.dumps({"messages": turns}) + "\n").encode() * 10
    once: Any = {"n_epochs": 1}

    def create(client: openai.OpenAI, file: str) -> str:
        return client.fine_tuning.jobs.create(model="m", training_file=file, hyperparameters=once).id

    files = [client.files.create(file=("t", rows), purpose="fine-tune").id for client in (full, other)]
    first = [create(full, files[0]) for _ in range(count)]

    def ended() -> int:
        return sum(job.status in FINAL for job in full.fine_tuning.jobs.list(limit=100) if job.id in first)

    before, since = ended(), time.perf_counter()
    late = create(other, files[1])
    while other.fine_tuning.jobs.retrieve(late).status in ("validating_files", "queued"):
        time.sleep(0.05)
    waited_s, ahead = time.perf_counter() - since, ended() - before
    for job in first:
        try:
            full.fine_tuning.jobs.cancel(job)
        except openai.BadRequestError:  # it ended before
            continue
    return {"queued": count, "ran_before_the_other": ahead, "other_waited_s": waited_s}


def batches(full: openai.OpenAI, other: openai.OpenAI, count: int) -> dict[str, Any]:
    """How many of one key's batches ended before the other's first, which asks for one token."""

    def create(client: openai.OpenAI, lines: int, tokens: int) -> str:
        body = {"model": "m", "messages": CHAT, "max_tokens": tokens, "n": 4}
        line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
        text = "".join(json.dumps(line | {"custom_id": str(i)}) + "\n" for i in range(lines))
        file = client.files.create(file=("b", text.encode()), purpose="batch").id
        made = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
        return made.id

    first = [create(full, 20, 200) for _ in range(count)]
    since = time.perf_counter()
    late = create(other, 1, 1)
    while other.batches.retrieve(late).status not in FINAL:
        time.sleep(0.05)
    waited_s = time.perf_counter() - since
    statuses = [full.batches.retrieve(batch).status for batch in first]
    for batch, status in zip(first, statuses, strict=True):
        if status in ("validating", "in_progress"):
            full.batches.cancel(batch)
    return {"queued": count, "ended_before_the_other": statuses.count("completed"), "other_took_s": waited_s}


def run(share: float) -> dict[str, Any]:
    """Everything on one server."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        command = [*semievol_command(DEMO_MODEL, work, 1), "--api-key-env", "FAIR_KEYS"]
        with running(command, work / "log", {"FAIR_KEYS": ",".join(KEYS)}) as process:
            ready, deadline = work / "ready.json", time.monotonic() + START_TIMEOUT_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((work / "log").read_text())
                time.sleep(0.05)
            url = json.loads(ready.read_text())["url"]
            full, other = (openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=600) for key in KEYS)
            other.chat.completions.create(model="m", messages=CHAT, max_tokens=1)  # waits for the engine
            found = samples(full, other, max(20, int(100 * share)))
            found["jobs"] = jobs(full, other, int(1000 * share))
            found["batches"] = batches(full, other, int(200 * share))
            for client in (full, other):
                client.close()
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> int:
    """Measure, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is missed")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    asked = parser.parse_args()
    found = run(0.1 if asked.quick else 1)
    prompts = found["beside_prompts_too"]
    met = (
        found["beside_samples"]["p95_s"] <= P95_PROMISED_S
        and prompts["p95_s"] <= P95_PROMISED_S
        and prompts["prompts_refused"] > 0
        and prompts["prompts_otherwise"] == 0
        and found["jobs"]["ran_before_the_other"] <= JOBS_PROMISED
        and found["batches"]["ended_before_the_other"] == 0
    )
    sys.stdout.write(json.dumps({"met": met, **_rounded(found)}, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
