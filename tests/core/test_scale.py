"""What all workers share, without a cluster: quotas and the budget in one quota server, shards, their journals."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from semievol_api.capabilities import ChatRequest, ModelLimits, Provider, Reply
from semievol_api.config.settings import Limits
from semievol_api.data.schemas import evidence_table, joined_evidence
from semievol_api.data.table import part_of, shard_of
from semievol_api.engine import Ask, Fleet, RequestEngine
from semievol_api.engine.budget import NOTHING, Spend
from semievol_api.errors import BudgetError
from semievol_api.records import Completion, Evidence, Message, Prompt, Usage
from semievol_api.scale.executor import Shard
from semievol_api.scale.quota_server import QuotaServer, ShardLeases
from semievol_api.scale.worker import _may_know, shard_name, shards_of


class Counting:
    """Answers and counts."""

    def __init__(self) -> None:
        self.sent = 0

    async def complete(self, request: ChatRequest) -> Reply:
        self.sent += 1
        await asyncio.sleep(0.001)
        return Reply(completions=(Completion("x", "stop"),), usage=Usage(10, 10))


def provider(chat: Counting) -> Provider:
    return Provider(name="p", identity="p", limits={"m": ModelLimits(input_usd=1.0, output_usd=1.0)}, chat=chat)


def asks(count: int, start: int = 0) -> list[Ask[ChatRequest]]:
    return [
        Ask(str(i), ChatRequest(model="m", prompt=Prompt((Message("user", f"question {i}"),)), max_tokens=10))
        for i in range(start, start + count)
    ]


async def ask_all(
    folder: Path, name: str, quota_server: QuotaServer, chat: Counting, some: list[Ask[ChatRequest]]
) -> int:
    fleet = Fleet(leases=ShardLeases(quota_server, name, paced=False))
    limits = Limits(max_tokens=1, max_usd=1.0)  # what counts is the quota_server's
    answered = 0
    async with RequestEngine.open(folder / f"{name}.sqlite", limits, run="r", fleet=fleet) as engine:
        async for answer in engine.chat(provider(chat), some, stage="s"):
            answered += answer.reply is not None
    return answered


async def test_the_engines_of_a_run_spend_no_more_together_than_the_cap(tmp_path: Path) -> None:
    quota_server, chat = QuotaServer(Limits(max_tokens=2_000), {}, 3), Counting()
    done = await asyncio.gather(
        *(ask_all(tmp_path, f"parts-0004-000{i}", quota_server, chat, asks(100, 100 * i)) for i in range(3)),
        return_exceptions=True,
    )
    assert any(isinstance(result, BudgetError) for result in done)
    assert 20 * chat.sent <= 2_000
    assert chat.sent >= 30
    assert (await quota_server.spent()).tokens == 20 * chat.sent


async def test_a_dead_worker_s_lease_stays_charged_until_its_shard_is_opened_again() -> None:
    quota_server = QuotaServer(Limits(max_tokens=1_000), {}, 1)
    await quota_server.opened("parts-0001-0000", NOTHING)
    assert (await quota_server.more("parts-0001-0000", Spend(0.0, 40))).tokens == 640
    assert (await quota_server.more("parts-0002-0000", Spend(0.0, 400))).tokens == 0
    await quota_server.opened("parts-0001-0000", Spend(0.0, 120))
    assert (await quota_server.spent()).tokens == 120
    assert (await quota_server.more("parts-0002-0000", Spend(0.0, 400))).tokens == 400


async def test_requests_of_all_workers_keep_the_quota() -> None:
    quota_server = QuotaServer(Limits(rpm=6_000), {}, 4)
    leases = [ShardLeases(quota_server, str(i), paced=True) for i in range(4)]
    began_s = time.monotonic()

    async def take(lease: ShardLeases) -> None:
        for _ in range(20):
            await lease.pace(1.0)

    await asyncio.gather(*map(take, leases))
    assert time.monotonic() - began_s >= 0.45  # 80 requests at 100 a second, less the first leases


async def test_what_another_shard_s_journal_holds_is_not_asked_again(tmp_path: Path) -> None:
    chat = Counting()
    await ask_all(tmp_path, "parts-0001-0000", QuotaServer(Limits(), {}, 1), chat, asks(5))
    fleet = Fleet(journals=[tmp_path / "parts-0001-0000.sqlite"])
    limits = Limits(max_tokens=10_000)
    async with RequestEngine.open(tmp_path / "main.sqlite", limits, run="r", fleet=fleet) as engine:
        answers = [answer async for answer in engine.chat(provider(chat), asks(8), stage="s")]
        assert engine.spent.tokens == 20 * 8
    assert sum(answer.cached for answer in answers) == 5
    assert chat.sent == 8


def evidence(example_id: str, annotator_id: str) -> Evidence:
    return Evidence(
        example_id=example_id,
        annotator_id=annotator_id,
        prompt_hash="h",
        text="Answer: A",
        answer="A",
        finish="stop",
        option_probs=(0.5, 0.5),
        usage=Usage(1, 2),
    )


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("parts", [1, 4])
def test_every_id_is_in_one_shard_of_its_part_and_the_shard_is_a_prefix_of_its_hash(parts: int, shards: int) -> None:
    for i in range(200):
        name = f"id {i}"
        own = part_of(name, parts)
        index = shard_of(name, parts, shards)
        assert [Shard(own, k, shards).has(name, parts) for k in range(shards)].count(True) == 1
        assert part_of(name, parts * shards) == own * shards + index


def test_a_shard_s_journal_is_found_again_where_the_number_of_shards_changed() -> None:
    one = shard_name(Shard(1, 2, 4), 3)
    assert one == "parts-0008-0006"
    assert _may_know("parts-0004-0003", one) and _may_know("parts-0016-0013", one) and _may_know("journal", one)
    assert not _may_know("parts-0004-0002", one) and not _may_know("parts-0008-0007", one)


def test_shards_are_powers_of_two_of_about_the_wanted_rows() -> None:
    class Sized:
        stage, sizes = "x", (900, 1000, 30)

    found = shards_of(Sized(), 300)  # type: ignore[arg-type]
    assert [(shard.part, shard.index, shard.of) for shard in found] == [(p, i, 4) for p in range(3) for i in range(4)]


def test_shards_joined_are_the_table_of_all_rows() -> None:
    rows = [evidence(f"q{i}", f"a{k}") for i in range(30) for k in range(2)]
    whole = evidence_table(rows)
    cut = [evidence_table([r for r in rows if shard_of(r.example_id, 1, 4) == k]) for k in range(4)]
    assert joined_evidence(cut[::-1]).equals(whole)
