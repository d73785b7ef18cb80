"""Demand times prices: rows with a low, an expected and a high value.

Knows nothing of how the demand was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from semievol_api.capabilities import ModelLimits
from semievol_api.planning.demand import Amounts, Demand, Line

Price = Callable[[Line], ModelLimits | None]


@dataclass(frozen=True)
class Range:
    """Three guesses at one number."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, factor: float) -> Range:
        """Scaled."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    @classmethod
    def around(cls, low: float, expected: float, high: float) -> Range:
        """In order, whatever the noise of sampling made of the ends."""
        return cls(min(low, expected), expected, max(high, expected))


NOTHING = Range(0.0, 0.0, 0.0)
CACHE_HITS = 0.5
"""The expected share of repeated beginnings that a vendor still has at hand: a guess."""


@dataclass(frozen=True)
class Tokens:
    """What is paid for; `cached` is a part of `prompt`."""

    prompt: Range
    cached: Range
    completion: Range
    training: Range


@dataclass(frozen=True)
class BillRow:
    """One stage and model. `usd` is None where nobody knows a price; `batch_usd` where there is no batch price."""

    stage: str
    provider: str
    model: str
    kind: str
    requests: Range
    prompt: Range
    cached: Range
    completion: Range
    training: Range
    usd: Range | None
    batch_usd: Range | None

    @property
    def tokens(self) -> Tokens:
        """What is paid for."""
        return Tokens(self.prompt, self.cached, self.completion, self.training)

    def as_json(self) -> dict[str, object]:
        """Plain values, tokens and requests as whole numbers."""
        whole = {n: _whole(r) for n, r in vars(self).items() if isinstance(r, Range) and not n.endswith("usd")}
        money = {"usd": _money(self.usd), "batch_usd": _money(self.batch_usd)}
        return {
            "stage": self.stage,
            "provider": self.provider,
            "model": self.model,
            "kind": self.kind,
            **whole,
            **money,
        }


def bill(demands: Mapping[str, Demand], price: Price, batch_share: Callable[[Line], float | None]) -> list[BillRow]:
    """The rows of three dry runs (`low`, `expected`, `high`), in the order of the run."""
    lines = dict.fromkeys(line for name in ("expected", "low", "high") for line in demands[name].lines)
    rows: list[BillRow] = []
    for line in lines:
        low, expected, high = (demands[name].lines.get(line, Amounts()) for name in ("low", "expected", "high"))
        prompt = Range.around(low.prompt, expected.prompt, high.prompt)
        completion = Range.around(low.completion, expected.completion, high.completion)
        training = Range.around(low.training, expected.training, high.training)
        cached = cached_tokens(expected.cached, prompt)
        usd = cost(Tokens(prompt, cached, completion, training), price(line))
        share = batch_share(line)
        rows.append(
            BillRow(
                stage=line.stage.removesuffix("-ticket"),
                provider=line.provider,
                model=line.model,
                kind=line.kind,
                requests=Range.around(low.requests, expected.requests, high.requests),
                prompt=prompt,
                cached=cached,
                completion=completion,
                training=training,
                usd=usd,
                batch_usd=None if usd is None else (usd.times(share) if share is not None else usd),
            )
        )
    return rows


def cached_tokens(most: float, prompt: Range) -> Range:
    """What of the prompts is read from a cache: nothing, half of what repeats, all of it (never more than is sent)."""
    return Range(0.0, min(CACHE_HITS * most, prompt.expected), min(most, prompt.high))


def cost(tokens: Tokens, limits: ModelLimits | None) -> Range | None:
    """USD; None where a price is missing for tokens that there are. Many cache hits make the low end."""
    if limits is None:
        return None
    kinds = ((tokens.prompt, limits.input_usd), (tokens.completion, limits.output_usd))
    total = NOTHING
    for amount, usd in (*kinds, (tokens.training, limits.training_usd)):
        if amount.high == 0:
            continue
        if usd is None:
            return None
        total += amount.times(usd / 1e6)
    if limits.input_usd is None or limits.cached_input_usd is None:
        return total
    saved, cached = (limits.input_usd - limits.cached_input_usd) / 1e6, tokens.cached
    return Range(
        total.low - saved * min(cached.high, tokens.prompt.low), total.expected - saved * cached.expected, total.high
    )


def total(ranges: Iterable[Range | None]) -> Range | None:
    """The sum; None where one is unknown."""
    found = list(ranges)
    known = [r for r in found if r is not None]
    return sum(known, NOTHING) if len(known) == len(found) else None


def _whole(value: Range) -> dict[str, int]:
    return {name: math.ceil(number - 1e-9) for name, number in asdict(value).items()}


def _money(value: Range | None) -> dict[str, float] | None:
    return None if value is None else {name: round(number, 6) for name, number in asdict(value).items()}
