"""What a stage sees of the engine: every ask answered under its own id, nothing sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import MODEL, FakeServer, asks, chat_ask, provider, question

from semievol_api.capabilities import ChatRequest, ModelLimits, Provider, Reply
from semievol_api.config.settings import Limits
from semievol_api.engine import Answer, Ask, Journal, Progress, RequestEngine
from semievol_api.errors import DataError, MissingAbilityError, RefusedError

LIMITS = Limits()


async def collect(engine: RequestEngine, who: Provider, what: object, stage: str = "s") -> dict[str, Answer[Reply]]:
    """All answers by id; an id that comes twice fails."""
    answers: dict[str, Answer[Reply]] = {}
    async for answer in engine.chat(who, what, stage=stage):  # type: ignore[arg-type]
        assert answer.id not in answers
        answers[answer.id] = answer
    return answers


def text_of(answer: Answer[Reply], sample: int = 0) -> str:
    assert answer.reply is not None, answer.failure
    return answer.reply.completions[sample].text


async def test_every_ask_is_answered_once_under_its_own_id_whatever_the_order(tmp_path: Path) -> None:
    async def later_ones_first(number: int, request: ChatRequest) -> None:
        await asyncio.sleep(0.02 if number % 3 == 0 else 0)

    server = FakeServer(later_ones_first)
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        answers = await collect(engine, provider(server), asks(1500))
    assert list(answers) != [f"q{i}" for i in range(1500)]
    assert all(text_of(answer) == f"{name}/None/0" for name, answer in answers.items())
    assert len(server.chats) == len(answers) == 1500


async def test_a_rerun_sends_nothing_and_gives_the_same_replies_bit_for_bit(tmp_path: Path) -> None:
    server = FakeServer()
    what = [chat_ask(f"q{i}", n=2, seed=i, logprobs=True, top_logprobs=2) for i in range(40)]
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        first = await collect(engine, provider(server), what)
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        again = await collect(engine, provider(server), what)
        assert engine.ledger.stages["s"].cached == 40
        assert engine.ledger.stages["s"].attempts == 0
    assert len(server.chats) == 40
    for name, answer in again.items():
        before, after = first[name].reply, answer.reply
        assert answer.cached and before is not None and after is not None
        assert after.usage == before.usage
        for one, other in zip(before.completions, after.completions, strict=True):
            assert (one.text, one.finish, one.tokens, one.top) == (other.text, other.finish, other.tokens, other.top)
            assert one.token_logprobs is not None and other.token_logprobs is not None
            assert other.token_logprobs.dtype == np.float32
            assert one.token_logprobs.tobytes() == other.token_logprobs.tobytes()


async def test_identical_asks_under_way_are_sent_once_and_all_answered(tmp_path: Path) -> None:
    server = FakeServer()
    what = [chat_ask(f"ask{i}", text=f"same{i % 3}") for i in range(3000)]
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        answers = await collect(engine, provider(server), what)
        bill = engine.ledger.stages["s"]
    assert len(server.chats) == 3
    assert len(answers) == 3000
    assert text_of(answers["ask7"]) == "same1/None/0"
    assert (bill.asks, bill.requests, bill.cached) == (3000, 3, 2997)


async def test_identical_asks_of_two_stages_at_the_same_time_are_sent_once(tmp_path: Path) -> None:
    server = FakeServer()
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        first, second = await asyncio.gather(
            collect(engine, provider(server), asks(50), "one"), collect(engine, provider(server), asks(50), "two")
        )
    assert len(server.chats) == 50
    assert first.keys() == second.keys()
    assert all(text_of(first[name]) == text_of(second[name]) for name in first)


async def test_a_greater_n_asks_for_the_missing_samples_only_with_a_seed_of_their_own(tmp_path: Path) -> None:
    server = FakeServer()
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        await collect(engine, provider(server), [chat_ask("q", n=4, seed=7)])
        more = await collect(engine, provider(server), [chat_ask("q", n=6, seed=7)])
        less = await collect(engine, provider(server), [chat_ask("q", n=3, seed=7)])
    assert [request.n for request in server.chats] == [4, 2]
    assert server.chats[0].seed == 7
    assert server.chats[1].seed not in (None, 7)
    assert [text_of(more["q"], i) for i in range(4)] == [f"q/7/{i}" for i in range(4)]
    assert [text_of(more["q"], i) for i in (4, 5)] == [f"q/{server.chats[1].seed}/{i}" for i in range(2)]
    assert less["q"].cached and len(less["q"].reply.completions) == 3  # type: ignore[union-attr]


async def test_a_smaller_and_a_greater_n_under_way_together_lose_nothing(tmp_path: Path) -> None:
    server = FakeServer()
    what = [chat_ask("few", text="same", n=2), chat_ask("many", text="same", n=5)]
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        answers = await collect(engine, provider(server), what)
    assert [request.n for request in server.chats] == [2, 3]
    assert len(answers["many"].reply.completions) == 5  # type: ignore[union-attr]


async def test_more_samples_than_the_model_gives_at_once_are_asked_in_parts(tmp_path: Path) -> None:
    server = FakeServer()
    who = provider(server, limits=ModelLimits(max_n=2))
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        answers = await collect(engine, who, [chat_ask("q", n=5, seed=1)])
    assert sorted(request.n for request in server.chats) == [1, 2, 2]
    assert len({request.seed for request in server.chats}) == 3
    assert len(answers["q"].reply.completions) == 5  # type: ignore[union-attr]


async def test_a_server_that_gives_fewer_samples_than_asked_is_asked_for_the_rest(tmp_path: Path) -> None:
    server = FakeServer(most_n=1)
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        answers = await collect(engine, provider(server), [chat_ask("q", n=3)])
    assert [request.n for request in server.chats] == [3, 2, 1]
    assert len(answers["q"].reply.completions) == 3  # type: ignore[union-attr]


async def test_a_refused_row_is_an_answer_with_its_reason_and_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    async def refuse(number: int, request: ChatRequest) -> None:
        if question(request) == "q3" and number < 10:
            raise RefusedError("The prompt is not allowed.", status=400)

    server = FakeServer(refuse)
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        answers = await collect(engine, provider(server), asks(10))
        assert engine.ledger.stages["s"].failed == 1
    assert len(server.chats) == 10
    assert answers["q3"].reply is None and answers["q3"].failure == "The prompt is not allowed."
    assert all(text_of(answer) for name, answer in answers.items() if name != "q3")
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        again = await collect(engine, provider(server), asks(10))
    assert text_of(again["q3"]) == "q3/None/0"
    assert len(server.chats) == 11


async def test_an_answer_is_on_disk_before_anyone_sees_it(tmp_path: Path) -> None:
    server = FakeServer()
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        seen = 0
        async for _ in engine.chat(provider(server), asks(200), stage="s"):
            seen += 1
            onlooker = Journal.read_only(tmp_path / "j")
            stored = onlooker.totals()[0].samples
            onlooker.close()
            assert stored >= seen


async def test_inputs_are_taken_only_as_answers_are(tmp_path: Path) -> None:
    taken = 0

    def source() -> Iterator[Ask[ChatRequest]]:
        nonlocal taken
        for ask in asks(20_000):
            taken += 1
            yield ask

    async with (
        RequestEngine.open(tmp_path / "j", LIMITS) as engine,
        aclosing(engine.chat(provider(FakeServer()), source(), stage="s")) as answers,
    ):
        await anext(answers)
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert taken < 3000


async def test_answers_come_while_a_slow_source_is_still_giving(tmp_path: Path) -> None:
    answered = asyncio.Event()

    async def source() -> AsyncIterator[Ask[ChatRequest]]:
        yield chat_ask("early")
        await asyncio.wait_for(answered.wait(), 5)
        yield chat_ask("late")

    names: list[str] = []
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        async for answer in engine.chat(provider(FakeServer()), source(), stage="s"):
            names.append(answer.id)
            answered.set()
    assert names == ["early", "late"]


async def test_a_consumer_that_leaves_keeps_what_was_in_flight_and_sends_nothing_more(tmp_path: Path) -> None:
    async def slow(number: int, request: ChatRequest) -> None:
        await asyncio.sleep(0.001 if number < 5 else 0.05)

    server = FakeServer(slow)
    async with RequestEngine.open(tmp_path / "j", Limits(concurrency=8)) as engine:
        async with aclosing(engine.chat(provider(server), asks(500), stage="s")) as answers:
            await anext(answers)
        sent = len(server.chats)
        await asyncio.sleep(0.1)
        assert len(server.chats) == sent < 30
    onlooker = Journal.read_only(tmp_path / "j")
    assert onlooker.totals()[0].samples == sent
    onlooker.close()


async def test_what_another_stage_waits_for_is_asked_by_itself_when_the_first_gives_up(tmp_path: Path) -> None:
    async def slow(number: int, request: ChatRequest) -> None:
        await asyncio.sleep(0.02)

    server = FakeServer(slow)
    async with RequestEngine.open(tmp_path / "j", Limits(concurrency=2)) as engine:
        leaver = engine.chat(provider(server), asks(40), stage="leaver")
        first = asyncio.ensure_future(anext(leaver))
        await asyncio.sleep(0.01)
        stayer = asyncio.ensure_future(collect(engine, provider(server), asks(40), "stayer"))
        await first
        await leaver.aclose()
        answers = await asyncio.wait_for(stayer, 20)
    assert len(answers) == 40
    assert all(text_of(answer) for answer in answers.values())
    assert len(server.chats) == 40


async def test_an_error_of_the_source_reaches_the_stage_after_the_answers(tmp_path: Path) -> None:
    def broken() -> Iterator[Ask[ChatRequest]]:
        yield from asks(5)
        raise DataError("Row 6 is wrong.")

    names: list[str] = []
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        with pytest.raises(DataError, match="Row 6"):
            async for answer in engine.chat(provider(FakeServer()), broken(), stage="s"):
                names.append(answer.id)


async def test_a_bug_in_a_provider_comes_out_as_it_is(tmp_path: Path) -> None:
    async def bug(number: int, request: ChatRequest) -> None:
        if number == 3:
            raise KeyError("bug")

    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        with pytest.raises(KeyError, match="bug"):
            await collect(engine, provider(FakeServer(bug)), asks(100))


async def test_logprobs_are_refused_where_the_provider_has_none(tmp_path: Path) -> None:
    server = FakeServer()
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        with pytest.raises(MissingAbilityError, match="log-probabilities"):
            await collect(engine, provider(server, scored=False), asks(3, logprobs=True))
    assert server.chats == []


async def test_progress_is_told_for_every_row(tmp_path: Path) -> None:
    told: list[Progress] = []
    for _ in range(2):
        async with RequestEngine.open(tmp_path / "j", LIMITS, on_progress=told.append) as engine:
            await collect(engine, provider(FakeServer()), asks(5), "annotate")
    assert [(row.stage, row.cached, row.failed) for row in told] == [("annotate", False, False)] * 5 + [
        ("annotate", True, False)
    ] * 5


async def test_another_endpoint_or_model_is_asked_anew(tmp_path: Path) -> None:
    server = FakeServer()
    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        await collect(engine, provider(server), asks(2))
        await collect(engine, provider(server, identity="http://other/v1"), asks(2))
        await collect(engine, provider(server), asks(2, model="ft:fake-1:new"))
        await collect(engine, provider(server), asks(2, model=MODEL))
    assert len(server.chats) == 6


async def test_a_cancelled_stage_ends_at_once_and_its_engine_closes(tmp_path: Path) -> None:
    async def never(number: int, request: ChatRequest) -> None:
        await asyncio.sleep(3600)

    async with RequestEngine.open(tmp_path / "j", LIMITS) as engine:
        stage = asyncio.ensure_future(collect(engine, provider(FakeServer(never)), asks(100)))
        await asyncio.sleep(0.05)
        stage.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(stage, 5)
        assert engine.ledger.stages["s"].lost_tokens > 0
