"""Buying one training, once: the ticket, then the model. Shared by all trainings of a run.

A training is known by its bytes, base model, hyper-parameters and seed, never by a stage's version: a
refactoring must not buy it twice. Knows nothing of what the lines teach.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from semievol_api.capabilities import (
    HOSTED_TRAIN_KEYS,
    FineTuner,
    FineTuneRequest,
    JobEvent,
    JobState,
    JobTicket,
    ModelLimits,
    Provider,
    TrainSpec,
    require,
)
from semievol_api.cassettes.clock import Clock
from semievol_api.config.method import TrainSettings
from semievol_api.errors import ConfigError, JobFailedError, TransientError
from semievol_api.store.artifacts import Ticket, TrainingFile, TunedModel
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore
from semievol_api.training.chat_jsonl import CountTokens, check_training_file
from semievol_api.training.jobs import job_artifact

_AUTO_EPOCHS, _LEAST_SHOWN, _MOST_SHOWN, _MOST_AUTO_EPOCHS = 3, 100, 25_000, 25
_LOOKS_AFTER_A_LOST_REPLY = 5
_AWAY_PATIENCE_S = 3600.0
"""How long a server may be away while a job runs; the ticket is on disk, so a later run goes on waiting."""

OnEvent = Callable[[str, JobEvent], None]


def expected_epochs(spec: TrainSpec, examples: int, provider: Provider) -> int:
    """The epochs of a training on so many examples: as specified, else by its trainer's rule, else a vendor's usual.

    The usual ones are those of OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning"): 3, or
    as many more (at most 25) as show 100 examples, or as many fewer as show 25,000. The vendor decides.
    """
    if spec.n_epochs is not None:
        return spec.n_epochs
    if provider.auto_epochs is not None:
        return provider.auto_epochs(spec, examples)
    shown = _AUTO_EPOCHS * max(1, examples)
    if shown < _LEAST_SHOWN:
        return min(_MOST_AUTO_EPOCHS, _LEAST_SHOWN // max(1, examples))
    return max(1, _MOST_SHOWN // examples) if shown > _MOST_SHOWN else _AUTO_EPOCHS


@dataclass(frozen=True)
class Trainer:
    """Who trains what: a provider, the base model, the clock that polls wait by, and who hears of events."""

    provider: Provider
    base: str
    clock: Clock
    seed: int
    on_event: OnEvent = lambda _name, _event: None
    base_identity: str | None = None
    """What the base is, where its name is a job's and so another one elsewhere."""

    count: Callable[[], CountTokens | None] = lambda: None
    """Makes what counts the tokens of a training example, when it is first needed."""

    @property
    def limits(self) -> ModelLimits:
        """What is known of the base."""
        return self.provider.limits.get(self.base) or ModelLimits()

    def price_usd(self, trained_tokens: int | None) -> float | None:
        """USD of a training; None where its tokens or its price are not known."""
        price = self.limits.training_usd
        return None if trained_tokens is None or price is None else trained_tokens * price / 1e6

    @property
    def finetuner(self) -> FineTuner:
        """The ability, or the refusal."""
        return require(self.provider.finetuner, "fine-tuning", self.provider)


async def fine_tune(
    trainer: Trainer, store: RunStore, name: str, file: TrainingFile, settings: TrainSettings
) -> TunedModel:
    """The model of this name, trained on a file: found, or bought; its ticket is on disk before the wait begins.

    Raises:
        JobFailedError: the job ended without a model; its ticket is dropped, so that the next run may buy anew.
    """
    request = _request(trainer, file, settings)

    @stage("submit")
    async def submit(run_key: str) -> Ticket:
        looked_at = check_training_file(file.content, trainer.count(), trainer.limits.context_tokens)
        trainer.on_event(name, JobEvent(id="", message=looked_at.sentence))
        ticket = await _find_or_submit(trainer, request)
        return Ticket(job_id=ticket.job_id, run_key=run_key, training_file_id=ticket.training_file_id)

    @stage("wait")
    async def wait(run_key: str) -> TunedModel:
        state = await _wait(trainer, name, JobTicket(**vars(ticket)), settings.poll_s)
        if state.model is None:
            raise JobFailedError(
                f"The {name} job {ticket.job_id} ended as {state.raw_status!r} without a model"
                f"{': ' + state.reason if state.reason else ''}. Fix the cause and run again."
            )
        return TunedModel(
            model=state.model,
            base=trainer.base,
            run_key=run_key,
            trained_tokens=state.trained_tokens,
            data_sha256=hashlib.sha256(file.content).hexdigest(),
            training_usd=trainer.price_usd(state.trained_tokens),
        )

    ticket = await store.once(job_artifact(name, "ticket"), Ticket, submit, request.run_key)
    try:
        return await store.once(job_artifact(name, "model"), TunedModel, wait, request.run_key)
    except JobFailedError:
        store.forget(job_artifact(name, "ticket"))
        raise


def check_spec(spec: TrainSpec, provider: Provider) -> None:
    """Refuse what a provider's trainings have no place for, before anything is sent.

    Raises:
        ConfigError: it names the keys.
    """
    lost = [name for name in spec.given if name not in provider.train_keys]
    if lost:
        raise ConfigError(
            f"[train] {lost[0]} is set, but the trainings of {provider.name!r} support only "
            f"{', '.join(provider.train_keys)}. Remove {', '.join(lost)} from [train]. For a model on your own "
            f"machine, set them in [providers.NAME.train] or in the server's --train-config."
        )


def _request(trainer: Trainer, file: TrainingFile, settings: TrainSettings) -> FineTuneRequest:
    spec = settings.spec(trainer.seed)
    check_spec(spec, trainer.provider)
    return FineTuneRequest(
        model=trainer.base,
        training_file=file.content,
        run_key=_run_key(trainer, file, spec),
        spec=spec,
        suffix=settings.suffix,
    )


def _run_key(trainer: Trainer, file: TrainingFile, spec: TrainSpec) -> str:
    """What the vendor knows a training by, for ever: the words below are spelled as they always were.

    A setting that came later is written where it is set, behind the others.
    """
    base = trainer.base_identity or trainer.base
    later = "".join(f", {name}={value!r}" for name, value in spec.given.items() if name not in HOSTED_TRAIN_KEYS)
    settings = (
        f"Hyperparameters(n_epochs={spec.n_epochs!r}, batch_size={spec.batch_size!r}, "
        f"learning_rate_multiplier={spec.learning_rate_multiplier!r}{later})"
    )
    key = hashlib.blake2b(digest_size=16)
    key.update(file.content)
    key.update(f"({base!r}, {settings}, {spec.seed!r})".encode())
    return key.hexdigest()


async def _find_or_submit(trainer: Trainer, request: FineTuneRequest) -> JobTicket:
    """Look first; where the reply to a submission is lost, look again before anything else."""
    tuner = trainer.finetuner
    found = await tuner.find(request)
    if found is not None:
        return found
    try:
        return await tuner.submit(request)
    except TransientError:
        for look in range(_LOOKS_AFTER_A_LOST_REPLY):
            await trainer.clock.sleep(2.0**look)
            try:
                found = await tuner.find(request)
            except TransientError:
                continue
            if found is not None:
                return found
        raise


async def _wait(trainer: Trainer, name: str, ticket: JobTicket, poll_s: float) -> JobState:
    """Poll until the job ends, riding through a server that is away; events are handed on as they come."""
    last_event: str | None = None
    away_since_s: float | None = None
    while True:
        try:
            state = await trainer.finetuner.poll(ticket)
            for event in await trainer.finetuner.events(ticket, last_event):
                trainer.on_event(name, event)
                last_event = event.id
        except TransientError as error:
            now_s = trainer.clock.now_s()
            away_since_s = now_s if away_since_s is None else away_since_s
            if now_s - away_since_s > _AWAY_PATIENCE_S:
                raise
            trainer.on_event(name, JobEvent(id="", level="warn", message=f"The server is not reachable: {error}"))
        else:
            away_since_s = None
            if state.finished:
                return state
        await trainer.clock.sleep(poll_s)
        await asyncio.sleep(0)
