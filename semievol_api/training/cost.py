"""What `[limits] max_usd` asks of models and trainings: prices before anything is sent, and trainings that count.

    refuse_unpriced(config, provider_of, trained)    # before a run begins
    trainer = with_cap(trainer, engine, config)      # where its tools are opened

Requests are the engine's own part of the budget; here trainings are charged to it too. Knows nothing of what is asked
or trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from semievol_api.capabilities import FineTuner, FineTuneRequest, JobEvent, JobState, JobTicket, ModelLimits, Provider
from semievol_api.config.method import ModelRef
from semievol_api.config.settings import Config
from semievol_api.engine import RequestEngine
from semievol_api.errors import BudgetError, ConfigError
from semievol_api.training.chat_jsonl import check_training_file
from semievol_api.training.fine_tuning import Trainer, expected_epochs

_CHARACTERS_A_TOKEN = 4


def refuse_unpriced(config: Config, provider_of: Callable[[ModelRef], Provider], trained: ModelRef | None) -> None:
    """Refuse, before anything is sent, a cap in USD over models whose price nobody knows.

    Raises:
        ConfigError: it says which model, and what to do.
    """
    if config.limits.max_usd is None:
        return
    embedder = config.roles.embedder if config.retrieve.method == "embedding" else None
    guests = (a.model for a in config.annotators if isinstance(a.model, ModelRef))
    asked = [ref for ref in (config.roles.student, embedder, *guests) if ref is not None]
    unknown = [ref.model for ref in asked if _limits(provider_of(ref), ref).input_usd is None]
    if trained is not None and _limits(provider_of(trained), trained).training_usd is None:
        unknown.append(f"{trained.model} (training)")
    if unknown:
        raise ConfigError(
            f"[limits] max_usd is set, but no price is known for {', '.join(dict.fromkeys(unknown))}. Give the prices "
            f"in a file of your own and name it in [catalogue] file (0 for a model that costs nothing), name the "
            f"provider's vendor, or cap [limits] max_tokens instead."
        )


def with_cap(trainer: Trainer, engine: RequestEngine, config: Config) -> Trainer:
    """The same trainer, whose jobs are charged to the run's budget and refused where they do not fit.

    What trainings have cost in the run's folder before is charged at once.
    """
    tuner, max_usd = trainer.provider.finetuner, config.limits.max_usd
    if tuner is None or max_usd is None:
        return trainer
    paid = (json.loads(path.read_text("utf-8")) for path in config.run.folder.rglob("jobs/*-model/model.json"))
    engine.charge(sum(model.get("training_usd") or 0.0 for model in paid), 0)
    capped = _CappedFineTuner(tuner, trainer, engine, max_usd)
    return replace(trainer, provider=replace(trainer.provider, finetuner=capped))


class _CappedFineTuner:
    """A `FineTuner` that buys nothing beyond the cap, and charges what a job cost once it has ended well."""

    def __init__(self, inner: FineTuner, trainer: Trainer, engine: RequestEngine, max_usd: float) -> None:
        self._inner = inner
        self._trainer = trainer
        self._engine = engine
        self._max_usd = max_usd
        self._expected: dict[str, float] = {}
        self._charged: set[str] = set()

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Start a job that fits.

        Raises:
            BudgetError: it would pass the cap; nothing was sent.
        """
        need, spent = self._expected_usd(request), self._engine.spent.usd
        if spent + need > self._max_usd:
            raise BudgetError(
                f"The budget does not hold the next training: about {need:.2f} USD for {request.model!r}, with "
                f"{spent:.2f} of max_usd = {self._max_usd:g} USD spent. Everything paid for is kept; raise the cap and "
                f"run again to go on."
            )
        ticket = await self._inner.submit(request)
        self._expected[ticket.job_id] = need
        return ticket

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """As the provider finds it; a job that was bought already is no new purchase."""
        return await self._inner.find(request)

    async def poll(self, ticket: JobTicket) -> JobState:
        """Where the job stands."""
        state = await self._inner.poll(ticket)
        if state.status == "succeeded" and ticket.job_id not in self._charged:
            self._charged.add(ticket.job_id)
            billed = self._trainer.price_usd(state.trained_tokens)
            self._engine.charge(self._expected.get(ticket.job_id, 0.0) if billed is None else billed, 0)
        return state

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """As the provider tells them."""
        return await self._inner.events(ticket, after)

    async def cancel(self, ticket: JobTicket) -> None:
        """As the provider does."""
        await self._inner.cancel(ticket)

    def _expected_usd(self, request: FineTuneRequest) -> float:
        report = check_training_file(request.training_file, self._trainer.count())
        tokens = len(request.training_file) / _CHARACTERS_A_TOKEN if report.tokens is None else report.tokens
        price = self._trainer.limits.training_usd or 0.0
        epochs = expected_epochs(request.spec, request.training_file.count(b"\n"), self._trainer.provider)
        return tokens * epochs * price / 1e6


def _limits(provider: Provider, ref: ModelRef) -> ModelLimits:
    return provider.limits.get(ref.model) or ModelLimits()
