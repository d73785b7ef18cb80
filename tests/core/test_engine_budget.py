"""The budget: the cap holds under any concurrency, lost replies stay charged, everything paid for is kept."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from engine_fakes import FakeServer, asks, chat_ask, provider

from semievol_api.capabilities import ChatRequest, ModelLimits
from semievol_api.config.settings import Limits
from semievol_api.engine import Journal, RequestEngine
from semievol_api.errors import BudgetError, ConfigError, TransientError

PRICE = ModelLimits(input_usd=10.0, cached_input_usd=5.0, output_usd=40.0)


async def spend(path: Path, server: FakeServer, limits: Limits, count: int = 2000) -> tuple[int, float, str]:
    """Answers, USD of the ledger, and the budget's message."""
    message = ""
    got = 0
    async with RequestEngine.open(path / "j", limits) as engine:
        try:
            async for answer in engine.chat(provider(server, limits=PRICE), asks(count), stage="s"):
                got += answer.reply is not None
        except BudgetError as error:
            message = str(error)
    return got, engine.ledger.usd, message


def usd(server: FakeServer) -> float:
    """What the server would put on the bill."""
    used = server.billed
    return ((used.prompt - used.cached) * 10.0 + used.cached * 5.0 + used.completion * 40.0) / 1e6


async def slowly(number: int, request: ChatRequest) -> None:
    await asyncio.sleep(0.002 * (number % 5))


async def test_the_cap_holds_with_many_in_flight_and_what_was_paid_is_kept(tmp_path: Path) -> None:
    server = FakeServer(slowly)
    got, spent, message = await spend(tmp_path, server, Limits(max_usd=0.05))
    assert 0.8 * 0.05 < usd(server) <= 0.05
    assert spent == pytest.approx(usd(server))
    assert got == len(server.chats)
    assert server.most_in_flight > 10
    assert "max_usd = 0.05" in message and "raise the cap" in message


async def test_a_raised_cap_goes_on_where_the_run_stopped(tmp_path: Path) -> None:
    server = FakeServer(slowly)
    first, _, _ = await spend(tmp_path, server, Limits(max_usd=0.05))
    none, _, message = await spend(tmp_path, server, Limits(max_usd=0.05))
    assert none >= first and message
    assert usd(server) <= 0.05
    got, _, message = await spend(tmp_path, server, Limits(max_usd=5.0))
    assert (got, message) == (2000, "")
    assert len(server.chats) == 2000


async def test_tokens_are_capped_too(tmp_path: Path) -> None:
    server = FakeServer(slowly)
    _, _, message = await spend(tmp_path, server, Limits(max_tokens=3000))
    assert 2000 < server.billed.prompt + server.billed.completion <= 3000
    assert "max_tokens = 3000" in message


async def test_a_lost_reply_stays_charged_and_an_error_of_the_server_does_not(tmp_path: Path) -> None:
    async def lost(number: int, request: ChatRequest) -> None:
        raise TransientError("The connection broke off.")

    async def refused(number: int, request: ChatRequest) -> None:
        raise TransientError("The server answered 500.", status=500)

    for before, charged in ((lost, True), (refused, False)):
        path = tmp_path / ("lost" if charged else "refused")
        async with RequestEngine.open(path / "j", Limits(max_tokens=1_000_000, max_attempts=1)) as engine:
            who = provider(FakeServer(before), limits=PRICE)
            answers = [answer async for answer in engine.chat(who, asks(3), stage="s")]
            assert all(answer.failure for answer in answers)
            assert (engine.ledger.stages["s"].lost_tokens > 0) == charged
        journal = Journal.read_only(path / "j")
        assert (journal.leased("")[1] > 0) == charged
        journal.close()


async def test_a_refused_connection_is_not_charged(tmp_path: Path) -> None:
    async def nobody_there(number: int, request: ChatRequest) -> None:
        try:
            await asyncio.open_connection("127.0.0.1", 9)
        except OSError as error:
            raise TransientError("No connection.") from error

    async with RequestEngine.open(tmp_path / "j", Limits(max_tokens=100_000, max_attempts=1)) as engine:
        who = provider(FakeServer(nobody_there), limits=PRICE)
        assert all([answer.failure async for answer in engine.chat(who, asks(3), stage="s")])
        assert engine.ledger.stages["s"].lost_tokens == 0


async def test_a_model_without_a_price_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    server = FakeServer()
    async with RequestEngine.open(tmp_path / "j", Limits(max_usd=1.0)) as engine:
        with pytest.raises(ConfigError, match="price of the model 'fake-1'"):
            async for _ in engine.chat(provider(server), asks(3), stage="s"):
                pass
    assert server.chats == []


async def test_another_run_on_the_same_journal_has_its_own_budget(tmp_path: Path) -> None:
    server = FakeServer()
    for run in ("one", "two"):
        async with RequestEngine.open(tmp_path / "j", Limits(max_tokens=130), run=run) as engine:
            what = [chat_ask(f"{run}{i}") for i in range(10)]
            assert len([a async for a in engine.chat(provider(server, limits=PRICE), what, stage="s")]) == 10


def test_what_was_in_flight_when_a_process_was_killed_stays_charged(tmp_path: Path, child_env: dict[str, str]) -> None:
    code = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from engine_fakes import FakeServer, asks, provider
        from semievol_api.config.settings import Limits
        from semievol_api.engine import RequestEngine

        async def die(number, request):
            if number == 15:
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(60)

        async def main():
            async with RequestEngine.open(Path(sys.argv[1]), Limits(max_tokens=100_000, concurrency=16)) as engine:
                async for _ in engine.chat(provider(FakeServer(die)), asks(50), stage="s"):
                    pass

        asyncio.run(main())
        """
    )
    journal_path = tmp_path / "j"
    arguments = [sys.executable, "-c", code, str(journal_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, env=child_env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    journal = Journal.read_only(journal_path)
    per_request = 16 + 16 + 2 + 8  # at least: frame, turn, text, answer
    assert 16 * per_request <= journal.leased("")[1] <= 16 * 2 * (per_request + 4)
    journal.close()
