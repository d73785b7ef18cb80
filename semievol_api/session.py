"""One run, from a config to its verdict: reads the files, connects the roles, holds the folder, runs the pipeline.

    from semievol_api import run
    result = run("semievol.toml")          # works in a script and inside a notebook's running loop

Knows nothing of the stages' insides; prints nothing (a `Watcher` is called instead).
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from semievol_api.annotate.annotators import external_role
from semievol_api.annotate.clients import Clients, ExternalAnnotator
from semievol_api.annotate.retrieval import EmbeddingTool
from semievol_api.capabilities import JobEvent, Provider, Wire, require
from semievol_api.cassettes.clock import Clock, RealClock
from semievol_api.config.method import ModelRef
from semievol_api.config.settings import Config, load_config, nearest
from semievol_api.data import RawData, read_data
from semievol_api.data.schemas import chunked_examples
from semievol_api.data.table import ChunkedTable
from semievol_api.engine import Fleet, Progress, RequestEngine
from semievol_api.errors import ConfigError, MissingAbilityError, RunFolderError, UserError
from semievol_api.notebook import run_blocking as run_blocking
from semievol_api.pipeline import semievol
from semievol_api.planning.catalogue import Catalogue, availability, refuse_ended, utc_day
from semievol_api.planning.catalogue_refresh import known_catalogue
from semievol_api.planning.limits import refuse_ended_models, with_limits
from semievol_api.planning.tokens import token_counter
from semievol_api.records import Example
from semievol_api.registry import connect
from semievol_api.run_result import RunResult as RunResult
from semievol_api.scale.ray_executor import open_executor
from semievol_api.scale.worker import journals_of
from semievol_api.store.artifacts import Folds, Prepared, Selection, Verdict
from semievol_api.store.fingerprints import entries, plain
from semievol_api.store.metric_logs import check_logs, open_logs
from semievol_api.store.run_store import RunStore, stages_done
from semievol_api.tasks import Task, load_task
from semievol_api.training.chat_jsonl import MIN_EXAMPLES
from semievol_api.training.cost import refuse_unpriced, with_cap
from semievol_api.training.deployments import open_deployments
from semievol_api.training.fine_tuning import OnEvent, Trainer, check_spec
from semievol_api.training.jobs import stored_job

if TYPE_CHECKING:
    from semievol_api.cassettes.cassette import Cassette


async def all_rounds(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """The verdict of the last round; later rounds lie in `round-2`, `round-3` ...

    It ends early where a round keeps too little to train on, or nothing is left to label. Such a round has no evolved
    model of its own: the verdict before it stands.
    """
    if config.select.rule != "human-budget":
        raw = _with_reviewed(raw)
    verdict, nested = await semievol(tools, store, task, raw, config), store
    for turn in range(2, config.run.rounds + 1):
        chosen = nested.load("select", Selection)
        if not chosen.enough or not chosen.kept or len(chosen.kept) == len(chosen.scores):
            break
        raw = data_of_next_round(raw, nested.load("prepare", Prepared), nested.load("split", Folds), chosen)
        nested = store.nested(f"round-{turn}")
        fresh = config.run.model_copy(update={"seed": config.run.seed + turn - 1})
        found = await semievol(tools, nested, task, raw, config.model_copy(update={"run": fresh}))
        added = nested.load("select", Selection)
        if not added.enough:
            return _with_note_on_round(verdict, turn, len(added.kept))
        verdict = found
    return verdict


def _with_note_on_round(verdict: Verdict, turn: int, kept: int) -> Verdict:
    """The verdict of the round before one that kept too little, and that this is so."""
    note = f"Round {turn} kept {kept} pseudo-labels more, too few to train on: this is the verdict of round {turn - 1}."
    return replace(verdict, notes=(*verdict.notes, note))


def _with_reviewed(raw: RawData) -> RawData:
    """The data in which what a person reviewed is labelled and no longer asked about."""
    if not raw.reviewed:
        return raw
    answered = tuple(replace(e, answer=raw.reviewed[e.id]) for e in raw.unlabeled if e.id in raw.reviewed)
    return replace(raw, labeled=(*raw.labeled, *answered), unlabeled=_without(raw.unlabeled, raw.reviewed))


def data_of_next_round(raw: RawData, data: Prepared, folds: Folds, chosen: Selection) -> RawData:
    """The data of the next round: kept pseudo-labels join the labelled data, the development set stays held out."""
    answers = {p.example_id: p.answer for p in chosen.kept}
    gate = {e.id for e in folds.development}
    return replace(
        raw,
        labeled=tuple(e for e in data.labeled if e.id not in gate),
        unlabeled=_without(data.unlabeled, answers),
        test=data.test,
        development=folds.development,
        pseudo_labeled=(
            *raw.pseudo_labeled,
            *(replace(e, answer=answers[e.id]) for e in data.unlabeled if e.id in answers),
        ),
    )


def _without(examples: Sequence[Example], ids: Collection[str]) -> ChunkedTable[Example]:
    """The examples but for some."""
    table = chunked_examples(examples)
    return table.where(np.array([name not in ids for name in table.values("id")], dtype=np.bool_))


Pipeline: TypeAlias = Callable[[Clients, RunStore, Task, RawData, Config], Awaitable[Verdict]]
"""What is done between the open tools and the verdict: the pipeline, or an experiment's baseline."""
Purpose: TypeAlias = Literal["run", "ask", "look"]
_BATCH_STAGES = 2
"""Annotations and justifications: each may take a vendor's batch a day before the last training is started."""


class Watcher(Protocol):
    """Is called as a run proceeds; the command line draws progress bars from it."""

    def on_stage(self, name: str, state: str) -> None:
        """A stage is `started`, `loaded` (nothing to do) or `made`."""
        ...

    def on_row(self, progress: Progress) -> None:
        """One more row of a stage is answered."""
        ...

    def on_job(self, name: str, event: JobEvent) -> None:
        """A training job reported an event."""
        ...


@dataclass(frozen=True)
class NullWatcher:
    """A watcher that does nothing."""

    def on_stage(self, name: str, state: str) -> None:
        """Nothing."""

    def on_row(self, progress: Progress) -> None:
        """Nothing."""

    def on_job(self, name: str, event: JobEvent) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Plan:
    """A config that was checked as far as that goes without the network."""

    config: Config
    task: Task
    providers: Mapping[str, Provider]
    catalogue: Catalogue
    notices: tuple[str, ...] = ()
    """Remarks on the models' ends."""
    buys: bool = True
    """Whether trainings may be bought by whoever asked for the plan."""

    def provider(self, ref: ModelRef) -> Provider:
        """The provider of a role."""
        return self.providers[ref.provider]

    @property
    def guests(self) -> tuple[ModelRef, ...]:
        """Other providers' models among the annotators."""
        return _guests_of(self.config)

    @property
    def trainer_ref(self) -> ModelRef:
        """What is tuned, and where."""
        return self.config.roles.trainer or self.config.roles.student

    @property
    def to_train(self) -> tuple[tuple[Provider, str], ...]:
        """Provider and model of the trainings that are still to be bought; empty where there are none."""
        if not (self.buys and trains(self.config)) or _last_job_bought(self.config):
            return ()
        return ((self.provider(self.trainer_ref), self.trainer_ref.model),)

    @property
    def role_models(self) -> tuple[tuple[Provider, str], ...]:
        """Every role's provider and model."""
        refs = (self.config.roles.student, self.trainer_ref, self.config.roles.embedder, *self.guests)
        return tuple((self.provider(ref), ref.model) for ref in refs if ref is not None)


def run(
    config: str | Path,
    *,
    watcher: Watcher | None = None,
    accept_change: bool = False,
    accept_lost_journal: bool = False,
) -> RunResult:
    """Run a config to its end and return the verdict; the only synchronous entry point.

    Raises:
        UserError: something in the config or the data needs mending.
    """
    settings = load_config(Path(config))
    if not accept_lost_journal:
        refuse_lost_journal(settings)
    return run_blocking(run_async(settings, watcher=watcher, accept_change=accept_change))


def refuse_lost_journal(config: Config) -> None:
    """Refuse to go on where a run has finished stages and the journal that they were paid into is gone.

    Whatever is not finished, or changed, would be asked and paid for again. Changes nothing.

    Raises:
        RunFolderError: the journal is missing or has no bytes.
        JournalError: it is no journal, or damaged.
    """
    path = config.run.journal_path
    done = stages_done(config.run.folder)
    if not done or any(_size(journal) for journal in (path, *journals_of(config.run.folder))):
        return
    lost = "empty" if path.exists() else "missing"
    raise RunFolderError(
        f"The run folder {str(config.run.folder)!r} has {len(done)} finished artifact(s), but its journal "
        f"{str(path)!r} is {lost}: what it held would be asked and paid for again. Nothing was touched. Put the "
        "journal back, or set [run] journal to where it is; to pay again for what is not finished, pass "
        "--accept-lost-journal."
    )


def _size(path: Path) -> int:
    """Bytes of a file and its write-ahead log; 0 where there is none."""
    return sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}-wal")) if p.is_file())


async def run_async(
    config: Config,
    *,
    watcher: Watcher | None = None,
    accept_change: bool = False,
    pipeline: Pipeline = all_rounds,
    now: datetime.datetime | None = None,
) -> RunResult:
    """See `run`; `pipeline` is what runs, `now` the time that the models' end dates are compared with."""
    async with _cassette(config) as cassette:
        return await _run(config, watcher or NullWatcher(), accept_change, cassette, pipeline, utc_day(now))


async def _run(
    config: Config,
    watcher: Watcher,
    accept_change: bool,
    cassette: Cassette | None,
    pipeline: Pipeline,
    today: datetime.date,
) -> RunResult:
    plan = check(config, wire=None if cassette is None else cassette.send, today=today)
    raw = read_data(config.data, plan.task)
    check_data(plan, raw)
    refuse_unpriced(config, plan.provider, plan.trainer_ref if trains(config) else None)
    with (
        RunStore.open(config.run.folder, config_key(config), accept_change=accept_change) as store,
        open_logs(config) as logs,
    ):
        store.on_stage = watcher.on_stage
        if raw.gold:
            store.note("oracle/gold.json", json.dumps(raw.gold, ensure_ascii=False))

        def on_job(name: str, event: JobEvent) -> None:
            if event.id:
                store.log_event(
                    stored_job(name), event.id, json.dumps({**asdict(event), "metrics": dict(event.metrics)})
                )
            logs.job(name, event)
            watcher.on_job(name, event)

        clock = RealClock() if cassette is None else cassette.clock
        async with open_tools(plan, raw, watcher, on_job, clock) as tools:
            if not _is_done(config):
                await refuse_ended_models(plan.catalogue, plan.role_models, today, to_train=plan.to_train)
            verdict = await pipeline(tools, store, plan.task, raw, config)
            ledger = tools.engine.ledger
        logs.verdict(verdict)
        store.note("spend.json", json.dumps({stage: bill.usd for stage, bill in ledger.stages.items()}))
        return RunResult(verdict, store.folder, tuple(store.computed), ledger, store.seconds, plan.task)


def _cassette(config: Config) -> AbstractAsyncContextManager[Cassette | None]:
    """The cassette of `[cassette]`, closed at the end of the block; None where there is none.

    Raises:
        RunFolderError: the run has begun already, so that it would not ask for what it knows.
    """
    table = config.cassette
    if table is None:
        return nullcontext()
    from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
    from semievol_api.cassettes.scrub import secret_values

    if table.mode in ("record", "replay"):
        known = [config.run.journal_path, config.run.folder / "stamps.json"]
        for path in known:
            if path.exists():
                raise RunFolderError(
                    f"The cassette's mode is {table.mode!r}, and {str(path)!r} is there already: what it holds would "
                    f"never be asked for. Name an empty folder in [run] folder, or delete this one."
                )
    return open_cassette(
        table.path, table.mode, CassetteSettings(seed=config.run.seed, secrets=secret_values(os.environ))
    )


def check(
    config: Config,
    environ: Mapping[str, str] | None = None,
    *,
    wire: Wire | None = None,
    planning: bool = False,
    today: datetime.date | None = None,
    purpose: Purpose = "run",
) -> Plan:
    """Everything that can be known without the network: names, keys, abilities, the models' ends.

    Args:
        config: what is to be run.
        environ: where key variables are read; default: this process's.
        wire: what takes the place of the network; a replay needs no keys.
        planning: nothing will be sent; keys may miss, and an ended model is a notice.
        today: the day that counts.
        purpose: "run" may buy trainings, "ask" only asks models, "look" does neither, and no end forbids it.

    Raises:
        UserError: a role names no provider, a provider refuses its settings, lacks an ability, or its model ended.
    """
    task = load_task(config.data.task)
    roles = config.roles
    guests = _guests_of(config)
    names = [ref.provider for ref in (roles.student, roles.trainer, roles.embedder, *guests) if ref is not None]
    for name in names:
        if name not in config.providers:
            raise ConfigError(f"[roles] names the provider {name!r}. {nearest(name, list(config.providers))}")
    base = str(config.run.folder.parent)
    replays = config.cassette is not None and config.cassette.mode == "replay"
    catalogue = known_catalogue(config.catalogue.file)
    providers = {
        name: with_limits(
            connect(name, config.providers[name], environ, base, wire=wire, planning=planning or replays), catalogue
        )
        for name in dict.fromkeys(names)
    }
    plan = Plan(config, task, providers, catalogue)
    lenient = planning or replays or purpose == "look" or (purpose == "run" and _is_done(config))
    plan = replace(plan, buys=purpose == "run")
    notices = _check_ends(plan, today or utc_day(), refuse=not lenient)
    plan = replace(plan, notices=notices)
    check_logs(config.log.to)
    _check_abilities(plan)
    return plan


def _check_abilities(plan: Plan) -> None:
    """Refuse a provider that cannot do what its role asks."""
    config, roles = plan.config, plan.config.roles
    student = plan.provider(roles.student)
    require(student.chat, "chat", student)
    if student.deployer is not None and (config.run.engine == "ray" or config.limits.mode == "batch"):
        key = '[run] engine = "ray"' if config.run.engine == "ray" else '[limits] mode = "batch"'
        raise ConfigError(
            f"The provider {student.name!r} answers with tuned models only while they are deployed, and {key} does not "
            f"wait for deployments. Remove that setting."
        )
    for guest in plan.guests:
        require(plan.provider(guest).chat, "chat", plan.provider(guest))
    if config.select.score == "mean_nll":
        require(student.scored, "log-probabilities", student)
    if trains(config):
        trainer = plan.provider(plan.trainer_ref)
        require(trainer.finetuner, "fine-tuning", trainer)
        check_spec(config.train, trainer)
    if config.retrieve.method == "embedding" and config.run.propagation != "in-weight":
        if roles.embedder is None:
            raise ConfigError(
                '[roles] has no embedder, and [retrieve] method is "embedding". Name one, such as '
                'embedder = { provider = "...", model = "text-embedding-3-small" }, or set method = "bm25".'
            )
        embedder = plan.provider(roles.embedder)
        require(embedder.embedder, "embeddings", embedder)


def _check_ends(plan: Plan, today: datetime.date, *, refuse: bool) -> tuple[str, ...]:
    """What a day means for the models of the roles, as sentences.

    Raises:
        MissingAbilityError: with `refuse`, where a model could not be used; it says what to change.
    """
    roles, lines = plan.config.roles, dict[str, None]()
    asked = [(ref, False) for ref in (roles.student, roles.embedder, *plan.guests) if ref is not None]
    trained = [(plan.trainer_ref, True)] if plan.to_train else []
    last_job = today + datetime.timedelta(days=_days_of_batches(plan.config))
    for ref, is_trained in (*asked, *trained):
        vendor = plan.provider(ref).vendor
        verdict = availability(plan.catalogue, vendor, ref.model, today, last_job=last_job if is_trained else None)
        try:
            refuse_ended(plan.catalogue, verdict, today, trains=is_trained)
        except MissingAbilityError as ended:
            if refuse:
                raise
            lines |= {str(ended): None}
        else:
            lines |= dict.fromkeys(verdict.lines)
    return tuple(line for line in lines if not any(other != line and other.startswith(line) for other in lines))


def _is_done(config: Config) -> bool:
    """Whether the run has its verdict: what it needs lies on disk, and no end forbids reading it."""
    return "verdict" in stages_done(config.run.folder)


def _last_job_bought(config: Config) -> bool:
    """Whether the final training of every round has been bought: nothing but answers is still to be had."""
    tickets = list(config.run.folder.rglob("jobs/semievol-ticket/ticket.json"))
    return config.evolve.kind == "fine-tune" and len(tickets) >= config.run.rounds


def _days_of_batches(config: Config) -> int:
    """Days that may pass before the last training is started, where annotations and justifications go by batch."""
    return _BATCH_STAGES if config.limits.mode == "batch" and config.evolve.kind == "fine-tune" else 0


def _guests_of(config: Config) -> tuple[ModelRef, ...]:
    """Other providers' models among the annotators."""
    return tuple(a.model for a in config.annotators if isinstance(a.model, ModelRef))


def trains(config: Config) -> bool:
    """Whether the config wants any training bought."""
    warms_up = config.roles.warm is None and config.run.propagation != "in-context"
    return warms_up or config.evolve.kind == "fine-tune"


def check_data(plan: Plan, raw: RawData) -> None:
    """Refuse, before a cent is spent, a training file that no vendor accepts."""
    needs_job = plan.config.roles.warm is None and plan.config.run.propagation != "in-context"
    prompts_instead = plan.config.split.calibration != 0
    if needs_job and not prompts_instead and len(raw.labeled) < MIN_EXAMPLES:
        raise UserError(
            f"There are {len(raw.labeled)} labelled examples in {plan.config.data.labeled.name!r}, and a fine-tuning "
            f"job needs at least {MIN_EXAMPLES}. Label some more, or set [run] propagation = "
            f'"in-context", which needs no warm-up job.'
        )


def config_key(config: Config) -> str:
    """What makes two configs the same run: everything but limits, pacing and the folder's own name."""
    settings = {name: plain(value) for name, value in entries(config).items() if name != "providers"}
    settings["train"] = {name: value for name, value in entries(config.train).items() if name != "poll_s"}
    settings["providers"] = sorted(config.providers)
    return repr(sorted(settings.items()))


@asynccontextmanager
async def open_tools(
    plan: Plan, raw: RawData, watcher: Watcher, on_job: OnEvent | None = None, clock: Clock | None = None
) -> AsyncGenerator[Clients]:
    """The live clients of a checked config, closed when the block ends. `on_job` hears of trainings."""
    config = plan.config
    roles = config.roles
    async with AsyncExitStack() as stack:
        for provider in plan.providers.values():
            stack.push_async_callback(provider.aclose)
        engine = await stack.enter_async_context(
            RequestEngine.open(
                config.run.journal_path,
                config.limits,
                clock=clock,
                run=str(config.run.folder),
                on_progress=watcher.on_row,
                fleet=Fleet(journals=journals_of(config.run.folder)),
            )
        )
        executor = stack.enter_context(open_executor(config, engine))
        embedder = None
        if roles.embedder is not None and config.retrieve.method == "embedding":
            embedder = EmbeddingTool(engine, plan.provider(roles.embedder), roles.embedder.model, executor)
        deployments = await stack.enter_async_context(
            open_deployments(config, engine, clock or RealClock(), on_job or watcher.on_job)
        )
        trainer = Trainer(
            provider=plan.provider(plan.trainer_ref),
            base=plan.trainer_ref.model,
            clock=clock or RealClock(),
            seed=config.run.seed,
            on_event=on_job or watcher.on_job,
            count=lambda: token_counter(plan.trainer_ref.model, roles.tokenizer).count_training,
        )
        yield Clients(
            engine=engine,
            student_provider=deployments.over(plan.provider(roles.student)),
            student_model=roles.student.model,
            trainer=with_cap(trainer, engine, config),
            embedder=embedder,
            gold=raw.gold,
            max_failed_share=config.run.max_failed_share,
            external={
                external_role(r): ExternalAnnotator(deployments.over(plan.provider(r)), r.model) for r in plan.guests
            },
            executor=executor,
        )
