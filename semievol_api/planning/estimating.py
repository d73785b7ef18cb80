"""A config in, an estimate of its run out: tokens, money, time, and everything worth knowing before paying.

Needs no key and no network. Knows nothing of the terminal.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from semievol_api.capabilities import ModelLimits
from semievol_api.config.settings import Config, Limits, nearest
from semievol_api.data import read_data
from semievol_api.errors import BudgetError, ConfigError
from semievol_api.notebook import html_table
from semievol_api.planning.bill import BillRow, Demand, Line, Range, TrainingReport, bill, cost, total
from semievol_api.planning.catalogue import Catalogue, ModelFacts, availability, utc_day
from semievol_api.planning.dry_run import EXPECTED, HIGH, LOW, dry_run, is_dry_tuned
from semievol_api.planning.tokens import token_counter
from semievol_api.session import Plan, check, check_data

_LOCAL = "local"
"""Our own server, by the name that people try first."""


@dataclass(frozen=True)
class Offer:
    """What the run would cost with one model of one vendor."""

    vendor: str
    model: str
    usd: Range | None
    batch_usd: Range | None
    remarks: tuple[str, ...]


def _compare(
    rows: Sequence[BillRow], catalogue: Catalogue, vendors: Sequence[str], today: datetime.date
) -> list[Offer]:
    """Every model of the vendors that can be tuned, priced for chat and training; embeddings stay as they are.

    Raises:
        ConfigError: the catalogue knows no such vendor.
    """
    offers: list[Offer] = []
    for name in vendors:
        vendor = "semievol" if name == _LOCAL else name
        known = sorted({m.vendor for m in catalogue.models if m.fine_tunable} | set(catalogue.vendors))
        if vendor not in known:
            raise ConfigError(f"--compare: the catalogue has no vendor {name!r}. {nearest(name, [*known, _LOCAL])}")
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
        remarks.append(f"Without a source, and so a guess: {', '.join(facts.unsupported)}.")
    vendor = catalogue.vendors.get(facts.vendor)
    if vendor is not None and not vendor.trains_here:
        remarks.append("No provider of this package submits its jobs.")
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


_REPLY_S = Range(0.3, 1.0, 4.0)
"""A guess: how long a hosted model takes for a short answer, its completion tokens apart."""
_TOKEN_S = Range(0.002, 0.01, 0.03)
"""A guess: how long a hosted model takes for one completion token."""
_IN_FLIGHT = 64
"""Requests in flight where the config caps none: where the engine starts."""
_BATCH_MINUTES = Range(10.0, 12 * 60.0, 24 * 60.0)
"""A round of batches: vendors promise a day and are usually quicker (a guess)."""
BY_LIMITS = "the quotas of [limits]"
BY_CATALOGUE = "the vendor's quotas for its smallest paying customers (catalogue)"
BY_GUESS = f"a guess: {_IN_FLIGHT} requests in flight, about a second each"
BY_BATCHES = "batches: a round for each stage, each within a day"

_FactsOf = Callable[[BillRow], ModelFacts | None]


@dataclass(frozen=True)
class Duration:
    """Minutes of waiting for answers, and what they rest on."""

    minutes: Range
    by: tuple[str, ...]


def duration(limits: Limits, rows: Sequence[BillRow], facts_of: _FactsOf) -> Duration:
    """The sum over stages and models, as if one came after the other."""
    asking = [row for row in rows if row.kind != "train" and row.requests.high > 0]
    if limits.mode == "batch":
        rounds = len({row.stage for row in asking if row.kind == "chat"})
        return Duration(_BATCH_MINUTES.times(rounds), (BY_BATCHES,))
    found = [_of_row(limits, row, facts_of(row)) for row in asking]
    total = Range(0.0, 0.0, 0.0)
    for minutes, _ in found:
        total += minutes
    return Duration(total, tuple(dict.fromkeys(by for _, by in found)))


def _of_row(limits: Limits, row: BillRow, facts: ModelFacts | None) -> tuple[Range, str]:
    by_quota, by = _quotas(limits, row, facts)
    if by_quota is None:
        return _by_latency(limits, row), BY_GUESS
    return by_quota, by


def _quotas(limits: Limits, row: BillRow, facts: ModelFacts | None) -> tuple[Range | None, str]:
    """What the quotas allow; the tighter of the two."""
    rpm, tpm, by = limits.rpm, limits.tpm, BY_LIMITS
    if rpm is None and tpm is None and facts is not None:
        rpm, tpm, by = facts.requests_per_minute, facts.tokens_per_minute, BY_CATALOGUE
    waits = [
        amount.times(1 / quota) for amount, quota in ((row.requests, rpm), (row.prompt + row.completion, tpm)) if quota
    ]
    if not waits:
        return None, by
    return Range(*(max(getter(w) for w in waits) for getter in _ENDS)), by


def _by_latency(limits: Limits, row: BillRow) -> Range:
    minutes: list[float] = []
    for get in _ENDS:
        requests = get(row.requests)
        at_once = min(limits.concurrency or _IN_FLIGHT, max(1.0, requests))
        minutes.append((requests * get(_REPLY_S) + get(row.completion) * get(_TOKEN_S)) / at_once / 60)
    return Range.around(*minutes)


_ENDS: tuple[Callable[[Range], float], ...] = (lambda r: r.low, lambda r: r.expected, lambda r: r.high)


_SAMPLE_ROWS = 1000
"""Rows of each part that the expected demand is made from; all of them where there are fewer."""
_BOUND_ROWS = 200
"""Rows for the low and the high end."""
_TUNED = "tuned "
"""Stands before the base's name where a plan speaks of a model that the run will train."""


@dataclass(frozen=True, repr=False)
class Estimate:
    """What a run will ask, train and cost, and how long its requests take."""

    tokens_by: str
    as_of: datetime.date
    rows: tuple[BillRow, ...]
    trainings: tuple[TrainingReport, ...]
    usd: Range | None
    batch_usd: Range | None
    duration: Duration
    notices: tuple[str, ...]
    offers: tuple[Offer, ...] = ()

    @property
    def tokens(self) -> Range:
        """Prompt, completion and training tokens together."""
        found = total([r for row in self.rows for r in (row.prompt, row.completion)])
        return found or Range(0, 0, 0)

    def __repr__(self) -> str:
        requests = sum(row.requests.expected for row in self.rows if row.kind != "train")
        usd = "no price known" if self.usd is None else f"{self.usd.expected:.2f} USD (up to {self.usd.high:.2f})"
        tokens = f"{self.tokens.expected:,.0f} tokens (up to {self.tokens.high:,.0f})"
        return f"Estimate({requests:,.0f} requests, {tokens}, {len(self.trainings)} trainings, {usd})"

    def _repr_html_(self) -> str:
        """The rows as a notebook shows them."""
        rows = [
            (
                row.stage,
                row.model,
                f"{row.requests.expected:,.0f}",
                f"{row.prompt.expected + row.completion.expected:,.0f}",
                f"{row.training.expected:,.0f}",
                "?" if row.usd is None else f"{row.usd.expected:.2f}",
            )
            for row in self.rows
        ]
        columns = ("stage", "model", "requests", "tokens", "training tokens", "USD")
        return html_table(repr(self), columns, rows, self.notices)


async def estimate(config: Config, *, today: datetime.date | None = None, vendors: Sequence[str] = ()) -> Estimate:
    """Plan a config as if it ran on a day.

    Raises:
        UserError: the config or the data needs mending; a missing key does not.
    """
    day = today or utc_day()
    plan = check(config, planning=True, today=day)
    raw = read_data(config.data, plan.task)
    check_data(plan, raw)
    counter = token_counter(config.roles.student.model, config.roles.tokenizer).remembering()
    demands: dict[str, Demand] = {}
    for guess, rows in ((LOW, _BOUND_ROWS), (EXPECTED, _SAMPLE_ROWS), (HIGH, _BOUND_ROWS)):
        demands[guess.name] = _named(await dry_run(plan, raw, counter, guess, rows), plan)
    rows_of_bill = tuple(bill(demands, _price(plan), _batch_share(plan)))
    usd = total([row.usd for row in rows_of_bill])
    return Estimate(
        tokens_by=counter.name,
        as_of=day,
        rows=rows_of_bill,
        trainings=tuple(demands["expected"].trainings),
        usd=usd,
        batch_usd=total([row.batch_usd for row in rows_of_bill]),
        duration=duration(config.limits, rows_of_bill, _facts_of(plan)),
        notices=(
            *plan.notices,
            *raw.remarks,
            *_price_notices(plan, rows_of_bill, day),
            *_budget_notices(config, usd, rows_of_bill),
        ),
        offers=tuple(_compare(rows_of_bill, plan.catalogue, vendors, day)),
    )


def worth_planning(config: Config) -> bool:
    """False where nothing that the roles name has a price: a run of one's own needs no plan beforehand."""
    plan = check(config, planning=True)
    roles = config.roles
    refs = [ref for ref in (roles.student, roles.trainer, roles.embedder) if ref is not None]
    limits = [plan.provider(ref).limits.get(ref.model) for ref in refs]
    return any(known and (known.input_usd or known.output_usd or known.training_usd) for known in limits)


def refuse_too_dear(config: Config, planned: Estimate, *, agreed: bool) -> None:
    """Stop before the first paid call what would not fit, or what nobody has agreed to.

    Raises:
        BudgetError: the expected cost passes the budget.
        ConfigError: it passes `[limits] ask_above_usd`, and `--yes` was not given.
    """
    if planned.usd is None or agreed:
        return
    expected, high = planned.usd.expected, planned.usd.high
    cap = config.limits.max_usd
    if cap is not None and expected > cap:
        raise BudgetError(
            f"The plan exceeds the budget: the expected cost is {expected:.2f} USD (up to {high:.2f}), and [limits] "
            f"max_usd is {cap:g}. Nothing was sent. Raise the cap, use fewer rows ([data] max_unlabeled), or start "
            f"with --yes to run until the cap is reached."
        )
    if expected > config.limits.ask_above_usd:
        raise ConfigError(
            f"The expected cost is {expected:.2f} USD (up to {high:.2f}), more than [limits] ask_above_usd = "
            f"{config.limits.ask_above_usd:g}. See the details with: semievol plan. To start the run, add --yes."
        )


def _budget_notices(config: Config, usd: Range | None, rows: Sequence[BillRow]) -> list[str]:
    """Warnings where the plan passes a cap."""
    notices: list[str] = []
    caps = config.limits
    if caps.max_usd is not None and usd is not None and usd.high > caps.max_usd:
        how = "exceeds" if usd.expected > caps.max_usd else "may exceed"
        notices.append(
            f"The plan {how} the budget: {usd.expected:.2f} USD expected, up to {usd.high:.2f}, of max_usd = "
            f"{caps.max_usd:g}."
        )
    tokens = total([r for row in rows for r in (row.prompt, row.completion)])
    if caps.max_tokens is not None and tokens is not None and tokens.high > caps.max_tokens:
        how = "exceeds" if tokens.expected > caps.max_tokens else "may exceed"
        notices.append(
            f"The plan {how} the budget: {tokens.expected:,.0f} tokens expected, up to {tokens.high:,.0f}, of "
            f"max_tokens = {caps.max_tokens:,}."
        )
    return notices


def _named(demand: Demand, plan: Plan) -> Demand:
    """The same demand, a dry training's model called after its base; models of one base in one stage are added up."""
    base = plan.trainer_ref.model
    renamed = Demand(demand.shares)
    renamed.trainings = demand.trainings
    for line, amounts in demand.lines.items():
        model = f"{_TUNED}{base}" if is_dry_tuned(line.model) else line.model
        renamed.stage = line.stage
        target = renamed.at(line.provider, model, line.kind)
        target.requests += amounts.requests
        target.prompt += amounts.prompt
        target.cached += amounts.cached
        target.completion += amounts.completion
        target.training += amounts.training
    return renamed


def _price(plan: Plan) -> Callable[[Line], ModelLimits | None]:
    def price(line: Line) -> ModelLimits | None:
        model = f"ft:{line.model.removeprefix(_TUNED)}:plan" if line.model.startswith(_TUNED) else line.model
        return plan.providers[line.provider].limits.get(model)

    return price


def _batch_share(plan: Plan) -> Callable[[Line], float | None]:
    def share(line: Line) -> float | None:
        provider = plan.providers[line.provider]
        if provider.batch is None or line.kind != "chat":
            return None
        facts = plan.catalogue.facts(provider.vendor, line.model.removeprefix(_TUNED))
        return facts.batch_share if facts else None

    return share


def _facts_of(plan: Plan) -> Callable[[BillRow], ModelFacts | None]:
    def facts(row: BillRow) -> ModelFacts | None:
        return plan.catalogue.facts(plan.providers[row.provider].vendor, row.model.removeprefix(_TUNED))

    return facts


def _price_notices(plan: Plan, rows: Sequence[BillRow], today: datetime.date) -> list[str]:
    """Which prices nobody knows, which rest on weak sources, which are old."""
    notices: list[str] = []
    unknown = dict.fromkeys(f"{row.model} at {row.provider}" for row in rows if row.usd is None)
    if unknown:
        notices.append(
            f"No price is known for {', '.join(unknown)}, so the total is unknown. Set prices in a file and name it in "
            f"[catalogue] file (0 for a model that costs nothing)."
        )
    trained = {plan.providers[row.provider].vendor for row in rows if row.kind == "train"}
    notices += [
        f"{v}: {plan.catalogue.vendors[v].note}"
        for v in sorted(trained)
        if v in plan.catalogue.vendors and plan.catalogue.vendors[v].note
    ]
    seen: Mapping[tuple[str, str], None] = dict.fromkeys(
        (plan.providers[row.provider].vendor, row.model.removeprefix(_TUNED)) for row in rows
    )
    used = [f for f in (plan.catalogue.facts(vendor, model) for vendor, model in seen) if f is not None]
    notices += _how_sure(used)
    stale = plan.catalogue.stale(used, today)
    return list(dict.fromkeys([*notices, *([stale] if stale else [])]))


def _how_sure(used: Sequence[ModelFacts]) -> list[str]:
    """One line on the prices that rest on little."""
    weak = [f"{f.model} at {f.vendor}: {', '.join(f.weak)}" for f in used if f.weak]
    guessed = [f"{f.model} at {f.vendor}: {', '.join(f.unsupported)}" for f in used if f.unsupported]
    doubts = [f"weakly sourced are {'; '.join(weak)}"] if weak else []
    doubts += [f"without a source, and so a guess, are {'; '.join(guessed)}"] if guessed else []
    return [f"Of the prices, {'; '.join(doubts)} (semievol providers)."] if doubts else []
