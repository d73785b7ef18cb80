"""The queue of fine-tuning jobs: one training at a time, each in a process of its own.

Reads a training's event log into the state, so that nothing is lost when this process dies: a job that was
running goes on from its last saved state when the server starts again. A job that cannot be trained fails alone;
one that waits for the machine (a full disk) is put off, and the others go on. Knows nothing of HTTP or of training.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import msgspec

from semievol_api.training.chat_jsonl import MIN_EXAMPLES, TrainingFileError, read_examples
from semievol_providers.local.children import Child, ChildProcesses, last_log_line, stop_trainer
from semievol_providers.local.fairness import Turns
from semievol_providers.local.training_job import (
    EXIT_NO_SPACE,
    StartingPoint,
    TrainingJob,
    training_job,
)
from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.background import BackgroundTasks, wait_for
from semievol_providers.server.disk import reason_of, will_pass
from semievol_providers.server.job_events import JobEvents, spec_of, with_spec
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import ModelTable, Record, State

_VALIDATION = "job validation"
RUNNER = "job runner"
_log = logging.getLogger(__name__)
_POLL_S = 0.1
_MAX_CRASHES = 2
_ENDED_WAIT_S = 20.0


class _UnfitJobError(Exception):
    """This job can never be trained; code, message and parameter are what its owner reads."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class JobRunner:
    """`start`, `wake` after a change, `close`."""

    def __init__(
        self,
        settings: ServerSettings,
        state: State,
        models: ModelTable,
        background: BackgroundTasks,
        children: ChildProcesses,
    ) -> None:
        self._settings = settings
        self._children = children
        self._state = state
        self._models = models
        self._background = background
        self._events = JobEvents(state)
        self._arrived = asyncio.Event()
        self._validated = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running: tuple[str, Child] | None = None
        self._idle = asyncio.Event()
        self._turns = Turns()
        self._checks = Turns()
        self._later: dict[str, float] = {}

    @property
    def running(self) -> tuple[str, int] | None:
        """Id of the job that trains now, and its process id."""
        return (self._running[0], self._running[1].pid) if self._running else None

    def start(self) -> None:
        """Take up what was running, validating or queued when the server stopped."""
        self._tasks = [
            self._background.start(_VALIDATION, self._validate_all),
            self._background.start(RUNNER, self._run_all),
        ]

    async def let_ended_process_go(self) -> None:
        """Wait for the process of a job that has ended already: for a moment it still holds what it made."""
        if self._running is not None and not self._is_running(self._running[0]):
            await wait_for(self._idle, _ENDED_WAIT_S)

    async def close(self) -> None:
        """Stop the running training after its current step, with its state saved."""
        self.wake()
        if self._running is not None:
            await _stop(self._running[1])
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look at the jobs again."""
        self._arrived.set()
        self._validated.set()

    # ---------------------------------------------------------------------------------------------- queue
    async def _validate_all(self) -> None:
        while not self._background.closing:
            self._arrived.clear()
            put_off, tried = False, set[str]()
            while record := self._fairest("validating_files", self._checks, tried):
                tried.add(str(record["id"]))
                put_off |= not await self._attempt(_VALIDATION, record, self._validate)
                self._validated.set()
            if not put_off:
                self._background.clear_problem(_VALIDATION)
            await wait_for(self._arrived, self._background.retry_s if put_off else None)

    async def _run_all(self) -> None:
        while not self._background.closing:
            self._validated.clear()
            waiting = self._next()
            if not self._later:
                self._background.clear_problem(RUNNER)
            if waiting is None:
                soonest = min(self._later.values(), default=None)
                await wait_for(self._validated, None if soonest is None else max(0.0, soonest - time.monotonic()))
            elif await self._attempt(RUNNER, waiting, self._run):
                self._later.pop(str(waiting["id"]), None)
            else:
                self._later[str(waiting["id"])] = time.monotonic() + self._background.retry_s

    def _next(self) -> Record | None:
        """What was running, else the oldest job of the key whose turn it is; nothing that was put off."""
        unfinished = {i for status in ("running", "queued") for i, _ in self._state.job_owners_with_status(status)}
        self._later = {job_id: until for job_id, until in self._later.items() if job_id in unfinished}
        now = time.monotonic()
        put_off = {job_id for job_id, until in self._later.items() if until > now}
        for job in self._state.jobs_with_status("running"):
            if str(job["id"]) not in put_off:
                return job
        return self._fairest("queued", self._turns, put_off)

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

    async def _attempt(self, part: str, record: Record, work: Callable[[Record], Awaitable[None]]) -> bool:
        """Do one job's work, which fails this job alone; False where it must be tried again later."""
        job_id = str(record["id"])
        try:
            try:
                await work(record)
            except Exception as error:
                if will_pass(error):
                    raise
                unfit = _unfit(error)
                bug = None if unfit is error else error
                _log.warning("%s cannot be trained: %s", job_id, unfit.message, exc_info=bug)
                self._events.fail(job_id, unfit.code, unfit.message, unfit.param)
        except Exception as error:  # noqa: BLE001 - one job's trouble is that job's
            self._background.report_problem(part, error)
            return False
        return True

    def _job_file(self, record: Record, which: str) -> Path | None:
        """The job's own link to a file, which outlives the file's deletion."""
        path = self._state.folder / "jobs" / str(record["id"]) / which
        return path if record[which] else None

    async def _validate(self, record: Record) -> None:
        job_id = str(record["id"])
        examples = 0
        for which, least in (("training_file", MIN_EXAMPLES), ("validation_file", 1)):
            path = self._job_file(record, which)
            if path is None:
                continue
            try:
                found = await asyncio.to_thread(_count_examples, path, least)
            except TrainingFileError as error:
                raise _UnfitJobError("invalid_training_file", f"Invalid file format. {error}", which) from error
            examples = examples or found
        current = self._state.find_job(job_id)
        if current is None or current["status"] != "validating_files":
            return
        resolved = self._settings.train.resolve(spec_of(current), examples)
        with self._state.transaction():
            self._state.save_job(with_spec(current, resolved) | {"status": "queued"})
            self._state.add_event(job_id, "validated", "Files validated, moving job to queued state")

    # ----------------------------------------------------------------------------------------------- runs
    async def _run(self, record: Record) -> None:
        job_id = str(record["id"])
        folder = self._state.folder / "jobs" / job_id
        with self._state.transaction():
            self._state.save_job(record | {"status": "running"})
            self._state.add_event(job_id, "started", "Fine-tuning job started")
        self._events.take(job_id, folder, 0)  # a run that ended while no server was there to see it
        crashes = 0
        while not self._background.closing and self._is_running(job_id):
            job = self.training_job(record, folder)
            self._state.disk.write_whole(folder / "job.json", msgspec.json.encode(job))
            status = await self._run_once(job_id, folder, job)
            if self._background.closing or not self._is_running(job_id):
                return
            if status == EXIT_NO_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            crashes += 1
            _log.warning("the training of %s ended with status %s", job_id, status)
            if crashes > _MAX_CRASHES:
                raise _UnfitJobError("trainer_died", _death_message(status, folder))

    def _is_running(self, job_id: str) -> bool:
        record = self._state.find_job(job_id)
        return record is not None and record["status"] == "running"

    async def _run_once(self, job_id: str, folder: Path, job: TrainingJob) -> int:
        """Run the trainer until it ends, recording its events meanwhile; returns its exit status."""
        process = await asyncio.to_thread(self._children.start_trainer, folder, job.threads)
        self._running = (job_id, process)
        self._idle.clear()
        offset = 0
        try:
            while process.poll() is None:
                await asyncio.sleep(_POLL_S)
                offset = self._look(job_id, folder, offset)
                if self._background.closing or not self._is_running(job_id):  # cancelled or paused
                    await _stop(process)
            self._events.take(job_id, folder, offset)
        finally:
            await _stop(process)
            self._running = None
            self._idle.set()
        return process.wait()

    def _look(self, job_id: str, folder: Path, offset: int) -> int:
        """Record new events; if the disk is full, training continues and they are recorded later."""
        try:
            taken = self._events.take(job_id, folder, offset)
        except Exception as error:
            if not will_pass(error):
                raise
            self._background.report_problem(RUNNER, error)
            return offset
        if taken != offset and not self._later:
            self._background.clear_problem(RUNNER)
        return taken

    def training_job(self, record: Record, folder: Path) -> TrainingJob:
        """The trainer's job file: the defaults, overridden by what the job sets."""
        model = str(record["model"])
        try:
            adapter = self._models.find(model, self._state.job_owner(str(record["id"]))).adapter
        except ApiError as error:
            raise _UnfitJobError("model_not_available", _no_model(model, self._settings.name), "model") from error
        if adapter is not None and not Path(adapter).is_dir():
            raise _UnfitJobError("model_not_available", f"The adapter of the model {model!r} is gone.", "model")
        start = StartingPoint(base=self._settings.model_folder, adapter=adapter, device=self._settings.device)
        validates = record["validation_file"] is not None
        return training_job(spec_of(record), self._settings.train, start, folder, validates=validates)


def _unfit(error: Exception) -> _UnfitJobError:
    """The error that the owner of the job is shown."""
    if isinstance(error, _UnfitJobError):
        return error
    if isinstance(error, OSError):
        return _UnfitJobError("file_unreadable", f"A file of this job cannot be used: {reason_of(error)}")
    return _UnfitJobError("internal_error", f"The server could not run this job: {reason_of(error)}")


def _no_model(model: str, served: str) -> str:
    return (
        f"The model {model!r} is no longer there: it was deleted, or this server, which serves {served!r}, was started "
        "under another --name. Create the job again with a model of GET /v1/models."
    )


def _count_examples(path: Path, at_least: int) -> int:
    return sum(1 for _ in read_examples(path, at_least=at_least))


def _death_message(status: int, folder: Path) -> str:
    if status in (-9, 137):
        return (
            "The training process was killed three times, most likely because the machine ran out of memory. "
            "Lower tokens_per_pass in the training defaults, or choose a smaller model."
        )
    return f"The training process ended with status {status}: {last_log_line(folder) or 'no message'}"


async def _stop(process: Child) -> None:
    await asyncio.to_thread(stop_trainer, process)
