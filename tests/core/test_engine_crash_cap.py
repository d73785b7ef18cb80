"""What a crash can lose: replies that are not on disk yet count towards a configured concurrency."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from engine_fakes import FakeServer, asks, provider

from semievol_api.capabilities import ChatRequest
from semievol_api.config.settings import Limits
from semievol_api.engine import RequestEngine

PATIENCE_S = 20.0


@pytest.mark.parametrize("cap", [1, 4])
async def test_no_more_replies_than_the_cap_are_paid_for_while_none_can_be_written(tmp_path: Path, cap: int) -> None:
    arrived = asyncio.Event()

    async def at_once(number: int, request: ChatRequest) -> None:
        if number + 1 >= cap:
            arrived.set()

    server, journal, names = FakeServer(at_once), tmp_path / "j", set[str]()

    async def collect(engine: RequestEngine) -> None:
        async for answer in engine.chat(provider(server), asks(40), stage="s"):
            names.add(answer.id)

    async with RequestEngine.open(journal, Limits(concurrency=cap)) as engine:
        with closing(sqlite3.connect(journal, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody else can write until this ends
            work = asyncio.create_task(collect(engine))
            await asyncio.wait_for(arrived.wait(), PATIENCE_S)
            await asyncio.sleep(0.1)  # replies come at once: without the rule all 40 would be here by now
            sent, seen = len(server.chats), set(names)
            other.execute("ROLLBACK")
        await asyncio.wait_for(work, PATIENCE_S)
    assert (sent, seen) == (cap, set())
    assert len(names) == len(server.chats) == 40
