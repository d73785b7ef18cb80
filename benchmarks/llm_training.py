"""Training a real small model on a CPU: tokens per CPU second against an earlier commit's trainer, and the same losses.

    python -m benchmarks.llm_training --json --check             half an hour on a busy core
    python -m benchmarks.llm_training --steps 13 --json          a first look
    python -m benchmarks.llm_training --before a87899e           the commit to compare with

Both sides train a LoRA of rank 16 over SmolLM2-135M-Instruct on the same chats (the demo's labelled questions and the
field that each is from) in the same steps of 8, one thread each, in a process of its own; the earlier side from `git
archive`. It works in float32, so its losses are the reference. Only the steps are timed. The model comes from its
package, as `semievol models get smollm2` fetches it. Promises bind where the CPU multiplies in bfloat16.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.sweep import messages
from semievol_providers.local.machine import fast_in_bfloat16
from semievol_providers.local.packaged_models import folder_for
from semievol_providers.local.training_job import read_train_defaults

ROOT = Path(__file__).resolve().parents[1]
PROMISED = 2.5
"""How many times the earlier commit's tokens per CPU second."""
PER_STEP = 8
WINDOW = 10
ALLOWED = (0.01, 0.02)
"""Means of ten steps may differ by this share of the reference, or by this much where that is more."""
SIDE = """
import json, sys, time
from semievol_providers.local import train, training_loop

run, spent = training_loop.TrainingLoop.run, []

def timed(*given):
    started = time.process_time()
    ended = run(*given)
    spent.append(time.process_time() - started)
    return ended

training_loop.TrainingLoop.run = timed
status = train.main()
print(json.dumps(sum(spent)))
sys.exit(status)
"""
"""The trainer's own program, whose loop is timed."""


def write_chats(path: Path) -> int:
    """The training file of both sides; gives the number of its lines."""
    with (ROOT / "semievol_api/demo/data/labeled.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines: list[str] = []
    for row in rows:
        label = json.loads(row["options"])["ABCDEFGHIJ".index(row["answer"])]
        lines.append(json.dumps({"messages": messages(row["question"], label)}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def side(code: Path, job: Path) -> dict[str, Any]:
    """Train with the code of a checkout, in a process of its own."""
    paths = os.pathsep.join((str(code), str(code / "providers")))
    done = subprocess.run(
        [sys.executable, "-c", SIDE, str(job)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, cwd=code, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    folder = Path(json.loads(job.read_text())["folder"])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return {
        "seconds": json.loads(done.stdout.splitlines()[-1]),
        "tokens": events[-1]["trained_tokens"],
        "losses": [event["train_loss"] for event in events if event["kind"] == "step"],
    }


def report(base: str, before: str, steps: int) -> dict[str, Any]:
    """Both sides and their comparison."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", before], stdout=subprocess.PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
            packed.extractall(folder / "code", filter="data")
        count = write_chats(folder / "train.jsonl")
        jobs: dict[str, Path] = {}
        for name in ("earlier", "now"):
            (folder / name).mkdir()
            jobs[name] = folder / f"{name}.json"
            told = {
                "base": base, "training_file": str(folder / "train.jsonl"), "folder": str(folder / name),
                "batch_size": PER_STEP, "n_epochs": -(-steps // (-(-count // PER_STEP))), "save_every_s": 1e9,
                "learning_rate": read_train_defaults(Path(base), None).learning_rate, "checkpoints_kept": 0,
            }  # fmt: skip
            jobs[name].write_text(json.dumps(told))
        found = {
            "earlier": side(folder / "code", jobs["earlier"]),
            "now": side(ROOT, jobs["now"]),
        }
    rates = {name: one["tokens"] / one["seconds"] for name, one in found.items()}
    pairs = [(statistics.fmean(a), statistics.fmean(b)) for a, b in zip(*map(_windows, found.values()), strict=True)]
    return {
        "before": before,
        "bfloat16": fast_in_bfloat16("cpu"),
        "steps": len(found["now"]["losses"]),
        "tokens": found["now"]["tokens"],
        "earlier_tokens_per_cpu_s": round(rates["earlier"], 1),
        "tokens_per_cpu_s": round(rates["now"], 1),
        "times": round(rates["now"] / rates["earlier"], 2),
        "earlier_losses": [round(a, 4) for a, _ in pairs],
        "losses": [round(b, 4) for _, b in pairs],
        "losses_within": all(abs(a - b) <= max(ALLOWED[0] * a, ALLOWED[1]) for a, b in pairs),
    }


def _windows(side: dict[str, Any]) -> list[list[float]]:
    losses = side["losses"]
    return [losses[i : i + WINDOW] for i in range(0, len(losses) - WINDOW + 1, WINDOW)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a packaged model's name, or a folder")
    parser.add_argument("--before", default="a87899e", help="the commit to compare with")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail where a promise is not kept")
    given = parser.parse_args()
    found = report(str(folder_for(given.model)), given.before, given.steps)
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:26} {value}")
    if given.check and not found["losses_within"]:
        sys.exit("The losses are not those of the reference.")
    if given.check and found["bfloat16"] and found["times"] < PROMISED:
        sys.exit(f"Only {found['times']} x the earlier tokens per CPU second; {PROMISED} x is promised.")


if __name__ == "__main__":
    main()
