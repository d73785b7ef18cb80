"""The catalogue's entries and its reader: the package's own TOML, a refreshed one over it, the config's own on top.

Knows nothing of what is done with a fact, nor where a refreshed table is kept.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from semievol_api.config import Settings, parse_settings, read_toml
from semievol_api.errors import ConfigError

Usd: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Strength: TypeAlias = Literal["doc", "source", "third party", "weak", "memory", "own"]
"""The vendor's page, its source code, others' pages, a weak page, memory, or a file of the user's."""
ANY_MODEL = "*"
OWN_FILE = "the user's own file"


class Origin(Settings):
    """Where facts were read, when, and how far that can be trusted."""

    source: str = OWN_FILE
    checked: datetime.date
    strength: Strength = "own"


class Prices(Settings):
    """USD per million tokens."""

    input_usd: Usd | None = None
    cached_input_usd: Usd | None = None
    output_usd: Usd | None = None


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
    training_usd: Usd | None = None
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
    gpu_hour_usd: Mapping[str, Usd] = {}
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
        wanted = base_of(model)
        exact = [m for m in self.models if m.vendor == vendor and wanted in m.names]
        others = [m for m in self.models if m.vendor == vendor and m.model == ANY_MODEL]
        found = exact or others
        return found[-1] if found else None

    def prices(self, vendor: str, model: str) -> Prices | None:
        """What a model costs, a tuned one its tuned price."""
        facts = self.facts(vendor, model)
        if facts is None or not is_tuned(model):
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


def is_tuned(model: str) -> bool:
    """True for a tuned model's name in OpenAI's form."""
    return model.startswith("ft:")


def base_of(model: str) -> str:
    """The base model's name in `ft:BASE:organisation:suffix:id`; any other name is its own base."""
    return model.split(":")[1] if is_tuned(model) else model


def load_catalogue(own: Path | None = None, refreshed: Path | None = None) -> Catalogue:
    """The package's catalogue, a refreshed one over it where that is as new, the user's file on top.

    Raises:
        ConfigError: a file is missing, no TOML, or has an unknown or wrong key; it names the entry.
    """
    text = resources.files("semievol_api.catalogue").joinpath("catalogue.toml").read_text(encoding="utf-8")
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
    if isinstance(models, list):
        for number, entry in enumerate(_listed(models), start=1):
            row = f"{where}, [[models]] row {number}"
            if not isinstance(entry, Mapping):
                raise ConfigError(f"{row} is no table. Write each model as [[models]] and its keys below.")
            parse_settings(ModelFacts, entry, where=f"{row} ({entry.get('vendor', '?')}, {entry.get('model', '?')})")
    if isinstance(vendors, Mapping):
        for name, entry in _named(vendors).items():
            if isinstance(entry, Mapping):
                parse_settings(VendorFacts, entry, where=f"{where}, [vendors.{name}]")
    return parse_settings(Catalogue, tree, where=where)


def _listed(value: list[Any]) -> list[Any]:
    return value


def _named(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return value


def _days(known: Catalogue, theirs: Catalogue) -> int:
    return (theirs if "stale_after_days" in theirs.model_fields_set else known).stale_after_days
