"""Scripted fine-tuning: a job ends at once, and its model's skill grows with the lines that it saw.

Knows nothing of training. With a state folder, jobs outlive the process and can be counted by tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from semievol_api.capabilities import FineTuneRequest, JobEvent, JobState, JobTicket
from semievol_api.errors import RefusedError


class ScriptedJobs:
    """Jobs by run key."""

    def __init__(self, state: str | None, base_folder: str) -> None:
        self._path = Path(base_folder) / state / "jobs.json" if state else None
        self._lines: dict[str, int] = {}
        if self._path is not None and self._path.is_file():
            self._lines = json.loads(self._path.read_text("utf-8"))

    def skill_of(self, model: str, base_skill: float) -> float:
        """A tuned model's skill; saturates as lines grow."""
        lines = self._lines.get(model.removeprefix("ft:scripted:"), 0)
        return base_skill + (0.97 - base_skill) * lines / (lines + 100)

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Start and finish a job."""
        lines = request.training_file.splitlines()
        if len(lines) < 10:
            raise RefusedError(f"The training file has {len(lines)} examples; at least 10 are needed.", status=400)
        self._lines[request.run_key] = len(lines)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._lines), "utf-8")
        return JobTicket(job_id=f"ftjob-{request.run_key}", run_key=request.run_key)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """The job with this key."""
        if request.run_key not in self._lines:
            return None
        return JobTicket(job_id=f"ftjob-{request.run_key}", run_key=request.run_key)

    async def poll(self, ticket: JobTicket) -> JobState:
        """Finished, if it exists."""
        if ticket.run_key not in self._lines:
            return JobState(status="failed", raw_status="failed", reason="no such job")
        return JobState(status="succeeded", raw_status="succeeded", model=f"ft:scripted:{ticket.run_key}")

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """One event."""
        if after is not None:
            return []
        lines = self._lines.get(ticket.run_key, 0)
        return [JobEvent(id="ev-1", message=f"Trained on {lines} examples", metrics={"train_loss": 1 / (1 + lines)})]

    async def cancel(self, ticket: JobTicket) -> None:
        """Forget the job."""
        self._lines.pop(ticket.run_key, None)
