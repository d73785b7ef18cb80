"""Fireworks: jobs and deployments with ids of our choice, at a server that is held to the types of its SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("fireworks", reason="needs the extra fireworks")

from semievol_api.capabilities import (
    ChatRequest,
    Deployer,
    DeployRequest,
    FineTuner,
    FineTuneRequest,
    Provider,
    ProviderSettings,
    TrainSpec,
)
from semievol_api.cassettes.clock import VirtualClock
from semievol_api.config.settings import parse_config
from semievol_api.engine import Ask, RequestEngine
from semievol_api.errors import ConfigError, RefusedError, StageError
from semievol_api.records import Message, Prompt
from semievol_api.training.deployments import deployments_under, open_deployments
from semievol_providers.fireworks import connect
from tests.providers.fireworks_server import ACCOUNT, BASE, KEY, FireworksServer, fireworks_settings
from tests.providers.openai_loopback import Cut

TUNED = f"accounts/{ACCOUNT}/models/semievol-tuned"
LINE = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
REQUEST = FineTuneRequest(
    model=BASE,
    training_file=f"{LINE}\n".encode() * 10,
    run_key="0123456789abcdef0123456789abcdef",
    spec=TrainSpec(n_epochs=3, batch_size=8, seed=7),
    suffix="tickets",
)
DEPLOY = DeployRequest(model=TUNED, run_key="fedcba9876543210fedcba9876543210")


@asynccontextmanager
async def provider_at(server: FireworksServer, **options: object) -> AsyncIterator[Provider]:
    async with server:
        provider = connect(fireworks_settings(server, **options))
        server.clients.push_async_callback(provider.aclose)
        yield provider


def tuner_of(provider: Provider) -> FineTuner:
    assert provider.finetuner is not None
    return provider.finetuner


def deployer_of(provider: Provider) -> Deployer:
    assert provider.deployer is not None
    return provider.deployer


async def test_a_training_has_ids_of_our_choice_and_says_what_it_was_asked() -> None:
    server = FireworksServer()
    async with provider_at(server) as provider:
        tuner = tuner_of(provider)
        ticket = await tuner.submit(REQUEST)
        assert await tuner.find(REQUEST) == ticket
        while not (state := await tuner.poll(ticket)).finished:
            pass
        (job,) = server.tunings.values()
        (content,) = server.uploads.values()
    assert content == REQUEST.training_file
    assert ticket.job_id == "semievol-0123456789abcdef01234567"
    assert state.model == f"accounts/{ACCOUNT}/models/{ticket.job_id}" == job["outputModel"]
    asked = {name: job.get(name) for name in ("baseModel", "epochs", "batchSizeSamples", "loraRank", "learningRate")}
    assert asked == {
        "baseModel": BASE, "epochs": 3, "batchSizeSamples": 8, "loraRank": None, "learningRate": None,
    }  # fmt: skip


async def test_a_lost_reply_to_a_creation_makes_one_job_and_one_dataset() -> None:
    server = FireworksServer()
    async with provider_at(server) as provider:
        tuner = tuner_of(provider)
        server.faults = [Cut(on="supervisedFineTuningJobs", method="POST")]
        with pytest.raises(Exception, match="supervisedFineTuningJobs"):
            await tuner.submit(REQUEST)
        found = await tuner.find(REQUEST)
        assert found is not None and found.job_id in server.tunings
        assert len(server.tunings) == len(server.datasets) == 1


async def test_a_failed_training_says_why_and_is_bought_under_the_next_id() -> None:
    server = FireworksServer()
    server.outcome = "JOB_STATE_FAILED"
    async with provider_at(server) as provider:
        tuner = tuner_of(provider)
        ticket = await tuner.submit(REQUEST)
        while not (state := await tuner.poll(ticket)).finished:
            pass
        assert (state.status, state.reason) == ("failed", "row 3: no assistant turn")
        assert await tuner.find(REQUEST) is None
        again = await tuner.submit(REQUEST)
        assert again.job_id == f"{ticket.job_id}-2" and await tuner.find(REQUEST) == again


async def test_a_tuned_model_is_tuned_on_from_its_adapter() -> None:
    server = FireworksServer()
    async with provider_at(server) as provider:
        await tuner_of(provider).submit(FineTuneRequest(**{**vars_of(REQUEST), "model": TUNED}))
        (job,) = server.tunings.values()
    assert job["warmStartFrom"] == TUNED and "baseModel" not in job


def vars_of(request: FineTuneRequest) -> dict[str, object]:
    return {name: getattr(request, name) for name in FineTuneRequest.__slots__}


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("JOB_STATE_PAUSED", "paused"), ("JOB_STATE_EXPIRED", "failed"), ("JOB_STATE_EARLY_STOPPED", "succeeded"),
        ("JOB_STATE_RE_QUEUEING", "queued"), ("JOB_STATE_CANCELLING", "running"), ("JOB_STATE_IDLE", "queued"),
        ("JOB_STATE_DELETING", "cancelled"), ("JOB_STATE_SOMETHING_NEW", "unknown"),
    ],
)  # fmt: skip
async def test_every_documented_state_is_one_of_ours(state: str, status: str) -> None:
    server = FireworksServer()
    async with provider_at(server) as provider:
        ticket = await tuner_of(provider).submit(REQUEST)
        server.tunings[ticket.job_id]["state"] = state
        assert (await tuner_of(provider).poll(ticket)).status == status


async def test_a_deployment_lives_sleeps_wakes_and_comes_back_from_the_dead() -> None:
    server = FireworksServer()
    async with provider_at(server, accelerators=2) as provider:
        server.own_models.add(TUNED)
        deployer = deployer_of(provider)
        assert deployer.needs(TUNED) and not deployer.needs(BASE) and deployer.tokens_are_free
        assert await deployer.find(DEPLOY) is None
        made = await deployer.deploy(DEPLOY)
        states = [(await deployer.poll(made)).status for _ in range(3)]
        assert states == ["starting", "starting", "ready"] and await deployer.find(DEPLOY) == made
        assert (await deployer.poll(made)).asked_as == f"{TUNED}#accounts/{ACCOUNT}/deployments/{made}"
        await deployer.sleep(made)
        assert (await deployer.poll(made)).status == "asleep"
        await deployer.wake(made)
        await deployer.poll(made)
        assert (await deployer.poll(made)).status == "ready"
        (body,) = [seen.body for seen in server.requests if seen.path.endswith("/deployments")]
        assert (body["acceleratorCount"], body["minReplicaCount"]) == (2, 0)
        assert body["autoscalingPolicy"] == {"scaleToZeroWindow": "300s"}
        await deployer.delete(made)
        await deployer.delete(made)
        assert (await deployer.poll(made)).status == "deleted" and await deployer.find(DEPLOY) is None
        assert await deployer.deploy(DEPLOY) == made  # the id is not free again: it is brought back
        assert (await deployer.poll(made)).status == "starting"


async def run_on(provider: Provider, folder: Path, count: int) -> list[str | None]:
    """What a run gets from the tuned model; a sentence where it gets nothing."""
    tables = {
        "run": {"folder": "run"},
        "data": {"task": "mmlu", "labeled": "l", "unlabeled": "u"},
        "providers": {"fireworks": {"kind": "fireworks"}},
        "roles": {"student": {"provider": "fireworks", "model": BASE}},
    }
    config = parse_config(tables, folder, where="test")
    config.run.folder.mkdir(exist_ok=True)
    prompts = [Prompt((Message("user", f"question {i}"),)) for i in range(count)]
    asks = [
        Ask(f"q{i}", ChatRequest(model=TUNED, prompt=p, max_tokens=4, logprobs=True)) for i, p in enumerate(prompts)
    ]
    clock = VirtualClock()
    async with (
        RequestEngine.open(config.run.journal_path, config.limits, clock=clock, run="r") as engine,
        open_deployments(config, engine, clock) as deployments,
    ):
        got = engine.chat(deployments.over(provider), asks, stage="test")
        return [None if answer.reply is not None else answer.failure async for answer in got]


async def test_a_run_asks_a_tuned_model_at_its_deployment_and_scales_it_to_zero(tmp_path: Path) -> None:
    server = FireworksServer()
    async with provider_at(server) as provider:
        server.own_models.add(TUNED)
        assert await run_on(provider, tmp_path, 3) == [None] * 3
        (there,) = server.deployed.values()
        assert (there["desiredReplicaCount"], there["state"]) == (0, "READY")
        assert [record.status for _, record in deployments_under(tmp_path)] == ["asleep"]


@pytest.mark.parametrize(("outcome", "quota", "words"), [("FAILED", 10, "FAILED"), ("READY", 0, "quota exceeded")])
async def test_a_refused_or_failed_deployment_is_one_paragraph(
    tmp_path: Path, outcome: str, quota: int, words: str
) -> None:
    server = FireworksServer()
    server.deployment_outcome, server.quota = outcome, quota
    async with provider_at(server) as provider:
        server.own_models.add(TUNED)
        with pytest.raises(StageError, match=words) as told:
            await run_on(provider, tmp_path, 1)
    assert "\n" not in str(told.value) and "run again" in str(told.value)


async def test_datasets_and_models_are_cleaned_up() -> None:
    server = FireworksServer()
    async with provider_at(server) as provider:
        ticket = await tuner_of(provider).submit(REQUEST)
        storage = provider.remote
        assert storage is not None
        assert await storage.files_with(REQUEST.training_file) == [ticket.training_file_id]
        await storage.delete_file(str(ticket.training_file_id))
        assert server.datasets == {} and await storage.files_with(REQUEST.training_file) == []
        server.own_models.add(TUNED)
        assert (await storage.model(TUNED)).name == TUNED
        await storage.delete_model(TUNED)
        with pytest.raises(RefusedError):
            await storage.model(TUNED)
        assert (await storage.model(BASE)).name == BASE


def test_an_account_is_needed_and_the_key_is_read_from_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"providers\.fw\.account"):
        connect(ProviderSettings(name="fw", options={}, environ={"FIREWORKS_API_KEY": KEY}))
    with pytest.raises(ConfigError, match="FIREWORKS_API_KEY"):
        connect(ProviderSettings(name="fw", options={"account": "acme"}, environ={}))
    planned = connect(ProviderSettings(name="fw", options={"account": "acme"}, environ={}, planning=True))
    assert planned.vendor == "fireworks" and planned.batch is None
