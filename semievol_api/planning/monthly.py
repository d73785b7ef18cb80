"""What serving a tuned model costs a month, at every vendor that is known, and where one becomes cheaper than another.

    request = request_of(estimate.rows)                      # tokens of one request, as the run's test answers have
    rows = servings(catalogue, request, Load(requests=100_000), today)
    for change in cheapest_by_requests(rows): print(change.from_requests, change.name)

Knows nothing of training and of how the tokens were counted.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from semievol_api.planning.bill import BillRow
from semievol_api.planning.catalogue import Catalogue, ModelFacts, Prices, VendorFacts

HOURS_A_MONTH = 730.0
_DAYS_AWAKE = 30
_SHOTS = 3
"""Demonstrations with which a larger untuned model is prompted; each is about as long as the question itself."""
Usd: TypeAlias = float


@dataclass(frozen=True)
class RequestTokens:
    """Tokens of one request, in the mean."""

    prompt: float
    completion: float

    def usd(self, prices: Prices, *, shots: int = 0) -> Usd | None:
        """The price of one request; None where the vendor's is not known."""
        if prices.input_usd is None or prices.output_usd is None:
            return None
        return (self.prompt * (1 + shots) * prices.input_usd + self.completion * prices.output_usd) / 1e6


@dataclass(frozen=True)
class Load:
    """A month of requests. `awake_hours_a_day` is how long a deployment that scales to zero is up, on 30 days."""

    requests: float
    awake_hours_a_day: float = 1.0
    own_gpu_usd: Usd = 0.0
    """What a GPU of one's own costs a month: electricity, or its share of the purchase."""


@dataclass(frozen=True)
class Serving:
    """One way to serve. A month costs `usd_per_month` and `usd_per_request` for every request.

    `ends` is the day from which it does not answer. `is_partial` where the vendor also bills something whose price is
    not known; it is then no candidate for the cheapest.
    """

    name: str
    usd_per_request: Usd = 0.0
    usd_per_month: Usd = 0.0
    ends: datetime.date | None = None
    remark: str = ""
    is_partial: bool = False

    def usd(self, requests: float) -> Usd:
        """USD of a month of so many requests."""
        return self.usd_per_month + requests * self.usd_per_request


@dataclass(frozen=True)
class Cheapest:
    """From `from_requests` a month on, `name` is the cheapest."""

    from_requests: float
    name: str


def request_of(rows: Sequence[BillRow]) -> RequestTokens | None:
    """The tokens of one request to the evolved model: a test answer's, else an annotation's; None without chats."""
    for stage in ("evaluate", "collaborate"):
        asked = [row for row in rows if row.kind == "chat" and row.stage.startswith(stage) and row.requests.expected]
        if asked:
            requests = sum(row.requests.expected for row in asked)
            return RequestTokens(
                sum(row.prompt.expected for row in asked) / requests,
                sum(row.completion.expected for row in asked) / requests,
            )
    return None


def servings(catalogue: Catalogue, request: RequestTokens, load: Load, today: datetime.date) -> list[Serving]:
    """Every way that the catalogue knows, the cheapest at this load first, those with an unknown part last."""
    rows = [*_per_token(catalogue, request, today), *_per_hour(catalogue, load), *_prompted(catalogue, request, today)]
    rows.append(Serving("a GPU of your own", usd_per_month=load.own_gpu_usd, remark="and electricity"))
    return sorted(rows, key=lambda row: (row.is_partial, row.usd(load.requests), row.name))


def cheapest_by_requests(rows: Iterable[Serving], *, without_own: bool = True) -> list[Cheapest]:
    """Which row is the cheapest from how many requests a month on: the lower envelope of straight lines.

    A GPU of one's own is left out, since it is the cheapest wherever it is.
    """
    lines = sorted(
        (r for r in rows if not r.is_partial and not (without_own and r.name == "a GPU of your own")),
        key=lambda row: (row.usd_per_month, row.usd_per_request, row.name),
    )
    if not lines:
        return []
    best, at = lines[0], 0.0
    found = [Cheapest(0.0, best.name)]
    while True:
        flatter = [row for row in lines if row.usd_per_request < best.usd_per_request]
        crossings = [
            (
                (row.usd_per_month - best.usd_per_month) / (best.usd_per_request - row.usd_per_request),
                row.usd_per_request,
                row,
            )
            for row in flatter
        ]
        if not crossings:
            return found
        at, _, best = min(crossings, key=lambda crossing: crossing[:2])
        found.append(Cheapest(at, best.name))


def compare(one: Serving, other: Serving) -> str:
    """How `one` costs beside `other`: "less", "more", "as much", "less from N" or "less below N" requests a month."""
    steeper, higher = one.usd_per_request - other.usd_per_request, one.usd_per_month - other.usd_per_month
    if steeper == 0 or higher == 0:
        gap = steeper or higher
        return "as much" if gap == 0 else "less" if gap < 0 else "more"
    if (steeper < 0) == (higher < 0):
        return "less" if steeper < 0 else "more"
    at = f"{math.ceil(-higher / steeper):,}"
    return f"less from {at}" if steeper < 0 else f"less below {at}"


def _per_token(catalogue: Catalogue, request: RequestTokens, today: datetime.date) -> Iterable[Serving]:
    """Tuned models that are billed by the token."""
    for facts in _alive(catalogue, today):
        usd = None if facts.tuned is None else request.usd(facts.tuned)
        vendor = catalogue.vendors.get(facts.vendor)
        if usd is None or not facts.fine_tunable or facts.vendor in ("semievol", "vllm"):
            continue
        by_hour = vendor is not None and "hour" in vendor.serving
        yield Serving(
            f"tuned {facts.model} at {facts.vendor}",
            usd_per_request=usd,
            ends=facts.shutdown_date,
            remark="; ".join(_remarks(facts, vendor, by_hour)),
            is_partial=by_hour,
        )


def _remarks(facts: ModelFacts, vendor: VendorFacts | None, by_hour: bool) -> Iterable[str]:
    if by_hour:
        yield "and hosting by the hour, at a price that is not known here"
    if facts.existing_customers_only:
        yield "existing customers only"
    if "tuned" in facts.weak:
        yield "weakly sourced"
    if vendor is not None and not vendor.trains_here:
        yield "not trained from here"


def _per_hour(catalogue: Catalogue, load: Load) -> Iterable[Serving]:
    """Rented GPUs: kept warm all month, or awake for some hours a day."""
    for name, vendor in catalogue.vendors.items():
        for gpu, usd in vendor.gpu_hour_usd.items():
            hours = load.awake_hours_a_day
            yield Serving(f"a rented {gpu} at {name}, kept warm", usd_per_month=HOURS_A_MONTH * usd)
            yield Serving(
                f"a rented {gpu} at {name}, {hours:g} h a day",
                usd_per_month=_DAYS_AWAKE * hours * usd,
                remark="scaled to zero or deleted in between",
            )


def _prompted(catalogue: Catalogue, request: RequestTokens, today: datetime.date) -> Iterable[Serving]:
    """Models that cannot be tuned, prompted with demonstrations."""
    for facts in _alive(catalogue, today):
        answers = facts.fine_tunable is False and bool(facts.output_usd)  # embedders have no price of an answer
        usd = request.usd(facts, shots=_SHOTS) if answers else None
        if usd is not None:
            yield Serving(
                f"{facts.model} at {facts.vendor}, prompted with {_SHOTS} demonstrations",
                usd_per_request=usd,
                ends=facts.shutdown_date,
                remark="not tuned",
            )


def _alive(catalogue: Catalogue, today: datetime.date) -> Iterable[ModelFacts]:
    """The newest entry of each model that still answers; Azure's two addresses are one."""
    newest = {(facts.vendor.removesuffix("-v1"), facts.model): facts for facts in reversed(catalogue.models)}
    newest |= {(facts.vendor, facts.model): facts for facts in catalogue.models if not facts.vendor.endswith("-v1")}
    return [f for f in newest.values() if f.shutdown_date is None or f.shutdown_date > today]
