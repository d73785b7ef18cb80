"""What a run does with deployments at a real server: made once, woken when asked, put down at the end."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from local_samples import training_lines
from server_running import Deploying, RunningServer, wait_for_job

from semievol_api.capabilities import Chat, ChatRequest, JobEvent, Provider, ProviderSettings, Reply
from semievol_api.cassettes.clock import RealClock
from semievol_api.config.settings import Config, parse_config
from semievol_api.engine import Answer, Ask, RequestEngine
from semievol_api.errors import BudgetError, ConfigError, SemievolError, StageError
from semievol_api.records import Message, Prompt
from semievol_api.training.deployments import (
    Deployed,
    delete_deployments,
    deployments_left,
    deployments_under,
    open_deployments,
)
from semievol_providers.openai import connect

pytest_plugins = ("server_fixtures",)


@dataclass(frozen=True)
class _Slowly:
    """A chat whose replies take longer."""

    inner: Chat
    slow_s: float

    async def complete(self, request: ChatRequest) -> Reply:
        reply = await self.inner.complete(request)
        await asyncio.sleep(self.slow_s)
        return reply


@dataclass
class Run:
    """One run's folder over a deploying server; `told` is what it said."""

    here: Deploying
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    slow_s: float = 0.0

    @property
    def config(self) -> Config:
        tables: dict[str, Any] = {
            "run": {"folder": "run"},
            "data": {"task": "mmlu", "labeled": "l.csv", "unlabeled": "u.csv"},
            "providers": {"server": {"kind": "openai", "base_url": self.here.server.url}},
            "roles": {"student": {"provider": "server", "model": "tiny"}},
            "deploy": {"poll_s": 0.1, **self.settings.get("deploy", {})},
            "limits": self.settings.get("limits", {}),
        }
        return parse_config(tables, self.folder, where="test")

    def provider(self) -> Provider:
        options = {"base_url": self.here.server.url, "api_key_env": "KEY", "deployments": True}
        provider = connect(ProviderSettings(name="server", options=options, environ={"KEY": "mine"}))
        return replace(provider, chat=_Slowly(provider.chat, self.slow_s)) if provider.chat is not None else provider

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[RequestEngine, Provider]]:
        config, provider = self.config, self.provider()
        config.run.folder.mkdir(parents=True, exist_ok=True)

        def on_event(_name: str, event: JobEvent) -> None:
            self.told.append(event.message)

        try:
            async with (
                RequestEngine.open(config.run.journal_path, config.limits, run="r") as engine,
                open_deployments(config, engine, RealClock(), on_event) as deployments,
            ):
                yield engine, deployments.over(provider)
        finally:
            await provider.aclose()

    async def ask(self, count: int = 3, model: str = "") -> list[Answer[Reply]]:
        async with self.open() as (engine, provider):
            return await asked(engine, provider, model or self.here.model, count)

    @property
    def record(self) -> Deployed:
        ((_, record),) = deployments_under(self.folder)
        return record

    @property
    def at_the_server(self) -> list[str]:
        """The states of all deployments that are there."""
        return [found["status"] for found in self.here.ask("GET")[1]["data"]]

    @property
    def ever_made(self) -> int:
        """How many deployments the server has ever made."""
        database = self.here.server.folder / "state" / "state.sqlite"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'deployments'").fetchone()
        return 0 if found is None else int(found[0])


async def asked(engine: RequestEngine, provider: Provider, model: str, count: int) -> list[Answer[Reply]]:
    prompts = [Prompt((Message("user", f"Item {i} x"),)) for i in range(count)]
    asks = [Ask(f"q{i}", ChatRequest(model=model, prompt=p, max_tokens=1)) for i, p in enumerate(prompts)]
    return [answer async for answer in engine.chat(provider, asks, stage="test")]


@pytest.fixture
def run(deploying: Deploying, tmp_path: Path) -> Run:
    for found in deploying.ask("GET")[1]["data"]:
        deploying.ask("DELETE", f"/{found['id']}")
    return Run(deploying, tmp_path)


async def test_a_run_deploys_what_it_asks_once_and_scales_it_to_zero(run: Run) -> None:
    made_before = run.ever_made
    assert all(answer.reply is not None for answer in await run.ask())
    assert run.record.status == "asleep" and run.record.hours(time.time()) * 3600 >= 1.0
    assert run.at_the_server == ["asleep"]
    assert all(answer.reply is not None for answer in await run.ask(5))  # two more: it is woken, not made again
    assert run.ever_made == made_before + 1
    told = len(run.told)
    assert all(answer.cached for answer in await run.ask(5))  # nothing to ask: nothing is woken
    assert len(run.told) == told and run.at_the_server == ["asleep"]


async def test_the_base_model_is_asked_without_a_deployment(run: Run) -> None:
    assert all(answer.reply is not None for answer in await run.ask(model="tiny"))
    assert run.at_the_server == [] and deployments_under(run.folder) == []


@pytest.mark.parametrize(("at_end", "left"), [("delete", []), ("keep", ["ready"])])
async def test_the_end_of_a_run_is_as_the_config_says(run: Run, at_end: str, left: list[str]) -> None:
    run.settings = {"deploy": {"at_end": at_end}}
    await run.ask()
    assert run.at_the_server == left
    assert run.record.status == ("deleted" if at_end == "delete" else "awake")


async def test_a_failure_and_a_stop_put_it_down_too(run: Run) -> None:
    with pytest.raises(RuntimeError):
        async with run.open() as (engine, provider):
            await asked(engine, provider, run.here.model, 1)
            raise RuntimeError("a stage failed")
    assert run.at_the_server == ["asleep"]

    answered = asyncio.Event()

    async def stopped() -> None:
        async with run.open() as (engine, provider):
            await asked(engine, provider, run.here.model, 4)
            answered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(stopped())
    await answered.wait()
    assert run.at_the_server == ["ready"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.at_the_server == ["asleep"] and run.record.status == "asleep"


async def test_what_nothing_asks_for_a_while_sleeps_and_is_woken_again(run: Run) -> None:
    run.settings = {"deploy": {"idle_s": 1.0}, "limits": {"timeout_s": 1.0}}
    async with run.open() as (engine, provider):
        await asked(engine, provider, run.here.model, 1)
        for _ in range(200):
            if run.at_the_server == ["asleep"]:
                break
            await asyncio.sleep(0.1)
        assert run.record.status == "asleep"
        assert all(answer.reply is not None for answer in await asked(engine, provider, run.here.model, 2))


async def test_what_answers_a_slow_request_is_not_idle_however_long_that_takes(run: Run) -> None:
    run.settings, run.slow_s = {"deploy": {"idle_s": 0.4}, "limits": {"timeout_s": 0.5}}, 3.0
    async with run.open() as (engine, provider):
        asking = asyncio.create_task(asked(engine, provider, run.here.model, 1))
        seen = list[str]()
        while not asking.done():
            seen += [run.record.status] if deployments_under(run.folder) else []
            await asyncio.sleep(0.05)
        assert all(answer.reply is not None for answer in await asking)
        assert "awake" in seen and "asleep" not in seen
        for _ in range(100):
            if run.record.status == "asleep":
                break
            await asyncio.sleep(0.1)
        assert run.record.status == "asleep"  # once nothing is in flight


async def test_one_that_vanishes_is_made_again_once_and_a_second_time_is_told(run: Run) -> None:
    async with run.open() as (engine, provider):
        await asked(engine, provider, run.here.model, 1)
        run.here.ask("DELETE", f"/{run.record.deployment_id}")
        assert all(answer.reply is not None for answer in await asked(engine, provider, run.here.model, 3))
        run.here.ask("DELETE", f"/{run.record.deployment_id}")
        with pytest.raises(StageError, match="gone a second time"):
            await asked(engine, provider, run.here.model, 5)
    assert run.at_the_server == []


async def test_one_that_never_gets_ready_is_deleted_and_told(run: Run, deploying: Deploying) -> None:
    run.settings = {"deploy": {"wait_s": 0.3}}
    with pytest.raises(StageError, match=r"did not get ready within 0.3 s \(its state: starting\)"):
        await run.ask()
    assert run.at_the_server == [] and run.record.status == "deleted"


async def test_a_server_that_deploys_nothing_is_told_in_one_paragraph(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path / "server") as server:
        client = server.client()
        file = client.files.create(file=("t.jsonl", training_lines(12).encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 1})
        plain = Run(Deploying(server, wait_for_job(client, job.id).fine_tuned_model), tmp_path)
        with pytest.raises(StageError, match="start it with --deployments") as told:
            await plain.ask()
    assert "\n" not in str(told.value) and plain.record.status == "failed" and not plain.record.costs


async def test_hours_count_and_the_cap_puts_it_down_before_the_run_stops(run: Run) -> None:
    run.settings = {"deploy": {"usd_per_hour": 3600.0, "idle_s": 1.0}, "limits": {"max_usd": 4.0, "timeout_s": 1.0}}
    async with run.open() as (engine, provider):
        with pytest.raises(BudgetError, match=r"budget is spent: .* of max_usd = 4 USD"):
            for count in range(1, 1000):
                await asked(engine, provider, run.here.model, count)
                await asyncio.sleep(0.05)
        assert run.at_the_server == ["asleep"] and run.record.status == "asleep"  # before the run has ended
        with pytest.raises(BudgetError, match=r"the deployment of .* costs 3600 USD per hour. It is put down."):
            await asked(engine, provider, run.here.model, 2000)
    spent = run.record.usd(time.time())
    assert spent is not None and 1.0 < spent <= 4.5
    run.settings["limits"]["max_usd"] = spent  # what earlier hours cost is charged when the run opens
    with pytest.raises(BudgetError):
        await run.ask(2000)
    assert run.at_the_server == ["asleep"]


async def test_a_cap_in_usd_needs_the_price_of_an_hour(run: Run) -> None:
    run.settings = {"limits": {"max_usd": 5.0}}
    with pytest.raises(ConfigError, match=r"Set \[deploy\] usd_per_hour"):
        await run.ask()
    assert run.at_the_server == []


async def test_a_killed_run_finds_its_deployment_and_cleaning_up_deletes_it(run: Run) -> None:
    """A kill before the vendor's answer leaves a file without an id; what was made then is found by its run key."""
    run.settings = {"deploy": {"at_end": "keep"}}
    await run.ask(1)
    (path,) = run.folder.rglob("deployments/*.json")
    record = json.loads(path.read_text()) | {"deployment_id": None, "asked_as": None, "status": "creating"}
    path.write_text(json.dumps(record))
    made = run.ever_made
    await run.ask(3)
    assert run.ever_made == made and run.record.deployment_id is not None
    path.write_text(json.dumps(record))
    provider = run.provider()
    (left,) = deployments_left(run.folder, "server")
    assert "it runs" in left.why and left.id == run.record.run_key
    assert await delete_deployments(run.folder, provider) == []
    await provider.aclose()
    assert run.at_the_server == [] and deployments_left(run.folder, "server") == []


async def test_a_damaged_record_is_no_reason_to_deploy_again(run: Run) -> None:
    await run.ask(1)
    (path,) = run.folder.rglob("deployments/*.json")
    path.write_text("{")
    with pytest.raises(SemievolError, match="may cost money"):
        await run.ask(2)
