"""A slow server is no lost one: what waits in its queue is not sent again, and less is sent at a time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from semievol_api.capabilities import ChatRequest, EmbedReply, EmbedRequest, is_nearby
from semievol_api.config.settings import Limits
from semievol_api.engine import Answer, RequestEngine
from semievol_api.engine.pacing import AdaptiveLimit
from tests.core.engine_fakes import FakeServer, asks, provider


class OneByOne:
    """Answers one request after the other, each in the same time; skips those that were left, as our server does."""

    def __init__(self, service_s: float) -> None:
        self._service_s = service_s
        self._turn = asyncio.Lock()

    async def __call__(self, _number: int, _request: ChatRequest) -> None:
        async with self._turn:
            await asyncio.sleep(self._service_s)


async def answers_of(
    journal: Path, server: FakeServer, count: int, limits: Limits, *, nearby: bool = False
) -> list[Answer[object]]:
    async with RequestEngine.open(journal, limits) as engine:
        stream = engine.chat(replace(provider(server), nearby=nearby), asks(count), stage="s")
        async with aclosing(stream) as answers:
            return [answer async for answer in answers]


@pytest.mark.parametrize("nearby", [False, True])
async def test_what_waits_in_a_slow_servers_queue_is_not_sent_again(tmp_path: Path, nearby: bool) -> None:
    server = FakeServer(OneByOne(0.2))  # sixteen at once: the last waits for three time-outs
    answers = await answers_of(tmp_path / "j", server, 20, Limits(timeout_s=1.0), nearby=nearby)
    assert all(answer.failure is None for answer in answers) and len(answers) == 20
    assert len(server.chats) == 20


async def test_a_machine_of_ones_own_may_take_longer_than_the_time_out_for_its_first_answer(tmp_path: Path) -> None:
    server = FakeServer(OneByOne(0.4))
    answers = await answers_of(tmp_path / "j", server, 3, Limits(timeout_s=0.1), nearby=True)
    assert all(answer.failure is None for answer in answers)
    assert len(server.chats) == 3


async def test_a_request_that_many_others_overtook_is_lost_and_sent_again(tmp_path: Path) -> None:
    async def lose_the_first(number: int, _request: ChatRequest) -> None:
        await asyncio.sleep(3600 if number == 0 else 0.02)

    server = FakeServer(lose_the_first)
    limits = Limits(timeout_s=2.0, concurrency=4)  # half a minute of silence would be the other reason
    async with asyncio.timeout(20):
        answers = await answers_of(tmp_path / "j", server, 200, limits, nearby=True)
    assert all(answer.failure is None for answer in answers)
    assert len(server.chats) == 201


async def test_a_hosted_server_has_twice_the_time_when_it_is_asked_again(tmp_path: Path) -> None:
    async def slow(_number: int, _request: ChatRequest) -> None:
        await asyncio.sleep(0.9)

    server = FakeServer(slow)
    answers = await answers_of(tmp_path / "j", server, 1, Limits(timeout_s=0.3))
    assert answers[0].failure is None
    assert len(server.chats) == 3  # 0.3, 0.6 and 1.2 s


async def test_the_first_slow_answer_does_not_open_the_gates(tmp_path: Path) -> None:
    server = FakeServer(OneByOne(0.02))
    await answers_of(tmp_path / "j", server, 60, Limits(timeout_s=0.05), nearby=True)
    assert server.most_in_flight <= 16


def test_concurrency_falls_while_replies_only_wait_in_a_queue() -> None:
    limit, now_s = AdaptiveLimit(1000), 0.0
    for _ in range(200):
        now_s += 1.0  # whatever is in flight
        limit.replied(now_s, limit.value, failed=False, slow=True)
    assert limit.value <= 4


def test_concurrency_stays_where_slow_replies_are_really_made_together() -> None:
    limit, now_s = AdaptiveLimit(64), 0.0
    values: list[int] = []
    for _ in range(3000):
        now_s += 60.0 / limit.value  # a minute each, side by side
        limit.replied(now_s, limit.value, failed=False, slow=True)
        values.append(limit.value)
    assert sum(values) / len(values) > 55
    assert min(values) >= 32


async def test_embeddings_are_split_by_the_size_of_their_texts(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Measured(FakeServer):
        async def embed(self, request: EmbedRequest) -> EmbedReply:
            sizes.append(sum(len(text.encode()) for text in request.texts))
            return await super().embed(request)

    server = Measured()
    texts = [f"{i} " + "x" * 3000 for i in range(64)] + ["y" * 100_000]
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        vectors = await engine.embed(provider(server), "m", texts, stage="s", batch_size=64)
    assert vectors.shape[0] == 65 and len(server.texts) == 65
    assert max(sizes) == 100_000 and sorted(sizes)[-2] <= 2**15


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://192.168.1.4:8000/v1", True),
        ("http://gpu.lan/v1", True),
        ("https://api.openai.com/v1", False),
        ("https://8.8.8.8/v1", False),
        (None, False),
    ],
)
def test_a_server_of_ones_own_is_known_by_its_address(url: str | None, near: bool) -> None:
    assert is_nearby(url) is near
