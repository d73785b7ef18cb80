"""Large and many things on `semievol serve`: a 512 MB upload, 1,000 small files, 100 queued jobs of two keys.

    python -m benchmarks.serve_scale --json --check      # exit 1 where a promise is missed
    python -m benchmarks.serve_scale --quick             # a sixteenth of it

The client is the unmodified SDK. Memory is the API process's peak by the kernel's count (Linux). Knows nothing of
models' speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from benchmarks.serve import make_model
from benchmarks.serve_servers import START_TIMEOUT_S, running, semievol_command

KEYS = ("alpha", "beta")
EXTRA_MIB_PROMISED = 200
FINAL = ("succeeded", "failed", "cancelled")


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had resident."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def upload(client: openai.OpenAI, pid: int, size: int, work: Path) -> dict[str, Any]:
    """One large file: extra memory, seconds, and whether it arrived whole."""
    path = work / "large.jsonl"
    with path.open("wb") as out:
        out.truncate(size)
    before, since = peak_mib(pid), time.perf_counter()
    with path.open("rb") as data:
        file = client.files.create(file=data, purpose="user_data")
    spent_s = time.perf_counter() - since
    kept = (work / "state" / "files" / file.id).stat().st_size
    client.files.delete(file.id)
    return {"mib": size / 2**20, "extra_mib": peak_mib(pid) - before, "seconds": spent_s, "whole": kept == size}


def listing(client: openai.OpenAI, count: int) -> dict[str, Any]:
    """Many small files: made, and listed in pages."""
    since = time.perf_counter()
    made = [client.files.create(file=(f"{i}", b"x"), purpose="user_data").id for i in range(count)]
    made_s, since = time.perf_counter() - since, time.perf_counter()
    listed = [file.id for file in client.files.list(limit=100, purpose="user_data")]
    listed_s = time.perf_counter() - since
    return {"files": count, "made_s": made_s, "listed_s": listed_s, "whole": listed == made[::-1]}


def queue(clients: list[openai.OpenAI], count: int) -> dict[str, Any]:
    """Jobs of one key in a long queue, two of another behind them; how many ran before the other's first."""
    turns = [{"role": "user", "content": "Item"}, {"role": "assistant", "content": "B"}]
    rows = (json.dumps({"messages": turns}) + "\n").encode() * 10
    files = [client.files.create(file=("t", rows), purpose="fine-tune").id for client in clients]
    settings: Any = {"n_epochs": 1}

    def create(who: int) -> str:
        jobs = clients[who].fine_tuning.jobs
        return jobs.create(model="m", training_file=files[who], hyperparameters=settings).id

    first, late = [create(0) for _ in range(count - 2)], [create(1) for _ in range(2)]
    while clients[1].fine_tuning.jobs.retrieve(late[0]).status not in FINAL:
        time.sleep(0.1)
    ahead = sum(clients[0].fine_tuning.jobs.retrieve(job).status in FINAL for job in first)
    clients[1].fine_tuning.jobs.cancel(late[1])
    cancelled = 1
    for job in first:
        try:
            cancelled += clients[0].fine_tuning.jobs.cancel(job).status == "cancelled"
        except openai.BadRequestError:  # it ended before
            continue
    ended = [clients[0].fine_tuning.jobs.retrieve(job).status for job in first]
    return {
        "jobs": count,
        "done_before_the_other_key": ahead,
        "cancelled": cancelled,
        "left": sum(status not in FINAL for status in ended),
    }


def run(share: float) -> dict[str, Any]:
    """Everything on one server."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_model(work / "model", layers=2, width=64)
        ready = work / "ready.json"
        command = [*semievol_command(work / "model", work, 1), "--api-key-env", "SCALE_KEYS"]
        with running(command, work / "log", {"SCALE_KEYS": ",".join(KEYS)}) as process:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((work / "log").read_text())
                time.sleep(0.05)
            url = json.loads(ready.read_text())["url"]
            clients = [openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=300) for key in KEYS]
            found = {
                "upload": upload(clients[0], process.pid, int(512 * share) * 2**20, work),
                "listing": listing(clients[1], int(1000 * share)),
                "queue": queue(clients, max(6, int(100 * share))),
            }
            for client in clients:
                client.close()
    return found


def main() -> int:
    """Measure, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is missed")
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the work")
    asked = parser.parse_args()
    found = run(1 / 16 if asked.quick else 1)
    met = (
        found["upload"]["whole"]
        and found["upload"]["extra_mib"] < EXTRA_MIB_PROMISED
        and found["listing"]["whole"]
        and found["queue"]["done_before_the_other_key"] <= 4
        and found["queue"]["left"] == 0
    )
    rounded = {
        name: {key: round(value, 2) if isinstance(value, float) else value for key, value in part.items()}
        for name, part in found.items()
    }
    sys.stdout.write(json.dumps({"met": met, **rounded}, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
