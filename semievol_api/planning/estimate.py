"""A config in, an estimate of its run out: tokens, money, time, and everything worth knowing before paying.

Needs no key and no network. Knows nothing of the terminal.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from semievol_api.capabilities import ModelLimits
from semievol_api.catalogue import ModelFacts, utc_day
from semievol_api.config import Config
from semievol_api.data import read_data
from semievol_api.errors import BudgetError, ConfigError
from semievol_api.planning.answer_key import EXPECTED, HIGH, LOW
from semievol_api.planning.bill import BillRow, Range, bill, total
from semievol_api.planning.compare import Offer, compare
from semievol_api.planning.demand import Demand, Line, TrainingReport
from semievol_api.planning.dry_provider import DryCounter, is_dry_tuned
from semievol_api.planning.dry_run import dry_run
from semievol_api.planning.duration import Duration, duration
from semievol_api.session import Plan, check, check_data
from semievol_api.tokens import token_counter

SAMPLE_ROWS = 1000
"""Rows of each part that the expected demand is made from; all of them where there are fewer."""
BOUND_ROWS = 200
"""Rows for the low and the high end."""
TUNED = "tuned "
"""Stands before the base's name where a plan speaks of a model that the run will train."""


@dataclass(frozen=True)
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


async def estimate(config: Config, *, today: datetime.date | None = None, vendors: Sequence[str] = ()) -> Estimate:
    """Plan a config as if it ran on a day.

    Raises:
        UserError: the config or the data needs mending; a missing key does not.
    """
    day = today or utc_day()
    plan = check(config, planning=True, today=day)
    raw = read_data(config.data, plan.task)
    check_data(plan, raw)
    counted = token_counter(config.roles.student.model, config.roles.tokenizer)
    counter = DryCounter(counted)
    demands: dict[str, Demand] = {}
    for guess, rows in ((LOW, BOUND_ROWS), (EXPECTED, SAMPLE_ROWS), (HIGH, BOUND_ROWS)):
        demands[guess.name] = _named(await dry_run(plan, raw, counter, guess, rows), plan)
    rows_of_bill = tuple(bill(demands, _price(plan), _batch_share(plan)))
    usd = total([row.usd for row in rows_of_bill])
    return Estimate(
        tokens_by=counted.name,
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
            *budget_notices(config, usd, rows_of_bill),
        ),
        offers=tuple(compare(rows_of_bill, plan.catalogue, vendors, day)),
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
            f"The plan passes the budget: about {expected:.2f} USD are expected (up to {high:.2f}), and [limits] "
            f"max_usd is {cap:g}. Nothing was sent. Raise the cap, take fewer rows ([data] max_unlabeled), or start "
            f"with --yes to stop wherever the cap is reached."
        )
    if expected > config.limits.ask_above_usd:
        raise ConfigError(
            f"This run is expected to cost about {expected:.2f} USD (up to {high:.2f}), more than [limits] "
            f"ask_above_usd = {config.limits.ask_above_usd:g}. Look at: semievol plan. Start it with --yes."
        )


def budget_notices(config: Config, usd: Range | None, rows: Sequence[BillRow]) -> list[str]:
    """Warnings where the plan passes a cap."""
    notices: list[str] = []
    caps = config.limits
    if caps.max_usd is not None and usd is not None and usd.high > caps.max_usd:
        how = "passes" if usd.expected > caps.max_usd else "may pass"
        notices.append(
            f"The plan {how} the budget: {usd.expected:.2f} USD expected, up to {usd.high:.2f}, of max_usd = "
            f"{caps.max_usd:g}."
        )
    tokens = total([r for row in rows for r in (row.prompt, row.completion)])
    if caps.max_tokens is not None and tokens is not None and tokens.high > caps.max_tokens:
        how = "passes" if tokens.expected > caps.max_tokens else "may pass"
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
        model = f"{TUNED}{base}" if is_dry_tuned(line.model) else line.model
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
        model = f"ft:{line.model.removeprefix(TUNED)}:plan" if line.model.startswith(TUNED) else line.model
        return plan.providers[line.provider].limits.get(model)

    return price


def _batch_share(plan: Plan) -> Callable[[Line], float | None]:
    def share(line: Line) -> float | None:
        provider = plan.providers[line.provider]
        if provider.batch is None or line.kind != "chat":
            return None
        facts = plan.catalogue.facts(provider.vendor, line.model.removeprefix(TUNED))
        return facts.batch_share if facts else None

    return share


def _facts_of(plan: Plan) -> Callable[[BillRow], ModelFacts | None]:
    def facts(row: BillRow) -> ModelFacts | None:
        return plan.catalogue.facts(plan.providers[row.provider].vendor, row.model.removeprefix(TUNED))

    return facts


def _price_notices(plan: Plan, rows: Sequence[BillRow], today: datetime.date) -> list[str]:
    """Which prices nobody knows, which rest on weak sources, which are old."""
    notices: list[str] = []
    unknown = dict.fromkeys(f"{row.model} at {row.provider}" for row in rows if row.usd is None)
    if unknown:
        notices.append(
            f"No price is known for {', '.join(unknown)}: the total cannot be told. Give prices in a file of your own "
            f"and name it in [catalogue] file (0 for a model that costs nothing)."
        )
    trained = {plan.providers[row.provider].vendor for row in rows if row.kind == "train"}
    notices += [
        f"{v}: {plan.catalogue.vendors[v].note}"
        for v in sorted(trained)
        if v in plan.catalogue.vendors and plan.catalogue.vendors[v].note
    ]
    seen: Mapping[tuple[str, str], None] = dict.fromkeys(
        (plan.providers[row.provider].vendor, row.model.removeprefix(TUNED)) for row in rows
    )
    used = [f for f in (plan.catalogue.facts(vendor, model) for vendor, model in seen) if f is not None]
    notices += _how_sure(used)
    stale = plan.catalogue.stale(used, today)
    return list(dict.fromkeys([*notices, *([stale] if stale else [])]))


def _how_sure(used: Sequence[ModelFacts]) -> list[str]:
    """One line on the prices that rest on little."""
    weak = [f"{f.model} at {f.vendor}: {', '.join(f.weak)}" for f in used if f.weak]
    guessed = [f"{f.model} at {f.vendor}: {', '.join(f.unsupported)}" for f in used if f.unsupported]
    said = [f"weakly sourced are {'; '.join(weak)}"] if weak else []
    said += [f"without any source, and so a guess, are {'; '.join(guessed)}"] if guessed else []
    return [f"Of the prices, {'; '.join(said)} (semievol providers)."] if said else []
