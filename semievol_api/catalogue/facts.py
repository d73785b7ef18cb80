"""The catalogue's entries and its reader: the package's own TOML, overridden entry by entry by the user's.

Knows nothing of what is done with a fact.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from pydantic import Field

from semievol_api.config import Settings, parse_settings, read_toml

Usd = float
ANY_MODEL = "*"


class Prices(Settings):
    """USD per million tokens."""

    input_usd: Usd | None = Field(default=None, ge=0)
    cached_input_usd: Usd | None = Field(default=None, ge=0)
    output_usd: Usd | None = Field(default=None, ge=0)


class ModelFacts(Prices):
    """One model at one vendor; catalogue.toml explains the fields."""

    vendor: str
    model: str
    aliases: tuple[str, ...] = ()
    checked: datetime.date
    source: str = "the user's own file"
    weak: tuple[str, ...] = ()
    fine_tunable: bool | None = None
    context_tokens: int | None = Field(default=None, gt=0)
    tuned: Prices | None = None
    training_usd: Usd | None = Field(default=None, ge=0)
    batch_share: float = Field(default=1.0, ge=0, le=1)
    requests_per_minute: int | None = Field(default=None, gt=0)
    tokens_per_minute: int | None = Field(default=None, gt=0)
    last_training_date: datetime.date | None = None
    shutdown_date: datetime.date | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The model's name and its aliases."""
        return (self.model, *self.aliases)

    @property
    def free(self) -> bool:
        """True where tokens are known to cost nothing."""
        return self.input_usd == 0 and self.output_usd == 0 and not self.training_usd


class VendorFacts(Settings):
    """What holds for all models of a vendor."""

    checked: datetime.date
    source: str = "the user's own file"
    note: str = ""
    cache_from_tokens: int | None = Field(default=None, gt=0)
    cache_step_tokens: int = Field(default=128, gt=0)


class Catalogue(Settings):
    """All entries. Later entries override earlier ones for the same vendor and model."""

    stale_after_days: int = Field(default=90, ge=1)
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

    def stale(self, facts: ModelFacts | VendorFacts, today: datetime.date) -> str | None:
        """A remark where nobody has looked for long."""
        age_days = (today - facts.checked).days
        if age_days <= self.stale_after_days:
            return None
        what = f"{facts.model} at {facts.vendor}" if isinstance(facts, ModelFacts) else "the vendor"
        return (
            f"What is known of {what} was checked {age_days} days ago ({facts.checked}): look at {facts.source}, "
            f"and put newer facts into a file of your own, [catalogue] file."
        )


def is_tuned(model: str) -> bool:
    """True for a tuned model's name in OpenAI's form."""
    return model.startswith("ft:")


def base_of(model: str) -> str:
    """The base model's name in `ft:BASE:organisation:suffix:id`; any other name is its own base."""
    return model.split(":")[1] if is_tuned(model) else model


def load_catalogue(own: Path | None = None) -> Catalogue:
    """The package's catalogue, with the user's file on top.

    Raises:
        ConfigError: the user's file is missing, no TOML, or has an unknown or wrong key.
    """
    text = resources.files("semievol_api.catalogue").joinpath("catalogue.toml").read_text(encoding="utf-8")
    packaged = parse_settings(Catalogue, tomllib.loads(text), where="catalogue.toml")
    if own is None:
        return packaged
    theirs = parse_settings(Catalogue, read_toml(own), where=own.name)
    return Catalogue(
        stale_after_days=theirs.stale_after_days,
        vendors={**packaged.vendors, **theirs.vendors},
        models=(*packaged.models, *theirs.models),
    )
