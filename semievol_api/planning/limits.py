"""The catalogue's numbers where the engine looks for them: in a provider's table, tuned models included.

Knows nothing of vendors' presets; a provider says itself which vendor it is.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from semievol_api.capabilities import ModelLimits, ModelName, Provider
from semievol_api.errors import MissingAbilityError, ProviderError, RefusedError
from semievol_api.planning.catalogue import ANY_MODEL, MIN_LIFE_DAYS, Catalogue


@dataclass(frozen=True)
class _KnownLimits(Mapping[ModelName, ModelLimits]):
    """A provider's own limits, and the catalogue's where those say nothing. A tuned model has its tuned price."""

    catalogue: Catalogue
    vendor: str
    own: Mapping[ModelName, ModelLimits]

    def __getitem__(self, name: ModelName) -> ModelLimits:
        facts, vendor = self.catalogue.facts(self.vendor, name), self.catalogue.vendors.get(self.vendor)
        most = vendor.max_top_logprobs if vendor else None
        if facts is None and most is None:
            return self.own[name]
        own = self.own.get(name, ModelLimits())
        own = replace(own, max_top_logprobs=_fewer(own.max_top_logprobs, most))
        if facts is None:
            return own
        prices = self.catalogue.prices(self.vendor, name) or facts
        return replace(
            own,
            context_tokens=facts.context_tokens or own.context_tokens,
            input_usd=_first(prices.input_usd, own.input_usd),
            cached_input_usd=_first(prices.cached_input_usd, own.cached_input_usd),
            output_usd=_first(prices.output_usd, own.output_usd),
            training_usd=_first(facts.training_usd, own.training_usd),
            shutdown_date=facts.shutdown_date.isoformat() if facts.shutdown_date else own.shutdown_date,
        )

    def __iter__(self) -> Iterator[ModelName]:
        named = {name for m in self.catalogue.models if m.vendor == self.vendor for name in m.names}
        return iter(sorted((named - {ANY_MODEL}) | set(self.own)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def with_limits(provider: Provider, catalogue: Catalogue) -> Provider:
    """The same provider, with what the catalogue knows of its models."""
    return replace(provider, limits=_KnownLimits(catalogue, provider.vendor, provider.limits))


@dataclass(frozen=True)
class _TunedLimits(Mapping[ModelName, ModelLimits]):
    """Known limits, and for a tuned model whose name tells no base the tuned price of the base that `bases` names."""

    known: Mapping[ModelName, ModelLimits]
    bases: Mapping[ModelName, ModelName]

    def __getitem__(self, name: ModelName) -> ModelLimits:
        found = self.known.get(name)
        base = self.bases.get(name, name)
        tuned = None if base == name else self.known.get(f"ft:{base}:")
        if tuned is not None and (found is None or found.input_usd is None):
            return replace(
                found or ModelLimits(),
                input_usd=tuned.input_usd,
                cached_input_usd=tuned.cached_input_usd,
                output_usd=tuned.output_usd,
            )
        return self.known[name]

    def __iter__(self) -> Iterator[ModelName]:
        return iter(dict.fromkeys([*self.known, *self.bases]))

    def __len__(self) -> int:
        return len({*self.known, *self.bases})


def with_bases(provider: Provider, bases: Mapping[ModelName, ModelName]) -> Provider:
    """The same provider, which knows what the models cost that were tuned from these bases."""
    return replace(provider, limits=_TunedLimits(provider.limits, bases))


@dataclass(frozen=True)
class _FreeTokens(Mapping[ModelName, ModelLimits]):
    """Known limits, where the tokens of some models cost nothing: their hours are paid."""

    known: Mapping[ModelName, ModelLimits]
    paid_by_hour: Callable[[ModelName], bool]

    def __getitem__(self, name: ModelName) -> ModelLimits:
        if not self.paid_by_hour(name):
            return self.known[name]
        return replace(self.known.get(name) or ModelLimits(), input_usd=0.0, cached_input_usd=0.0, output_usd=0.0)

    def __iter__(self) -> Iterator[ModelName]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def with_free_tokens(
    limits: Mapping[ModelName, ModelLimits], paid_by_hour: Callable[[ModelName], bool]
) -> Mapping[ModelName, ModelLimits]:
    """The same limits, where models that are paid by the hour cost nothing per token."""
    return _FreeTokens(limits, paid_by_hour)


def _first(preferred: float | None, other: float | None) -> float | None:
    return other if preferred is None else preferred


def _fewer(one: int | None, other: int | None) -> int | None:
    known = [count for count in (one, other) if count is not None]
    return min(known, default=None)


async def refuse_ended_models(
    catalogue: Catalogue,
    asked: Iterable[tuple[Provider, str]],
    today: datetime.date,
    *,
    to_train: Iterable[tuple[Provider, str]] = (),
) -> None:
    """Refuse a model whose vendor says that it has ended, that it does not know it, or that it soon ends its tunes.

    Vendors outside the catalogue (servers of one's own), and those that tell no ends, are not asked. One that cannot
    be asked now is not waited for: the run itself will find out.

    Raises:
        MissingAbilityError: the vendor's own date is past or too near for a training, or it has no such model.
    """
    teller = {name for name, facts in catalogue.vendors.items() if facts.tells_ends}
    pairs = {(p.name, model): p for p, model in asked if p.remote is not None and p.vendor in teller}
    trained = {(p.name, model) for p, model in to_train}
    for (name, model), provider in pairs.items():
        end = await _end_of(provider, model)
        if end is not None and end <= today:
            raise MissingAbilityError(
                f"The provider {name!r} says that {model!r} stopped answering on {end}. Choose another model in "
                f"[roles]; `semievol plan --compare openai azure nebius local` shows where the same config runs."
            )
        if end is not None and (name, model) in trained and (end - today).days < MIN_LIFE_DAYS:
            raise MissingAbilityError(
                f"The provider {name!r} says that {model!r} stops answering on {end}, in {(end - today).days} days, "
                f"and what is tuned from it with it: a training bought now could hardly be used. Nothing was sent. "
                f"`semievol plan --compare openai azure nebius local` shows where the same config runs."
            )


async def _end_of(provider: Provider, model: str) -> datetime.date | None:
    assert provider.remote is not None
    try:
        told = await provider.remote.model(model)
    except RefusedError as error:
        if error.code == "model_not_found":
            raise MissingAbilityError(
                f"The provider {provider.name!r} has no model {model!r} for this key: {error}"
            ) from None
        return None
    except ProviderError:
        return None
    return _date(told.shutdown_date)


def _date(text: str | None) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text[:10]) if text else None
    except ValueError:
        return None
