"""The parts of a plan: repeated beginnings, prices with cached tokens, minutes."""

from __future__ import annotations

import datetime

import pytest

from semievol_api.capabilities import ModelLimits
from semievol_api.config.settings import Limits
from semievol_api.planning.bill import BillRow, Range, cached_tokens, cost
from semievol_api.planning.catalogue import ModelFacts, load_catalogue
from semievol_api.planning.dry_run import PrefixCache
from semievol_api.planning.estimating import BY_BATCHES, BY_CATALOGUE, BY_GUESS, BY_LIMITS, duration
from semievol_api.records import Message, Prompt

NOTHING = Range(0, 0, 0)


def _exactly(value: float) -> Range:
    return Range(value, value, value)


def _prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def _row(requests: float, prompt: float, completion: float, *, kind: str = "chat", stage: str = "evaluate") -> BillRow:
    zero = (NOTHING, _exactly(completion), NOTHING, None, None)
    return BillRow(stage, "p", "m", kind, _exactly(requests), _exactly(prompt), *zero)


def test_a_long_common_beginning_is_cached_in_steps_and_from_the_vendors_minimum_on() -> None:
    passage = "word " * 1200  # 6,000 characters; take 4 characters for a token
    cache = PrefixCache(1024, 128)
    assert cache.repeated("m", _prompt(f"{passage}first question"), 1503) == 0
    second = cache.repeated("m", _prompt(f"{passage}another question"), 1504)
    assert second % 128 == 0 and 1280 <= second <= 1500
    assert cache.repeated("m", _prompt(f"{passage}first question"), 1503) == 1408, "the whole prompt, in whole steps"
    assert cache.repeated("other", _prompt(f"{passage}first question"), 1503) == 0, "models share nothing"


@pytest.mark.parametrize("cache", [PrefixCache(1024), PrefixCache(None)])
def test_short_prompts_and_vendors_without_a_rule_cache_nothing(cache: PrefixCache) -> None:
    short = _prompt("a short question")
    assert [cache.repeated("m", short, 4) for _ in range(3)] == [0, 0, 0]


def test_vendors_rules_come_from_the_catalogue() -> None:
    long = _prompt("x" * 8000)
    for vendor, cached in (("openai", 1920), ("semievol", 0), ("nobody", 0)):
        cache = PrefixCache.of_vendor(load_catalogue(), vendor)
        cache.repeated("m", long, 2000)
        assert cache.repeated("m", long, 2000) == cached, vendor


def test_cached_tokens_lower_the_price_and_widen_its_range() -> None:
    row = _row(1, 1_000_000, 0)
    cached = cached_tokens(600_000, row.prompt)
    assert (cached.low, cached.expected, cached.high) == (0, 300_000, 600_000)
    tokens = row.tokens.__class__(row.prompt, cached, row.completion, row.training)
    usd = cost(tokens, ModelLimits(input_usd=1.0, cached_input_usd=0.5, output_usd=1.0))
    assert usd == Range(0.7, 0.85, 1.0)
    assert cost(tokens, ModelLimits(input_usd=1.0, output_usd=1.0)) == _exactly(1.0), "no price for hits, no discount"


def test_minutes_follow_the_tighter_quota_and_say_whose_it_is() -> None:
    rows = [_row(600, 60_000, 6_000), _row(1, 0, 0, kind="train", stage="jobs/x")]
    found = duration(Limits(rpm=60, tpm=66_000), rows, lambda _: None)
    assert (found.minutes, found.by) == (_exactly(10), (BY_LIMITS,))
    facts = ModelFacts(
        vendor="v", model="m", checked=datetime.date(2026, 11, 21), requests_per_minute=600, tokens_per_minute=22_000
    )
    found = duration(Limits(), rows, lambda _: facts)
    assert (found.minutes, found.by) == (_exactly(3), (BY_CATALOGUE,))


def test_without_any_quota_the_minutes_are_a_guess_and_say_so() -> None:
    found = duration(Limits(), [_row(6_400, 0, 64_000)], lambda _: None)
    assert found.by == (BY_GUESS,)
    assert 0 < found.minutes.low < found.minutes.expected < found.minutes.high
    assert found.minutes.expected == pytest.approx((6_400 * 1.0 + 64_000 * 0.01) / 64 / 60)
    slower = duration(Limits(concurrency=8), [_row(6_400, 0, 64_000)], lambda _: None)
    assert slower.minutes.expected == pytest.approx(8 * found.minutes.expected)


def test_batches_take_up_to_a_day_for_each_stage() -> None:
    rows = [_row(10, 10, 10), _row(10, 10, 10, stage="collaborate"), _row(5, 5, 0, kind="embed", stage="retrieve")]
    found = duration(Limits(mode="batch"), rows, lambda _: None)
    assert found.by == (BY_BATCHES,) and found.minutes.high == 2 * 24 * 60
