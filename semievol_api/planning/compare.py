"""The same demand at other vendors, side by side; tokens are not recounted with other vocabularies.

Knows nothing of the run.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from semievol_api.capabilities import ModelLimits
from semievol_api.catalogue import Catalogue, ModelFacts, availability
from semievol_api.config import nearest
from semievol_api.errors import ConfigError
from semievol_api.planning.bill import BillRow, Range, cost, total

LOCAL = "local"
"""Our own server, by the name that people try first."""


@dataclass(frozen=True)
class Offer:
    """What the run would cost with one model of one vendor."""

    vendor: str
    model: str
    usd: Range | None
    batch_usd: Range | None
    remarks: tuple[str, ...]


def compare(rows: Sequence[BillRow], catalogue: Catalogue, vendors: Sequence[str], today: datetime.date) -> list[Offer]:
    """Every model of the vendors that can be tuned, priced for chat and training; embeddings stay as they are.

    Raises:
        ConfigError: the catalogue knows no such vendor.
    """
    offers: list[Offer] = []
    for name in vendors:
        vendor = "semievol" if name == LOCAL else name
        known = sorted({m.vendor for m in catalogue.models if m.fine_tunable} | set(catalogue.vendors))
        if vendor not in known:
            raise ConfigError(f"--compare: the catalogue has no vendor {name!r}. {nearest(name, [*known, LOCAL])}")
        models = catalogue.fine_tunable(vendor)
        if not models:
            offers.append(Offer(vendor, "-", None, None, (_note(catalogue, vendor),)))
        offers += [_offer(rows, catalogue, facts, today) for facts in models]
    return offers


def _offer(rows: Sequence[BillRow], catalogue: Catalogue, facts: ModelFacts, today: datetime.date) -> Offer:
    usd = total([_priced(row, facts) for row in rows])
    batch = total([_priced(row, facts, facts.batch_share) for row in rows])
    verdict = availability(catalogue, facts.vendor, facts.model, today)
    remarks = [*verdict.lines]
    if facts.existing_customers_only:
        remarks.append("Existing customers only.")
    if facts.last_training_date and not verdict.lines:
        least = " at least" if facts.earliest else ""
        remarks.append(f"New jobs until {facts.last_training_date}{least}, answers until {facts.shutdown_date}{least}.")
    if facts.weak:
        remarks.append(f"Weakly sourced: {', '.join(facts.weak)}.")
    if facts.unsupported:
        remarks.append(f"Without any source, and so a guess: {', '.join(facts.unsupported)}.")
    vendor = catalogue.vendors.get(facts.vendor)
    if vendor is not None and not vendor.trains_here:
        remarks.append("No provider of this package buys its jobs.")
    if facts.input_usd is None:
        remarks.append("No price is known.")
    remarks.append(_note(catalogue, facts.vendor))
    return Offer(facts.vendor, facts.model, usd, batch, tuple(r for r in remarks if r))


def _priced(row: BillRow, facts: ModelFacts, share: float = 1.0) -> Range | None:
    if row.kind == "embed":
        return row.usd
    tuned = row.model.startswith(("ft:", "tuned "))
    prices = facts.tuned if tuned and facts.tuned else facts
    limits = ModelLimits(
        input_usd=prices.input_usd,
        cached_input_usd=prices.cached_input_usd,
        output_usd=prices.output_usd,
        training_usd=facts.training_usd,
    )
    usd = cost(row.tokens, limits)
    return usd if usd is None or row.kind == "train" else usd.times(share)


def _note(catalogue: Catalogue, vendor: str) -> str:
    facts = catalogue.vendors.get(vendor)
    return facts.note if facts else ""
