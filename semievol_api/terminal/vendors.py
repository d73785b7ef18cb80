"""What `semievol providers` shows: the vendors, their models' prices and ends, and what a refreshed table changed.

Knows nothing of where a table is kept.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from semievol_api.catalogue import Catalogue, ModelFacts, Refreshed, VendorFacts, known_catalogue
from semievol_api.config import load_config
from semievol_api.registry import provider_kinds
from semievol_api.terminal.bars import pairs, table

SHOWN_KEYS = 4
"""Keys of a new row that are told; of a changed row all are."""


def catalogue_of(config: Path | None) -> Catalogue:
    """What is known, with the own file on top that a config names."""
    return known_catalogue(None if config is None else load_config(config).catalogue.file)


def show_providers(console: Console, catalogue: Catalogue, today: datetime.date) -> None:
    """Kinds, vendors and models for a person; at the end one line on what has gone stale."""
    pairs(console, "Providers", {name: point.value for name, point in provider_kinds().items()})
    console.print(_vendors(catalogue))
    console.print(_models(catalogue))
    for name, facts in catalogue.vendors.items():
        if facts.note:
            console.print(f"- {name}: {facts.note}", markup=False)
    stale = _stale(catalogue, today)
    if stale:
        console.print(f"! {stale}", markup=False)


def providers_as_json(catalogue: Catalogue, today: datetime.date) -> dict[str, Any]:
    """The installed providers and the catalogue."""
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


def show_refreshed(console: Console, told: Refreshed) -> None:
    """What a table changed, row by row, and the way back."""
    for change in told.changes:
        console.print(
            f"{change.kind:<8} {change.row}: {_words(change.kind, change.keys)}", markup=False, soft_wrap=True
        )
    taken = sum(change.kind != "older" for change in told.changes)
    rows = "Nothing is known otherwise now." if not taken else f"{taken} rows are known otherwise now."
    console.print(rows, markup=False)
    if told.installed is None:
        console.print("The package's own table holds.", markup=False)
    else:
        console.print(f"Installed as {told.installed}. Back to the package's own: semievol providers --reset", **_LONG)
    if told.kept is not None:
        console.print(f"The table before is kept: semievol providers --refresh {told.kept}", **_LONG)


def refreshed_as_json(told: Refreshed) -> dict[str, Any]:
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
        return "only the table before knew it"
    if kind == "added":
        told = {key: now for key, (_, now) in keys.items() if now not in (None, "", [], {}) and key in _TELLING}
        return ", ".join(f"{key} = {now}" for key, now in list(told.items())[:SHOWN_KEYS]) or "new"
    return ", ".join(f"{key}: {_value(was)} -> {_value(now)}" for key, (was, now) in keys.items())


_TELLING = ("input_usd", "output_usd", "training_usd", "last_training_date", "shutdown_date", "jobs", "serving")


def _value(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


def _stale(catalogue: Catalogue, today: datetime.date) -> str | None:
    return catalogue.stale([*catalogue.models, *_hours(catalogue)], today)


def _hours(catalogue: Catalogue) -> list[ModelFacts]:
    """The GPU hours as entries that can go stale like any other."""
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
    columns = ["vendor", "jobs", "serves a tune", "USD a GPU hour", "log-probabilities", "read"]
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
