"""What a training tells, written into the state: events, checkpoints, tuned models, the result file, the end.

Taking the same events twice changes nothing. Knows nothing of processes, queues or HTTP.
"""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

from semievol_providers.local.training_job import NO_SPACE, TrainingEvent, read_events
from semievol_providers.server.job_wire import checkpoint_of, metrics_of, tuned_name
from semievol_providers.server.state import FileRow, Record, State, new_id


class JobEvents:
    """`take` what a training wrote; `fail` a job that cannot be trained."""

    def __init__(self, state: State) -> None:
        self._state = state

    def take(self, job_id: str, folder: Path, offset: int) -> int:
        """Record the events after this byte; returns the offset to go on from. All of them are recorded, or none."""
        events, offset = read_events(folder, offset)
        made: list[Path] = []
        try:
            if events:
                with self._state.transaction():
                    for event in events:
                        self._take(job_id, event, made)
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise
        return offset

    def fail(self, job_id: str, code: str, message: str, param: str | None) -> None:
        """End a job that waits or runs."""
        with self._state.transaction():
            record = self._state.find_job(job_id)
            if record is not None and record["status"] in ("validating_files", "queued", "running"):
                self._fail_now(record, code, message, param)

    def _take(self, job_id: str, event: TrainingEvent, made: list[Path]) -> None:
        record = self._state.find_job(job_id)
        if record is None or record["status"] != "running":
            return
        if event.kind == "step":
            message = f"Step {event.step}/{event.total_steps}: training loss={event.train_loss:.4f}"
            self._state.add_event(job_id, f"step/{event.step}", message, metrics_of(event))
            if event.eta_s is not None:
                self._state.save_job(record | {"estimated_finish": int(time.time() + event.eta_s)})
        elif event.kind == "validation" and event.valid_loss is not None:
            message = f"Step {event.step}/{event.total_steps}: validation loss={event.valid_loss:.4f}"
            self._state.add_event(job_id, f"step/valid/{event.step}", message, metrics_of(event))
        elif event.kind == "checkpoint":
            self._add_checkpoint(record, event)
        elif event.kind == "failed" and event.code != NO_SPACE:  # which a later start may find mended
            self._fail_now(record, event.code or "training_failed", event.message or "", "training_file")
        elif event.kind == "done":
            self._succeed(record, event, made)

    def _add_checkpoint(self, record: Record, event: TrainingEvent) -> None:
        job_id, name = str(record["id"]), f"{tuned_name(record)}:ckpt-step-{event.step}"
        self._state.add_checkpoint(job_id, event.step, checkpoint_of(record, event))
        self._state.add_model(name, str(event.folder), self._state.job_owner(job_id))
        self._state.add_event(job_id, f"checkpoint/{event.step}", f"Checkpoint created at step {event.step}")

    def _succeed(self, record: Record, event: TrainingEvent, made: list[Path]) -> None:
        job_id, name = str(record["id"]), tuned_name(record)
        owner = self._state.job_owner(job_id)
        self._state.add_model(name, str(event.folder), owner)
        self._state.add_event(job_id, "model", f"New fine-tuned model created: {name}")
        self._state.add_event(job_id, "succeeded", "The job has successfully completed")
        self._state.save_job(
            {
                **record,
                "status": "succeeded",
                "fine_tuned_model": name,
                "finished_at": int(time.time()),
                "trained_tokens": event.trained_tokens,
                "estimated_finish": None,
                "result_files": [self._result_file(job_id, owner, made)],
            }
        )

    def _result_file(self, job_id: str, owner: str, made: list[Path]) -> str:
        """Write the table of metrics as the API's result file; returns its id."""
        table: dict[int, TrainingEvent] = {}
        for event in read_events(self._state.folder / "jobs" / job_id, 0)[0]:
            if event.kind in ("step", "validation", "checkpoint"):
                table[event.step] = event
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"])
        for step, event in sorted(table.items()):
            row = [event.train_loss, event.token_accuracy, event.valid_loss, event.valid_token_accuracy]
            writer.writerow([step, *("" if value is None else round(value, 6) for value in row)])
        data = text.getvalue().encode()
        file_id = new_id("file-")
        place = self._state.file_path(file_id)
        self._state.disk.write_whole(place, data)
        made.append(place)
        row_kept = FileRow(
            id=file_id,
            filename="step_metrics.csv",
            purpose="fine-tune-results",
            bytes=len(data),
            created_at=int(time.time()),
        )
        self._state.add_file(row_kept, owner)
        return file_id

    def _fail_now(self, record: Record, code: str, message: str, param: str | None) -> None:
        error: Record = {"code": code, "message": message, "param": param}
        self._state.add_event(str(record["id"]), "failed", f"The job failed: {message}")
        self._state.save_job(
            {
                **record,
                "status": "failed",
                "error": error,
                "finished_at": int(time.time()),
                "estimated_finish": None,
            }
        )
