"""`semievol providers`, `probe`, `jobs` and `clean`: known vendors and models, and what a run has at its own vendor.

Heavy imports stand inside the functions. Knows nothing of where a table is kept or of any one vendor.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from semievol_api.cli.screen import AsJson, ConfigPath, OnDay, out, pairs, print_json, table
from semievol_api.errors import ConfigError, UserError

if TYPE_CHECKING:
    from semievol_api.capabilities import Provider
    from semievol_api.config.settings import Config
    from semievol_api.planning.catalogue import Catalogue, ModelFacts, VendorFacts
    from semievol_api.planning.catalogue_refresh import Refreshed
    from semievol_api.planning.provider_probe import Finding, ProbeModels
    from semievol_api.training.jobs import Job


def providers(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="A config whose \\[catalogue] file is read too.")] = None,
    fresh: Annotated[Path | None, typer.Option("--refresh", help="Install a newer catalogue from this file.")] = None,
    back: Annotated[bool, typer.Option("--reset", help="Restore the catalogue of the package.")] = False,
    as_json: AsJson = False,
    on: OnDay = None,
) -> None:
    """List providers, vendors and models with prices and end dates."""
    from semievol_api.planning.catalogue import utc_day
    from semievol_api.planning.catalogue_refresh import data_folder, refresh, reset

    if context.invoked_subcommand is not None:
        return
    today = on.date() if on else utc_day()
    if fresh is not None and back:
        raise UserError("--refresh takes a newer table and --reset drops it: give one of the two.")
    if fresh is not None or back:
        told = reset(data_folder()) if fresh is None else refresh(fresh, data_folder(), today)
        if as_json:
            print_json(_refreshed_as_json(told))
        else:
            _show_refreshed(out(), told)
        return
    catalogue = _catalogue_of(config)
    if as_json:
        print_json(_providers_as_json(catalogue, today))
    else:
        _show_providers(out(), catalogue, today)


def probe(
    name: Annotated[str, typer.Argument(help="NAME of \\[providers.NAME] in the config.")],
    config: Annotated[Path, typer.Option(help="The config.")] = Path("semievol.toml"),
    as_json: AsJson = False,
) -> None:
    """Test what a provider supports with one cheap request per ability."""
    findings, path = _probe_provider(name, config)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _show_findings(findings, path)


def jobs(
    path: Annotated[Path, typer.Argument(help="A config, or a folder with runs.")] = Path(),
    poll: Annotated[
        bool, typer.Option("--poll", help="Ask the vendor for the state of each job (needs a config).")
    ] = False,
    cancel: Annotated[str | None, typer.Option(help="Cancel this job (needs a config).")] = None,
    as_json: AsJson = False,
) -> None:
    """List training jobs with their models, tokens and cost, and deployments with their hours."""
    found = _list_jobs(path, poll=poll, stop=cancel)
    if as_json:
        print_json(found)
    else:
        _show_jobs(found)


def clean(
    config: ConfigPath,
    remote: Annotated[
        bool, typer.Option("--remote", help="List uploaded files, superseded models and deployments at the vendor.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete everything listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what a run left at its vendor, and delete it with --yes."""
    if not remote:
        raise UserError(
            "Add --remote to list what the run left at its vendor. To remove a run from disk, delete its folder."
        )
    result = _clean_remote(config, yes=yes)
    if as_json:
        print_json(result)
    else:
        _show_clean(result)


_SHOWN_KEYS = 4
"""Keys of a new row that are told; of a changed row all are."""


def _catalogue_of(config: Path | None) -> Catalogue:
    """What is known, with the own file on top that a config names."""
    from semievol_api.config.settings import load_config
    from semievol_api.planning.catalogue_refresh import known_catalogue

    return known_catalogue(None if config is None else load_config(config).catalogue.file)


def _show_providers(console: Console, catalogue: Catalogue, today: datetime.date) -> None:
    """Kinds, vendors and models for a person; at the end one line on what has gone stale."""
    from semievol_api.registry import provider_kinds

    pairs(console, "Providers", {name: point.value for name, point in provider_kinds().items()})
    console.print(_vendors(catalogue))
    console.print(_models(catalogue))
    for name, facts in catalogue.vendors.items():
        if facts.note:
            console.print(f"- {name}: {facts.note}", markup=False)
    stale = _stale(catalogue, today)
    if stale:
        console.print(f"! {stale}", markup=False)


def _providers_as_json(catalogue: Catalogue, today: datetime.date) -> dict[str, Any]:
    """The installed providers and the catalogue."""
    from semievol_api.registry import provider_kinds

    stale = _stale(catalogue, today)
    return {
        "remarks": [
            *(f"{name}: {facts.note}" for name, facts in catalogue.vendors.items() if facts.note),
            *([stale] if stale else []),
        ],
        "kinds": {name: point.value for name, point in provider_kinds().items()},
        "models": [facts.model_dump(mode="json") for facts in catalogue.models],
        "vendors": {name: facts.model_dump(mode="json") for name, facts in catalogue.vendors.items()},
    }


def _show_refreshed(console: Console, told: Refreshed) -> None:
    """What a table changed, row by row, and the way back."""
    for change in told.changes:
        console.print(
            f"{change.kind:<8} {change.row}: {_words(change.kind, change.keys)}", markup=False, soft_wrap=True
        )
    taken = sum(change.kind != "older" for change in told.changes)
    rows = "No entry has changed." if not taken else f"{taken} entries have changed."
    console.print(rows, markup=False)
    if told.installed is None:
        console.print("The catalogue of the package is in use.", markup=False)
    else:
        console.print(
            f"Installed as {told.installed}. To go back to the package's own: semievol providers --reset",
            **_LONG,
        )
    if told.kept is not None:
        console.print(f"The previous one is kept. To restore it: semievol providers --refresh {told.kept}", **_LONG)


def _refreshed_as_json(told: Refreshed) -> dict[str, Any]:
    """The same for a program."""
    return {
        "installed": None if told.installed is None else str(told.installed),
        "kept": None if told.kept is None else str(told.kept),
        "changes": [asdict(change) for change in told.changes],
    }


_LONG: Mapping[str, Any] = {"markup": False, "soft_wrap": True}


def _words(kind: str, keys: Mapping[str, tuple[Any, Any]]) -> str:
    if kind == "older":
        known, theirs = keys["checked"]
        return f"not taken, since it was read on {theirs} and the package's on {known}"
    if kind == "removed":
        return "was only in the previous catalogue"
    if kind == "added":
        told = {key: now for key, (_, now) in keys.items() if now not in (None, "", [], {}) and key in _TELLING}
        return ", ".join(f"{key} = {now}" for key, now in list(told.items())[:_SHOWN_KEYS]) or "new"
    return ", ".join(f"{key}: {_value(was)} -> {_value(now)}" for key, (was, now) in keys.items())


_TELLING = ("input_usd", "output_usd", "training_usd", "last_training_date", "shutdown_date", "jobs", "serving")


def _value(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


def _stale(catalogue: Catalogue, today: datetime.date) -> str | None:
    return catalogue.stale([*catalogue.models, *_hours(catalogue)], today)


def _hours(catalogue: Catalogue) -> list[ModelFacts]:
    """The GPU hours as entries that can go stale like any other."""
    from semievol_api.planning.catalogue import ModelFacts

    return [
        ModelFacts(vendor=name, model="GPU hours", source=origin.source, checked=origin.checked)
        for name, facts in catalogue.vendors.items()
        for origin in facts.origins
    ]


def _vendors(catalogue: Catalogue) -> object:
    rows = [
        [
            name,
            _jobs(facts),
            facts.serving or "-",
            ", ".join(f"{gpu} {usd:.2f}" for gpu, usd in facts.gpu_hour_usd.items()) or "-",
            facts.logprobs or "-",
            f"{min(o.checked for o in (*facts.origins, facts))} {_strength(facts)}",
        ]
        for name, facts in catalogue.vendors.items()
    ]
    columns = ["vendor", "jobs", "serves tuned models", "USD per GPU hour", "log-probabilities", "read"]
    return table("Known vendors", columns, rows)


def _jobs(facts: VendorFacts) -> str:
    if facts.closed is not None:
        return f"closed since {facts.closed}"
    here = "" if facts.trains_here or facts.jobs == "none" else "; not from here"
    return (facts.jobs or "-") + here


def _strength(facts: VendorFacts) -> str:
    return (facts.gpu_hours_from or facts).strength


def _models(catalogue: Catalogue) -> object:
    """What is known of models: prices per million tokens, and ends."""
    rows = [
        [
            f"{m.vendor} {m.model}",
            _number(m, "input_usd", m.input_usd),
            _number(m, "output_usd", m.output_usd),
            _number(m, "tuned", m.tuned.output_usd if m.tuned else None),
            _number(m, "training_usd", m.training_usd),
            _end(m, m.last_training_date) + (" (existing customers)" if m.existing_customers_only else ""),
            _end(m, m.shutdown_date),
            _read(m),
        ]
        for m in catalogue.models
    ]
    columns = ["model", "in", "out", "tuned out", "training", "last job", "ends", "read"]
    return table("Known models, USD per million tokens (* weak, ? no source, >= no earlier than)", columns, rows)


def _number(facts: ModelFacts, key: str, value: float | None) -> str:
    mark = "?" if key in facts.unsupported else "*" if key in facts.weak else ""
    return "-" if value is None else f"{value:g}{mark}"


def _end(facts: ModelFacts, day: datetime.date | None) -> str:
    return "-" if day is None else f"{'>= ' if facts.earliest else ''}{day}"


def _read(facts: ModelFacts) -> str:
    origins = facts.origins or (facts,)
    return "; ".join(dict.fromkeys(f"{origin.checked} {origin.strength}" for origin in origins))


_ResultT = TypeVar("_ResultT")


def _list_jobs(path: Path, *, poll: bool, stop: str | None) -> list[dict[str, Any]]:
    """The jobs under a folder, or of a config; with `poll` and `stop` the vendor is asked.

    Raises:
        UserError: the vendor can only be asked with a config.
    """
    from semievol_api.config.settings import load_config
    from semievol_api.session import check as check_run
    from semievol_api.training.jobs import cancel, jobs_under, state_of

    if path.is_dir():
        if poll or stop:
            raise UserError("To ask the vendor, name a config: semievol jobs semievol.toml --poll")
        return [*(_plain_job(job, None, None) for job in jobs_under(path)), *_plain_deployments(path)]
    config = load_config(path)
    jobs = jobs_under(config.run.folder)
    plan = check_run(config, planning=not (poll or stop), purpose="look")
    provider = plan.provider(plan.trainer_ref)

    async def ask(provider: Provider) -> list[dict[str, Any]]:
        if stop:
            await cancel(jobs, stop, provider)
        return [_plain_job(job, provider, await state_of(job, provider) if poll or stop else None) for job in jobs]

    return [*_with(provider, ask), *_plain_deployments(config.run.folder)]


def _plain_deployments(folder: Path) -> list[dict[str, Any]]:
    """The deployments of the runs under a folder, in the columns of jobs, with their hours."""
    import time

    from semievol_api.training.deployments import deployments_under

    now = time.time()
    return [
        {
            "run": str(run),
            "kind": "deployment",
            "name": "deployment",
            "job_id": record.deployment_id,
            "run_key": record.run_key,
            "base": None,
            "model": record.model,
            "state": record.status,
            "hours": record.hours(now),
            "usd_per_hour": record.usd_per_hour,
            "usd": record.usd(now),
        }
        for run, record in deployments_under(folder)
    ]


def _show_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    """A table for a person."""
    if not jobs:
        out().print("No training jobs were found.", markup=False)
        return
    console = out()
    for run, of_run in groupby(jobs, key=lambda job: str(job["run"])):
        mine = list(of_run)
        rows = [[job["name"], job["state"], job["base"] or "-", _amount(job), _dollars(job["usd"])] for job in mine]
        console.print(f"\n{run}", markup=False, soft_wrap=True)
        console.print(table("", ["job", "state", "base", "tokens or hours", "USD"], rows))
        for job in mine:  # names are copied: nothing of them may be cut off
            model = f", model {job['model']}" if job["model"] else ""
            console.print(f"{job['name']}: {job['job_id'] or 'id not known'}{model}", markup=False, soft_wrap=True)


def _amount(job: Mapping[str, Any]) -> str:
    """What of a job or a deployment is paid for."""
    if job["kind"] == "deployment":
        return f"{job['hours']:.2f} h"
    return f"{job['trained_tokens']:,}" if job["trained_tokens"] else "-"


def _dollars(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:.2f}"


def _clean_remote(path: Path, *, yes: bool) -> dict[str, Any]:
    """What a run left at its vendor; deleted with `yes`."""
    from semievol_api.config.settings import load_config
    from semievol_api.session import check as check_run
    from semievol_api.training.deployments import delete_deployments, deployments_left
    from semievol_api.training.jobs import delete, jobs_under, leftovers

    config = load_config(path)
    plan = check_run(config, purpose="look")
    jobs = jobs_under(config.run.folder)

    async def ask(provider: Provider) -> dict[str, Any]:
        items = await leftovers(jobs, provider)
        failures = await delete(items, provider) if yes else []
        return {"items": [asdict(item) for item in items], "deleted": yes, "failures": failures}

    async def ask_deployer(provider: Provider) -> list[str]:
        return await delete_deployments(config.run.folder, provider) if yes else []

    student = plan.provider(config.roles.student)
    running = [asdict(item) for item in deployments_left(config.run.folder, student.name)]
    failures = _with(student, ask_deployer) if running else []
    result = _with(plan.provider(plan.trainer_ref), ask)
    return result | {"items": [*running, *result["items"]], "failures": [*failures, *result["failures"]]}


def _show_clean(result: Mapping[str, Any]) -> None:
    """A table for a person, and what to do next."""
    items = result["items"]
    if not items:
        out().print("This run left nothing at the vendor.", markup=False)
        return
    rows = [[item["kind"], item["id"], item["why"]] for item in items]
    out().print(table("At the vendor", ["kind", "id", "what it is"], rows))
    for failure in result["failures"]:
        out().print(f"! {failure}", markup=False)
    done = len(items) - len(result["failures"])
    words = f"{done} of {len(items)} were deleted." if result["deleted"] else "Nothing was deleted; add --yes to do so."
    out().print(words, markup=False)


def _probe_provider(name: str, path: Path) -> tuple[list[Finding], Path]:
    """Probe one provider of a config with the models that its roles name; the findings are kept in the run's folder."""
    from semievol_api.config.settings import load_config, nearest
    from semievol_api.planning.provider_probe import probe as probe_abilities
    from semievol_api.planning.provider_probe import record
    from semievol_api.registry import connect

    config = load_config(path)
    if name not in config.providers:
        raise ConfigError(f"[providers] has no {name!r}. {nearest(name, list(config.providers))}")
    provider = connect(name, config.providers[name], None, str(config.run.folder.parent))
    models = _models_at(name, config)
    findings = _with(provider, lambda p: probe_abilities(p, models))
    return findings, record(findings, name, models.chat or models.embed, config.run.folder)


def _show_findings(findings: Sequence[Finding], path: Path) -> None:
    """A table for a person."""
    rows = [[finding.ability, finding.outcome, finding.detail] for finding in findings]
    out().print(table("Probe", ["ability", "outcome", "what was seen"], rows))
    out().print(f"Kept in {path}", markup=False)


def _models_at(name: str, config: Config) -> ProbeModels:
    from semievol_api.planning.provider_probe import ProbeModels

    roles = config.roles
    trainer = roles.trainer or roles.student
    return ProbeModels(
        chat=roles.student.model if roles.student.provider == name else None,
        embed=roles.embedder.model if roles.embedder is not None and roles.embedder.provider == name else None,
        train=trainer.model if trainer.provider == name else None,
    )


def _with(provider: Provider, ask: Callable[[Provider], Awaitable[_ResultT]]) -> _ResultT:
    """Ask a provider in a loop of its own, and close it."""

    async def run() -> _ResultT:
        try:
            return await ask(provider)
        finally:
            await provider.aclose()

    return asyncio.run(run())


def _plain_job(job: Job, provider: Provider | None, state: Any) -> dict[str, Any]:
    known = "succeeded" if job.model else "submitted, end not seen"
    return {
        "run": str(job.run_folder),
        "kind": "training",
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
