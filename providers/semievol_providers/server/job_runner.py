"""The queue of fine-tuning jobs: one training at a time, each in a process of its own.

Reads a training's event log into the state, so that nothing is lost when this process dies: a job that was
running goes on from its last saved state when the server starts again. Knows nothing of HTTP or of training.
"""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Collection
from pathlib import Path
from typing import cast

import msgspec

from semievol_providers.local.training_file import MIN_EXAMPLES, TrainingFileError, read_examples
from semievol_providers.local.training_job import TrainingEvent, TrainingJob, read_events
from semievol_providers.local.turns import Turns
from semievol_providers.server.job_wire import Resolved, resolve, tuned_name, with_hyperparameters
from semievol_providers.server.models import ModelTable
from semievol_providers.server.settings import ServerSettings, worker_environment
from semievol_providers.server.state import FileRow, Record, State, new_id

_log = logging.getLogger(__name__)
_POLL_S = 0.2
_MAX_CRASHES = 2
_STOP_WAIT_S = 20.0


class JobRunner:
    """`start`, `wake` after a change, `interrupt` a job that must not run on, `close`."""

    def __init__(self, settings: ServerSettings, state: State, models: ModelTable) -> None:
        self._settings = settings
        self._state = state
        self._models = models
        self._arrived = asyncio.Event()
        self._validated = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running: tuple[str, Process] | None = None
        self._turns = Turns()
        self._checks = Turns()
        self._closing = False

    @property
    def running(self) -> tuple[str, int] | None:
        """Id of the job that trains now, and its process id."""
        return (self._running[0], self._running[1].pid) if self._running else None

    async def start(self) -> None:
        """Take up what was running, validating or queued when the server stopped."""
        self._tasks = [
            asyncio.create_task(self._validate_all(), name="job-validation"),
            asyncio.create_task(self._run_all(), name="job-runner"),
        ]

    async def close(self) -> None:
        """Stop the running training after its current step, with its state saved."""
        self._closing = True
        self.wake()
        if self._running is not None:
            await _stop(self._running[1])
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look at the jobs again."""
        self._arrived.set()
        self._validated.set()

    async def interrupt(self, job_id: str) -> None:
        """End the training of a job whose status is no longer `running`."""
        if self._running is not None and self._running[0] == job_id:
            await _stop(self._running[1])

    # ---------------------------------------------------------------------------------------------- queue
    async def _validate_all(self) -> None:
        while not self._closing:
            self._arrived.clear()
            tried: set[str] = set()
            while record := self._fairest("validating_files", self._checks, tried):
                tried.add(str(record["id"]))
                await self._validate(record)
                self._validated.set()
            await self._arrived.wait()

    async def _run_all(self) -> None:
        while not self._closing:
            self._validated.clear()
            waiting = self._next()
            if waiting is not None:
                await self._run(waiting)
            else:
                await self._validated.wait()

    def _next(self) -> Record | None:
        """What was running, else the oldest job of the key whose turn it is."""
        running = self._state.jobs_with_status("running")
        if running:
            return running[0]
        return self._fairest("queued", self._turns)

    def _fairest(self, status: str, turns: Turns, but: Collection[str] = ()) -> Record | None:
        """The oldest job with this status of the key whose turn it is."""
        oldest: dict[str, str] = {}
        for job_id, owner in self._state.job_owners_with_status(status):
            if job_id not in but:
                oldest.setdefault(owner, job_id)
        if not oldest:
            return None
        owner = turns.order(oldest)[0]
        turns.charge(owner, 1)
        return self._state.find_job(oldest[owner])

    def _job_file(self, record: Record, which: str) -> Path | None:
        """The job's own link to a file, which outlives the file's deletion."""
        path = self._state.folder / "jobs" / str(record["id"]) / which
        return path if path.exists() else None

    async def _validate(self, record: Record) -> None:
        job_id = str(record["id"])
        try:
            examples = 0
            for which, least in (("training_file", MIN_EXAMPLES), ("validation_file", 1)):
                path = self._job_file(record, which)
                if path is None:
                    continue
                try:
                    found = await asyncio.to_thread(_count_examples, path, least)
                except TrainingFileError as error:
                    self._fail(job_id, "invalid_training_file", f"Invalid file format. {error}", which)
                    return
                examples = examples or found
        except OSError as error:
            self._fail(job_id, "file_unreadable", f"A file of this job cannot be read: {error}", None)
            return
        current = self._state.find_job(job_id)
        if current is None or current["status"] != "validating_files":
            return
        numbers = resolve(current, self._settings.train, examples)
        with self._state.transaction():
            self._state.save_job(with_hyperparameters(current, msgspec.to_builtins(numbers)) | {"status": "queued"})
            self._state.add_event(job_id, "validated", "Files validated, moving job to queued state")

    # ----------------------------------------------------------------------------------------------- runs
    async def _run(self, record: Record) -> None:
        job_id = str(record["id"])
        folder = self._state.folder / "jobs" / job_id
        with self._state.transaction():
            self._state.save_job(record | {"status": "running"})
            self._state.add_event(job_id, "started", "Fine-tuning job started")
        self._take_events(job_id, folder, 0)  # a run that ended while no server was there to see it
        job = self._training_job(record, folder)
        job.write(folder / "job.json")
        crashes = 0
        while not self._closing and self._is_running(job_id):
            status = await self._run_once(job_id, folder, job)
            if self._closing or not self._is_running(job_id):
                return
            crashes += 1
            _log.warning("the training of %s ended with status %s", job_id, status)
            if crashes > _MAX_CRASHES:
                self._fail(job_id, "trainer_died", _death_message(status, folder), None)
                return

    def _is_running(self, job_id: str) -> bool:
        record = self._state.find_job(job_id)
        return record is not None and record["status"] == "running"

    async def _run_once(self, job_id: str, folder: Path, job: TrainingJob) -> int:
        """Run the trainer until it ends, taking over its events meanwhile; returns its exit status."""
        with (folder / "trainer.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "semievol_providers.local.train",
                str(folder / "job.json"),
                "--with-parent",
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=log,
                env={**os.environ, **worker_environment(job.threads)},
            )
        self._running = (job_id, process)
        ended = asyncio.create_task(process.wait())
        offset = 0
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=_POLL_S)
                offset = self._take_events(job_id, folder, offset)
            self._take_events(job_id, folder, offset)
        finally:
            self._running = None
            if process.stdin is not None:
                process.stdin.close()
        return ended.result()

    def _training_job(self, record: Record, folder: Path) -> TrainingJob:
        defaults = self._settings.train
        numbers = msgspec.convert(record["hyperparameters"], Resolved)
        owner = self._state.job_owner(str(record["id"]))
        valid = self._job_file(record, "validation_file")
        return TrainingJob(
            base=self._settings.model_folder,
            adapter=self._models.find(str(record["model"]), owner).adapter,
            training_file=str(folder / "training_file"),
            validation_file=str(valid) if valid else None,
            folder=str(folder),
            seed=int(str(record["seed"])),
            n_epochs=numbers.n_epochs,
            batch_size=numbers.batch_size,
            learning_rate=defaults.learning_rate * numbers.learning_rate_multiplier,
            rank=defaults.rank,
            alpha=defaults.alpha,
            dropout=defaults.dropout,
            train_embeddings=defaults.train_embeddings,
            warmup_share=defaults.warmup_share,
            weight_decay=defaults.weight_decay,
            tokens_per_pass=defaults.tokens_per_pass,
            threads=defaults.threads,
            device=self._settings.device,
        )

    # --------------------------------------------------------------------------------------------- events
    def _take_events(self, job_id: str, folder: Path, offset: int) -> int:
        events, offset = read_events(folder, offset)
        if events:
            with self._state.transaction():
                for event in events:
                    self._take_event(job_id, event)
        return offset

    def _take_event(self, job_id: str, event: TrainingEvent) -> None:
        record = self._state.find_job(job_id)
        if record is None or record["status"] != "running":
            return
        if event.kind == "step":
            message = f"Step {event.step}/{event.total_steps}: training loss={event.train_loss:.4f}"
            self._state.add_event(job_id, f"step/{event.step}", message, _metrics(event))
            if event.eta_s is not None:
                self._state.save_job(record | {"estimated_finish": int(time.time() + event.eta_s)})
        elif event.kind == "validation" and event.valid_loss is not None:
            message = f"Step {event.step}/{event.total_steps}: validation loss={event.valid_loss:.4f}"
            self._state.add_event(job_id, f"step/valid/{event.step}", message, _metrics(event))
        elif event.kind == "checkpoint":
            self._add_checkpoint(record, event)
        elif event.kind == "failed":
            self._fail_now(record, event.code or "training_failed", event.message or "", "training_file")
        elif event.kind == "done":
            self._succeed(record, event)

    def _add_checkpoint(self, record: Record, event: TrainingEvent) -> None:
        job_id, name = str(record["id"]), f"{tuned_name(record)}:ckpt-step-{event.step}"
        checkpoint: Record = {
            "object": "fine_tuning.job.checkpoint",
            "id": new_id("ftckpt_"),
            "created_at": int(time.time()),
            "fine_tuned_model_checkpoint": name,
            "fine_tuning_job_id": job_id,
            "metrics": _metrics(event),
            "step_number": event.step,
        }
        self._state.add_checkpoint(job_id, event.step, checkpoint)
        self._state.add_model(name, str(event.folder), self._state.job_owner(job_id))
        self._state.add_event(job_id, f"checkpoint/{event.step}", f"Checkpoint created at step {event.step}")

    def _succeed(self, record: Record, event: TrainingEvent) -> None:
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
                "result_files": [self._result_file(job_id, owner)],
            }
        )

    def _result_file(self, job_id: str, owner: str) -> str:
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
        self._state.file_path(file_id).write_bytes(data)
        row_kept = FileRow(
            id=file_id,
            filename="step_metrics.csv",
            purpose="fine-tune-results",
            bytes=len(data),
            created_at=int(time.time()),
        )
        self._state.add_file(row_kept, owner)
        return file_id

    # ------------------------------------------------------------------------------------------- failures
    def _fail(self, job_id: str, code: str, message: str, param: str | None) -> None:
        with self._state.transaction():
            record = self._state.find_job(job_id)
            if record is not None and record["status"] in ("validating_files", "queued", "running"):
                self._fail_now(record, code, message, param)

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


def _count_examples(path: Path, at_least: int) -> int:
    return sum(1 for _ in read_examples(path, at_least=at_least))


def _metrics(event: TrainingEvent) -> Record:
    named = {
        "step": event.step,
        "total_steps": event.total_steps,
        "train_loss": event.train_loss,
        "train_mean_token_accuracy": event.token_accuracy,
        "full_valid_loss": event.valid_loss,
        "full_valid_mean_token_accuracy": event.valid_token_accuracy,
        "learning_rate": event.learning_rate,
    }
    return cast(Record, {key: value for key, value in named.items() if value is not None})


def _death_message(status: int, folder: Path) -> str:
    if status in (-9, 137):
        return (
            "The training process was killed three times, most likely because the machine ran out of memory. "
            "Lower tokens_per_pass in the training defaults, or choose a smaller model."
        )
    lines = (folder / "trainer.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"The training process ended with status {status}: {lines[-1] if lines else 'no message'}"


async def _stop(process: Process) -> None:
    """Ask a trainer to save and end; end it after a while if it does not."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_WAIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
