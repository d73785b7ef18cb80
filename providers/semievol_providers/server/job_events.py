"""The body of `POST /fine_tuning/jobs`: what is accepted, what is refused, and the job object it becomes.

Knows nothing of how jobs are stored, queued or run.
"""

from __future__ import annotations

import csv
import io
import secrets
import time
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from semievol_api.capabilities import TrainSpec
from semievol_providers.local.training_job import NO_SPACE, Auto, TrainingEvent, read_events
from semievol_providers.server.api_errors import ApiError, check_metadata, unsupported
from semievol_providers.server.state import FileRow, Record, State, new_id

RUN_KEY = "semievol_run_key"
"""Metadata key under which a client names a training for ever: asking again returns the same job."""

_Batch: TypeAlias = Annotated[int, Meta(ge=1, le=256)]
_Epochs: TypeAlias = Annotated[int, Meta(ge=1, le=50)]
_Rate: TypeAlias = Annotated[float, Meta(gt=0)]
_MAX_SEED = 2147483647


class _HyperparametersBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The three settings of supervised fine-tuning."""

    n_epochs: _Epochs | Auto = "auto"
    batch_size: _Batch | Auto | None = "auto"
    learning_rate_multiplier: _Rate | Auto = "auto"


class _SupervisedBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`method.supervised`."""

    hyperparameters: _HyperparametersBody = _HyperparametersBody()


class _MethodBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`method`; other types than supervised are refused with a message of their own."""

    type: str
    supervised: _SupervisedBody | None = None
    dpo: object = None
    reinforcement: object = None


class JobBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole request."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: _HyperparametersBody | None = None
    method: _MethodBody | None = None
    suffix: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Meta(ge=0, le=_MAX_SEED)] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[object] | None = None

    def checked(self) -> JobBody:
        """This body, if this server can do all of it.

        Raises:
            ApiError: it asks for something else than supervised fine-tuning, or metadata is too large.
        """
        if self.method is not None and self.method.type != "supervised":
            raise ApiError(
                f"Fine-tuning by the method {self.method.type!r} is not supported by this server; use 'supervised'.",
                param="method.type",
                code="unsupported_parameter",
            )
        if self.method is not None:
            for name, value in (("dpo", self.method.dpo), ("reinforcement", self.method.reinforcement)):
                if value is not None:
                    raise unsupported(f"method.{name}", "has no place beside the type 'supervised'")
        if self.integrations:
            raise unsupported("integrations")
        check_metadata(self.metadata)
        return self

    @property
    def settings(self) -> _HyperparametersBody:
        """Hyperparameters, from the newer place and the older one together.

        Raises:
            ApiError: the two name different numbers for the same setting.
        """
        older = self.hyperparameters or _HyperparametersBody()
        if self.method is None or self.method.supervised is None:
            return older
        newer = msgspec.structs.asdict(self.method.supervised.hyperparameters)
        for name, value in msgspec.structs.asdict(older).items():
            if newer[name] in ("auto", None):
                newer[name] = value
            elif value not in ("auto", None, newer[name]):
                raise ApiError(
                    f"'hyperparameters.{name}' is {value} and 'method.supervised.hyperparameters.{name}' is "
                    f"{newer[name]}. Send one of them.",
                    param=f"hyperparameters.{name}",
                )
        return _HyperparametersBody(**newer)

    @property
    def run_key(self) -> str | None:
        """The client's own name of this training."""
        return (self.metadata or {}).get(RUN_KEY)


def spec_of(record: Record) -> TrainSpec:
    """How a job is trained, as far as its record says."""
    asked = record["hyperparameters"]
    assert isinstance(asked, dict)
    numbers = {name: value for name, value in asked.items() if value != "auto"}
    return TrainSpec.model_validate({**numbers, "seed": record["seed"]})


def with_spec(record: Record, spec: TrainSpec) -> Record:
    """The job object with the numbers that it trains with."""
    values = spec.model_dump()
    return with_hyperparameters(record, {name: values[name] for name in _HyperparametersBody.__struct_fields__})


def new_job(body: JobBody, job_id: str | None = None, created_at: int | None = None) -> Record:
    """The job object at its creation: now and under a fresh id, unless said otherwise."""
    record: Record = {
        "object": "fine_tuning.job",
        "id": job_id or new_id("ftjob-"),
        "model": body.model,
        "created_at": created_at if created_at is not None else int(time.time()),
        "finished_at": None,
        "fine_tuned_model": None,
        "organization_id": "org-local",
        "result_files": [],
        "status": "validating_files",
        "validation_file": body.validation_file,
        "training_file": body.training_file,
        "trained_tokens": None,
        "error": None,
        "seed": body.seed if body.seed is not None else secrets.randbelow(_MAX_SEED),
        "estimated_finish": None,
        "integrations": [],
        "metadata": dict(body.metadata) if body.metadata else None,
        "user_provided_suffix": body.suffix,
    }
    return with_hyperparameters(record, msgspec.to_builtins(body.settings))


def with_hyperparameters(record: Record, settings: Record) -> Record:
    """The job object with these hyperparameters in both places where the API shows them."""
    kept: Record = {key: "auto" if value is None else value for key, value in settings.items()}
    method: Record = {"type": "supervised", "supervised": {"hyperparameters": dict(kept)}}
    return {**record, "hyperparameters": dict(kept), "method": method}


def tuned_name(record: Record) -> str:
    """The name of the model that this job makes; it depends on the job alone."""
    suffix = record.get("user_provided_suffix") or ""
    tail = str(record["id"]).removeprefix("ftjob-")[:8]
    base = str(record["model"]).removeprefix("ft:").split(":")[0]
    return f"ft:{base}:local:{suffix}:{tail}"


def _metrics_of(event: TrainingEvent) -> Record:
    """The numbers of a step or a checkpoint."""
    return {"step": event.step, "total_steps": event.total_steps, **event.metrics}


def checkpoint_of(record: Record, event: TrainingEvent) -> Record:
    """The checkpoint object of a job's event."""
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": new_id("ftckpt_"),
        "created_at": int(time.time()),
        "fine_tuned_model_checkpoint": f"{tuned_name(record)}:ckpt-step-{event.step}",
        "fine_tuning_job_id": record["id"],
        "metrics": _metrics_of(event),
        "step_number": event.step,
    }


JobStatus: TypeAlias = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


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
            self._state.add_event(job_id, f"step/{event.step}", message, _metrics_of(event))
            if event.eta_s is not None:
                self._state.save_job(record | {"estimated_finish": int(time.time() + event.eta_s)})
        elif event.kind == "validation" and event.valid_loss is not None:
            message = f"Step {event.step}/{event.total_steps}: validation loss={event.valid_loss:.4f}"
            self._state.add_event(job_id, f"step/valid/{event.step}", message, _metrics_of(event))
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
