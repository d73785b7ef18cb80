"""Trainings at Fireworks. Dataset, job and model get ids of our choice, so that nothing is made twice.

A job's id is its run key, and after a failed attempt the key with the attempt's number. A dataset is named by its
content. Shapes and states are the SDK's. Knows nothing of what is trained.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from semievol_api.capabilities import (
    FineTuneRequest,
    JobEvent,
    JobState,
    JobStatus,
    JobTicket,
    ModelName,
    RemoteModel,
)
from semievol_api.errors import RefusedError, TransientError
from semievol_providers.fireworks.account import Account

if TYPE_CHECKING:
    from fireworks.types import SupervisedFineTuningJob

TRAIN_KEYS = ("n_epochs", "batch_size", "rank", "seed")
"""What of a `TrainSpec` a job takes. `seed` names the training and is not sent: Fireworks has no place for one."""

_STATES: dict[str, JobStatus] = {
    **dict.fromkeys(("CREATING", "PENDING", "VALIDATING", "RE_QUEUEING", "CREATING_INPUT_DATASET", "IDLE"), "queued"),
    **dict.fromkeys(("RUNNING", "WRITING_RESULTS", "CANCELLING"), "running"),
    **dict.fromkeys(("COMPLETED", "EARLY_STOPPED"), "succeeded"),
    **dict.fromkeys(("FAILED", "EXPIRED"), "failed"),
    **dict.fromkeys(("CANCELLED", "DELETING", "DELETING_CLEANING_UP"), "cancelled"),
    "PAUSED": "paused",
}
_MOST_ATTEMPTS = 100
_DATASET_LOOKS = 30
_DATASET_WAIT_S = 2.0
_KEY_CHARS = 24


class FireworksFineTuner:
    """`FineTuner` at one account."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Upload what is not there yet and start the job, once.

        Raises:
            TransientError: the answer was lost, or the dataset is not ready yet; look with `find` before trying again.
            RefusedError: Fireworks does not accept the file, the model or a setting.
        """
        dataset = await self._dataset(request.training_file)
        validation = request.validation_file
        evaluation = None if validation is None else await self._dataset(validation)
        job_id = await self._free_id(request)
        start = "warm_start_from" if self._is_own(request.model) else "base_model"
        wanted: dict[str, Any] = {
            start: request.model,
            "dataset": self._account.resource("datasets", dataset),
            "output_model": self._account.resource("models", job_id),
            "display_name": (request.suffix or "semievol")[:60],
            **_settings(request),
        }
        if evaluation is not None:
            wanted["evaluation_dataset"] = self._account.resource("datasets", evaluation)
        await self._account.ask(
            "supervisedFineTuningJobs",
            lambda client: client.supervised_fine_tuning_jobs.create(supervised_fine_tuning_job_id=job_id, **wanted),
        )
        return JobTicket(job_id=job_id, run_key=request.run_key, training_file_id=dataset)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """The job of this run key; failed and cancelled attempts don't count."""
        for attempt in range(_MOST_ATTEMPTS):
            job_id = _job_id(request, attempt)
            job = await self._job(job_id)
            if job is None:
                return None
            if _status(job) not in ("failed", "cancelled"):
                dataset = _dataset_id(request.training_file)
                return JobTicket(job_id=job_id, run_key=request.run_key, training_file_id=dataset)
        return None

    async def poll(self, ticket: JobTicket) -> JobState:
        """Where the job stands; an unknown state keeps Fireworks' word and counts as unfinished."""
        job = await self._job(ticket.job_id)
        if job is None:
            return JobState(status="cancelled", raw_status="deleted", reason="Someone deleted the job at Fireworks.")
        status = _status(job)
        reason = job.status.message if job.status is not None and job.status.message else None
        return JobState(
            status=status,
            raw_status=_word(job.state),
            model=job.output_model if status == "succeeded" else None,
            reason=reason or ("Fireworks gave no reason; its console may." if status == "failed" else None),
        )

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """Fireworks keeps no events; a job's creation and its present state become two."""
        job = await self._job(ticket.job_id)
        if job is None:
            return []
        percent = job.job_progress.percent if job.job_progress is not None else None
        progress = "" if percent is None else f", {percent} %"
        made_s = job.create_time.timestamp() if job.create_time is not None else 0.0
        changed_s = job.update_time.timestamp() if job.update_time is not None else made_s
        events = [
            JobEvent(id="created", message=f"Created the job {ticket.job_id}", created_at=made_s),
            JobEvent(
                id=f"{_word(job.state)}-{percent or 0}",
                message=f"The job is {_word(job.state)}{progress}",
                created_at=max(made_s, changed_s),
                metrics={} if percent is None else {"percent": float(percent)},
            ),
        ]
        known = [event.id for event in events]
        if after is None:
            return events
        return events[known.index(after) + 1 :] if after in known else events[1:]

    async def cancel(self, ticket: JobTicket) -> None:
        """Ask Fireworks to stop the job."""
        await self._account.ask(
            "supervisedFineTuningJobs",
            lambda client: client.supervised_fine_tuning_jobs.cancel(ticket.job_id, body={}),
        )

    async def _job(self, job_id: str) -> SupervisedFineTuningJob | None:
        return await self._account.look(
            "supervisedFineTuningJobs", lambda client: client.supervised_fine_tuning_jobs.get(job_id)
        )

    async def _free_id(self, request: FineTuneRequest) -> str:
        for attempt in range(_MOST_ATTEMPTS):
            job_id = _job_id(request, attempt)
            if await self._job(job_id) is None:
                return job_id
        raise RefusedError(
            f"The training {_job_id(request, 0)!r} has ended without a model {_MOST_ATTEMPTS} times at Fireworks. Look "
            f"at its jobs there, delete what is of no use, and run again."
        )

    async def _dataset(self, content: bytes) -> str:
        """The id of a dataset with this content, uploaded now unless it is there, and ready."""
        dataset_id = _dataset_id(content)
        for look in range(_DATASET_LOOKS):
            found = await self._account.look("datasets", lambda client: client.datasets.get(dataset_id))
            if found is not None and found.state == "READY":
                return dataset_id
            if look:
                await asyncio.sleep(_DATASET_WAIT_S)
            else:
                await self._upload(dataset_id, content, is_there=found is not None)
        raise TransientError(f"Fireworks has not made the dataset {dataset_id!r} ready yet. Run again to go on.")

    async def _upload(self, dataset_id: str, content: bytes, *, is_there: bool) -> None:
        about: Any = {"user_uploaded": {}, "example_count": str(content.count(b"\n")), "format": "CHAT"}
        file = (f"{dataset_id}.jsonl", content, "application/jsonl")
        if not is_there:
            await self._account.ask(
                "datasets", lambda client: client.datasets.create(dataset_id=dataset_id, dataset=about)
            )
        await self._account.ask("datasets", lambda client: client.datasets.upload(dataset_id, file=file))

    def _is_own(self, model: ModelName) -> bool:
        return model.startswith(f"accounts/{self._account.name}/")


class FireworksStorage:
    """`VendorStorage` at one account: datasets are the files."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def model(self, name: ModelName) -> RemoteModel:
        """One model of this or another account."""
        _, account, _, model = name.split("/", 3) if name.count("/") >= 3 else ("", self._account.name, "", name)
        await self._account.ask("models", lambda client: client.models.get(model, account_id=account))
        return RemoteModel(name=name)

    async def files_with(self, training_file: bytes) -> Sequence[str]:
        """The dataset that was uploaded under this content's name."""
        dataset_id = _dataset_id(training_file)
        found = await self._account.look("datasets", lambda client: client.datasets.get(dataset_id))
        return [] if found is None else [dataset_id]

    async def delete_file(self, file_id: str) -> None:
        """Delete a dataset."""
        await self._account.look("datasets", lambda client: client.datasets.delete(file_id))

    async def delete_model(self, name: ModelName) -> None:
        """Delete a tuned model."""
        await self._account.ask("models", lambda client: client.models.delete(name.rpartition("/")[2]))


def _settings(request: FineTuneRequest) -> dict[str, Any]:
    """What of a training a job has a place for, by the SDK's names."""
    spec = request.spec
    known = {"epochs": spec.n_epochs, "batch_size_samples": spec.batch_size, "lora_rank": spec.rank}
    return {name: value for name, value in known.items() if value is not None}


def _job_id(request: FineTuneRequest, attempt: int) -> str:
    ending = f"-{attempt + 1}" if attempt else ""
    return f"semievol-{request.run_key[:_KEY_CHARS]}{ending}"


def _dataset_id(content: bytes) -> str:
    """A name made from the content; Fireworks' ids begin with a letter."""
    return f"semievol-{hashlib.sha256(content).hexdigest()[:_KEY_CHARS]}"


def _word(state: str | None) -> str:
    return (state or "").removeprefix("JOB_STATE_")


def _status(job: SupervisedFineTuningJob) -> JobStatus:
    return _STATES.get(_word(job.state), "unknown")
