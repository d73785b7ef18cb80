"""Can this model still be trained and asked, for how long, and if not, where does the same config run?

Knows nothing of the network: a vendor's own word about an end is handed in by whoever asked.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from semievol_api.catalogue.facts import Catalogue, ModelFacts
from semievol_api.errors import MissingAbilityError

SHORT_LIFE_DAYS = 45
"""A model that ends within this many days is worth a warning."""
MIN_LIFE_DAYS = 7
"""A training whose model would stop sooner than this could hardly be used, and is refused."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a day means for one model. `lines` are sentences for a person."""

    vendor: str
    model: str
    can_ask: bool
    can_train: bool
    lines: tuple[str, ...]


def utc_day(now: datetime.datetime | None = None) -> datetime.date:
    """The day that counts for every end: that of UTC, wherever the machine stands.

    Vendors name days without a zone. UTC's day ends before California's does, so that nothing is started too late.

    Raises:
        ValueError: the instant has no time zone.
    """
    if now is None:
        now = datetime.datetime.now(datetime.UTC)
    if now.tzinfo is None:
        raise ValueError("An instant without a time zone names no day; give it one, such as datetime.UTC.")
    return now.astimezone(datetime.UTC).date()


def availability(
    catalogue: Catalogue, vendor: str, model: str, today: datetime.date, *, last_job: datetime.date | None = None
) -> Verdict:
    """What still works on a day, as far as the catalogue knows; an unknown model is taken to work.

    `last_job` is the day by which a run may have to start its last training; default: the same day.
    """
    facts = catalogue.facts(vendor, model)
    if facts is None:
        return Verdict(vendor, model, can_ask=True, can_train=True, lines=())
    job_day = max(today, last_job or today)
    end = facts.shutdown_date
    can_ask = end is None or today < end
    too_late = facts.last_training_date is not None and job_day > facts.last_training_date
    too_short = end is not None and (end - job_day).days < MIN_LIFE_DAYS
    can_train = can_ask and facts.fine_tunable is not False and not too_late and not too_short
    line = _sentence(facts, model, today, job_day)
    return Verdict(vendor, model, can_ask, can_train, (line,) if line else ())


def _sentence(facts: ModelFacts, model: str, today: datetime.date, job_day: datetime.date) -> str | None:
    """What a person should know of the model's ends on a day; None where they are far away."""
    end, last, vendor = facts.shutdown_date, facts.last_training_date, facts.vendor
    until = f", until {end}" if end else ""
    if end is not None and today >= end:
        return f"{model} at {vendor} stopped answering on {end}, and so did every model tuned from it."
    if last is not None and today > last:
        return f"{vendor} has accepted no new fine-tuning job for {model} since {last}; it still answers{until}."
    if last is not None and job_day > last:
        return (
            f"{vendor} accepts no new fine-tuning job for {model} after {last}, and in batch mode this run may start "
            f'its last one as late as {job_day}: set [limits] mode = "direct", or take another vendor.'
        )
    days = None if end is None else (end - today).days
    if days is None or days > SHORT_LIFE_DAYS:
        return None
    jobs = f"; new jobs are accepted until {last} (UTC), the run's last training among them" if last else ""
    hardly = " A training bought now could hardly be used." if days < MIN_LIFE_DAYS and facts.fine_tunable else ""
    return f"{model} at {vendor} and every model tuned from it stop answering on {end}, in {days} days{jobs}.{hardly}"


def refuse_ended(catalogue: Catalogue, verdict: Verdict, today: datetime.date, *, trains: bool) -> None:
    """Refuse what could not be used: a job or an ask whose model has ended, or a model that would stop within days.

    Raises:
        MissingAbilityError: with the date and what to change.
    """
    if verdict.can_ask and (verdict.can_train or not trains):
        return
    what = " ".join(verdict.lines) or f"{verdict.model} cannot be fine-tuned at {verdict.vendor}."
    raise MissingAbilityError(f"{what} Nothing was sent. {alternatives(catalogue, verdict, today)}")


def alternatives(catalogue: Catalogue, verdict: Verdict, today: datetime.date) -> str:
    """Where the same config still runs, as lines of a config: the same model first, one model a vendor."""
    base = catalogue.facts(verdict.vendor, verdict.model)
    names = set(base.names) if base else {verdict.model}
    offers: dict[str, ModelFacts] = {}
    for facts in catalogue.models:
        if facts.vendor == verdict.vendor or not facts.fine_tunable or not _runs_here(catalogue, facts, today):
            continue
        there = offers.get(facts.vendor)
        if there is None or (names & set(facts.names) and not names & set(there.names)):
            offers[facts.vendor] = facts
    alike: dict[tuple[str, str], list[str]] = {}
    for vendor, facts in sorted(offers.items(), key=lambda offer: offer[1].existing_customers_only):
        alike.setdefault((facts.model, _terms(catalogue, facts)), []).append(f'"{vendor}"')
    listed = [f'vendor = {" or ".join(v)} with model = "{model}"{terms}' for (model, terms), v in alike.items()]
    options = "; ".join(listed)
    return (
        f"The same config runs elsewhere: change the provider's table in [providers] and the model in [roles] to "
        f"{options + '; or ' if options else ''}"
        f'vendor = "semievol", base_url = "http://127.0.0.1:8000/v1" with a model of your own behind: '
        f"semievol serve MODEL."
    )


def _runs_here(catalogue: Catalogue, facts: ModelFacts, today: datetime.date) -> bool:
    vendor = catalogue.vendors.get(facts.vendor)
    if facts.vendor == "semievol" or (vendor is not None and (not vendor.trains_here or vendor.closed is not None)):
        return False
    return availability(catalogue, facts.vendor, facts.model, today).can_train


def _terms(catalogue: Catalogue, facts: ModelFacts) -> str:
    vendor = catalogue.vendors.get(facts.vendor)
    known = (
        "existing customers only" if facts.existing_customers_only else "",
        f"until {facts.last_training_date}" + (" at least" if facts.earliest else "")
        if facts.last_training_date
        else "",
        vendor.needs if vendor else "",
    )
    said = "; ".join(term for term in known if term)
    return f" ({said})" if said else ""
