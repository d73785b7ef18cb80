"""Failures on the way: what is tried again, what is not, and what a failure costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_fakes import FakeServer, PatientClock, asks, chat_ask, provider, question

from semievol_api.capabilities import ChatRequest, Reply
from semievol_api.cassettes.clock import Clock
from semievol_api.config.settings import Limits
from semievol_api.engine import Answer, RequestEngine
from semievol_api.engine.sending import PATIENCE_S
from semievol_api.errors import ModelNotFoundError, RateLimitError, RefusedError, TransientError
from semievol_api.records import Completion, Usage


async def run(
    path: Path, server: FakeServer, count: int, limits: Limits, clock: Clock | None = None
) -> tuple[dict[str, Answer[Reply]], RequestEngine]:
    """All answers to `count` asks, and the engine for its ledger."""
    async with RequestEngine.open(path / "j", limits, clock=clock or PatientClock()) as engine:
        answers = {answer.id: answer async for answer in engine.chat(provider(server), asks(count), stage="s")}
    return answers, engine


async def test_a_passing_failure_is_tried_again_and_the_row_is_answered(tmp_path: Path) -> None:
    tries: dict[str, int] = {}

    async def twice(number: int, request: ChatRequest) -> None:
        name = question(request)
        tries[name] = tries.get(name, 0) + 1
        if tries[name] <= 2:
            raise TransientError("The connection broke off.")

    answers, engine = await run(tmp_path, FakeServer(twice), 20, Limits())
    assert set(tries.values()) == {3}
    assert all(answer.failure is None for answer in answers.values())
    assert engine.ledger.stages["s"].attempts == 60


async def test_a_lasting_failure_costs_the_configured_attempts_and_fails_its_row_only(tmp_path: Path) -> None:
    async def down(number: int, request: ChatRequest) -> None:
        if question(request) == "q1":
            raise TransientError("The server answered 503.", status=503)

    server = FakeServer(down)
    answers, _ = await run(tmp_path, server, 3, Limits(max_attempts=4))
    assert sum(question(request) == "q1" for request in server.chats) == 4
    assert answers["q1"].failure == "The server answered 503."
    assert answers["q0"].failure is None and answers["q2"].failure is None


async def test_a_single_attempt_means_no_retry(tmp_path: Path) -> None:
    async def down(number: int, request: ChatRequest) -> None:
        raise TransientError("Cut.")

    server = FakeServer(down)
    answers, _ = await run(tmp_path, server, 1, Limits(max_attempts=1))
    assert len(server.chats) == 1 and answers["q0"].failure == "Cut."


async def test_waits_between_attempts_grow_and_go_through_the_clock(tmp_path: Path) -> None:
    clock = PatientClock()
    at: list[float] = []

    async def down(number: int, request: ChatRequest) -> None:
        at.append(clock.now_s())
        raise TransientError("Cut.")

    await run(tmp_path, FakeServer(down), 1, Limits(max_attempts=6), clock)
    assert len(at) == 6
    assert 0 < at[-1] <= 0.5 * (1 + 2 + 4 + 8 + 16)


async def test_too_long_and_refused_answers_are_answers(tmp_path: Path) -> None:
    class Ends(FakeServer):
        async def complete(self, request: ChatRequest) -> Reply:
            reply = await super().complete(request)
            finish = "length" if question(request) == "q0" else "refused"
            completion = Completion(text="cut", finish=finish)  # type: ignore[arg-type]
            return Reply(completions=(completion,), usage=reply.usage)

    server = Ends()
    answers, _ = await run(tmp_path, server, 2, Limits())
    again, _ = await run(tmp_path, server, 2, Limits())
    assert len(server.chats) == 2
    assert [answers[f"q{i}"].reply.completions[0].finish for i in range(2)] == ["length", "refused"]  # type: ignore[union-attr]
    assert again["q0"].cached


async def test_a_reply_without_completions_is_tried_again(tmp_path: Path) -> None:
    class Empty(FakeServer):
        async def complete(self, request: ChatRequest) -> Reply:
            reply = await super().complete(request)
            return reply if len(self.chats) > 1 else Reply(completions=(), usage=Usage(1, 0, 0))

    server = Empty()
    answers, _ = await run(tmp_path, server, 1, Limits())
    assert len(server.chats) == 2 and answers["q0"].failure is None


async def test_a_stalled_request_is_broken_off_and_tried_again(tmp_path: Path) -> None:
    async def stall(number: int, request: ChatRequest) -> None:
        if number == 0:
            await asyncio.sleep(3600)

    server = FakeServer(stall)
    answers, engine = await run(tmp_path, server, 5, Limits(timeout_s=0.2))
    assert all(answer.failure is None for answer in answers.values())
    assert len(server.chats) == 6 and server.in_flight == 0
    assert engine.ledger.stages["s"].lost_tokens > 0


async def test_a_server_that_always_stalls_fails_the_row_with_the_time(tmp_path: Path) -> None:
    async def stall(number: int, request: ChatRequest) -> None:
        await asyncio.sleep(3600)

    answers, _ = await run(tmp_path, FakeServer(stall), 1, Limits(timeout_s=0.1, max_attempts=2))
    assert answers["q0"].failure == "There was no answer within 0.2 s."


async def test_a_429_costs_no_attempt_and_holds_everyone(tmp_path: Path) -> None:
    clock = PatientClock()
    sent_at: list[float] = []

    async def busy(number: int, request: ChatRequest) -> None:
        sent_at.append(clock.now_s())
        await clock.sleep(0.05)
        if number < 8:
            raise RateLimitError("Slow down.", retry_after_s=3.0)

    server = FakeServer(busy)
    answers, engine = await run(tmp_path, server, 40, Limits(max_attempts=1), clock)
    assert all(answer.failure is None for answer in answers.values())
    assert engine.ledger.stages["s"].rate_limited == 8
    told_s = 0.05
    assert not [at for at in sent_at if told_s < at < told_s + 3.0]


async def test_waiters_do_not_return_together_after_a_pause(tmp_path: Path) -> None:
    clock = PatientClock()
    sent_at: list[float] = []

    async def busy(number: int, request: ChatRequest) -> None:
        sent_at.append(clock.now_s())
        await clock.sleep(0.5)
        if 16 <= number < 32:
            raise RateLimitError("Slow down.", retry_after_s=2.0)

    await run(tmp_path, FakeServer(busy), 100, Limits(), clock)
    back = sorted(at for at in sent_at if at > 2.0)
    assert back[0] >= 2.5
    crowd = max(sum(0 <= other - at < 0.01 for other in back) for at in back)
    assert crowd <= 4


async def test_a_server_that_says_nothing_but_429_stops_the_stage(tmp_path: Path) -> None:
    clock = PatientClock()

    async def busy(number: int, request: ChatRequest) -> None:
        await clock.sleep(0.01)
        raise RateLimitError("You have no quota left.")

    with pytest.raises(RateLimitError, match="no quota"):
        await run(tmp_path, FakeServer(busy), 10, Limits(), clock)
    assert clock.now_s() >= PATIENCE_S


async def test_a_refused_key_stops_the_stage_at_once(tmp_path: Path) -> None:
    async def wrong_key(number: int, request: ChatRequest) -> None:
        raise RefusedError("The key is wrong.", status=401)

    server = FakeServer(wrong_key)
    with pytest.raises(RefusedError, match="key is wrong"):
        await run(tmp_path, server, 5000, Limits())
    assert len(server.chats) <= 64


async def test_a_missing_model_stops_the_stage_but_one_odd_row_does_not(tmp_path: Path) -> None:
    async def odd(number: int, request: ChatRequest) -> None:
        if question(request) in ("q0", "q7"):
            raise RefusedError("Not allowed.", status=403)

    answers, _ = await run(tmp_path, FakeServer(odd), 30, Limits())
    assert sum(answer.failure is not None for answer in answers.values()) == 2

    async def missing(number: int, request: ChatRequest) -> None:
        raise RefusedError("There is no such model.", status=404)

    server = FakeServer(missing)
    with pytest.raises(RefusedError, match="no such model"):
        await run(tmp_path, server, 5000, Limits(timeout_s=5))
    assert len(server.chats) <= 128


async def test_a_model_that_never_answered_stops_even_one_question_and_one_that_did_fails_a_row(tmp_path: Path) -> None:
    async def last_is_absent(number: int, request: ChatRequest) -> None:
        if question(request) == "q0":
            raise ModelNotFoundError("Deploy it.", status=404)

    with pytest.raises(ModelNotFoundError, match="Deploy it"):
        await run(tmp_path, FakeServer(last_is_absent), 1, Limits())
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        who = provider(FakeServer(last_is_absent))
        failed = [answer.failure for n in (1, 0) async for answer in engine.chat(who, [chat_ask(f"q{n}")], stage="s")]
    assert failed == [None, "Deploy it."]


async def test_a_failed_sample_keeps_the_samples_that_came(tmp_path: Path) -> None:
    async def third_part(number: int, request: ChatRequest) -> None:
        if request.seed not in (1, None) and request.n == 1:
            raise RefusedError("No.", status=400)

    from semievol_api.capabilities import ModelLimits

    server = FakeServer(third_part)
    who = provider(server, limits=ModelLimits(max_n=2))
    ask = chat_ask("q", n=3, seed=1)
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        (answer,) = [answer async for answer in engine.chat(who, [ask], stage="s")]
        assert answer.failure == "No."
        (answer,) = [answer async for answer in engine.chat(provider(FakeServer()), [ask], stage="s")]
        assert answer.failure is None
        assert engine.ledger.stages["s"].requests == 2
