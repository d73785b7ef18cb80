"""Can this model still be trained and asked, for how long, and if not, where does the same config run?

Knows nothing of the network: a vendor's own word about an end is handed in by whoever asked.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from semievol_api.catalogue.facts import Catalogue
from semievol_api.errors import MissingAbilityError

SHORT_LIFE_DAYS = 30
"""A model that ends within this many days is worth a warning."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a day means for one model. `lines` are sentences for a person, the stale remark among them."""

    vendor: str
    model: str
    can_ask: bool
    can_train: bool
    lines: tuple[str, ...]


def availability(catalogue: Catalogue, vendor: str, model: str, today: datetime.date) -> Verdict:
    """What still works on a day, as far as the catalogue knows; an unknown model is taken to work."""
    facts = catalogue.facts(vendor, model)
    if facts is None:
        return Verdict(vendor, model, can_ask=True, can_train=True, lines=())
    lines: list[str] = []
    end, last = facts.shutdown_date, facts.last_training_date
    can_ask = end is None or today < end
    can_train = can_ask and facts.fine_tunable is not False and (last is None or today <= last)
    if end is not None and not can_ask:
        lines.append(f"{model} at {vendor} stopped answering on {end}, and so did every model tuned from it.")
    elif last is not None and today > last:
        lines.append(
            f"{vendor} has accepted no new fine-tuning job for {model} since {last}; it still answers"
            + (f", until {end}." if end else ".")
        )
    elif end is not None and (end - today).days <= SHORT_LIFE_DAYS:
        lines.append(
            f"{model} at {vendor} and every model tuned from it stop answering on {end}, in {(end - today).days} days"
            + (f"; new jobs are accepted until {last}." if last else ".")
        )
    stale = catalogue.stale(facts, today)
    if stale and (end or last):
        lines.append(stale)
    return Verdict(vendor, model, can_ask, can_train, tuple(lines))


def refuse_ended(catalogue: Catalogue, verdict: Verdict, today: datetime.date, *, trains: bool) -> None:
    """Refuse what could not be used: a job or an ask whose model has ended.

    Raises:
        MissingAbilityError: with the date and what to change.
    """
    if verdict.can_ask and (verdict.can_train or not trains):
        return
    what = " ".join(verdict.lines) or f"{verdict.model} cannot be fine-tuned at {verdict.vendor}."
    raise MissingAbilityError(f"{what} {alternatives(catalogue, verdict, today)}")


def alternatives(catalogue: Catalogue, verdict: Verdict, today: datetime.date) -> str:
    """Where the same config still runs, as lines of a config."""
    elsewhere: list[str] = []
    for facts in catalogue.models:
        if facts.vendor == verdict.vendor or not facts.fine_tunable or facts.vendor == "semievol":
            continue
        other = availability(catalogue, facts.vendor, facts.model, today)
        if other.can_train:
            until = f" (until {facts.last_training_date})" if facts.last_training_date else ""
            elsewhere.append(f'vendor = "{facts.vendor}" with model = "{facts.model}"{until}')
    options = "; ".join(elsewhere)
    return (
        f"The same config runs elsewhere: change the provider's table in [providers] and the model in [roles] to "
        f"{options + '; or ' if options else ''}"
        f'vendor = "semievol", base_url = "http://127.0.0.1:8000/v1" with a model of your own behind: '
        f"semievol serve MODEL."
    )
