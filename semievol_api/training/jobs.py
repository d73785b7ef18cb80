"""The trainings of runs: list them from their folders, poll and cancel them, clean up at the vendor.

    for job in jobs_under(Path("runs")): print(job.job_id, job.model)

Jobs are listed from disk; only polling, cancelling and cleaning up need the vendor and its API key. Knows nothing of
how a training is submitted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from semievol_api.capabilities import JobState, JobTicket, Provider, require
from semievol_api.errors import ProviderError, UserError

_STORED_AS = {"warm": ("warm_up", "warm_up"), "semievol": ("semievol", "evolve")}
"""Models whose training job and training file have another name in a run folder, as in all older folders."""
_KEPT_MODEL = "semievol"
"""The model that a run was made for; all others are superseded by it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training of one run; `name` is the run's own name for what it makes.

    `model`, `base` and `trained_tokens` are None until it has ended well.
    """

    run_folder: Path
    name: str
    job_id: str
    run_key: str
    training_file_id: str | None = None
    model: str | None = None
    base: str | None = None
    trained_tokens: int | None = None
    data_sha256: str | None = None
    training_usd: float | None = None

    @property
    def ticket(self) -> JobTicket:
        """What the provider is asked with."""
        return JobTicket(job_id=self.job_id, run_key=self.run_key, training_file_id=self.training_file_id)

    @property
    def training_file(self) -> bytes | None:
        """The bytes that were uploaded, where the run's folder still has them."""
        path = self.run_folder / file_artifact(self.name) / "train.jsonl"
        return path.read_bytes() if path.is_file() else None

    def cost_usd(self, provider: Provider) -> float | None:
        """What the training cost: as noted when it ended, else by today's price, as far as that is known."""
        if self.training_usd is not None:
            return self.training_usd
        limits = provider.limits.get(self.base or "")
        if limits is None or limits.training_usd is None or self.trained_tokens is None:
            return None
        return self.trained_tokens * limits.training_usd / 1e6


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of a run that still lies at the vendor."""

    kind: str
    """file, model or deployment."""
    id: str
    why: str


def stored_job(model: str) -> str:
    """What the training of a model is called in a run's folder."""
    return _STORED_AS.get(model, (model, model))[0]


def job_artifact(model: str, which: Literal["ticket", "model"]) -> str:
    """The artifact that holds a training's receipt, or its model."""
    return f"jobs/{stored_job(model)}-{which}"


def file_artifact(model: str) -> str:
    """The artifact that holds the training file of a model."""
    return _STORED_AS.get(model, (model, model))[1]


def model_trained_by(stored: str) -> str:
    """The model whose training has this name in a run's folder."""
    return next((model for model, (job, _) in _STORED_AS.items() if job == stored), stored)


def jobs_under(folder: Path) -> list[Job]:
    """The jobs of every run in or below a folder, oldest run first."""
    tickets = sorted(folder.rglob("jobs/*-ticket/ticket.json"), key=lambda path: (path.stat().st_mtime, str(path)))
    return [_job(path) for path in tickets]


async def state_of(job: Job, provider: Provider) -> JobState | None:
    """The vendor's word on a job; None where it cannot be had."""
    try:
        return await require(provider.finetuner, "fine-tuning", provider).poll(job.ticket)
    except ProviderError:
        return None


async def cancel(jobs: Sequence[Job], name: str, provider: Provider) -> Job:
    """Ask the vendor to stop a run's job.

    Raises:
        UserError: the run has no such job, or it has ended already.
    """
    found = next((job for job in jobs if name in (job.name, stored_job(job.name), job.job_id)), None)
    if found is None:
        raise UserError(f"This run has no job {name!r}; it has {', '.join(job.name for job in jobs) or 'none'}.")
    if found.model is not None:
        raise UserError(f"The job {found.name!r} has ended already: its model is {found.model!r}.")
    await require(provider.finetuner, "fine-tuning", provider).cancel(found.ticket)
    return found


async def leftovers(jobs: Sequence[Job], provider: Provider) -> list[Leftover]:
    """The uploaded files and superseded models of one run."""
    remote = require(provider.remote, "clean-up", provider)
    files: dict[str, str] = {}
    for job in jobs:
        if job.training_file_id:
            files[job.training_file_id] = job.name
        content = job.training_file
        if content is not None:
            files |= {file_id: job.name for file_id in await remote.files_with(content) if file_id not in files}
    models = [
        Leftover("model", job.model, f"the run's {job.name} model, superseded by {_KEPT_MODEL}")
        for job in jobs
        if job.model is not None and job.name != _KEPT_MODEL and any(other.name == _KEPT_MODEL for other in jobs)
    ]
    return [*(Leftover("file", file_id, f"training file of {name}") for file_id, name in files.items()), *models]


async def delete(items: Sequence[Leftover], provider: Provider) -> list[str]:
    """Delete what is left over; returns a sentence for everything that could not be deleted."""
    remote = require(provider.remote, "clean-up", provider)
    failures: list[str] = []
    for item in items:
        try:
            await (remote.delete_file(item.id) if item.kind == "file" else remote.delete_model(item.id))
        except ProviderError as error:
            failures.append(f"{item.kind} {item.id}: {error}")
    return failures


def _job(ticket_path: Path) -> Job:
    ticket: dict[str, Any] = json.loads(ticket_path.read_text("utf-8"))
    stored = ticket_path.parent.name.removesuffix("-ticket")
    jobs_folder = ticket_path.parent.parent
    model_path = jobs_folder / f"{stored}-model" / "model.json"
    model: dict[str, Any] = json.loads(model_path.read_text("utf-8")) if model_path.is_file() else {}
    return Job(
        run_folder=jobs_folder.parent,
        name=model_trained_by(stored),
        job_id=ticket["job_id"],
        run_key=ticket["run_key"],
        training_file_id=ticket.get("training_file_id"),
        model=model.get("model"),
        base=model.get("base"),
        trained_tokens=model.get("trained_tokens"),
        data_sha256=model.get("data_sha256"),
        training_usd=model.get("training_usd"),
    )
