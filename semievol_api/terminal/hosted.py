"""What the commands about vendors show: jobs, left-overs, probe findings.

Knows nothing of the vendors' wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from semievol_api.capabilities import Provider
from semievol_api.config import Config, load_config, nearest
from semievol_api.errors import ConfigError, UserError
from semievol_api.jobs import Job, cancel, delete, jobs_under, leftovers, state_of
from semievol_api.probe import Finding, ProbeModels, probe, record
from semievol_api.registry import connect
from semievol_api.session import check
from semievol_api.terminal.bars import out, table

ResultT = TypeVar("ResultT")


def list_jobs(path: Path, *, poll: bool, stop: str | None) -> list[dict[str, Any]]:
    """The jobs under a folder, or of a config; with `poll` and `stop` the vendor is asked.

    Raises:
        UserError: the vendor can only be asked with a config.
    """
    if path.is_dir():
        if poll or stop:
            raise UserError("To ask the vendor, name a config: semievol jobs semievol.toml --poll")
        return [_plain_job(job, None, None) for job in jobs_under(path)]
    config = load_config(path)
    jobs = jobs_under(config.run.folder)
    plan = check(config, planning=not (poll or stop), purpose="look")
    provider = plan.provider(plan.trainer_ref)

    async def ask(provider: Provider) -> list[dict[str, Any]]:
        if stop:
            await cancel(jobs, stop, provider)
        return [_plain_job(job, provider, await state_of(job, provider) if poll or stop else None) for job in jobs]

    return _with(provider, ask)


def show_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    """A table for a person."""
    if not jobs:
        out().print("No run here has started a training.", markup=False)
        return
    console = out()
    for run, of_run in groupby(jobs, key=lambda job: str(job["run"])):
        mine = list(of_run)
        rows = [
            [
                job["name"],
                job["state"],
                job["base"] or "-",
                f"{job['trained_tokens']:,}" if job["trained_tokens"] else "-",
                "-" if job["usd"] is None else f"{job['usd']:.2f}",
            ]
            for job in mine
        ]
        console.print(f"\n{run}", markup=False, soft_wrap=True)
        console.print(table("", ["job", "state", "base", "tokens", "USD"], rows))
        for job in mine:  # names are copied: nothing of them may be cut off
            model = f", model {job['model']}" if job["model"] else ""
            console.print(f"{job['name']}: {job['job_id']}{model}", markup=False, soft_wrap=True)


def clean_remote(path: Path, *, yes: bool) -> dict[str, Any]:
    """What a run left at its vendor; deleted with `yes`."""
    config = load_config(path)
    plan = check(config, purpose="look")
    jobs = jobs_under(config.run.folder)

    async def ask(provider: Provider) -> dict[str, Any]:
        items = await leftovers(jobs, provider)
        failures = await delete(items, provider) if yes else []
        return {"items": [asdict(item) for item in items], "deleted": yes, "failures": failures}

    return _with(plan.provider(plan.trainer_ref), ask)


def show_clean(result: Mapping[str, Any]) -> None:
    """A table for a person, and what to do next."""
    items = result["items"]
    if not items:
        out().print("Nothing of this run lies at the vendor.", markup=False)
        return
    rows = [[item["kind"], item["id"], item["why"]] for item in items]
    out().print(table("At the vendor", ["kind", "id", "what it is"], rows))
    for failure in result["failures"]:
        out().print(f"! {failure}", markup=False)
    done = len(items) - len(result["failures"])
    words = f"{done} of {len(items)} were deleted." if result["deleted"] else "Nothing was deleted; add --yes to do so."
    out().print(words, markup=False)


def probe_provider(name: str, path: Path) -> tuple[list[Finding], Path]:
    """Probe one provider of a config with the models that its roles name; the findings are kept in the run's folder."""
    config = load_config(path)
    if name not in config.providers:
        raise ConfigError(f"[providers] has no {name!r}. {nearest(name, list(config.providers))}")
    provider = connect(name, config.providers[name], None, str(config.run.folder.parent))
    models = _models_at(name, config)
    findings = _with(provider, lambda p: probe(p, models))
    return findings, record(findings, name, models.chat or models.embed, config.run.folder)


def show_findings(findings: Sequence[Finding], path: Path) -> None:
    """A table for a person."""
    rows = [[finding.ability, finding.outcome, finding.detail] for finding in findings]
    out().print(table("Probe", ["ability", "outcome", "what was seen"], rows))
    out().print(f"Kept in {path}", markup=False)


def _models_at(name: str, config: Config) -> ProbeModels:
    roles = config.roles
    trainer = roles.trainer or roles.student
    return ProbeModels(
        chat=roles.student.model if roles.student.provider == name else None,
        embed=roles.embedder.model if roles.embedder is not None and roles.embedder.provider == name else None,
        train=trainer.model if trainer.provider == name else None,
    )


def _with(provider: Provider, ask: Callable[[Provider], Awaitable[ResultT]]) -> ResultT:
    """Ask a provider in a loop of its own, and close it."""

    async def run() -> ResultT:
        try:
            return await ask(provider)
        finally:
            await provider.aclose()

    return asyncio.run(run())


def _plain_job(job: Job, provider: Provider | None, state: Any) -> dict[str, Any]:
    known = "succeeded" if job.model else "bought, not seen to end"
    return {
        "run": str(job.run_folder),
        "name": job.name,
        "job_id": job.job_id,
        "run_key": job.run_key,
        "base": job.base,
        "model": job.model or (state.model if state else None),
        "state": state.raw_status if state else known,
        "reason": state.reason if state else None,
        "training_file_id": job.training_file_id,
        "trained_tokens": job.trained_tokens,
        "usd": job.cost_usd(provider) if provider else job.training_usd,
        "data_sha256": job.data_sha256,
    }
