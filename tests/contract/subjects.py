"""The providers under contract: a table of ways to bring one up. A new provider adds one entry to `SUBJECTS`.

Knows nothing of what is asserted.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_providers.local.provider import connect as connect_local
from semievol_providers.openai import connect
from tests.providers.local_samples import make_tiny_model
from tests.providers.openai_loopback import LoopbackServer
from tests.providers.vendor_servers import AzureServer, IgnorantServer, azure_settings


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A live provider and what to ask of it. `poll_s` is the pause between two looks at a job or batch."""

    provider: Provider
    chat_model: str
    embedding_model: str
    base_model: str
    poll_s: float = 0.0


OpenSubject: TypeAlias = Callable[[], AbstractAsyncContextManager[Subject]]


@asynccontextmanager
async def openai_on_loopback() -> AsyncIterator[Subject]:
    """Provider `openai` against canned answers on this machine."""
    async with LoopbackServer() as server:
        provider = connect(_settings(server.base_url))
        yield Subject(provider=provider, chat_model="tiny", embedding_model="tiny", base_model="tiny")
        await provider.aclose()


@asynccontextmanager
async def openai_at_address() -> AsyncIterator[Subject]:
    """Provider `openai` against a server that already runs: SEMIEVOL_CONTRACT_URL and SEMIEVOL_CONTRACT_MODEL."""
    model = os.environ["SEMIEVOL_CONTRACT_MODEL"]
    provider = connect(_settings(os.environ["SEMIEVOL_CONTRACT_URL"]))
    yield Subject(provider=provider, chat_model=model, embedding_model=model, base_model=model, poll_s=0.5)
    await provider.aclose()


@asynccontextmanager
async def litellm_on_loopback() -> AsyncIterator[Subject]:
    """Provider `litellm` against the same canned answers."""
    pytest.importorskip("litellm", reason="needs the extra litellm")
    from semievol_providers.litellm import connect as connect_litellm

    async with LoopbackServer() as server:
        options = {"api_base": server.base_url, "api_key_env": ""}
        provider = connect_litellm(ProviderSettings(name="litellm", options=options, environ={}))
        yield Subject(provider=provider, chat_model="openai/tiny", embedding_model="openai/tiny", base_model="tiny")
        await provider.aclose()


@asynccontextmanager
async def azure_on_loopback() -> AsyncIterator[Subject]:
    """Provider `openai` with the preset `azure` against Azure-shaped answers."""
    async with AzureServer() as server:
        provider = connect(azure_settings(server))
        yield Subject(provider=provider, chat_model="tiny", embedding_model="tiny", base_model="tiny")
        await provider.aclose()


@asynccontextmanager
async def votes_only() -> AsyncIterator[Subject]:
    """Provider `openai` with a preset that says of log-probabilities that there are none."""
    async with IgnorantServer() as server:
        options = {"vendor": "groq", "base_url": server.base_url, "api_key_env": ""}
        provider = connect(ProviderSettings(name="together", options=options, environ={}))
        yield Subject(provider=provider, chat_model="tiny", embedding_model="tiny", base_model="tiny")
        await provider.aclose()


@asynccontextmanager
async def fireworks_on_loopback() -> AsyncIterator[Subject]:
    """Provider `fireworks` against a server that is held to the types of its SDK."""
    pytest.importorskip("fireworks", reason="needs the extra fireworks")
    from semievol_providers.fireworks import connect as connect_fireworks
    from tests.providers.fireworks_server import BASE, FireworksServer, fireworks_settings

    async with FireworksServer() as server:
        provider = connect_fireworks(fireworks_settings(server))
        yield Subject(provider=provider, chat_model=BASE, embedding_model=BASE, base_model=BASE)
        await provider.aclose()


@cache
def _tiny_model() -> Path:
    """A tiny random Llama, made once in a process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_tiny_model(Path(folder) / "tiny")
    return Path(folder) / "tiny"


@asynccontextmanager
async def local_in_process() -> AsyncIterator[Subject]:
    """Provider `local` on a tiny random Llama."""
    pytest.importorskip("torch", reason="needs the extra local")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(_tiny_model(), Path(folder) / "tiny")
        options = {"model": "tiny", "device": "cpu", "train": {"rank": 4, "alpha": 8}}
        provider = connect_local(ProviderSettings(name="local", options=options, environ={}, base_folder=folder))
        yield Subject(provider=provider, chat_model="tiny", embedding_model="tiny", base_model="tiny", poll_s=0.1)
        await provider.aclose()


def _settings(base_url: str) -> ProviderSettings:
    return ProviderSettings(name="openai", options={"base_url": base_url, "api_key_env": ""}, environ={})


SUBJECTS: Mapping[str, OpenSubject] = {
    "openai": openai_on_loopback,
    "azure": azure_on_loopback,
    "votes": votes_only,
    "litellm": litellm_on_loopback,
    "fireworks": fireworks_on_loopback,
    "local": local_in_process,
    **({"address": openai_at_address} if "SEMIEVOL_CONTRACT_URL" in os.environ else {}),
}
