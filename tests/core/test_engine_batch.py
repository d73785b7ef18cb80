"""Batch mode: the same answers as direct mode, at half the price, and nothing is lost or bought twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from engine_fakes import MODEL, FakeServer, PatientClock, asks, chat_ask, completion, provider, question

from semievol_api.capabilities import BatchAnswer, BatchState, ChatRequest, ModelLimits, Provider, Reply
from semievol_api.config.settings import Limits
from semievol_api.engine import Answer, Ask, Journal, RequestEngine
from semievol_api.errors import BudgetError, MissingAbilityError, RefusedError, TransientError
from semievol_api.records import Usage

BATCH = Limits(mode="batch", batch_poll_s=10)
PRICE = ModelLimits(input_usd=10.0, output_usd=40.0)
Judge = Callable[[int, str, ChatRequest], BatchAnswer | None]
"""Called with the batch's number, the line's name and its request; None leaves the line unanswered."""


def answered(number: int, name: str, request: ChatRequest) -> BatchAnswer | None:
    """Every line is answered."""
    samples = tuple(completion(request, sample) for sample in range(request.n))
    return BatchAnswer(custom_id=name, reply=Reply(completions=samples, usage=Usage(10, 4 * request.n)))


class FakeBatches:
    """A vendor's batches, which outlive the engines of a test."""

    def __init__(self, judge: Judge = answered, *, polls: int = 2, end: str = "completed") -> None:
        self.batches: list[dict[str, ChatRequest]] = []
        self.keys: list[str] = []
        self.polled: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.polls = polls
        self.end = end
        self.lose_next_submission = False
        self._judge = judge

    async def submit(self, requests: Mapping[str, ChatRequest], run_key: str) -> str:
        self.batches.append(dict(requests))
        self.keys.append(run_key)
        number = len(self.batches) - 1
        await asyncio.sleep(0)
        if self.lose_next_submission:
            self.lose_next_submission = False
            raise TransientError("The answer was lost.")
        return f"batch_{number}"

    async def find(self, run_key: str) -> str | None:
        await asyncio.sleep(0)
        return f"batch_{self.keys.index(run_key)}" if run_key in self.keys else None

    async def poll(self, batch_id: str) -> BatchState:
        await asyncio.sleep(0)
        self.polled[batch_id] = self.polled.get(batch_id, 0) + 1
        if batch_id in self.cancelled:
            return BatchState(status="cancelled", raw_status="cancelled")
        if self.polled[batch_id] < self.polls:
            return BatchState(status="running", raw_status="in_progress")
        return BatchState(status=self.end, raw_status=self.end)  # type: ignore[arg-type]

    async def collect(self, batch_id: str) -> Sequence[BatchAnswer]:
        await asyncio.sleep(0)
        number = int(batch_id.removeprefix("batch_"))
        lines = [self._judge(number, name, request) for name, request in self.batches[number].items()]
        return [line for line in lines if line is not None][::-1]

    async def cancel(self, batch_id: str) -> None:
        self.cancelled.add(batch_id)


def with_batches(batches: FakeBatches) -> Provider:
    return replace(provider(FakeServer(), limits=PRICE), batch=batches)


async def collect(
    path: Path, batches: FakeBatches, what: Sequence[Ask[ChatRequest]], limits: Limits = BATCH
) -> tuple[dict[str, Answer[Reply]], RequestEngine]:
    async with RequestEngine.open(path / "j", limits, clock=PatientClock()) as engine:
        return {a.id: a async for a in engine.chat(with_batches(batches), what, stage="s")}, engine


def text_of(answer: Answer[Reply]) -> str:
    assert answer.reply is not None, answer.failure
    return answer.reply.completions[0].text


async def test_a_stage_gets_the_same_answers_at_half_the_price(tmp_path: Path) -> None:
    batches = FakeBatches()
    answers, engine = await collect(tmp_path, batches, list(asks(100, n=2, logprobs=True)))
    assert len(batches.batches) == 1 and len(batches.batches[0]) == 100
    assert all(text_of(answer) == f"{name}/None/0" for name, answer in answers.items())
    bill = engine.ledger.stages["s"]
    assert bill.usd == pytest.approx(100 * (10 * 10.0 + 8 * 40.0) / 1e6 / 2)
    assert (bill.requests, bill.attempts, bill.failed) == (100, 100, 0)


async def test_a_rerun_in_either_mode_finds_what_the_other_paid(tmp_path: Path) -> None:
    batches = FakeBatches()
    await collect(tmp_path, batches, list(asks(20)))
    again, _ = await collect(tmp_path, batches, list(asks(20)), Limits())
    assert all(answer.cached for answer in again.values())
    await collect(tmp_path, batches, list(asks(25)), Limits())
    await collect(tmp_path, batches, list(asks(25)))
    assert len(batches.batches) == 1


async def test_refused_lines_fail_their_rows_and_passing_failures_go_into_the_next_batch(tmp_path: Path) -> None:
    def judge(number: int, name: str, request: ChatRequest) -> BatchAnswer | None:
        row = int(question(request)[1:])
        if row % 30 == 0:
            return BatchAnswer(custom_id=name, reply=None, error="Not allowed.")
        if row % 7 == 0 and number == 0:
            return BatchAnswer(custom_id=name, reply=None, error="Server error.", retryable=True)
        return answered(number, name, request)

    batches = FakeBatches(judge)
    answers, engine = await collect(tmp_path, batches, list(asks(100)))
    assert {name for name, a in answers.items() if a.failure} == {"q0", "q30", "q60", "q90"}
    assert answers["q30"].failure == "Not allowed."
    assert len(answers) == 100
    assert {question(r) for r in batches.batches[1].values()} == {f"q{i}" for i in range(7, 100, 7) if i % 30}
    assert engine.ledger.stages["s"].failed == 4


async def test_an_expired_batch_keeps_what_it_finished_and_the_rest_is_asked_again(tmp_path: Path) -> None:
    def half(number: int, name: str, request: ChatRequest) -> BatchAnswer | None:
        if number == 0 and int(question(request)[1:]) >= 50:
            return None
        return answered(number, name, request)

    batches = FakeBatches(half, end="expired")
    answers, engine = await collect(tmp_path, batches, list(asks(100)))
    assert len(answers) == 100 and all(answer.failure is None for answer in answers.values())
    assert [len(batch) for batch in batches.batches] == [100, 50]
    assert engine.ledger.stages["s"].requests == 100
    assert len(set(batches.keys)) == 2


async def test_a_row_that_no_batch_answers_fails_after_the_configured_attempts(tmp_path: Path) -> None:
    def never(number: int, name: str, request: ChatRequest) -> BatchAnswer | None:
        return None if question(request) == "q1" else answered(number, name, request)

    batches = FakeBatches(never, end="expired")
    answers, _ = await collect(tmp_path, batches, list(asks(3)), BATCH.model_copy(update={"max_attempts": 3}))
    assert answers["q1"].failure == "There was no answer in 3 batches."
    assert [len(batch) for batch in batches.batches] == [3, 1, 1]


async def test_a_lost_submission_is_looked_for_and_not_repeated(tmp_path: Path) -> None:
    batches = FakeBatches()
    batches.lose_next_submission = True
    answers, _ = await collect(tmp_path, batches, list(asks(10)))
    assert len(batches.batches) == 1 and len(answers) == 10


async def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


@pytest.mark.parametrize("asked_again", [100, 60, 140], ids=["the same", "fewer", "more"])
async def test_a_run_that_dies_while_waiting_finds_its_batch_again(tmp_path: Path, asked_again: int) -> None:
    batches = FakeBatches(polls=1_000_000)
    first = asyncio.ensure_future(collect(tmp_path, batches, list(asks(100))))
    await until(lambda: batches.polled.get("batch_0", 0) > 3)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    batches.polls = 1
    answers, _ = await collect(tmp_path, batches, list(asks(asked_again)))
    assert len(answers) == asked_again and all(text_of(answer) for answer in answers.values())
    assert sum(len(batch) for batch in batches.batches) == max(100, asked_again)
    journal = Journal.read_only(tmp_path / "j")
    assert sum(total.requests for total in journal.totals()) == max(100, asked_again)
    assert all(total.source.stage == "s" for total in journal.totals())
    journal.close()
    everything, _ = await collect(tmp_path, batches, list(asks(100)))
    assert all(answer.cached for answer in everything.values())


async def test_a_run_that_dies_before_it_closes_a_batch_counts_its_answers_once(tmp_path: Path) -> None:
    batches = FakeBatches()
    await collect(tmp_path, batches, list(asks(20)))
    journal = Journal.create(tmp_path / "j")
    journal.connection.execute("UPDATE batches SET open = 1")
    journal.connection.execute("INSERT INTO batch_lines SELECT 1, key, sample, ask_id FROM samples")
    journal.close()
    answers, _ = await collect(tmp_path, batches, list(asks(25)))
    assert len(answers) == 25 and len(batches.batches) == 2
    journal = Journal.read_only(tmp_path / "j")
    assert [(total.requests, total.samples) for total in journal.totals()] == [(25, 25)]
    assert journal.connection.execute("SELECT count(*) FROM batches WHERE open").fetchone() == (0,)
    journal.close()


async def test_a_run_that_dies_while_submitting_submits_once(tmp_path: Path) -> None:
    class DiesAfterSubmission(FakeBatches):
        async def submit(self, requests: Mapping[str, ChatRequest], run_key: str) -> str:
            await super().submit(requests, run_key)
            await asyncio.sleep(3600)
            return ""

    dying = DiesAfterSubmission()
    first = asyncio.ensure_future(collect(tmp_path, dying, list(asks(10))))
    await until(lambda: len(dying.batches) == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    alive = FakeBatches()
    alive.batches, alive.keys = dying.batches, dying.keys
    answers, _ = await collect(tmp_path, alive, list(asks(10)))
    assert len(answers) == 10 and len(alive.batches) == 1


async def test_a_run_that_died_before_submitting_submits(tmp_path: Path) -> None:
    class DiesBefore(FakeBatches):
        entered = False

        async def submit(self, requests: Mapping[str, ChatRequest], run_key: str) -> str:
            self.entered = True
            await asyncio.sleep(3600)
            return ""

    dying = DiesBefore()
    first = asyncio.ensure_future(collect(tmp_path, dying, list(asks(10))))
    await until(lambda: dying.entered)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    alive = FakeBatches()
    answers, _ = await collect(tmp_path, alive, list(asks(10)))
    assert len(answers) == 10 and len(alive.batches) == 1


async def test_sixty_thousand_lines_become_two_batches(tmp_path: Path) -> None:
    batches = FakeBatches()
    answers, _ = await collect(tmp_path, batches, list(asks(60_000)))
    assert [len(batch) for batch in batches.batches] == [50_000, 10_000]
    assert len(answers) == 60_000


async def test_big_prompts_split_batches_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semievol_api.engine.batch.MOST_BYTES", 10_000)
    batches = FakeBatches()
    await collect(tmp_path, batches, [chat_ask(f"q{i}", text=f"{i}" + "x" * 2300) for i in range(7)])
    assert [len(batch) for batch in batches.batches] == [3, 3, 1]


async def test_models_do_not_share_a_batch(tmp_path: Path) -> None:
    batches = FakeBatches()
    what = [chat_ask("a"), chat_ask("b", model="other"), chat_ask("c")]
    await collect(tmp_path, batches, what)
    assert sorted([{r.model for r in batch.values()} for batch in batches.batches], key=str) == [{MODEL}, {"other"}]


async def test_the_budget_holds_in_batches_and_counts_the_open_ones(tmp_path: Path) -> None:
    batches = FakeBatches()
    limits = BATCH.model_copy(update={"max_tokens": 3000})
    got: list[str] = []
    async with RequestEngine.open(tmp_path / "j", limits, clock=PatientClock()) as engine:
        with pytest.raises(BudgetError, match="max_tokens = 3000"):
            async for answer in engine.chat(with_batches(batches), asks(500), stage="s"):
                got.append(answer.id)
    paid = 14 * len(got)
    assert 2500 < paid <= 3000
    assert len(batches.batches) > 1
    answers, _ = await collect(tmp_path, batches, list(asks(500)))
    assert len(answers) == 500
    assert sum(len(batch) for batch in batches.batches) == 500


async def test_a_refused_batch_stops_the_stage_with_the_vendors_reason(tmp_path: Path) -> None:
    class Refusing(FakeBatches):
        async def submit(self, requests: Mapping[str, ChatRequest], run_key: str) -> str:
            raise RefusedError("No more batches today.", status=400)

    with pytest.raises(RefusedError, match="No more batches"):
        await collect(tmp_path, Refusing(), list(asks(10)))
    answers, _ = await collect(tmp_path, FakeBatches(), list(asks(10)))
    assert len(answers) == 10


async def test_cancelled_batches_keep_what_they_finished(tmp_path: Path) -> None:
    def some(number: int, name: str, request: ChatRequest) -> BatchAnswer | None:
        return answered(number, name, request) if int(question(request)[1:]) < 4 else None

    batches = FakeBatches(some, polls=1_000_000)
    first = asyncio.ensure_future(collect(tmp_path, batches, list(asks(10))))
    await until(lambda: bool(batches.polled))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with RequestEngine.open(tmp_path / "j", BATCH, clock=PatientClock()) as engine:
        assert await engine.cancel_batches(with_batches(batches)) == 1
        assert await engine.cancel_batches(with_batches(batches)) == 0
    assert batches.cancelled == {"batch_0"}
    again, _ = await collect(tmp_path, FakeBatches(), list(asks(10)), BATCH)
    assert sum(answer.cached for answer in again.values()) == 4


async def test_a_source_that_waits_for_answers_gets_its_batch(tmp_path: Path) -> None:
    batches = FakeBatches()
    arrived = asyncio.Event()

    async def source():  # type: ignore[no-untyped-def]
        yield chat_ask("first")
        await arrived.wait()
        yield chat_ask("second")

    names = []
    async with RequestEngine.open(tmp_path / "j", BATCH, clock=PatientClock()) as engine:
        async for answer in engine.chat(with_batches(batches), source(), stage="s"):
            names.append(answer.id)
            arrived.set()
    assert names == ["first", "second"]


async def test_a_provider_without_batches_is_refused_in_batch_mode(tmp_path: Path) -> None:
    async with RequestEngine.open(tmp_path / "j", BATCH) as engine:
        with pytest.raises(MissingAbilityError, match="batches"):
            engine.chat(provider(FakeServer()), asks(1), stage="s")
