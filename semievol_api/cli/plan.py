"""`semievol plan`: an estimate as tables and remarks, next to the amounts billed so far.

Heavy imports stand inside the functions. Knows nothing of how the numbers were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from semievol_api.cli.screen import AsJson, ConfigPath, OnDay, out, print_json, table
from semievol_api.errors import UserError

if TYPE_CHECKING:
    from semievol_api.config.settings import Config
    from semievol_api.planning.bill import BillRow, Range, Spent
    from semievol_api.planning.catalogue import Catalogue
    from semievol_api.planning.estimating import Estimate


def plan(  # noqa: PLR0913 - a command line has as many options as it has
    config: ConfigPath,
    vendors: Annotated[list[str] | None, typer.Argument(help="Vendors for --compare.")] = None,
    as_json: AsJson = False,
    compare: Annotated[bool, typer.Option("--compare", help="Price the same run at other vendors.")] = False,
    on: OnDay = None,
    requests_per_month: Annotated[
        int | None, typer.Option(min=1, help="Show what serving so many requests a month costs at each vendor.")
    ] = None,
    awake_hours: Annotated[
        float, typer.Option(min=0, max=24, help="Hours a day for which a deployment that scales to zero is up.")
    ] = 1.0,
) -> None:
    """Estimate requests, tokens, cost and model end dates. Needs no API key."""
    from semievol_api.config.settings import load_config
    from semievol_api.planning.bill import spent_by
    from semievol_api.planning.estimating import estimate
    from semievol_api.session import run_blocking

    settings = load_config(config)
    named = vendors or (["openai", "azure", "nebius", "local"] if compare else [])
    planned = run_blocking(estimate(settings, today=on.date() if on else None, vendors=named))
    spent = spent_by(settings)
    month = None if requests_per_month is None else _month(settings, planned, requests_per_month, awake_hours)
    if as_json:
        print_json(_plan_as_json(planned, spent) | ({} if month is None else {"month": month}))
    else:
        show_plan(out(), planned, spent)
        if month is not None:
            _show_month(out(), month)


def _month(config: Config, planned: Estimate, requests: int, awake_hours: float) -> dict[str, Any]:
    """What serving costs a month, as plain values."""
    from semievol_api.planning.catalogue_refresh import known_catalogue
    from semievol_api.planning.monthly import Load, cheapest_by_requests, compare, request_of, servings

    request = request_of(planned.rows)
    if request is None:
        raise UserError("The plan has no chat requests, so a request's tokens are not known. Name a [data] test file.")
    catalogue = known_catalogue(config.catalogue.file)
    rows = servings(catalogue, request, Load(requests, awake_hours), planned.as_of)
    yours = _served_now(config, catalogue)
    own = next((row for row in rows if row.name == yours), None)
    return {
        "requests": requests,
        "tokens": asdict(request),
        "servings": [
            {
                **asdict(row),
                "ends": None if row.ends is None else row.ends.isoformat(),
                "usd": row.usd(requests),
                "beside_yours": None if own is None else compare(row, own),
            }
            for row in rows
        ],
        "cheapest": [asdict(change) for change in cheapest_by_requests(rows)],
    }


def _served_now(config: Config, catalogue: Catalogue) -> str | None:
    """The name of the way in which the config's own student would be served."""
    from semievol_api.session import check

    student = config.roles.student
    vendor = check(config, planning=True).provider(student).vendor
    facts = catalogue.facts(vendor, student.model)
    return None if facts is None else f"tuned {facts.model} at {facts.vendor}"


def _show_month(console: Console, month: Mapping[str, Any]) -> None:
    """The rows for a person, and from how many requests on which is the cheapest."""
    rows = [
        [
            row["name"],
            f"{'>= ' if row['is_partial'] else ''}{row['usd']:,.2f}",
            row["beside_yours"] or "-",
            row["ends"] or "-",
            row["remark"] or "-",
        ]
        for row in month["servings"]
    ]
    tokens = month["tokens"]
    title = (
        f"Serving {month['requests']:,} requests a month, of {tokens['prompt']:,.0f} prompt and "
        f"{tokens['completion']:,.0f} answer tokens"
    )
    console.print(table(title, ["way", "USD a month", "beside yours", "ends", "remark"], rows))
    first, *later = month["cheapest"]
    console.print(f"Cheapest without a GPU of your own: {first['name']}.", markup=False, soft_wrap=True)
    for change in later:
        console.print(
            f"From {change['from_requests']:,.0f} requests a month on: {change['name']}.", markup=False, soft_wrap=True
        )


_EPOCHS_BY: Mapping[str, str] = {
    "config": "",
    "trainer": " (auto, by the trainer's rule)",
    "usual": " (auto, as is usual; the vendor decides)",
}
_Cell = Callable[["BillRow"], str]
_COLUMNS: Mapping[str, _Cell] = {
    "stage": lambda row: row.stage,
    "model": lambda row: row.model,
    "requests": lambda row: _count(row.requests),
    "prompt": lambda row: _count(row.prompt),
    "cached": lambda row: _upto(row.cached),
    "completion": lambda row: _span(row.completion),
    "training": lambda row: _count(row.training),
    "USD": lambda row: _usd(row.usd),
    "low to high": lambda row: _usd_span(row.usd),
    "in batches": lambda row: _usd(row.batch_usd),
}


def show_plan(console: Console, planned: Estimate, spent: Spent | None) -> None:
    """Print a plan for a person."""
    console.print(_bill(planned))
    minutes = planned.duration.minutes
    console.print(
        f"The requests take {_minutes(minutes.expected)} ({_minutes(minutes.low)} to {_minutes(minutes.high)}), by "
        f"{'; '.join(planned.duration.by)}. Trainings are not included.",
        markup=False,
    )
    for file in planned.trainings:
        console.print(
            f"Training file {file.name}: {file.examples} examples, {file.tokens:,} tokens, the longest {file.longest}, "
            f"{file.epochs} epochs{_EPOCHS_BY[file.epochs_by]}.",
            markup=False,
        )
    if planned.offers:
        offers = [[o.vendor, o.model, _usd(o.usd), _usd_span(o.usd), _usd(o.batch_usd)] for o in planned.offers]
        console.print(
            table("The same run at other vendors", ["vendor", "model", "USD", "low to high", "in batches"], offers)
        )
        for offer in planned.offers:
            console.print(f"- {offer.vendor}, {offer.model}: {' '.join(offer.remarks)}", markup=False)
    for notice in planned.notices:
        console.print(f"! {notice}", markup=False)
    if spent is not None and (spent.requests or spent.trained_tokens):
        console.print(_beside(planned, spent))


def _bill(planned: Estimate) -> object:
    """A row for each stage and model, and the sum; the column of cached tokens only where there are some."""
    caches = any(row.cached.high for row in planned.rows)
    shown = {name: cell for name, cell in _COLUMNS.items() if name != "cached" or caches}
    rows = [[cell(row) for cell in shown.values()] for row in planned.rows]
    sums = {"stage": "total", "USD": _usd(planned.usd), "low to high": _usd_span(planned.usd)}
    sums["in batches"] = _usd(planned.batch_usd)
    rows.append([sums.get(name, "") for name in shown])
    return table(f"Plan as of {planned.as_of}; tokens by {planned.tokens_by}", list(shown), rows)


def _plan_as_json(planned: Estimate, spent: Spent | None) -> dict[str, Any]:
    """The same for a program."""
    return {
        "tokens_by": planned.tokens_by,
        "as_of": planned.as_of.isoformat(),
        "rows": [row.as_json() for row in planned.rows],
        "usd": _plain(planned.usd),
        "batch_usd": _plain(planned.batch_usd),
        "minutes": _plain(planned.duration.minutes),
        "minutes_by": list(planned.duration.by),
        "training_files": [asdict(file) for file in planned.trainings],
        "notices": list(planned.notices),
        "compare": [
            {
                "vendor": o.vendor,
                "model": o.model,
                "usd": _plain(o.usd),
                "batch_usd": _plain(o.batch_usd),
                "remarks": list(o.remarks),
            }
            for o in planned.offers
        ],
        "spent": None
        if spent is None
        else {
            "requests": spent.requests,
            "usd": spent.usd,
            "trainings_usd": spent.trainings_usd,
            "stages": {
                s: {"prompt": u.prompt, "cached": u.cached, "completion": u.completion} for s, u in spent.stages.items()
            },
            "trained_tokens": dict(spent.trained_tokens),
        },
    }


def _beside(planned: Estimate, spent: Spent) -> object:
    """Plan and ledger by the engine's stages (all evaluations are one), then trainings."""
    from semievol_api.training.jobs import stored_job

    rows: list[list[str]] = []
    for stage, usage in spent.stages.items():
        mine = [row for row in planned.rows if row.stage.split("/")[0] == stage]
        prompt, completion = sum(r.prompt.expected for r in mine), sum(r.completion.expected for r in mine)
        high = sum(r.completion.high for r in mine)
        rows.append(
            [
                stage,
                f"{prompt:,.0f}",
                f"{usage.prompt:,}",
                f"{completion:,.0f} (≤ {high:,.0f})",
                f"{usage.completion:,}",
            ]
        )
    for job, tokens in spent.trained_tokens.items():
        expected = sum(r.training.expected for r in planned.rows if r.stage == f"jobs/{stored_job(job)}")
        rows.append([f"training {job}", f"{expected:,.0f}", f"{tokens:,}", "", ""])
    columns = ["stage", "planned prompt", "billed prompt", "planned completion", "billed completion"]
    trainings = "an unknown price" if spent.trainings_usd is None else f"{spent.trainings_usd:.4f} USD"
    title = f"Billed so far: {spent.requests:,} requests, {spent.usd:.4f} USD, and trainings, {trainings}"
    return table(title, columns, rows)


def _plain(value: Range | None) -> dict[str, float] | None:
    return None if value is None else {"low": value.low, "expected": value.expected, "high": value.high}


def _count(value: Range) -> str:
    return f"{value.expected:,.0f}" if value.high else "-"


def _upto(value: Range) -> str:
    return f"≤ {value.high:,.0f}" if value.high else "-"


def _span(value: Range) -> str:
    return f"{value.low:,.0f} to {value.high:,.0f}" if value.high else "-"


def _usd(value: Range | None) -> str:
    return "?" if value is None else f"{value.expected:.2f}"


def _usd_span(value: Range | None) -> str:
    return "?" if value is None else f"{value.low:.2f} to {value.high:.2f}"


def _minutes(value: float) -> str:
    if value < 1:
        return f"{60 * value:.0f} s"
    return f"{value:.0f} min" if value < 120 else f"{value / 60:.1f} h"
