"""Tokens are charged when an answer is known: who took more than there was waits until the debt is paid."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.gate import RateLimits
from semievol_providers.server.settings import Limits

PER_MINUTE = 60


def _rates(clock: list[float]) -> RateLimits:
    return RateLimits(Limits(tokens_per_minute=PER_MINUTE), lambda: clock[0])


def _wait_ms(ask: Callable[[str], None], owner: str) -> int:
    with pytest.raises(ApiError, match="tokens per minute") as raised:
        ask(owner)
    assert raised.value.status == 429
    return int(raised.value.headers["retry-after-ms"])


def test_an_answer_of_five_minutes_tokens_is_paid_off_for_four_minutes() -> None:
    clock = [0.0]
    rates = _rates(clock)
    rates.admit("a")
    rates.charge("a", 5 * PER_MINUTE)
    assert _wait_ms(rates.admit, "a") == 241_001, "240 tokens are owed and one must be there"
    clock[0] = 240.5
    assert _wait_ms(rates.admit, "a") == 501
    clock[0] = 241.0
    rates.admit("a")


def test_debts_add_up_and_are_their_owners_own() -> None:
    clock = [0.0]
    rates = _rates(clock)
    for _ in range(3):
        rates.charge("a", PER_MINUTE)
    rates.admit("b")
    clock[0] = 119.0
    assert _wait_ms(rates.admit, "a") == 2_001
    clock[0] = 121.0
    rates.admit("a")


def test_the_headers_show_nothing_left_and_the_whole_time_until_the_bucket_is_full() -> None:
    rates = _rates([0.0])
    rates.charge("a", 3 * PER_MINUTE)
    headers = rates.headers("a")
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == "180.000s"
