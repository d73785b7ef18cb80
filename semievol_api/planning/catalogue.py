"""The catalogue's entries and its reader: the package's own TOML, a refreshed one over it, the config's own on top.

Knows nothing of what is done with a fact, nor where a refreshed table is kept.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from semievol_api.config.method import Settings
from semievol_api.config.settings import parse_settings, read_toml
from semievol_api.errors import ConfigError, MissingAbilityError

_Usd: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Strength: TypeAlias = Literal["doc", "source", "third party", "weak", "memory", "own"]
"""The vendor's page, its source code, others' pages, a weak page, memory, or a file of the user's."""
ANY_MODEL = "*"
_OWN_FILE = "the user's own file"


class Origin(Settings):
    """Where facts were read, when, and how far that can be trusted."""

    source: str = _OWN_FILE
    checked: datetime.date
    strength: Strength = "own"


class Prices(Settings):
    """USD per million tokens."""

    input_usd: _Usd | None = None
    cached_input_usd: _Usd | None = None
    output_usd: _Usd | None = None


class ModelFacts(Prices, Origin):
    """One model at one vendor; catalogue.toml explains the fields."""

    vendor: str
    model: str
    aliases: tuple[str, ...] = ()
    prices_from: Origin | None = None
    dates_from: Origin | None = None
    weak: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    fine_tunable: bool | None = None
    existing_customers_only: bool = False
    context_tokens: int | None = Field(default=None, gt=0)
    tuned: Prices | None = None
    training_usd: _Usd | None = None
    batch_share: float = Field(default=1.0, ge=0, le=1)
    requests_per_minute: int | None = Field(default=None, gt=0)
    tokens_per_minute: int | None = Field(default=None, gt=0)
    last_training_date: datetime.date | None = None
    shutdown_date: datetime.date | None = None
    earliest: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> ModelFacts:
        last, end = self.last_training_date, self.shutdown_date
        if last is not None and end is not None and last > end:
            raise ValueError(f"last_training_date = {last} lies after shutdown_date = {end}")
        unknown = sorted({*self.weak, *self.unsupported} - set(type(self).model_fields))
        if unknown:
            raise ValueError(f"weak and unsupported name fields of the entry, and {unknown[0]!r} is none")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The model's name and its aliases."""
        return (self.model, *self.aliases)

    @property
    def free(self) -> bool:
        """True where tokens are known to cost nothing."""
        return self.input_usd == 0 and self.output_usd == 0 and not self.training_usd

    @property
    def priced(self) -> bool:
        """True where some price is known."""
        return any(usd is not None for usd in (self.input_usd, self.output_usd, self.training_usd))

    @property
    def price_origin(self) -> Origin:
        """Where the prices were read."""
        return self.prices_from or self

    @property
    def date_origin(self) -> Origin:
        """Where the ends were read."""
        return self.dates_from or self

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Of what is known at all: prices, ends; the entry's own where it has neither. None can age that is free."""
        ends = self.last_training_date is not None or self.shutdown_date is not None
        if self.free and not ends:
            return ()
        found = [*([self.price_origin] if self.priced else []), *([self.date_origin] if ends else [])]
        return tuple(found) or (self,)

    @property
    def looked_at(self) -> datetime.date:
        """The newest day on which something of the entry was read."""
        return max(self.checked, *(o.checked for o in (self.price_origin, self.date_origin)))


class VendorFacts(Origin):
    """What holds for all models of a vendor; catalogue.toml explains the fields."""

    note: str = ""
    jobs: str = ""
    serving: str = ""
    logprobs: str = ""
    needs: str = ""
    trains_here: bool = True
    tells_ends: bool = True
    closed: datetime.date | None = None
    max_top_logprobs: int | None = Field(default=None, gt=0)
    gpu_hour_usd: Mapping[str, _Usd] = {}
    gpu_hours_from: Origin | None = None
    cache_from_tokens: int | None = Field(default=None, gt=0)
    cache_step_tokens: int = Field(default=128, gt=0)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Of the GPU hours, which are all that is priced here."""
        return (self.gpu_hours_from or self,) if self.gpu_hour_usd else ()

    @property
    def looked_at(self) -> datetime.date:
        """The newest day on which something of the entry was read."""
        return max(self.checked, (self.gpu_hours_from or self).checked)


class Catalogue(Settings):
    """All entries. Later entries override earlier ones for the same vendor and model."""

    stale_after_days: int = Field(default=60, ge=1)
    vendors: Mapping[str, VendorFacts] = {}
    models: tuple[ModelFacts, ...] = ()

    def facts(self, vendor: str, model: str) -> ModelFacts | None:
        """What is known of a model; of a tuned one (`ft:BASE:...`) what is known of its base. None: nothing."""
        wanted = _base_of(model)
        exact = [m for m in self.models if m.vendor == vendor and wanted in m.names]
        others = [m for m in self.models if m.vendor == vendor and m.model == ANY_MODEL]
        found = exact or others
        return found[-1] if found else None

    def prices(self, vendor: str, model: str) -> Prices | None:
        """What a model costs, a tuned one its tuned price."""
        facts = self.facts(vendor, model)
        if facts is None or not _is_tuned(model):
            return facts
        return facts.tuned or facts

    def fine_tunable(self, vendor: str) -> Sequence[ModelFacts]:
        """The vendor's models that can be tuned."""
        return [m for m in self.models if m.vendor == vendor and m.fine_tunable]

    def stale(self, used: Iterable[ModelFacts], today: datetime.date) -> str | None:
        """One line where prices or ends that are used were read too long ago, with the one thing to do about it."""
        old: dict[str, datetime.date] = {}
        for facts in used:
            oldest = min((origin.checked for origin in facts.origins), default=today)
            if (today - oldest).days > self.stale_after_days:
                old[f"{facts.model} at {facts.vendor}"] = oldest
        if not old:
            return None
        name, day = min(old.items(), key=lambda item: item[1])
        more = f", and {len(old) - 1} more" if len(old) > 1 else ""
        return (
            f"Prices or ends used here were read over {self.stale_after_days} days ago ({name}: {day}, "
            f"{(today - day).days} days{more}). Take a newer table: semievol providers --refresh FILE."
        )


def _is_tuned(model: str) -> bool:
    """True for a tuned model's name in OpenAI's form."""
    return model.startswith("ft:")


def _base_of(model: str) -> str:
    """The base model's name in `ft:BASE:organisation:suffix:id`; any other name is its own base."""
    return model.split(":")[1] if _is_tuned(model) else model


def load_catalogue(own: Path | None = None, refreshed: Path | None = None) -> Catalogue:
    """The package's catalogue, a refreshed one over it where that is as new, the user's file on top.

    Raises:
        ConfigError: a file is missing, no TOML, or has an unknown or wrong key; it names the entry.
    """
    text = resources.files("semievol_api.planning").joinpath("catalogue.toml").read_text(encoding="utf-8")
    found = parse_catalogue(tomllib.loads(text), "catalogue.toml")
    if refreshed is not None:
        found = newer_of(found, parse_catalogue(read_toml(refreshed), refreshed.name))
    if own is None:
        return found
    theirs = parse_catalogue(read_toml(own), own.name)
    return Catalogue(
        stale_after_days=_days(found, theirs),
        vendors={**found.vendors, **theirs.vendors},
        models=(*found.models, *theirs.models),
    )


def newer_of(known: Catalogue, fresh: Catalogue) -> Catalogue:
    """Entry by entry the one that was looked at later, the fresh one of two equally old."""
    models = {(m.vendor, m.model): m for m in known.models}
    for facts in fresh.models:
        there = models.get((facts.vendor, facts.model))
        if there is None or facts.looked_at >= there.looked_at:
            models[(facts.vendor, facts.model)] = facts
    vendors = dict(known.vendors)
    for name, about in fresh.vendors.items():
        if name not in vendors or about.looked_at >= vendors[name].looked_at:
            vendors[name] = about
    return Catalogue(stale_after_days=_days(known, fresh), vendors=vendors, models=tuple(models.values()))


def parse_catalogue(tree: Mapping[str, Any], where: str) -> Catalogue:
    """A tree as a catalogue; a fault is told with the entry's number, vendor and model, and its key.

    Raises:
        ConfigError: a key is unknown or missing, or a value is wrong.
    """
    models, vendors = tree.get("models"), tree.get("vendors")
    rows: list[Any] = models if isinstance(models, list) else []
    tables: Mapping[str, Any] = vendors if isinstance(vendors, Mapping) else {}
    for number, entry in enumerate(rows, start=1):
        row = f"{where}, [[models]] row {number}"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{row} is no table. Write each model as [[models]] and its keys below.")
        parse_settings(ModelFacts, entry, where=f"{row} ({entry.get('vendor', '?')}, {entry.get('model', '?')})")
    for name, entry in tables.items():
        if isinstance(entry, Mapping):
            parse_settings(VendorFacts, entry, where=f"{where}, [vendors.{name}]")
    return parse_settings(Catalogue, tree, where=where)


def _days(known: Catalogue, theirs: Catalogue) -> int:
    return (theirs if "stale_after_days" in theirs.model_fields_set else known).stale_after_days


_SHORT_LIFE_DAYS = 45
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
    if days is None or days > _SHORT_LIFE_DAYS:
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
    raise MissingAbilityError(f"{what} Nothing was sent. {_alternatives(catalogue, verdict, today)}")


def _alternatives(catalogue: Catalogue, verdict: Verdict, today: datetime.date) -> str:
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
    terms = "; ".join(term for term in known if term)
    return f" ({terms})" if terms else ""
