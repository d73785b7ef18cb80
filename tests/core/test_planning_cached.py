"""The low end of a plan where a vendor reads repeated beginnings from its cache: no token is discounted twice."""

from __future__ import annotations

import pytest

from semievol_api.capabilities import ModelLimits
from semievol_api.planning.bill import Demand, Range, Shares, Tokens, bill, cached_tokens, cost

NOTHING = Range(0, 0, 0)
PRICES = ModelLimits(input_usd=1.0, cached_input_usd=0.25, output_usd=2.0)


def _cost(prompt: Range, repeated: float) -> Range:
    found = cost(Tokens(prompt, cached_tokens(repeated, prompt), NOTHING, NOTHING), PRICES)
    assert found is not None
    return found


def test_the_low_end_discounts_no_more_tokens_than_it_sends() -> None:
    found = _cost(Range(200_000, 1_000_000, 1_500_000), 900_000)
    assert found.low == pytest.approx(0.2 * 0.25), "all that is sent at least, at the price of the cache"
    assert found.expected == pytest.approx(1.0 - 0.45 * 0.75)
    assert found.high == pytest.approx(1.5), "the high end counts on no cache"


@pytest.mark.parametrize("repeated", [0, 100_000, 200_000, 500_000, 2_000_000])
@pytest.mark.parametrize("least", [0, 200_000, 1_000_000])
def test_no_end_of_a_plan_is_cheaper_than_a_cache_that_holds_everything(least: float, repeated: float) -> None:
    prompt = Range(least, 1_000_000, 1_200_000)
    found = _cost(prompt, repeated)
    assert prompt.low * 0.25e-6 - 1e-12 <= found.low <= found.expected <= found.high
    assert found.low == pytest.approx((least - 0.75 * min(least, repeated)) / 1e6)


def test_a_row_of_the_bill_counts_the_cached_tokens_of_its_low_end_once() -> None:
    demands: dict[str, Demand] = {}
    for name, prompt in (("low", 300_000), ("expected", 1_000_000), ("high", 1_200_000)):
        demand = demands[name] = Demand(Shares())
        demand.stage = "annotate"
        amounts = demand.at("p", "m", "chat")
        amounts.requests, amounts.prompt, amounts.cached = 10, prompt, prompt
    (row,) = bill(demands, lambda _: PRICES, lambda _: 0.5)
    assert row.usd is not None and row.batch_usd is not None
    assert row.usd.low == pytest.approx(0.3 * 0.25)
    assert row.batch_usd.low == pytest.approx(0.5 * 0.3 * 0.25)
