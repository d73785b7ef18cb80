"""One real vLLM engine for all tests of a session, where vLLM is installed: `make test-vllm`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator

import pytest_asyncio
from local_samples import DEMO_MODEL

from semievol_api.capabilities import ProviderSettings
from tests.contract.subjects import Subject


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_subject() -> AsyncIterator[Subject]:
    """Provider `vllm` on the demo model, in float32 on the CPU. However many adapters come: one engine start."""
    from semievol_providers.vllm import connect
    from semievol_providers.vllm.provider import VllmChat

    with tempfile.TemporaryDirectory() as folder:
        options = {"model": str(DEMO_MODEL), "name": "demo-llama", "device": "cpu"}
        provider = connect(ProviderSettings(name="vllm", options=options, environ={}, base_folder=folder))
        name = "demo-llama"
        yield Subject(provider=provider, chat_model=name, embedding_model=name, base_model=name, poll_s=0.2)
        assert isinstance(provider.chat, VllmChat)
        assert provider.chat._engine.starts == 1
        await provider.aclose()
