"""Does a killed demo end like an undisturbed one, and pay nothing twice?

    python -m benchmarks.resume --json [--check] [--quick]

For each victim (the client; the server; both) a demo is killed with SIGKILL while the warm-up job runs, in the middle
of collaborate, and while the final job runs, and started again. Counted: jobs at the server, rows in the journal,
requests sent again although they were journaled, artifacts whose bytes differ.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

NOT_ARTIFACTS = ("journal", "stamps", "config_key", ".lock", "jobs", "oracle", "spend")
TIMEOUT_S = 900.0
PHASES = ("warm-up job", "collaborate", "final job")


@dataclass(frozen=True)
class Outcome:
    """One victim's figures."""

    victim: str
    kills: int
    jobs: int
    differing_artifacts: list[str]
    asked_again: int
    rerun_requests: int


@dataclass(frozen=True)
class DemoRun:
    """A demo in a folder of its own."""

    folder: Path
    quick: bool

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        command = [sys.executable, "-m", "semievol_api.cli.app", "demo", "--json", "--folder", str(self.folder)]
        return subprocess.Popen(command + ["--quick"] * self.quick, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def finish(self, process: subprocess.Popen[bytes]) -> dict[str, int]:
        """Wait for a command and return what it asked for."""
        out, _ = process.communicate(timeout=TIMEOUT_S)
        if process.returncode != 0:
            raise RuntimeError(f"the demo ended with {process.returncode}; see {self.folder}")
        told: dict[str, int] = json.loads(out)["this_process"]
        return told

    def reached(self, phase: str) -> bool:
        """Whether the run is in the middle of a phase."""
        run = self.folder / "run"
        if phase == "warm-up job":
            return (run / "jobs/warm_up-ticket").is_dir() and self.steps() > 3
        if phase == "final job":
            return (run / "jobs/semievol-ticket").is_dir() and self.steps() > 3
        return (run / "retrieve").is_dir() and self.answers() > 40

    def answers(self) -> int:
        """Chat answers in the journal."""
        query = "SELECT count(*) FROM samples JOIN sources ON sources.id = source WHERE kind = 'chat'"
        return self._count(self.folder / "run/journal.sqlite", query)

    def paid(self) -> int:
        """Chat requests that were answered and booked; more than `answers` if one was asked again."""
        query = "SELECT total(requests) FROM sources WHERE kind = 'chat'"
        return self._count(self.folder / "run/journal.sqlite", query)

    def steps(self) -> int:
        """Events of the newest job."""
        return self._count(
            self.folder / "server/state.sqlite",
            "SELECT count(*) FROM events WHERE job_id = (SELECT id FROM jobs ORDER BY seq DESC LIMIT 1)",
        )

    def jobs(self) -> int:
        """Jobs that the server ever accepted."""
        return self._count(self.folder / "server/state.sqlite", "SELECT count(*) FROM jobs")

    def kill_server(self) -> None:
        """SIGKILL the server that says that it is ready."""
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int(json.loads((self.folder / "server/ready.json").read_text())["pid"]), signal.SIGKILL)

    def artifacts(self) -> dict[str, bytes]:
        """Every artifact's bytes."""
        run = self.folder / "run"
        return {
            str(p.relative_to(run)): p.read_bytes()
            for p in sorted(run.rglob("*"))
            if p.is_file() and not str(p.relative_to(run)).startswith(NOT_ARTIFACTS)
        }

    def _count(self, database: Path, query: str) -> int:
        if not database.is_file():
            return 0
        try:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
                return int(connection.execute(query).fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def disturbed(run: DemoRun, reference: DemoRun, victim: str, phases: tuple[str, ...] = PHASES) -> Outcome:
    """Kill the victim in each of these phases, start again each time, and compare the end."""
    kills = 0
    process = run.start()
    for phase in phases:
        _wait_for(run, process, phase)
        kills += 1
        if victim in ("server", "both"):
            run.kill_server()
        if victim in ("client", "both"):
            process.kill()
            process.communicate()
            process = run.start()
    run.finish(process)
    rerun = run.finish(run.start())
    expected, found = reference.artifacts(), run.artifacts()
    differing = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    asked_again = run.paid() - run.answers()
    return Outcome(victim, kills, run.jobs(), differing, asked_again, rerun["attempts"])


def _wait_for(run: DemoRun, process: subprocess.Popen[bytes], phase: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not run.reached(phase):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the demo ended, or did not reach the phase {phase!r}; see {run.folder}")
        time.sleep(0.02)


def measure(
    folder: Path, *, quick: bool, victims: tuple[str, ...], phases: tuple[str, ...] = PHASES
) -> dict[str, object]:
    """One undisturbed demo and one disturbed demo for each victim."""
    reference = DemoRun(folder / "reference", quick)
    begun = time.monotonic()
    reference.finish(reference.start())
    seconds = time.monotonic() - begun
    outcomes = [disturbed(DemoRun(folder / victim, quick), reference, victim, phases) for victim in victims]
    return {
        "undisturbed_s": round(seconds, 1),
        "undisturbed_jobs": reference.jobs(),
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "ok": all(
            o.jobs == reference.jobs() and not o.differing_artifacts and o.asked_again == 0 and o.rerun_requests == 0
            for o in outcomes
        ),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise falls short")
    parser.add_argument("--quick", action="store_true", help="the small demo, all victims together")
    chosen = parser.parse_args()
    victims = ("both",) if chosen.quick else ("client", "server", "both")
    with tempfile.TemporaryDirectory(prefix="semievol-resume-") as folder:
        figures = measure(Path(folder), quick=chosen.quick, victims=victims)
    print(json.dumps(figures, indent=None if chosen.json else 2))
    if chosen.check and not figures["ok"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
