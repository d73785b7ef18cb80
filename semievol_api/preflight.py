"""What only the vendor knows, asked before the first paid call: until when a model is served.

Knows nothing of configs; the catalogue's own facts are checked without the network elsewhere.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from semievol_api.capabilities import Provider
from semievol_api.catalogue import MIN_LIFE_DAYS, Catalogue
from semievol_api.errors import MissingAbilityError, ProviderError, RefusedError


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
        said = await provider.remote.model(model)
    except RefusedError as error:
        if error.code == "model_not_found":
            raise MissingAbilityError(
                f"The provider {provider.name!r} has no model {model!r} for this key: {error}"
            ) from None
        return None
    except ProviderError:
        return None
    return _date(said.shutdown_date)


def _date(text: str | None) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text[:10]) if text else None
    except ValueError:
        return None
