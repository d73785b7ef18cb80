"""Fine-tuning jobs in a folder: submitted, found by run key, trained in a process of their own, resumed.

    tuner = LocalFineTuner(places, TunedModels(places))
    ticket = await tuner.submit(request)         # writes the job down; whoever polls trains it

Everything that a job is stands on disk, so a job outlives the process that started it: whoever polls next starts
its trainer again where it stopped. One training at a time. Knows nothing of the models that answer questions.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from semievol_api.capabilities import FineTuneRequest, JobEvent, JobState, JobTicket
from semievol_api.errors import RefusedError, UserError
from semievol_api.training.chat_jsonl import MIN_EXAMPLES, TrainingFileError, read_examples
from semievol_providers.local.children import TRAINER, Child, ChildProcesses, last_log_line, stop_trainer
from semievol_providers.local.disk import full_disk, is_out_of_space
from semievol_providers.local.model_folder import check_adapter_fits
from semievol_providers.local.training_job import (
    EXIT_FAILED,
    EXIT_NO_SPACE,
    NO_SPACE,
    StartingPoint,
    TrainDefaults,
    TrainingEvent,
    read_events,
    training_job,
)

_MAX_CRASHES = 2

_WAIT_S = 120.0

_HELD_BY_ANOTHER = EXIT_FAILED
"""Without a last word in the log, another process holds the folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlaces:
    """Where the base model and the jobs are, by which names, and how trainings go that say nothing else."""

    base_folder: str
    base_name: str
    jobs: Path
    identity: str
    device: str
    train: TrainDefaults


class _JobFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a job was asked for: `request.json` in its folder."""

    job_id: str
    run_key: str
    tuned_model: str


@dataclass(slots=True)
class _Trainer:
    job_id: str
    process: Child


async def _nothing() -> None:
    return None


async def _unannounced(_model: str, _adapter: str) -> None:
    return None


class LocalFineTuner:
    """`FineTuner` over a folder of jobs.

    `make_room` is awaited before a training, `announce` with the model's name and adapter before it is called ready.
    """

    def __init__(
        self,
        places: LocalPlaces,
        models: TunedModels,
        make_room: Callable[[], Awaitable[None]] = _nothing,
        announce: Callable[[str, str], Awaitable[None]] = _unannounced,
    ) -> None:
        self._places = places
        self._models = models
        self._make_room = make_room
        self._announce = announce
        self._running: _Trainer | None = None
        self._crashes: dict[str, int] = {}
        self._out_of_space: set[str] = set()
        self._lock = asyncio.Lock()
        self._children = ChildProcesses(forks=places.device == "cpu")

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Write the job down and start it if nothing trains.

        Raises:
            RefusedError: the file has a malformed line or too few examples; the base model is unknown.
            UserError: the disk is full.
        """
        adapter = self._models.adapter_of(request.model)
        job = self._name(request)
        folder = self._places.jobs / job.job_id
        partial = folder.with_name(folder.name + ".partial")
        try:
            await asyncio.to_thread(self._write_down, partial, folder, (request, job, adapter))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not is_out_of_space(error):
                raise
            raise UserError(full_disk(self._places.jobs, "the training was not submitted.")) from error
        await self._go_on(job.job_id)
        return JobTicket(job_id=job.job_id, run_key=request.run_key)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """The job with this run key that neither failed nor was cancelled."""
        for job in _read_jobs(self._places.jobs):
            if job.run_key == request.run_key and self._look(job.job_id).status not in ("failed", "cancelled"):
                return JobTicket(job_id=job.job_id, run_key=job.run_key)
        return None

    async def poll(self, ticket: JobTicket) -> JobState:
        """Where the job stands; starts or resumes its training where nothing else trains.

        Raises:
            UserError: the model is ready, and the server that is to answer for it does not take it.
        """
        state = await self._go_on(ticket.job_id)
        if state.model is not None:
            await self._announce(state.model, str(self._places.jobs / ticket.job_id / "adapter"))
        return state

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """The training's steps, checkpoints and last words."""
        events: dict[str, JobEvent] = {}
        for event in read_events(self._places.jobs / ticket.job_id, 0)[0]:
            made = _job_event(event)
            events.setdefault(made.id, made)
        found = list(events.values())
        if after is None:
            return found
        return found[next((i + 1 for i, event in enumerate(found) if event.id == after), 0) :]

    async def cancel(self, ticket: JobTicket) -> None:
        """Stop the job for good."""
        folder = self._places.jobs / ticket.job_id
        if folder.is_dir() and not self._look(ticket.job_id).finished:
            (folder / "cancelled").touch()
        async with self._lock:
            if self._running is not None and self._running.job_id == ticket.job_id:
                await self._stop()

    async def aclose(self) -> None:
        """Stop a running training after its current step, with its state saved."""
        async with self._lock:
            await self._stop()
            await asyncio.to_thread(self._children.close)

    # ------------------------------------------------------------------------------------------ submission
    def _name(self, request: FineTuneRequest) -> _JobFile:
        """Names that depend on the training alone, and on how often it failed or was cancelled before."""
        before = sum(job.run_key == request.run_key for job in _read_jobs(self._places.jobs))
        tail = request.run_key[:16] + (f"-{before + 1}" if before else "")
        tuned = f"ft:{self._places.base_name}:local:{request.suffix or ''}:{tail}"
        return _JobFile(job_id=f"ftjob-{tail}", run_key=request.run_key, tuned_model=tuned)

    def _write_down(self, partial: Path, folder: Path, what: tuple[FineTuneRequest, _JobFile, str | None]) -> None:
        request, job, adapter = what
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "training_file").write_bytes(request.training_file)
        if request.validation_file is not None:
            (partial / "validation_file").write_bytes(request.validation_file)
        try:
            examples = sum(1 for _ in read_examples(partial / "training_file", at_least=MIN_EXAMPLES))
        except TrainingFileError as error:
            shutil.rmtree(partial)
            raise RefusedError(f"Invalid training file. {error}", status=400, code="invalid_training_file") from error
        defaults = self._places.train
        spec = defaults.resolve(request.spec, examples)
        start = StartingPoint(base=self._places.base_folder, adapter=adapter, device=self._places.device)
        validates = request.validation_file is not None
        training_job(spec, defaults, start, folder, validates=validates).write(partial / "job.json")
        (partial / "request.json").write_bytes(msgspec.json.encode(job))
        partial.replace(folder)

    # ------------------------------------------------------------------------------------------- training
    async def _go_on(self, job_id: str) -> JobState:
        """Where the job stands, its trainer started where it should run and nothing else does."""
        async with self._lock:
            self._reap()
            state = self._look(job_id)
            if state.finished:
                return state
            if job_id in self._out_of_space:
                reason = full_disk(
                    self._places.jobs / job_id, "the training could not be saved. Its last saved step is whole."
                )
                return JobState(status="failed", raw_status=NO_SPACE, reason=reason)
            if self._crashes.get(job_id, 0) > _MAX_CRASHES:
                return self._give_up(job_id)
            if self._running is None:
                await self._make_room()
                self._running = _Trainer(job_id, await asyncio.to_thread(self._start, job_id))
            running = self._running.job_id == job_id
            return JobState(status="running", raw_status="running") if running else state

    def _look(self, job_id: str) -> JobState:
        """What the job's folder says."""
        folder = self._places.jobs / job_id
        if not folder.is_dir():
            return JobState(status="failed", raw_status="missing", reason=f"There is no job folder {str(folder)!r}.")
        if (folder / "cancelled").exists():
            return JobState(status="cancelled", raw_status="cancelled")
        for event in reversed(read_events(folder, 0)[0]):
            if event.kind == "done":
                name = _read_job(folder).tuned_model
                return JobState(
                    status="succeeded", raw_status="succeeded", model=name, trained_tokens=event.trained_tokens
                )
            if event.kind == "failed" and event.code != NO_SPACE:  # which the next run may find mended
                return JobState(status="failed", raw_status=event.code or "failed", reason=event.message)
        return JobState(status="queued", raw_status="queued")

    def _start(self, job_id: str) -> Child:
        folder, train = self._places.jobs / job_id, self._places.train
        if train.processes == 1:
            return self._children.start_trainer(folder, train.threads)
        # Its workers have no standard input of ours; the folder's lock keeps a second training out.
        ranks = f"--nproc-per-node={train.processes}"
        arguments = ["--standalone", ranks, "-m", TRAINER, str(folder / "job.json")]
        with (folder / "trainer.log").open("ab") as log:
            return self._children.start("torch.distributed.run", arguments, train.threads, log=log)

    def _reap(self) -> None:
        """Notice that the trainer ended, and count it where it did so without a last word."""
        if self._running is None:
            return
        status = self._running.process.poll()
        if status is None:
            return
        ended, self._running = self._running, None
        job_id = ended.job_id
        if ended.process.stdin is not None:
            ended.process.stdin.close()
        if status == EXIT_NO_SPACE:
            self._out_of_space.add(job_id)
        elif status != _HELD_BY_ANOTHER and not self._look(job_id).finished:
            self._crashes[job_id] = self._crashes.get(job_id, 0) + 1

    def _give_up(self, job_id: str) -> JobState:
        """Not written down: the next run may try again, from the last saved state."""
        folder = self._places.jobs / job_id
        last, log = last_log_line(folder), str(folder / "trainer.log")
        return JobState(
            status="failed",
            raw_status="trainer_died",
            reason=(
                f"The training process ended {_MAX_CRASHES + 1} times without a word; its log is {log!r}"
                f"{' and ends with: ' + last if last else ''}. Where nothing is said, the machine most likely "
                "ran out of memory: lower tokens_per_pass in [providers.NAME.train]. A later run goes on from the "
                "last saved step."
            ),
        )

    async def _stop(self) -> None:
        if self._running is None:
            return
        process, self._running = self._running.process, None
        await asyncio.to_thread(stop_trainer, process)


def _job_event(event: TrainingEvent) -> JobEvent:
    """One line of the log as the job's own event; equal events of a resumed training have equal ids."""
    of = f"{event.step}/{event.total_steps}"
    messages = {
        "start": f"Training starts: {event.total_steps} steps",
        "step": f"Step {of}: training loss={event.train_loss or 0.0:.4f}",
        "validation": f"Step {of}: validation loss={event.valid_loss or 0.0:.4f}",
        "checkpoint": f"Checkpoint created at step {event.step}",
        "done": "The job has successfully completed",
        "stopped": "The training was stopped with its state saved",
        "failed": f"The job failed: {event.message}",
        "note": event.message or "",
    }
    level = "error" if event.kind == "failed" else "warn" if event.kind == "note" else "info"
    return JobEvent(
        id=f"{event.kind}/{event.step}",
        message=messages[event.kind],
        level=level,
        metrics=event.metrics | {"step": float(event.step)},
    )


def _read_jobs(folder: Path) -> list[_JobFile]:
    """All jobs of a folder, oldest name first."""
    return [_read_job(path.parent) for path in sorted(folder.glob("ftjob-*/request.json")) if path.parent.suffix == ""]


def _read_job(folder: Path) -> _JobFile:
    """The job of one folder."""
    return msgspec.json.decode((folder / "request.json").read_bytes(), type=_JobFile)


class TunedModels:
    """The models of a folder of jobs: a tuned model's name, or an adapter folder's path, to that folder."""

    def __init__(self, places: LocalPlaces) -> None:
        self._folder = places.jobs
        self._base_name = places.base_name
        self._base_folder = places.base_folder
        self._known: dict[str, str] = {}

    def adapter_of(self, model: str) -> str | None:
        """The adapter's folder; None for the base model.

        Raises:
            RefusedError: there is no such model.
            ModelFolderError: it is an adapter of another base model.
        """
        if model == self._base_name:
            return None
        if model not in self._known:
            self._known[model] = self._look_up(model)
        return self._known[model]

    def _look_up(self, model: str) -> str:
        for job in _read_jobs(self._folder):
            if job.tuned_model == model and (adapter := self._folder / job.job_id / "adapter").is_dir():
                return str(adapter)
        if (Path(model) / "adapter_config.json").is_file():
            check_adapter_fits(model, self._base_folder)
            return str(Path(model).resolve())
        raise RefusedError(
            f"There is no model {model!r} here. The base model is {self._base_name!r}; a tuned one has the name that "
            f"its job gave it, or is the path of an adapter folder. Jobs are kept in {str(self._folder)!r}.",
            status=404,
            code="model_not_found",
        )


class AdapterServer:
    """`tell` the server of an adapter, once; `url` is the server's base URL, with or without its /v1."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/v1/load_lora_adapter"
        self._loaded: set[str] = set()

    async def tell(self, name: str, folder: str) -> None:
        """The server answers to `name` with this adapter from now on.

        Raises:
            UserError: the server is not there, or takes no adapters while it runs.
        """
        if name not in self._loaded:
            await asyncio.to_thread(self._post, name, folder)
            self._loaded.add(name)

    def _post(self, name: str, folder: str) -> None:
        body = json.dumps({"lora_name": name, "lora_path": folder}).encode()
        asked = urllib.request.Request(self._url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=_WAIT_S):
                return
        except urllib.error.HTTPError as error:
            reason = error.read(2000).decode("utf-8", "replace").strip()
            if error.code == 400 and "already" in reason:
                return  # told by an earlier run
            problem = f"it answered {error.code}: {reason or error.reason}"
        except OSError as error:
            problem = f"it cannot be reached: {error}"
        raise UserError(
            f"The adapter {name!r} is trained and lies in {folder!r}, but the server at {self._url!r} does not serve "
            f"it: {problem}. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, with a "
            "--max-lora-rank that holds the adapter's and the same folders, and run again; nothing is trained twice."
        )
