"""What serving costs a month: by hand for three vendors, and the cheapest by brute force."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol_api.planning.catalogue import load_catalogue
from semievol_api.planning.monthly import (
    HOURS_A_MONTH,
    Load,
    RequestTokens,
    Serving,
    cheapest_by_requests,
    compare,
    servings,
)

TODAY = datetime.date(2026, 11, 30)
REQUEST = RequestTokens(prompt=500, completion=20)
_PRICES = st.sampled_from([0.0, 1e-6, 2.5e-6, 1e-5, 3e-5, 1.7e-4])
_FLAT = st.sampled_from([0.0, 5.0, 12.5, 80.0, 119.7, 2912.7, 4015.0])


def found(day: datetime.date = TODAY, requests: float = 100_000, awake: float = 1.0) -> dict[str, Serving]:
    return {row.name: row for row in servings(load_catalogue(), REQUEST, Load(requests, awake), day)}


def test_a_month_is_what_a_hand_computes_at_three_vendors() -> None:
    rows = found()
    by_token = rows["tuned gpt-4o-mini-2024-07-18 at openai"]
    assert by_token.usd(100_000) == pytest.approx(100_000 * (500 * 0.30 + 20 * 1.20) / 1e6) == pytest.approx(17.40)
    assert rows["tuned Qwen/Qwen3-8B at tinker"].usd(1_000_000) == pytest.approx(1e6 * (500 * 0.195 + 20 * 0.60) / 1e6)
    assert rows["a rented H100 at crusoe, kept warm"].usd(7) == pytest.approx(730 * 5.50) == pytest.approx(4015)
    assert found(awake=2.5)["a rented H100 at fireworks, 2.5 h a day"].usd(1e9) == pytest.approx(30 * 2.5 * 7.00)
    prompted = rows["gpt-6-luna at openai, prompted with 3 demonstrations"]
    assert prompted.usd(1000) == pytest.approx(1000 * (4 * 500 * 0.10 + 20 * 0.50) / 1e6)


def test_what_has_ended_is_no_way_to_serve_and_what_is_unknown_is_not_the_cheapest() -> None:
    later = found(datetime.date(2027, 1, 14))
    assert not any("gpt-4o-mini-2024-07-18 at openai" in name for name in later)
    azure = [row for row in found().values() if "azure" in row.name]
    assert azure and all(row.is_partial and "by the hour" in row.remark for row in azure)
    assert not any("azure" in change.name for change in cheapest_by_requests(found().values()))
    assert len({row.name for row in azure if "gpt-4o-mini" in row.name}) == 1  # two addresses, one vendor
    assert not any("embedding" in name for name in found())


def test_the_rows_are_in_the_order_of_their_price_at_the_load() -> None:
    rows = [row for row in servings(load_catalogue(), REQUEST, Load(2_000_000), TODAY) if not row.is_partial]
    assert [row.usd(2_000_000) for row in rows] == sorted(row.usd(2_000_000) for row in rows)


@given(st.lists(st.tuples(_PRICES, _FLAT), min_size=1, max_size=7), st.integers(0, 10**9))
def test_the_cheapest_is_the_cheapest_at_every_load(prices: list[tuple[float, float]], requests: int) -> None:
    rows = [Serving(f"way {i}", usd_per_request=p, usd_per_month=flat) for i, (p, flat) in enumerate(prices)]
    changes = cheapest_by_requests(rows)
    here = [change for change in changes if change.from_requests <= requests][-1]
    named = next(row for row in rows if row.name == here.name)
    assert named.usd(requests) == pytest.approx(min(row.usd(requests) for row in rows), rel=1e-9, abs=1e-6)
    assert [c.from_requests for c in changes] == sorted(c.from_requests for c in changes)


@given(_PRICES, _FLAT, _PRICES, _FLAT)
def test_one_beside_another_is_what_counting_says(p1: float, f1: float, p2: float, f2: float) -> None:
    one, other = Serving("one", p1, f1), Serving("other", p2, f2)
    words = compare(one, other).split()
    at = int(words[2].replace(",", "")) if len(words) == 3 and words[0] == "less" else 10**6

    def gap(requests: float) -> float:
        return one.usd(requests) - other.usd(requests)

    match words:
        case ["as", "much"]:
            assert gap(at) == 0
        case ["less"]:
            assert gap(1) < 0 and gap(at) < 0
        case ["more"]:
            assert gap(1) > 0 and gap(at) > 0
        case ["less", "from", _]:
            assert gap(at + 2) < 0 < gap(at - 2)
        case _:
            assert gap(at + 2) > 0 > gap(at - 2)


def test_hours_of_a_month_are_a_years_twelfth() -> None:
    assert math.isclose(HOURS_A_MONTH * 12, 365 * 24)
