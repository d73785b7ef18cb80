"""How long one key waits for another on `semievol serve`: samples, prompts of 15 MB, queued jobs and batches.

    python -m benchmarks.serve_fair --json --check      # exit 1 where a promise is missed
    python -m benchmarks.serve_fair --quick             # fewer questions, a tenth of the jobs and batches

One key holds the engine full (12 requests of 128 samples of 1,500 tokens, then prompts of 15 MB as well); the other,
the unmodified SDK, asks for one token again and again. Then one key queues jobs and batches, and the other's first of
each is looked for. The demo model answers. Knows nothing of the model's speed.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


class Flood:
    """Clients of one key that ask the same again and again; they leave when the block ends.

    Bodies are made beforehand and answers not read into objects, so that the measuring client has the machine.
    """

    def __init__(self, url: str, key: str, count: int, body: dict[str, Any]) -> None:
        self.statuses: list[int] = []
        self._address = urlsplit(url)
        self._body = json.dumps({"model": "m"} | body).encode()
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]
        self._connections: list[HTTPConnection] = []
        self._over = False

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        for connection in self._connections:
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=60)

    def _ask(self) -> None:
        connection = HTTPConnection(str(self._address.hostname), self._address.port, timeout=600)
        self._connections.append(connection)
        try:
            while not self._over:
                connection.request("POST", self._address.path + "/chat/completions", self._body, self._headers)
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
        except (OSError, HTTPException):
            if not self._over:
                self.statuses.append(0)
        finally:
            connection.close()


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


def samples(url: str, other: openai.OpenAI, count: int) -> dict[str, Any]:
    """One token beside twelve large requests, and beside prompts that cannot fit as well."""
    alone = _waits(other, count)
    many = {"messages": CHAT, "n": SAMPLES, "max_tokens": TOKENS}
    long = {"messages": [{"role": "user", "content": "word and " * (PROMPT_BYTES // 9)}], "max_tokens": 1}
    with Flood(url, KEYS[0], FLOODS, many) as full:
        time.sleep(3)
        beside_samples = _waits(other, count)
        with Flood(url, KEYS[0], 2, long) as prompts:
            time.sleep(1)
            beside_prompts = _waits(other, count)
            refused = {"prompts_refused": prompts.statuses.count(400), "all_refused": set(prompts.statuses) == {400}}
        held = {"floods_broken_off": full.statuses.count(0)}
    return {"alone": alone, "beside_samples": beside_samples | held, "beside_prompts_too": beside_prompts | refused}


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
    """How long the other key's first batch takes, which asks for one token, against one of those that are queued."""

    def create(client: openai.OpenAI, lines: int, tokens: int) -> str:
        body = {"model": "m", "messages": CHAT, "max_tokens": tokens, "n": 4}
        line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
        text = "".join(json.dumps(line | {"custom_id": str(i)}) + "\n" for i in range(lines))
        file = client.files.create(file=("b", text.encode()), purpose="batch").id
        made = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
        return made.id

    since = time.perf_counter()
    one = create(full, 20, 200)
    while full.batches.retrieve(one).status not in FINAL:
        time.sleep(0.05)
    one_took_s = time.perf_counter() - since
    first = [create(full, 20, 200) for _ in range(count)]
    since = time.perf_counter()
    late = create(other, 1, 1)
    while other.batches.retrieve(late).status not in FINAL:
        time.sleep(0.05)
    waited_s = time.perf_counter() - since
    left = [batch for batch in first if full.batches.retrieve(batch).status in ("validating", "in_progress")]
    for batch in left:
        try:
            full.batches.cancel(batch)
        except openai.BadRequestError:  # it ended before
            continue
    return {"queued": count, "still_queued": len(left), "one_alone_s": one_took_s, "other_took_s": waited_s}


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
            found = samples(url, other, max(20, int(100 * share)))
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
        and prompts["all_refused"]
        and found["beside_samples"]["floods_broken_off"] == 0
        and found["jobs"]["ran_before_the_other"] <= JOBS_PROMISED
        and found["batches"]["other_took_s"] <= found["batches"]["one_alone_s"]
    )
    sys.stdout.write(json.dumps({"met": met, **_rounded(found)}, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
