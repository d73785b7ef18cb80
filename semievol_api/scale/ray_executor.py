"""`[run] engine = "ray"`: a stage's shards as a Ray Data pipeline over actors.

Ray Data hands the shards to as many workers as `[ray]` says, starts dead ones anew and gives their shards again; a
shard that is given again finds in its journal what was answered. Knows nothing of requests or of what stages do.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import pyarrow as pa

from semievol_api.annotate.requests import Student
from semievol_api.capabilities import Provider
from semievol_api.config.settings import Config
from semievol_api.engine import Progress, RequestEngine, spent_in
from semievol_api.engine.budget import Spend
from semievol_api.errors import ConfigError, MissingExtraError
from semievol_api.scale.executor import Executor, LocalExecutor, Shard, ToolT, Work
from semievol_api.scale.quota_server import QuotaServer
from semievol_api.scale.worker import (
    EmbedderSpec,
    ShardResult,
    ShardWorker,
    StageTask,
    StudentSpec,
    journals_of,
    shards_of,
)

LOOPBACK = "127.0.0.1"
"""Where a Ray of this machine alone listens: an outer address may be behind a VPN or a firewall, and open to others."""
ENDS_WITHIN_S = 10.0
"""How long a pipeline that is given up may take to end; Ray ends it with the run in any case."""


@contextmanager
def open_executor(config: Config, engine: RequestEngine) -> Generator[Executor]:
    """This process, or the cluster of `[ray]` until the block ends.

    Raises:
        MissingExtraError: the config wants Ray, and it is not installed.
        ConfigError: the config wants Ray and something that only one process can do.
    """
    if config.run.engine == "local":
        yield LocalExecutor()
        return
    refuse_what_is_local(config)
    connection = Connection(config)
    try:
        yield RayExecutor(config, engine)
    finally:
        connection.close()


@dataclass(frozen=True)
class RayExecutor:
    """`Executor` over a Ray that is connected already; `engine` is this process's, which keeps bill and bars."""

    config: Config
    engine: RequestEngine

    async def run(self, tool: ToolT, work: Work[ToolT]) -> AsyncGenerator[pa.Table]:
        """See `Executor`."""
        task = StageTask(self.config, self._described(tool), work)
        shards = shards_of(work, self.config.ray.shard_rows)
        if len(shards) == 1:  # less than a worker's start costs
            async for table in LocalExecutor().run(tool, work):
                yield table
            return
        quota_server = _quota_server(self.config, self.engine)
        waiting: dict[int, list[pa.Table]] = {}
        results = _results(task, shards, quota_server)
        try:
            while True:
                done: ShardResult | None = await asyncio.to_thread(next, results, None)
                if done is None:
                    break
                tables = waiting.setdefault(done.shard.part, [])
                tables.append(self._taken(done, work.stage))
                if len(tables) == done.shard.of:
                    yield work.joined(done.shard.part, waiting.pop(done.shard.part))
        finally:
            with suppress(TimeoutError):  # else Ray Data goes on with what nobody wants any more
                await asyncio.wait_for(asyncio.to_thread(results.close), ENDS_WITHIN_S)
            await self._settle(quota_server)

    def _taken(self, done: ShardResult, stage: str) -> pa.Table:
        """A shard's table; its bill is ours, and its rows are on the bars."""
        self.engine.took_over(done.bills)
        if done.error is not None:
            raise done.error
        table = pa.ipc.open_stream(done.table).read_all()
        failures = table["finish"].to_pylist() if "finish" in table.column_names else [""] * len(table)
        cached = not any(bill.requests for bill in done.bills.values())
        for name, finish in zip(table["example_id"].to_pylist(), failures, strict=True):
            self.engine.tell(Progress(stage, name, cached, finish == "failed"))
        return table

    async def _settle(self, quota_server: Any) -> None:
        import ray

        spent: Spend = await asyncio.to_thread(ray.get, quota_server.spent.remote())
        more = spent.minus(self.engine.spent)
        self.engine.charge(more.usd, more.tokens)
        ray.kill(quota_server)

    def _described(self, tool: object) -> StudentSpec | EmbedderSpec:
        if not isinstance(tool, Student):
            provider, model = attrgetter("provider", "model")(tool)
            return EmbedderSpec(provider.name, model)
        filled = [f.name for f in fields(Provider) if attrgetter(f.name)(tool.provider) is not None]
        return StudentSpec(
            models=dict(tool.models),
            identities=dict(tool.identities),
            provider=tool.provider.name,
            external={role: provider.name for role, provider in tool.external.items()},
            seed=tool.seed,
            max_failed_share=tool.max_failed_share,
            abilities=tuple(filled),
        )


def _quota_server(config: Config, engine: RequestEngine) -> Any:
    """The one actor that holds quotas and budget: on this node, which no worker's death takes away."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(QuotaServer)
    actor = remote.options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
    run, rest = str(config.run.folder), engine.spent
    spent = {path.stem: spent_in(path, run) for path in journals_of(config.run.folder)}
    for amount in spent.values():
        rest = rest.minus(amount)
    return actor.remote(config.limits, {**spent, "": rest}, config.ray.workers)


def _results(task: StageTask, shards: list[Shard], quota_server: Any) -> Generator[ShardResult]:
    """What became of each shard, in their task."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    settings = task.config.ray
    items = [{"shard": pickle.dumps(shard)} for shard in shards]
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ShardWorker,
        batch_size=1,
        fn_constructor_args=(ray.put(task), quota_server),
        compute=ray.data.ActorPoolStrategy(size=min(settings.workers, len(items)), max_tasks_in_flight_per_actor=1),
        num_cpus=settings.cpus_per_worker,
        num_gpus=settings.gpus_per_worker or None,
    )
    rows = data.iter_rows()
    try:
        for row in rows:
            yield pickle.loads(row["done"])  # noqa: S301  # made by our own worker
    finally:
        del rows, data
        gc.collect()  # the pipeline ends with its last iterator


def refuse_what_is_local(config: Config) -> None:
    """Recording needs one process, and a vendor's batches need no workers.

    Raises:
        ConfigError: the config wants either.
    """
    if config.cassette is not None:
        raise ConfigError('[cassette] records one process; set [run] engine = "local" to record or to replay.')
    if config.limits.mode == "batch":
        raise ConfigError(
            '[limits] mode = "batch" is a vendor\'s own queue; it needs no workers: [run] engine = "local".'
        )


class Connection:
    """A cluster for the length of a run: the user's, one that is connected already, or a local one."""

    def __init__(self, config: Config) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtraError("ray", "ray", 'The setting [run] engine = "ray"') from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        settings = config.ray
        if not self._ours:
            return
        local: dict[str, Any] = {}
        if settings.address is None:  # a new one, whatever cluster was last seen on this machine
            local |= {"include_dashboard": False, "_node_ip_address": LOOPBACK}
            if settings.object_store_mb is not None:
                local["object_store_memory"] = settings.object_store_mb * 2**20
        try:
            ray.init(address=settings.address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
        except (OSError, RuntimeError, ValueError) as error:
            where = "on this machine" if settings.address is None else f"at {settings.address!r}"
            raise ConfigError(
                f"Ray could not be started or reached {where}: {str(error).splitlines()[0]} Check [ray] address, or "
                f'set [run] engine = "local".'
            ) from None

    def close(self) -> None:
        """End what was begun here."""
        if self._ours:
            self._ray.shutdown()
