"""A server's usage is checked before it is believed: what it does not bill still counts towards the caps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from engine_fakes import FakeServer, asks, provider

from semievol_api.capabilities import ChatRequest, Reply
from semievol_api.config.settings import Limits
from semievol_api.engine import RequestEngine
from semievol_api.errors import BudgetError
from semievol_api.records import Usage


@dataclass
class Billing(FakeServer):
    """A server that bills what it likes."""

    usage: Usage

    def __post_init__(self) -> None:
        super().__init__()

    async def complete(self, request: ChatRequest) -> Reply:
        return replace(await super().complete(request), usage=self.usage)


async def _spent(path: Path, usage: Usage, limits: Limits, count: int = 20) -> tuple[int, int, list[str | None]]:
    server = Billing(usage)
    failures: list[str | None] = []
    async with RequestEngine.open(path / "j", limits) as engine:
        try:
            async for answer in engine.chat(provider(server), asks(count, max_tokens=40), stage="s"):
                failures.append(answer.failure)
        except BudgetError:
            pass
        bill = engine.ledger.stages["s"]
    return len(server.chats), bill.usage.prompt + bill.usage.completion, failures


@pytest.mark.parametrize("usage", [Usage(), Usage(0, 1), Usage(1, 0)], ids=["absent", "no prompt", "no completion"])
async def test_what_a_server_does_not_bill_is_charged_as_estimated(
    tmp_path: Path, usage: Usage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _, tokens, failures = await _spent(tmp_path, usage, Limits())
    assert failures == [None] * 20
    assert tokens >= 20 * 2 + 20 * max(usage.prompt, usage.completion)
    told = [record.getMessage() for record in caplog.records if "charged as estimated" in record.getMessage()]
    assert len(told) == 1


@pytest.mark.parametrize("usage", [Usage(), Usage(-5, -5)])
async def test_a_cap_in_tokens_holds_whatever_the_server_bills(tmp_path: Path, usage: Usage) -> None:
    sent, _, _ = await _spent(tmp_path, usage, Limits(max_tokens=600, concurrency=1, max_attempts=2), count=200)
    assert 0 < sent < 60


async def test_a_negative_usage_is_an_error_and_lowers_no_bill(tmp_path: Path) -> None:
    _, tokens, failures = await _spent(tmp_path, Usage(-100, 2), Limits(max_attempts=1))
    assert tokens >= 0
    assert all(failure is not None and "negative" in failure for failure in failures)


async def test_a_usage_that_fits_what_was_sent_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, tokens, _ = await _spent(tmp_path, Usage(11, 3), Limits())
    assert tokens == 20 * 14
    assert not caplog.records
