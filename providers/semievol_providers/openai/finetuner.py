"""Fine-tuning at one endpoint: jobs, the files that they learn from, and what lies at the vendor afterwards.

A job is submitted once and found again after a crash. It carries its run key twice: whole in its metadata, shortened in
its suffix, because some vendors drop metadata. Where a job shows neither, its model, seed, hyperparameters and training
file, named by its content, say whose it is. Nothing is retried here: a lost answer to `submit` is mended by `find`.
Knows nothing of what is trained.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from semievol_api.capabilities import (
    HOSTED_TRAIN_KEYS,
    FineTuneRequest,
    JobEvent,
    JobState,
    JobStatus,
    JobTicket,
    ModelName,
    RemoteModel,
    TrainSpec,
)
from semievol_api.errors import RefusedError
from semievol_providers.openai.errors import job_failure, read_vendor_error
from semievol_providers.openai.sdk import ModelFacts, Sdk
from semievol_providers.openai.settings import Dialect

RUN_KEY = "semievol_run_key"
"""The metadata field that names a training for ever."""

_JOBS = "fine_tuning/jobs"

_FILES = "files"

_STATUSES: dict[str, JobStatus] = {
    **dict.fromkeys(("validating_files", "queued", "pending", "notrunning", "created", "submitted"), "queued"),
    **dict.fromkeys(("running", "in_progress", "processing", "cancelling", "evaluating"), "running"),
    **dict.fromkeys(("succeeded", "success", "completed"), "succeeded"),
    **dict.fromkeys(("failed", "error"), "failed"),
    **dict.fromkeys(("cancelled", "canceled", "deleted"), "cancelled"),
    **dict.fromkeys(("paused", "pausing"), "paused"),
}

_BEST_FIRST: tuple[JobStatus, ...] = ("succeeded", "running", "queued", "paused", "unknown")

_UNUSABLE = frozenset({"error", "deleted", "deleting", "failed"})

_Purpose: TypeAlias = Literal["fine-tune", "batch"]


class Job(Struct):
    """The fields of a job that are used; every vendor leaves out or nulls some of the others."""

    id: str
    status: str
    model: str | None = None
    seed: int | None = None
    hyperparameters: dict[str, Any] | None = None
    fine_tuned_model: str | None = None
    training_file: str | None = None
    trained_tokens: int | None = None
    user_provided_suffix: str | None = None
    suffix: str | None = None
    metadata: dict[str, Any] | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class Event(Struct):
    """One line of a job's log; Azure's description does not promise an id."""

    id: str = ""
    message: str | None = None
    level: str | None = None
    created_at: float | None = None
    data: Any = None


class OpenAIFineTuner:
    """`FineTuner` at one endpoint."""

    def __init__(self, sdk: Sdk, dialect: Dialect) -> None:
        self._sdk = sdk
        self._files = Files(sdk)
        self._dialect = dialect

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Upload what is not there yet and start the job, once.

        Raises:
            TransientError: the answer was lost; the job may exist: look with `find` before submitting again.
            RefusedError: the vendor does not accept the file, the model or a setting.
            RateLimitError: too many requests, or jobs, for now.
        """
        training = request.training_file
        training_id = await self._files.upload_once(training, content_name(training), "fine-tune")
        validation_id = None
        if request.validation_file is not None:
            validation = request.validation_file
            validation_id = await self._files.upload_once(validation, content_name(validation), "fine-tune")
        arguments = job_arguments(request, training_id, validation_id, self._dialect)
        job = await self._sdk.ask_for(
            Job, _JOBS, lambda client: client.fine_tuning.jobs.with_raw_response.create(**arguments)
        )
        return JobTicket(job_id=job.id, run_key=request.run_key, training_file_id=training_id)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """The job with the request's run key: by metadata, else by suffix and training file.

        Failed and cancelled jobs don't count. Of several, the one that got farthest is meant.
        """
        found = await self._by_metadata_filter(request.run_key) if self._dialect.job_metadata else []
        found = found or await self._by_any_mark(request)
        living = sorted(
            (job for job in found if job_status(job.status) in _BEST_FIRST),
            key=lambda job: _BEST_FIRST.index(job_status(job.status)),
        )
        if not living:
            return None
        return JobTicket(job_id=living[0].id, run_key=request.run_key, training_file_id=living[0].training_file or None)

    async def poll(self, ticket: JobTicket) -> JobState:
        """Where the job stands now; an unknown state keeps the vendor's word and counts as unfinished."""
        job = await self._sdk.ask_for(
            Job, _JOBS, lambda client: client.fine_tuning.jobs.with_raw_response.retrieve(ticket.job_id)
        )
        status = job_status(job.status)
        reason = job_failure(read_vendor_error(bytes(job.error)), self._sdk.connection)
        if status == "succeeded" and not job.fine_tuned_model:
            reason = (
                "The training is done, but this vendor serves no model by itself: register or deploy it in the "
                "vendor's console"
            )
        if status == "failed" and reason is None:
            reason = "The vendor gave no reason; its events or its console may."
        if job.status.lower() == "deleted":
            reason = "Someone deleted the job at the vendor"
        return JobState(
            status=status,
            raw_status=job.status,
            model=job.fine_tuned_model if status == "succeeded" else None,
            reason=reason,
            trained_tokens=job.trained_tokens,
        )

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """Events newer than `after`, oldest first. OpenAI lists the newest first, Azure's reference the oldest."""
        listed = self._sdk.items(
            Event,
            f"{_JOBS}/events",
            lambda client, paging: client.fine_tuning.jobs.with_raw_response.list_events(ticket.job_id, **paging),
        )
        events: list[JobEvent] = []
        met = False
        async for listed_event in listed:
            events.append(_job_event(listed_event))
            met = met or events[-1].id == after
            if met and events[0].created_at > events[-1].created_at:
                break  # newest first: what follows is older than `after`
        if events and events[0].created_at >= events[-1].created_at:
            events.reverse()  # before the sort: events of one second keep their order
        events.sort(key=lambda event: event.created_at)
        if after is None or not met:
            return events
        return events[[event.id for event in events].index(after) + 1 :]

    async def cancel(self, ticket: JobTicket) -> None:
        """Ask the vendor to stop the job; a job that has already ended may be refused."""
        await self._sdk.ask(_JOBS, lambda client: client.fine_tuning.jobs.with_raw_response.cancel(ticket.job_id))

    async def _by_metadata_filter(self, run_key: str) -> list[Job]:
        """What the vendor's own filter finds; nothing where it does not know the filter."""
        wanted = {RUN_KEY: run_key}
        listed = self._sdk.items(
            Job,
            _JOBS,
            lambda client, paging: client.fine_tuning.jobs.with_raw_response.list(metadata=wanted, **paging),
        )
        try:
            return [job async for job in listed if _has_key(job, run_key)]
        except RefusedError as error:
            if error.status in (400, 422):
                return []
            raise

    async def _by_any_mark(self, request: FineTuneRequest) -> list[Job]:
        suffix = job_suffix(request, self._dialect.suffix_chars)
        listed = self._sdk.items(
            Job, _JOBS, lambda client, paging: client.fine_tuning.jobs.with_raw_response.list(**paging)
        )
        jobs = [job async for job in listed]
        marked = [job for job in jobs if _has_key(job, request.run_key) or _has_suffix(job, suffix)]
        unmarked = [job for job in jobs if _shows_no_mark(job) and _trains_alike(job, request)]
        if not marked and not unmarked:
            return []
        files = await self._files.named(content_name(request.training_file), "fine-tune")
        same_data = {file.id for file in files}
        sure = [job for job in marked if _has_key(job, request.run_key) or job.training_file in same_data]
        return sure or [job for job in unmarked if job.training_file in same_data]


def job_arguments(
    request: FineTuneRequest, training_id: str, validation_id: str | None, dialect: Dialect
) -> dict[str, Any]:
    """The arguments of the SDK's `create`; what is left out is the vendor's `auto`."""
    hyperparameters = {**dialect.job_hyperparameters, **_hyperparameters(request.spec)}
    arguments: dict[str, Any] = {
        "model": request.model,
        "training_file": training_id,
        "suffix": job_suffix(request, dialect.suffix_chars),
    }
    if dialect.job_method:
        arguments["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    elif hyperparameters:
        arguments["hyperparameters"] = hyperparameters
    if dialect.job_metadata:
        arguments["metadata"] = {RUN_KEY: request.run_key}
    if validation_id is not None:
        arguments["validation_file"] = validation_id
    if request.spec.seed is not None:
        arguments["seed"] = request.spec.seed
    if dialect.job_extra_body:
        arguments["extra_body"] = dict(dialect.job_extra_body)
    return arguments


def _hyperparameters(spec: TrainSpec) -> dict[str, int | float | str]:
    """What of a training the API has a place for; the rest is refused while planning."""
    return {name: value for name, value in spec.given.items() if name in HOSTED_TRAIN_KEYS and name != "seed"}


def job_suffix(request: FineTuneRequest, suffix_chars: int) -> str:
    """The wished suffix with the short run key at its end; letters, digits and dashes only."""
    ending = f"-{short_key(request.run_key)}"
    wished = re.sub(r"[^A-Za-z0-9]+", "-", request.suffix or "semievol").strip("-") or "semievol"
    return wished[: suffix_chars - len(ending)].rstrip("-") + ending


def job_status(raw: str) -> JobStatus:
    """A vendor's word as ours; `unknown` for a new one."""
    return _STATUSES.get(raw.lower(), "unknown")


def _has_key(job: Job, run_key: str) -> bool:
    return job.metadata is not None and job.metadata.get(RUN_KEY) == run_key


def _has_suffix(job: Job, suffix: str) -> bool:
    named = job.user_provided_suffix or job.suffix
    return named == suffix or (named is None and f":{suffix}:" in f"{job.fine_tuned_model}:")


def _shows_no_mark(job: Job) -> bool:
    return not (job.metadata or job.user_provided_suffix or job.suffix)


def _trains_alike(job: Job, request: FineTuneRequest) -> bool:
    """Whether nothing that the job tells of its training is other than asked for; -1 is Azure's `auto`."""
    shown, wanted = job.hyperparameters or {}, _hyperparameters(request.spec)
    alike = all(shown.get(name) in (None, "auto", -1, value) for name, value in wanted.items())
    return alike and job.model == request.model and job.seed in (None, request.spec.seed)


def _job_event(event: Event) -> JobEvent:
    numbers = event.data if isinstance(event.data, dict) else {}
    return JobEvent(
        id=event.id or short_key(f"{event.created_at} {event.message}"),
        message=event.message or "",
        level=event.level or "info",
        created_at=event.created_at or 0.0,
        metrics={
            str(name): float(value)
            for name, value in numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        },
    )


# ------------------------------------------------------------------------------------------- files at the vendor


class RemoteFile(Struct):
    """One file at the vendor."""

    id: str
    filename: str | None = None
    bytes: int | None = None
    status: str | None = None


class Files:
    """Upload, find and download."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk

    async def upload_once(self, content: bytes, name: str, purpose: _Purpose) -> str:
        """The id of a file with this name and size, uploaded now unless it is already there."""
        for there in await self.named(name, purpose):
            if there.bytes in (None, len(content)):
                return there.id
        uploaded = await self._sdk.ask_for(
            RemoteFile,
            _FILES,
            lambda client: client.files.with_raw_response.create(file=(name, content), purpose=purpose),
        )
        return uploaded.id

    async def named(self, start: str, purpose: _Purpose) -> list[RemoteFile]:
        """The usable files whose names begin so."""
        found = self._sdk.items(
            RemoteFile,
            _FILES,
            lambda client, paging: client.files.with_raw_response.list(purpose=purpose, **paging),
        )
        return [
            file async for file in found if (file.filename or "").startswith(start) and file.status not in _UNUSABLE
        ]

    async def download(self, file_id: str) -> bytes:
        """The content."""
        return await self._sdk.ask(f"{_FILES}/content", lambda client: client.files.with_raw_response.content(file_id))


def content_name(content: bytes) -> str:
    """A file name made from the content: equal bytes, equal name."""
    return f"semievol-{hashlib.sha256(content).hexdigest()[:20]}.jsonl"


def short_key(run_key: str) -> str:
    """Eight hex digits that stand for a run key where there is little room."""
    return hashlib.sha256(run_key.encode()).hexdigest()[:8]


class OpenAIStorage:
    """`VendorStorage` at one endpoint."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk
        self._files = Files(sdk)

    async def model(self, name: ModelName) -> RemoteModel:
        """One model; `RefusedError` with code `model_not_found` where there is none."""
        facts = await self._sdk.ask_for(
            ModelFacts, "models", lambda client: client.models.with_raw_response.retrieve(name)
        )
        return RemoteModel(name=facts.id, shutdown_date=facts.end)

    async def files_with(self, training_file: bytes) -> Sequence[str]:
        """The ids of the files that were uploaded under this content's name."""
        return [file.id for file in await self._files.named(content_name(training_file), "fine-tune")]

    async def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file."""
        await self._sdk.ask(_FILES, lambda client: client.files.with_raw_response.delete(file_id))

    async def delete_model(self, name: ModelName) -> None:
        """Delete a tuned model."""
        await self._sdk.ask("models", lambda client: client.models.with_raw_response.delete(name))
