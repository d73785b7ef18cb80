"""One worker: takes a shard, asks what its journal lacks, gives the shard's table.

The same engine, the same journal and the same stage work as in a run of one process; only quotas and the budget are
leased. Knows nothing of other shards.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from semievol_api.annotate.requests import Student
from semievol_api.annotate.retrieval import EmbeddingTool
from semievol_api.capabilities import Provider
from semievol_api.config.settings import Config
from semievol_api.engine import Fleet, RequestEngine, StageBill
from semievol_api.errors import SemievolError, StageError
from semievol_api.planning.catalogue_refresh import known_catalogue
from semievol_api.planning.limits import with_limits
from semievol_api.registry import connect
from semievol_api.scale.executor import Shard, Work
from semievol_api.scale.quota_server import QuotaConnection, ShardLeases

SHARDS = "journal-shards"


@dataclass(frozen=True)
class StudentSpec:
    """The student without its clients: a role's model, what it is, and the name of its provider in the config."""

    models: Mapping[str, str]
    identities: Mapping[str, str]
    provider: str
    external: Mapping[str, str]
    seed: int
    max_failed_share: float
    abilities: tuple[str, ...]
    """The fields of the provider's table that are filled: the run may have found that it lacks one."""


@dataclass(frozen=True)
class EmbedderSpec:
    """The embedding tool without its client."""

    provider: str
    model: str


@dataclass(frozen=True)
class StageTask:
    """One stage's work for one tool."""

    config: Config
    tool: StudentSpec | EmbedderSpec
    work: Work[Any]

    def journal(self, shard: Shard) -> Path:
        """The shard's own journal: named by the first bits of its ids' hashes, so that an id's is always the same one
        while the pool keeps its number of shards."""
        return self.config.run.folder / SHARDS / f"{shard_name(shard, len(self.work.sizes))}.sqlite"


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard: its table as an Arrow stream, or the error that ended it; the bill either way."""

    shard: Shard
    table: bytes = b""
    error: SemievolError | None = None
    bills: Mapping[str, StageBill] = field(default_factory=dict[str, StageBill])


def shard_name(shard: Shard, sizes: int) -> str:
    """`parts-NNNN-MMMM` for the M-th of N hash prefixes, `beside-...` for examples that are in no part."""
    parts = max(1, sizes - 1)
    if sizes > 1 and shard.part == parts:
        return f"beside-{shard.of:04d}-{shard.index:04d}"
    return f"parts-{parts * shard.of:04d}-{shard.part * shard.of + shard.index:04d}"


def journals_of(folder: Path) -> tuple[Path, ...]:
    """The shards' journals of a run."""
    return tuple(sorted((folder / SHARDS).glob("*.sqlite")))


def shards_of(work: Work[Any], shard_rows: int) -> list[Shard]:
    """All shards of a work; a part's are a power of two, of about so many rows each."""
    found: list[Shard] = []
    sizes = work.sizes
    whole = max(sizes, default=0)
    of = 1
    while of * shard_rows < whole:
        of *= 2
    for part in range(len(sizes)):
        found += [Shard(part, index, of) for index in range(of)]
    return found


class RemoteQuotas:
    """The way to a quota server that is a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def opened(self, shard: str, spent: Any) -> None:
        """See `QuotaConnection`."""
        await self._actor.opened.remote(shard, spent)

    async def closed(self, shard: str, spent: Any) -> None:
        """See `QuotaConnection`."""
        await self._actor.closed.remote(shard, spent)

    async def more(self, shard: str, need: Any) -> Any:
        """See `QuotaConnection`."""
        return await self._actor.more.remote(shard, need)

    async def pace(self, tokens: float) -> int:
        """See `QuotaConnection`."""
        return int(await self._actor.pace.remote(tokens))


class ShardWorker:
    """A Ray Data actor: made once per process, called with one shard at a time."""

    def __init__(self, task: Any, quota_server: Any) -> None:
        import ray

        self._task: StageTask = ray.get(task)
        self._quotas = RemoteQuotas(quota_server)
        self._loop = asyncio.new_event_loop()
        self._providers = _providers(self._task)

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """One row in, one row out: a pickled shard to what became of it."""
        shards: list[Shard] = [pickle.loads(row) for row in batch["shard"]]  # noqa: S301  # made by the driver
        done = [
            self._loop.run_until_complete(answer(self._task, shard, self._providers, self._quotas)) for shard in shards
        ]
        return {"done": [pickle.dumps(one) for one in done]}


async def answer(
    task: StageTask, shard: Shard, providers: Mapping[str, Provider], quotas: QuotaConnection
) -> ShardResult:
    """Work on a shard with an engine on the shard's own journal."""
    limits = task.config.limits
    path = task.journal(shard)
    paced = limits.rpm is not None or limits.tpm is not None
    own = limits.model_copy(update={"rpm": None, "tpm": None})
    main = task.config.run.journal_path
    others = [p for p in (main, *journals_of(task.config.run.folder)) if p != path and _may_know(p.stem, path.stem)]
    leases = ShardLeases(quotas, path.stem, paced=paced)
    fleet = Fleet(journals=others, leases=leases)
    bills: Any = {}
    try:
        async with RequestEngine.open(path, own, run=str(task.config.run.folder), fleet=fleet) as engine:
            try:
                table = await task.work(_tool(task, engine, providers), shard)
            finally:
                bills = dict(engine.ledger.stages)
    except SemievolError as error:
        return ShardResult(shard, error=_portable(error), bills=bills)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return ShardResult(shard, sink.getvalue().to_pybytes(), bills=bills)


def _portable(error: SemievolError) -> SemievolError:
    """The error as another process can have it: what cannot be pickled is told in its own words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except TypeError:
        return StageError(str(error))
    return error


def _may_know(other: str, own: str) -> bool:
    """Whether another journal can hold a shard's requests: the main one, or one of another number of shards whose
    prefix overlaps."""
    if not other.startswith(("parts-", "beside-")):
        return True
    kind, count, index = own.rsplit("-", 2)
    other_kind, other_count, other_index = other.rsplit("-", 2)
    if kind != other_kind:
        return count != other_count
    mine, theirs = int(index) / int(count), int(other_index) / int(other_count)
    return mine < theirs + 1 / int(other_count) and theirs < mine + 1 / int(count)


def _tool(task: StageTask, engine: RequestEngine, providers: Mapping[str, Provider]) -> Student | EmbeddingTool:
    tool = task.tool
    if isinstance(tool, EmbedderSpec):
        return EmbeddingTool(engine, providers[tool.provider], tool.model)
    return Student(
        engine=engine,
        provider=_with_abilities(providers[tool.provider], tool.abilities),
        models=tool.models,
        identities=tool.identities,
        seed=tool.seed,
        max_failed_share=tool.max_failed_share,
        external={role: providers[name] for role, name in tool.external.items()},
    )


def _with_abilities(provider: Provider, abilities: tuple[str, ...]) -> Provider:
    gone = {f.name: None for f in fields(provider) if f.name in ("scored", "option_reader") and f.name not in abilities}
    return replace(provider, **gone)  # type: ignore[arg-type]


def _providers(task: StageTask) -> Mapping[str, Provider]:
    """The clients of the tool's providers, as `session.check` makes them."""
    config, tool = task.config, task.tool
    names = [tool.provider, *(tool.external.values() if isinstance(tool, StudentSpec) else ())]
    catalogue = known_catalogue(config.catalogue.file)
    base = str(config.run.folder.parent)
    return {
        name: with_limits(connect(name, config.providers[name], base_folder=base), catalogue)
        for name in dict.fromkeys(names)
    }
