"""A probe of a provider ends, whatever the server does."""

from __future__ import annotations

import asyncio
import inspect
import time
from dataclasses import replace

from semievol_api.capabilities import ChatRequest, ProviderSettings, Reply
from semievol_api.planning.provider_probe import ProbeModels, probe
from semievol_providers.scripted import connect


class _Hung:
    """A chat that never answers."""

    async def complete(self, request: ChatRequest) -> Reply:
        await asyncio.sleep(3600)
        raise AssertionError(request)


async def test_an_ability_that_does_not_answer_in_its_time_has_failed_and_the_next_is_asked() -> None:
    provider = replace(connect(ProviderSettings(name="mine", options={}, environ={})), chat=_Hung())
    began = time.monotonic()
    findings = await probe(provider, ProbeModels(chat="m", embed="m", train=None), most_s=0.2)
    assert time.monotonic() - began < 30
    found = {finding.ability: finding for finding in findings}
    assert found["chat"].outcome == "failed" and "no answer within 0.2 s" in found["chat"].detail
    assert found["embeddings"].outcome == "works"


def test_the_bound_is_that_of_a_vendors_other_requests() -> None:
    assert inspect.signature(probe).parameters["most_s"].default == 120.0
