"""Kills `semievol serve` at random while it uploads, trains and runs a batch, and counts what is lost: nothing.

    python -m benchmarks.serve_kills --json              # 20 kills, some minutes
    python -m benchmarks.serve_kills --quick --check     # 4 kills; exit 1 if anything is lost, doubled or torn

The client is the unmodified SDK with max_retries=10. Only the API process is killed; its engine and trainer must
end by themselves. Knows nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import openai

from benchmarks.serve import ROOT, make_model

FINAL = ("succeeded", "failed", "cancelled", "completed", "expired")
WAIT_S = 600


class Server:
    """One server process on one port and state folder."""

    def __init__(self, model: Path, work: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._model, self._work = model, work
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.up_s: list[float] = []
        self.start()

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        ready = self._work / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "semievol_providers.server.command", str(self._model), "--name", "m"]
        command += ["--port", str(self.port), "--state", str(self._work / "state"), "--ready-file", str(ready)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "providers")])}
        since = time.monotonic()
        with (self._work / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        while not ready.exists():
            if self._process.poll() is not None:
                raise RuntimeError((self._work / "log").read_text())
            time.sleep(0.01)
        self.up_s.append(time.monotonic() - since)

    def end(self, number: int) -> None:
        """Send a signal and wait."""
        self._process.send_signal(number)
        self._process.wait()


def _lines(count: int) -> bytes:
    rows: list[dict[str, Any]] = []
    for i in range(count):
        turns = [{"role": "user", "content": f"Item {i}"}, {"role": "assistant", "content": "Answer: " + "ABCD"[i % 4]}]
        rows.append({"messages": turns})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _batch_lines(count: int) -> bytes:
    def body(i: int) -> dict[str, Any]:
        return {"model": "m", "messages": [{"role": "user", "content": f"Item {i}"}], "max_tokens": 20, "seed": i}

    rows = [
        {"custom_id": f"row-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body(i)}
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def run(kills: int, seed: int) -> dict[str, Any]:
    """Start work, kill at random, wait for the work to end, and compare with what was asked."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, layers=2, width=64)
        server = Server(model, Path(folder))
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=10, timeout=60)
        train = client.files.create(file=("t", _lines(24)), purpose="fine-tune").id
        settings: Any = {"n_epochs": 50, "batch_size": 1}
        jobs = [client.fine_tuning.jobs.create(model="m", training_file=train, hyperparameters=settings).id]
        asked = client.files.create(file=("b", _batch_lines(500)), purpose="batch").id
        batch = client.batches.create(input_file_id=asked, endpoint="/v1/chat/completions", completion_window="24h").id
        uploads: list[str] = []
        stop = threading.Event()
        sender = threading.Thread(target=_upload, args=(client, stop, uploads))
        sender.start()
        for _ in range(kills):
            time.sleep(chance.choice([0.1, chance.uniform(0, 3), chance.uniform(3, 9)]))
            server.end(signal.SIGKILL)
            server.start()
        stop.set()
        sender.join()
        found = _verdict(client, jobs, batch, uploads)
        stray = {path.name for path in (Path(folder) / "state" / "files").iterdir()}
        found["stray_files"] = len(stray - {file.id for file in client.files.list()})
        server.end(signal.SIGTERM)
        client.close()
    found |= {"kills": kills, "up_s_median": round(sorted(server.up_s)[len(server.up_s) // 2], 3)}
    faults = ("jobs_lost_or_doubled", "steps_lost_or_doubled", "lines_lost_or_doubled", "uploads_lost_or_torn")
    return found | {"met": not any(found[key] for key in (*faults, "stray_files"))}


def _upload(client: openai.OpenAI, stop: threading.Event, done: list[str]) -> None:
    while not stop.wait(0.05):
        done.append(client.files.create(file=("u", b"x" * 2**20), purpose="user_data").id)


def _verdict(client: openai.OpenAI, jobs: list[str], batch: str, uploads: list[str]) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    while True:
        states = [client.fine_tuning.jobs.retrieve(job).status for job in jobs]
        ended = client.batches.retrieve(batch)
        if all(state in FINAL for state in [*states, ended.status]) or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    events = client.fine_tuning.jobs.list_events(jobs[0], limit=1000)
    wanted = list(range(1, 24 * 50 + 1))
    steps = sorted(int(event.data["step"]) for event in events if event.type == "metrics")  # type: ignore[index]
    lines = client.files.content(str(ended.output_file_id)).text.splitlines() if ended.output_file_id else []
    ids = [json.loads(line)["custom_id"] for line in lines]
    torn = [name for name in uploads if client.files.content(name).read() != b"x" * 2**20]
    return {
        "jobs_lost_or_doubled": [job.id for job in client.fine_tuning.jobs.list()] != jobs,
        "job_status": client.fine_tuning.jobs.retrieve(jobs[0]).status,
        "steps_lost_or_doubled": steps != wanted,
        "batch_status": ended.status,
        "lines_lost_or_doubled": len(set(ids) ^ {f"row-{i}" for i in range(500)}) + len(ids) - len(set(ids)),
        "uploads": len(uploads),
        "uploads_lost_or_torn": len(torn),
    }


def main() -> int:
    """Measure, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 if anything is lost")
    parser.add_argument("--quick", action="store_true", help="4 kills instead of 20")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = run(4 if asked.quick else 20, asked.seed)
    sys.stdout.write(json.dumps(found, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not found["met"] else 0


if __name__ == "__main__":
    sys.exit(main())
