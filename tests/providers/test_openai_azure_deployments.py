"""Deployments at Azure's control plane, at a server of the shape that Microsoft's reference describes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from semievol_api.capabilities import ChatRequest, DeployRequest, Provider, ProviderSettings
from semievol_api.cassettes.clock import VirtualClock
from semievol_api.config.settings import parse_config
from semievol_api.engine import Ask, RequestEngine
from semievol_api.errors import ConfigError, RefusedError, StageError
from semievol_api.records import Message, Prompt
from semievol_api.training.deployments import Deployed, deployments_under, open_deployments
from semievol_providers.openai import connect
from tests.providers.vendor_servers import AzureServer, azure_settings

TUNED = "gpt-4o-mini-2024-07-18.ft-0123abcd"
WHERE: dict[str, object] = {"subscription": "sub", "resource_group": "group", "account": "acme"}


@asynccontextmanager
async def azure_with(server: AzureServer) -> AsyncIterator[Provider]:
    async with server:
        parts = urlsplit(server.base_url)
        place = {**WHERE, "management_url": f"{parts.scheme}://{parts.netloc}"}
        provider = connect(azure_settings(server, deployments=place))
        server.clients.push_async_callback(provider.aclose)
        yield provider


async def answers_of(provider: Provider, folder: Path, count: int = 2) -> list[str | None]:
    """What a run gets from the tuned model; a sentence where it gets nothing."""
    tables = {
        "run": {"folder": "run"},
        "data": {"task": "mmlu", "labeled": "l", "unlabeled": "u"},
        "providers": {"azure": {"kind": "openai"}},
        "roles": {"student": {"provider": "azure", "model": TUNED}},
        "deploy": {"poll_s": 1.0},
    }
    config = parse_config(tables, folder, where="test")
    config.run.folder.mkdir(exist_ok=True)
    prompts = [Prompt((Message("user", f"question {i}"),)) for i in range(count)]
    asks = [Ask(f"q{i}", ChatRequest(model=TUNED, prompt=p, max_tokens=4)) for i, p in enumerate(prompts)]
    clock = VirtualClock()
    async with (
        RequestEngine.open(config.run.journal_path, config.limits, clock=clock, run="r") as engine,
        open_deployments(config, engine, clock) as deployments,
    ):
        got = engine.chat(deployments.over(provider), asks, stage="test")
        return [None if answer.reply is not None else answer.failure async for answer in got]


def record_in(folder: Path) -> Deployed:
    ((_, record),) = deployments_under(folder)
    return record


async def test_a_tuned_model_is_deployed_asked_by_its_deployments_name_and_deleted(tmp_path: Path) -> None:
    server = AzureServer()
    async with azure_with(server) as provider:
        assert await answers_of(provider, tmp_path) == [None, None]
        record = record_in(tmp_path)
        assert record.status == "deleted" and server.controlled == {}  # Azure has no sleep
        assert server.deployed_models == {record.asked_as: TUNED}
        asked = [one.path for one in server.requests if one.path.endswith("/chat/completions")]
        assert set(asked) == {f"/openai/deployments/{record.asked_as}/chat/completions"}
        assert await answers_of(provider, tmp_path, 4) == [None] * 4  # deployed again, for the two that are new
        assert list(server.deployed_models) == [record.asked_as]


async def test_the_same_deployment_is_found_by_its_name_after_a_kill(tmp_path: Path) -> None:
    server = AzureServer()
    async with azure_with(server) as provider:
        assert provider.deployer is not None
        request = DeployRequest(model=TUNED, run_key="0123456789abcdef0123456789abcdef")
        assert await provider.deployer.find(request) is None
        made = await provider.deployer.deploy(request)
        assert await provider.deployer.find(request) == made == await provider.deployer.deploy(request)
        assert len(server.controlled) == 1
        await provider.deployer.delete(made)
        await provider.deployer.delete(made)  # gone is gone
        assert (await provider.deployer.poll(made)).status == "deleted"


@pytest.mark.parametrize(
    ("outcome", "quota", "words"),
    [("Failed", 10, "failed"), ("Canceled", 10, "failed"), ("Succeeded", 0, "InsufficientQuota|new capacity")],
)
async def test_what_azure_refuses_or_fails_is_one_paragraph(
    tmp_path: Path, outcome: str, quota: int, words: str
) -> None:
    server = AzureServer()
    server.outcome, server.quota = outcome, quota
    async with azure_with(server) as provider:
        with pytest.raises(StageError, match=words) as told:
            await answers_of(provider, tmp_path)
        assert "\n" not in str(told.value) and "run again" in str(told.value)
        assert not record_in(tmp_path).costs


async def test_azure_is_not_put_to_sleep_but_says_so() -> None:
    async with azure_with(AzureServer()) as provider:
        assert provider.deployer is not None
        with pytest.raises(RefusedError, match="delete it instead"):
            await provider.deployer.sleep("d")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vendor": "azure", "base_url": "https://x.test/openai", "deployments": True}, "subscription"),
        ({"vendor": "openai", "deployments": True}, "not at 'openai'"),
        ({"base_url": "https://x.test/v1", "deployments": WHERE}, "not at 'compatible'"),
        ({"vendor": "azure", "base_url": "https://x.test", "deployments": {"subscription": "s"}}, "deployments"),
        ({"vendor": "azure", "base_url": "https://x.test", "deployments": WHERE}, "AZURE_MANAGEMENT_TOKEN"),
    ],
)
def test_a_place_that_cannot_deploy_is_refused_by_key(options: dict[str, object], words: str) -> None:
    environ = {"AZURE_OPENAI_API_KEY": "k", "OPENAI_API_KEY": "k"}
    with pytest.raises(ConfigError, match=words):
        connect(ProviderSettings(name="azure", options=options, environ=environ))
