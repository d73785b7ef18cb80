"""The body of `POST /fine_tuning/jobs`: what is accepted, what is refused, and the job object it becomes.

Knows nothing of how jobs are stored, queued or run.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Literal, TypeAlias, cast

import msgspec
from msgspec import Meta

from semievol_providers.local.training_job import TrainingEvent
from semievol_providers.server.api_errors import ApiError, check_metadata, unsupported
from semievol_providers.server.settings import Auto, TrainDefaults
from semievol_providers.server.state import Record, new_id

RUN_KEY = "semievol_run_key"
"""Metadata key under which a client names a training for ever: asking again returns the same job."""

_Batch: TypeAlias = Annotated[int, Meta(ge=1, le=256)]
_Epochs: TypeAlias = Annotated[int, Meta(ge=1, le=50)]
_Rate: TypeAlias = Annotated[float, Meta(gt=0)]
_MAX_SEED = 2147483647


class HyperparametersBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The three settings of supervised fine-tuning."""

    n_epochs: _Epochs | Auto = "auto"
    batch_size: _Batch | Auto | None = "auto"
    learning_rate_multiplier: _Rate | Auto = "auto"


class SupervisedBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`method.supervised`."""

    hyperparameters: HyperparametersBody = HyperparametersBody()


class MethodBody(msgspec.Struct, frozen=True, kw_only=True):
    """`method`; other types than supervised are refused with a message of their own."""

    type: str
    supervised: SupervisedBody | None = None


class JobBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole request."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: HyperparametersBody | None = None
    method: MethodBody | None = None
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
        if self.integrations:
            raise unsupported("integrations")
        check_metadata(self.metadata)
        return self

    @property
    def settings(self) -> HyperparametersBody:
        """Hyperparameters, from the newer place or the older one."""
        if self.method is not None and self.method.supervised is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or HyperparametersBody()

    @property
    def run_key(self) -> str | None:
        """The client's own name of this training."""
        return (self.metadata or {}).get(RUN_KEY)


class Resolved(msgspec.Struct, frozen=True):
    """Hyperparameters with every `auto` replaced."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float


def resolve(record: Record, defaults: TrainDefaults, examples: int) -> Resolved:
    """The numbers that a job trains with, for a file of this many examples."""
    asked = msgspec.convert(record["hyperparameters"], HyperparametersBody)
    batch = asked.batch_size if isinstance(asked.batch_size, int) else defaults.batch_for(examples)
    epochs = asked.n_epochs if isinstance(asked.n_epochs, int) else defaults.epochs_for(examples, batch)
    rate = asked.learning_rate_multiplier
    return Resolved(epochs, batch, rate if not isinstance(rate, str) else 1.0)


def new_job(body: JobBody) -> Record:
    """The job object at its creation."""
    record: Record = {
        "object": "fine_tuning.job",
        "id": new_id("ftjob-"),
        "model": body.model,
        "created_at": int(time.time()),
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


def metrics_of(event: TrainingEvent) -> Record:
    """The numbers of a step or a checkpoint under the API's names."""
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


def checkpoint_of(record: Record, event: TrainingEvent) -> Record:
    """The checkpoint object of a job's event."""
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": new_id("ftckpt_"),
        "created_at": int(time.time()),
        "fine_tuned_model_checkpoint": f"{tuned_name(record)}:ckpt-step-{event.step}",
        "fine_tuning_job_id": record["id"],
        "metrics": metrics_of(event),
        "step_number": event.step,
    }


JobStatus: TypeAlias = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
