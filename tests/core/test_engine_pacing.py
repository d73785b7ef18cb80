"""Pacing: quotas are filled smoothly, learned from headers or given, and not overrun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from engine_fakes import FakeServer, PatientClock, asks, provider, question

from semievol_api.capabilities import ChatRequest, Pace, Reply
from semievol_api.config.settings import Limits
from semievol_api.engine import RequestEngine
from semievol_api.engine.pacing import AdaptiveLimit, Quota, Sent
from semievol_api.errors import RateLimitError


@dataclass
class Bucket:
    """One of a server's quotas: a bucket that holds `holds` and fills at `per_minute`."""

    per_minute: float
    holds: float
    left: float = 0.0
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.left = self.holds

    def fill(self, now_s: float) -> None:
        self.left = min(self.holds, self.left + (now_s - self.at_s) * self.per_minute / 60)
        self.at_s = now_s

    @property
    def reset_s(self) -> float:
        return (self.holds - self.left) * 60 / self.per_minute


class MeteredServer(FakeServer):
    """A server with quotas that tells them in its headers, or not; a request costs `tokens`."""

    def __init__(self, clock: PatientClock, *, rpm: float = 1e9, tpm: float = 1e9, burst_s: float = 1.0) -> None:
        super().__init__(self._serve)
        self.requests = Bucket(rpm, max(1.0, rpm / 60 * burst_s))
        self.tokens = Bucket(tpm, tpm / 60 * burst_s)
        self.refused = 0
        self.served_at: list[float] = []
        self.tokens_used = 0.0
        self.tells = True
        self.latency_s = 0.5
        self.cost_factor = 1.0
        self._clock = clock

    async def _serve(self, number: int, request: ChatRequest) -> None:
        cost = (len(question(request)) / 4 + request.max_tokens) * self.cost_factor
        now_s = self._clock.now_s()
        self.requests.fill(now_s)
        self.tokens.fill(now_s)
        if self.requests.left < 1 or self.tokens.left < cost:
            self.refused += 1
            wait_s = max((1 - self.requests.left) * 60 / self.requests.per_minute, 0.0)
            await self._clock.sleep(0.01)
            raise RateLimitError("Too many.", retry_after_s=wait_s + 0.05 if self.tells else None)
        self.requests.left -= 1
        self.tokens.left -= cost
        self.tokens_used += cost
        self.served_at.append(now_s)
        pace = Pace(
            limit_requests=int(self.requests.per_minute),
            remaining_requests=int(self.requests.left),
            reset_requests_s=self.requests.reset_s,
            limit_tokens=int(self.tokens.per_minute),
            remaining_tokens=int(self.tokens.left),
            reset_tokens_s=self.tokens.reset_s,
        )
        await self._clock.sleep(self.latency_s)
        self._pace = pace if self.tells else Pace()

    async def complete(self, request: ChatRequest) -> Reply:
        return await super().complete(request)


async def run(path: Path, server: MeteredServer, clock: PatientClock, count: int, limits: Limits) -> float:
    """Ask `count` times; the seconds that it took on the clock. Every row must be answered."""
    began_s = clock.now_s()
    async with RequestEngine.open(path / "j", limits, clock=clock) as engine:
        what = asks(count, max_tokens=40)
        answers = [answer async for answer in engine.chat(provider(server), what, stage="s")]
    assert len(answers) == count and all(answer.failure is None for answer in answers)
    return server.served_at[-1] - began_s


@pytest.mark.parametrize("given", [True, False], ids=["given", "learned"])
async def test_a_request_quota_is_filled_and_not_overrun(tmp_path: Path, given: bool) -> None:
    clock = PatientClock()
    server = MeteredServer(clock, rpm=1200)
    took_s = await run(tmp_path, server, clock, 600, Limits(rpm=1200) if given else Limits())
    assert took_s <= 600 / 20 * 1.05
    assert server.refused <= 2


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25], ids=["dear estimate", "right estimate", "cheap estimate"])
async def test_a_token_quota_is_filled_even_where_the_estimate_is_off(tmp_path: Path, factor: float) -> None:
    clock = PatientClock()
    server = MeteredServer(clock, tpm=60_000, burst_s=4)
    server.cost_factor = factor
    took_s = await run(tmp_path, server, clock, 900, Limits())
    assert server.tokens_used / (took_s * 1000) >= 0.95
    assert server.refused <= 5


async def test_with_both_quotas_the_tighter_one_is_filled(tmp_path: Path) -> None:
    clock = PatientClock()
    server = MeteredServer(clock, rpm=1200, tpm=30_000, burst_s=4)
    took_s = await run(tmp_path, server, clock, 400, Limits())
    assert server.tokens_used / (took_s * 500) >= 0.95
    assert server.refused <= 5


async def test_requests_are_spread_not_sent_in_bursts(tmp_path: Path) -> None:
    clock = PatientClock()
    server = MeteredServer(clock, rpm=600)
    server.tells = False
    await run(tmp_path, server, clock, 200, Limits(rpm=600))
    per_second = [sum(s <= at < s + 1 for at in server.served_at) for s in range(19)]
    assert max(per_second) <= 12 and min(per_second) >= 8
    assert server.refused == 0


async def test_a_quota_that_nobody_tells_loses_no_row(tmp_path: Path) -> None:
    clock = PatientClock()
    server = MeteredServer(clock, rpm=1200)
    server.tells = False
    took_s = await run(tmp_path, server, clock, 400, Limits())
    assert took_s <= 3 * 400 / 20


async def test_a_quota_shared_with_others_is_respected(tmp_path: Path) -> None:
    clock = PatientClock()
    server = MeteredServer(clock, rpm=1200, burst_s=4)
    whole = server.requests.per_minute

    class HalfTaken(Bucket):
        def fill(self, now_s: float) -> None:
            self.left = min(self.holds, self.left + (now_s - self.at_s) * whole / 2 / 60)
            self.at_s = now_s

    server.requests = HalfTaken(whole, server.requests.holds)
    took_s = await run(tmp_path, server, clock, 400, Limits())
    assert took_s <= 400 / 10 * 1.15
    assert server.refused <= 20


def test_a_configured_quota_is_never_raised_by_headers() -> None:
    quota = Quota(60)
    quota.observe(6000, 100, 0.0, Sent(0.0, 0.0))
    assert quota.per_minute == 60
    quota.observe(30, 10, 0.0, Sent(1.0, 0.0))
    assert quota.per_minute == 30


def test_a_request_greater_than_the_bucket_goes_when_the_bucket_is_full() -> None:
    quota = Quota(None)
    quota.observe(6000, 0, 1.0, Sent(0.0, 0.0))
    assert 0.5 < quota.wait_s(0.0, 500.0) <= 1.0
    assert quota.wait_s(1.0, 500.0) <= 0.0


def feed(limit: AdaptiveLimit, rate: float, epochs: int, now_s: float) -> float:
    """Replies at a rate, with as many in flight as the limit allows."""
    for _ in range(epochs):
        for _ in range(limit.value + 2):
            now_s += 1 / rate
            limit.replied(now_s, limit.value, failed=False)
    return now_s


def test_concurrency_grows_while_throughput_does_and_then_stays() -> None:
    limit = AdaptiveLimit(100_000)
    now_s = 0.0
    for _ in range(200):
        now_s = feed(limit, min(limit.value / 0.05, 10_000), 1, now_s)
    assert 400 <= limit.value <= 1100


def test_concurrency_stays_where_more_does_not_pay() -> None:
    limit = AdaptiveLimit(100_000)
    feed(limit, 100.0, 50, 0.0)
    assert limit.value <= 130


def test_concurrency_never_passes_the_configured_cap() -> None:
    limit = AdaptiveLimit(96)
    now_s = 0.0
    for _ in range(100):
        now_s = feed(limit, limit.value / 0.05, 1, now_s)
        assert limit.value <= 96
    assert limit.value == 96


def test_many_failures_bring_concurrency_down_but_not_to_zero() -> None:
    limit = AdaptiveLimit(1000)
    now_s = 0.0
    for i in range(20_000):
        now_s += 0.01
        limit.replied(now_s, limit.value, failed=i % 2 == 0)
    assert 1 <= limit.value <= 10


@pytest.mark.parametrize("asked_s", [0.0, 0.001, None])
async def test_a_storm_of_refusals_is_bounded_in_requests_a_second(tmp_path: Path, asked_s: float | None) -> None:
    clock = PatientClock()
    began_s, seen = clock.now_s(), list[float]()

    async def refuse_for_ten_seconds(_number: int, _request: ChatRequest) -> None:
        seen.append(clock.now_s())
        if clock.now_s() - began_s < 10:
            raise RateLimitError("Too many.", retry_after_s=asked_s)

    async with RequestEngine.open(tmp_path / "j", Limits(), clock=clock) as engine:
        fake = provider(FakeServer(refuse_for_ten_seconds))
        answers = [answer async for answer in engine.chat(fake, asks(100, max_tokens=40), stage="s")]
    assert all(answer.failure is None for answer in answers)
    first = sum(second < began_s + 0.01 for second in seen)
    assert sum(second < began_s + 10 for second in seen) - first <= 40
