"""Deployments of a run: made once, woken when a request needs them, put to sleep at the end, and paid by the hour.

    async with open_deployments(config, engine, clock) as deployments:
        provider = deployments.over(provider)          # its requests wait until their model is ready

Every deployment has a file `deployments/KEY.json` in the run's folder. It is written before anything is sent to the
vendor, so a killed run finds its deployment again, and `semievol clean --remote` lists what still costs money. Knows
nothing of stages or prompts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias, TypeVar

from semievol_api.capabilities import (
    ChatRequest,
    Deployer,
    DeploymentState,
    DeployRequest,
    JobEvent,
    ModelName,
    OptionReply,
    OptionRequest,
    Provider,
    Reply,
    require,
)
from semievol_api.cassettes.clock import Clock
from semievol_api.config.settings import Config, DeploySettings
from semievol_api.engine import RequestEngine
from semievol_api.errors import (
    BudgetError,
    ConfigError,
    ModelNotFoundError,
    ProviderError,
    RefusedError,
    RunFolderError,
    StageError,
    TransientError,
)
from semievol_api.planning.limits import with_free_tokens
from semievol_api.training.jobs import Leftover

FOLDER = "deployments"
"""Where a run's folder keeps what it deployed."""
_TICK_S = 15.0
"""How often hours are charged and idle deployments looked for."""
_LOOKS_AFTER_A_LOST_REPLY = 5
_UNAVAILABLE = 503
_AWAY_PATIENCE_S = 900.0
"""How long a vendor may not answer while a deployment is waited for."""

Status: TypeAlias = Literal["creating", "awake", "asleep", "failed", "deleted"]
_GONE = ("deleted", "failed")
OnEvent: TypeAlias = Callable[[str, JobEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """One deployment as the run's folder knows it.

    `awake_since` is in Unix seconds, None while it costs nothing; `awake_s` are the seconds before that.
    `deployment_id` is None while the vendor has not answered: it may be there, and `find` looks for it by its run key.
    """

    provider: str
    model: ModelName
    run_key: str
    status: Status = "creating"
    deployment_id: str | None = None
    asked_as: ModelName | None = None
    usd_per_hour: float | None = None
    awake_since: float | None = None
    awake_s: float = 0.0

    def hours(self, now: float) -> float:
        """Hours that it was awake."""
        return (self.awake_s + (0.0 if self.awake_since is None else max(0.0, now - self.awake_since))) / 3600

    def usd(self, now: float) -> float | None:
        """What that cost; None where the price is not known."""
        return None if self.usd_per_hour is None else self.hours(now) * self.usd_per_hour

    @property
    def costs(self) -> bool:
        """Whether it may cost money now."""
        return self.status in ("creating", "awake")

    def up(self, now: float) -> Deployed:
        """The same, about to be awake."""
        return replace(self, status="awake", awake_since=now if self.awake_since is None else self.awake_since)

    def down(self, status: Status, now: float) -> Deployed:
        """The same, which costs nothing any more."""
        return replace(self, status=status, awake_since=None, awake_s=self.hours(now) * 3600)


def deployments_under(folder: Path) -> list[tuple[Path, Deployed]]:
    """The deployments of every run in or below a folder, each with the run's folder."""
    paths = sorted(folder.rglob(f"{FOLDER}/*.json"))
    return [(path.parent.parent, _read(path)) for path in paths]


def _read(path: Path) -> Deployed:
    try:
        return Deployed(**json.loads(path.read_text("utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{str(path)!r} cannot be read: {error}. It describes a deployment that may cost money. Put it back from "
            f"a copy, or delete the deployment with the run key {path.stem} at the vendor, and then this file."
        ) from None


def keep_record(run_folder: Path, record: Deployed) -> None:
    """Write a deployment's file, whole or not at all."""
    path = run_folder / FOLDER / f"{record.run_key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(asdict(record), indent=1) + "\n", "utf-8")
    draft.rename(path)


def deployments_left(run_folder: Path, provider: str) -> list[Leftover]:
    """The deployments of a run at a provider that are not deleted; first of all those that cost money now."""
    records = [r for _, r in deployments_under(run_folder) if r.provider == provider and r.status not in _GONE]
    return [
        Leftover("deployment", record.deployment_id or record.run_key, _why_left(record))
        for record in sorted(records, key=lambda record: not record.costs)
    ]


def _why_left(record: Deployed) -> str:
    price = "" if record.usd_per_hour is None else f" at {record.usd_per_hour:g} USD per hour"
    state = f"it runs{price}" if record.costs else "it is asleep"
    return f"deployment of {record.model}; {state}"


async def delete_deployments(run_folder: Path, provider: Provider) -> list[str]:
    """Delete a run's deployments, found by run key where no id is known; a sentence for each that could not be."""
    deployer, failures = require(provider.deployer, "deployments", provider), list[str]()
    for folder, record in deployments_under(run_folder):
        if record.provider != provider.name or record.status in _GONE:
            continue
        request = DeployRequest(model=record.model, run_key=record.run_key)
        try:
            found = record.deployment_id or await deployer.find(request)
            if found is not None:
                await deployer.delete(found)
        except ProviderError as error:
            failures.append(f"deployment of {record.model}: {error}")
        else:
            keep_record(folder, record.down("deleted", time.time()))
    return failures


@asynccontextmanager
async def open_deployments(
    config: Config, engine: RequestEngine, clock: Clock, on_event: OnEvent = lambda _name, _event: None
) -> AsyncGenerator[Deployments]:
    """The deployments of a run; when the block ends, however it ends, they are treated as `[deploy] at_end` says."""
    deployments = Deployments(config, engine, clock, on_event)
    watch = engine.start(deployments.watch())
    try:
        yield deployments
    finally:
        watch.cancel()
        await deployments.close()


@dataclass(slots=True)
class _Held:
    """One deployment of this run, who runs it, and what is under way with it."""

    deployer: Deployer
    record: Deployed
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ready: bool = False
    used_at: float = 0.0
    asked: int = 0
    charged_usd: float = 0.0
    remade: bool = False

    @property
    def request(self) -> DeployRequest:
        """What the vendor is asked with."""
        return DeployRequest(model=self.record.model, run_key=self.record.run_key)


class Deployments:
    """What a run has deployed. Made by `open_deployments`."""

    def __init__(self, config: Config, engine: RequestEngine, clock: Clock, on_event: OnEvent) -> None:
        self._folder = config.run.folder
        self._settings: DeploySettings = config.deploy
        self._max_usd = config.limits.max_usd
        self._idle_s = config.deploy.idle_s
        self._tick_s = min(_TICK_S, self._idle_s / 2)
        self._engine = engine
        self._clock = clock
        self._on_event = on_event
        self._known = {record.run_key: record for _, record in deployments_under(self._folder)}
        self._held: dict[str, _Held] = {}
        self._over: BudgetError | None = None
        if self._max_usd is not None:
            engine.charge(sum(record.usd(time.time()) or 0.0 for record in self._known.values()), 0)

    def over(self, provider: Provider) -> Provider:
        """The same provider, whose requests wait until their model is deployed and ready.

        Raises:
            ConfigError: USD are capped, and nobody knows what an hour costs.
        """
        deployer = provider.deployer
        if deployer is None:
            return provider
        if self._max_usd is not None and self._price(deployer) is None:
            raise ConfigError(
                f"[limits] max_usd is set, but the price of an hour of {provider.name!r} is not known. Set [deploy] "
                f"usd_per_hour (0 where it costs nothing), or cap [limits] max_tokens instead."
            )
        for record in self._known.values():
            if record.provider == provider.name:
                self._hold(provider, deployer, record.model)

        async def awake(model: ModelName) -> None:
            if deployer.needs(model):
                await self._wait_until_ready(self._hold(provider, deployer, model))

        def held(model: ModelName) -> _Held | None:
            return self._hold(provider, deployer, model) if deployer.needs(model) else None

        reader = provider.option_reader
        return replace(
            provider,
            awake=awake,
            chat=None if provider.chat is None else _DeployedChat(provider.chat.complete, held),
            scored=None if provider.scored is None else _DeployedChat(provider.scored.complete, held),
            option_reader=None if reader is None else _DeployedReader(reader.read, held),
            limits=with_free_tokens(provider.limits, deployer.needs) if deployer.tokens_are_free else provider.limits,
        )

    async def watch(self) -> None:
        """Charge hours, put to sleep what is idle, and everything once the next hours would pass the cap."""
        while True:
            await asyncio.sleep(self._tick_s)
            for held in list(self._held.values()):
                if held.lock.locked() or held.record.awake_since is None:
                    continue
                async with held.lock:
                    if not self._affords(held):
                        await self._stop_for_the_cap(held)
                    elif held.ready and not held.asked and time.time() - held.used_at > self._idle_s:
                        await self._put_down(held, "sleep")

    async def close(self) -> None:
        """Put down what is still awake; what cannot be is told, and stays on the run's list."""
        for held in self._held.values():
            if held.record.costs and self._settings.at_end != "keep":
                await self._put_down(held, self._settings.at_end)

    # ------------------------------------------------------------------------------------------- one deployment
    def _hold(self, provider: Provider, deployer: Deployer, model: ModelName) -> _Held:
        key = _run_key(provider, model)
        held = self._held.get(key)
        if held is None:
            new = Deployed(provider=provider.name, model=model, run_key=key, usd_per_hour=self._price(deployer))
            record = self._known.get(key, new)
            held = self._held[key] = _Held(deployer, record, charged_usd=record.usd(time.time()) or 0.0)
        return held

    def _price(self, deployer: Deployer) -> float | None:
        own = self._settings.usd_per_hour
        return deployer.usd_per_hour if own is None else own

    async def _wait_until_ready(self, held: _Held) -> None:
        """Come back when the model may be asked; whoever comes first makes it so, the others wait.

        Raises:
            BudgetError: the cap does not hold another hour's share; what ran is put down.
            StageError: it failed, vanished again, or did not get ready in time.
        """
        if held.ready and self._over is None:
            held.used_at = time.time()
            return
        async with held.lock:
            if not held.ready:
                await self._make_ready(held)
            if self._over is not None:
                raise self._over
            held.used_at = time.time()

    async def _make_ready(self, held: _Held) -> None:
        began_s = self._clock.now_s()
        while self._over is None:
            if not self._affords(held):
                await self._stop_for_the_cap(held)
                return
            try:
                if held.record.deployment_id is None:
                    await self._find_or_deploy(held)
                state = await self._poll(held)
                await self._follow(held, state)
            except RefusedError as error:
                raise StageError(
                    f"{held.record.provider!r} refuses the deployment of {held.record.model!r}: {error} Fix the cause "
                    f"and run again to go on; everything answered so far is kept."
                ) from error
            if held.ready:
                return
            if self._clock.now_s() - began_s > self._settings.wait_s:
                await self._give_up(held, state)
            await self._clock.sleep(self._settings.poll_s)
            await asyncio.sleep(0)

    async def _follow(self, held: _Held, state: DeploymentState) -> None:
        """Do what a state asks for: nothing, a wake-up, another deployment where it vanished, or an end."""
        model = held.record.model
        if state.status == "ready":
            self._note(held, replace(held.record.up(time.time()), asked_as=state.asked_as))
            held.ready = True
            self._tell(held, f"The deployment of {model!r} is ready{self._rate(held)}.")
        elif state.status == "asleep":
            self._note(held, held.record.up(time.time()))
            await held.deployer.wake(_id(held))
        elif state.status == "deleted":
            self._note(held, replace(held.record.down("deleted", time.time()), deployment_id=None))
            if held.remade:
                raise StageError(
                    f"The deployment of {model!r} at {held.record.provider!r} is gone a second time. The vendor may "
                    f"have no accelerators left, or your quota may not allow one; look there, and run again to go on."
                )
            held.remade = True
        elif state.status == "failed":
            self._note(held, replace(held.record.down("failed", time.time()), deployment_id=None))
            raise StageError(
                f"The deployment of {model!r} at {held.record.provider!r} failed ({state.raw_status})"
                f"{': ' + state.reason if state.reason else ''}. Fix the cause and run again: it is made anew, and "
                f"everything answered so far is kept."
            )

    async def _find_or_deploy(self, held: _Held) -> None:
        """Look first; the file says that something may be there before it is asked for."""
        self._note(held, replace(held.record.up(time.time()), status="creating", deployment_id=None))
        found = await held.deployer.find(held.request)
        if found is None:
            self._tell(held, f"Deploying {held.record.model!r}{self._rate(held)}.")
            found = await self._deploy(held)
        self._note(held, replace(held.record.up(time.time()), deployment_id=found))

    async def _deploy(self, held: _Held) -> str:
        try:
            return await held.deployer.deploy(held.request)
        except RefusedError:
            self._note(held, held.record.down("failed", time.time()))
            raise
        except TransientError:
            for look in range(_LOOKS_AFTER_A_LOST_REPLY):
                await self._clock.sleep(2.0**look)
                try:
                    found = await held.deployer.find(held.request)
                except TransientError:
                    continue
                if found is not None:
                    return found
            raise

    async def _poll(self, held: _Held) -> DeploymentState:
        """Where it stands; a vendor that is away is waited for."""
        away_since_s: float | None = None
        while True:
            try:
                return await held.deployer.poll(_id(held))
            except TransientError:
                now_s = self._clock.now_s()
                away_since_s = now_s if away_since_s is None else away_since_s
                if now_s - away_since_s > _AWAY_PATIENCE_S:
                    raise
                await self._clock.sleep(self._settings.poll_s)

    async def _give_up(self, held: _Held, state: DeploymentState) -> NoReturn:
        await self._put_down(held, "delete")
        raise StageError(
            f"The deployment of {held.record.model!r} at {held.record.provider!r} did not get ready within "
            f"{self._settings.wait_s:g} s (its state: {state.raw_status}) and was deleted. The vendor may have no "
            f"accelerators free. Run again later, or set [deploy] wait_s higher."
        )

    async def _put_down(self, held: _Held, how: Literal["sleep", "delete"]) -> None:
        """Scale to zero, or delete; a vendor that cannot scale to zero deletes."""
        self._affords(held)
        held.ready = False
        status: Status = "asleep" if how == "sleep" else "deleted"
        try:
            found = held.record.deployment_id or await held.deployer.find(held.request)
            if found is not None and how == "sleep":
                try:
                    await held.deployer.sleep(found)
                except RefusedError:
                    await held.deployer.delete(found)
                    status = "deleted"
            elif found is not None:
                await held.deployer.delete(found)
        except ProviderError as error:
            self._tell(
                held,
                f"The deployment of {held.record.model!r} could not be put down{self._rate(held)}: {error} It is "
                f"listed by `semievol clean --remote`, which deletes it with --yes.",
                level="warn",
            )
            return
        gone = found is None or status == "deleted"
        record = held.record.down("deleted" if gone else status, time.time())
        self._note(held, replace(record, deployment_id=None if gone else found))
        self._tell(held, f"The deployment of {held.record.model!r} is {record.status}.")

    # ------------------------------------------------------------------------------------------------- money
    def _affords(self, held: _Held) -> bool:
        """Charge what it has cost since the last time; False where the next tick would pass the cap."""
        usd = held.record.usd(time.time()) or 0.0
        if self._max_usd is None:
            return True
        self._engine.charge(usd - held.charged_usd, 0)
        held.charged_usd = usd
        tick_usd = (held.record.usd_per_hour or 0.0) * max(self._tick_s, self._settings.poll_s) / 3600
        return self._engine.spent.usd + tick_usd <= self._max_usd

    async def _stop_for_the_cap(self, held: _Held) -> None:
        """Put it down first, and let nothing more be asked."""
        if held.record.costs and held.record.deployment_id is not None:
            await self._put_down(held, "sleep")
        self._over = BudgetError(
            f"The budget is spent: {self._engine.spent.usd:.4f} of max_usd = {self._max_usd:g} USD, and the deployment "
            f"of {held.record.model!r} costs {held.record.usd_per_hour or 0.0:g} USD per hour. It is put down. "
            f"Everything paid for is kept; raise the cap and run again to go on."
        )

    # ------------------------------------------------------------------------------------------------- words
    def _note(self, held: _Held, record: Deployed) -> None:
        keep_record(self._folder, record)
        held.record = record

    def _rate(self, held: _Held) -> str:
        return "" if held.record.usd_per_hour is None else f" ({held.record.usd_per_hour:g} USD per hour)"

    def _tell(self, held: _Held, message: str, level: str = "info") -> None:
        self._on_event("deployment", JobEvent(id="", message=message, level=level))


def _run_key(provider: Provider, model: ModelName) -> str:
    """What the vendor knows a deployment by, for ever: endpoint and model."""
    return hashlib.blake2b(f"deployment({provider.identity!r}, {model!r})".encode(), digest_size=16).hexdigest()


def _id(held: _Held) -> str:
    assert held.record.deployment_id is not None
    return held.record.deployment_id


_RequestT = TypeVar("_RequestT", ChatRequest, OptionRequest)
_ReplyT = TypeVar("_ReplyT")
_FindHeld: TypeAlias = Callable[[ModelName], _Held | None]


@dataclass(frozen=True, slots=True)
class _DeployedChat:
    """A chat whose tuned models are asked by their deployments' names."""

    inner: Callable[[ChatRequest], Awaitable[Reply]]
    held: _FindHeld

    async def complete(self, request: ChatRequest) -> Reply:
        """As the provider answers."""
        return await _ask(self.inner, request, self.held(request.model))


@dataclass(frozen=True, slots=True)
class _DeployedReader:
    """The same for option reads."""

    inner: Callable[[OptionRequest], Awaitable[OptionReply]]
    held: _FindHeld

    async def read(self, request: OptionRequest) -> OptionReply:
        """As the provider answers."""
        return await _ask(self.inner, request, self.held(request.model))


async def _ask(ask: Callable[[_RequestT], Awaitable[_ReplyT]], request: _RequestT, held: _Held | None) -> _ReplyT:
    """The reply; where the model is not found, its deployment is looked at again before the next attempt.

    Raises:
        TransientError: the deployment is not there (any more, or yet).
    """
    if held is None:
        return await ask(request)
    held.asked += 1
    try:
        return await ask(replace(request, model=held.record.asked_as or request.model))
    except ModelNotFoundError as error:
        held.ready = False
        raise TransientError(str(error), status=error.status) from error
    except TransientError as error:
        held.ready = held.ready and error.status != _UNAVAILABLE
        raise
    finally:
        held.asked -= 1
        held.used_at = time.time()
