"""Demand times prices: rows with a low, an expected and a high value.

Knows nothing of how the demand was found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from semievol_api.capabilities import ModelLimits
from semievol_api.config.settings import Config
from semievol_api.engine.journal import Journal
from semievol_api.records import Usage
from semievol_api.training.jobs import model_trained_by

_PROBE = "probe"
"""The stage that asks a fixed number of questions, however many there are."""


@dataclass(frozen=True, slots=True)
class Line:
    """Who is asked or trained, and where in the run."""

    stage: str
    provider: str
    model: str
    kind: str
    """chat, options, embed or train."""


@dataclass(slots=True)
class Amounts:
    """Sums; floats, because a sampled row stands for several."""

    requests: float = 0.0
    prompt: float = 0.0
    cached: float = 0.0
    """The part of `prompt` that repeats an earlier prompt's beginning, by the vendor's rule."""
    completion: float = 0.0
    training: float = 0.0


@dataclass(frozen=True)
class Shares:
    """How many real rows one sampled row stands for, by the part of the data that it is from."""

    labeled: float = 1.0
    unlabeled: float = 1.0
    test: float = 1.0
    development: float = 1.0
    part_of_turn: Mapping[str, str] = field(default_factory=dict[str, str])
    """Maps a zero-shot user turn to `labeled`, `unlabeled`, `test` or `development`."""

    def of(self, user_turn: str, stage: str) -> float:
        """The weight of a question; one whose turn is worded anew counts as its stage's usual part."""
        if stage == _PROBE:
            return 1.0
        usual = "test" if stage.startswith("evaluate") else "unlabeled"
        match self.part_of_turn.get(user_turn, usual):
            case "labeled":
                return self.labeled
            case "test":
                return self.test
            case "development":
                return self.development
            case _:
                return self.unlabeled

    def of_training(self, user_turn: str) -> float:
        """The weight of a line of a training file."""
        return self.labeled if self.part_of_turn.get(user_turn) == "labeled" else self.unlabeled

    @property
    def mean(self) -> float:
        """The weight of a text of all three parts."""
        return (self.labeled + self.unlabeled + self.test) / 3


@dataclass(frozen=True)
class TrainingReport:
    """One training file as the vendor would bill it; `examples` and `tokens` hold for one epoch of the whole."""

    name: str
    examples: int
    tokens: int
    longest: int
    epochs: int
    epochs_by: Literal["config", "trainer", "usual"] = "config"
    """Where they are "auto": by the trainer's own rule, or what is usual with vendors that don't tell."""


class Demand:
    """The counts of one dry run. `stage` is set by whoever knows where the run is."""

    def __init__(self, shares: Shares) -> None:
        self.stage = ""
        self.shares = shares
        self.lines: dict[Line, Amounts] = {}
        self.trainings: list[TrainingReport] = []

    def at(self, provider: str, model: str, kind: str) -> Amounts:
        """The running sums of the stage's line."""
        return self.lines.setdefault(Line(self.stage, provider, model, kind), Amounts())

    def asked(self, line: tuple[str, str, str], usage: Usage, weight: float) -> None:
        """One request of `weight` real ones; `line` is provider, model and kind."""
        amounts = self.at(*line)
        amounts.requests += weight
        amounts.prompt += weight * usage.prompt
        amounts.cached += weight * usage.cached
        amounts.completion += weight * usage.completion


_Price = Callable[[Line], ModelLimits | None]


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


_NOTHING = Range(0.0, 0.0, 0.0)
_CACHE_HITS = 0.5
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


def bill(demands: Mapping[str, Demand], price: _Price, batch_share: Callable[[Line], float | None]) -> list[BillRow]:
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
    return Range(0.0, min(_CACHE_HITS * most, prompt.expected), min(most, prompt.high))


def cost(tokens: Tokens, limits: ModelLimits | None) -> Range | None:
    """USD; None where a price is missing for tokens that there are. Many cache hits make the low end."""
    if limits is None:
        return None
    kinds = ((tokens.prompt, limits.input_usd), (tokens.completion, limits.output_usd))
    total = _NOTHING
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
    return sum(known, _NOTHING) if len(known) == len(found) else None


def _whole(value: Range) -> dict[str, int]:
    return {name: math.ceil(number - 1e-9) for name, number in asdict(value).items()}


def _money(value: Range | None) -> dict[str, float] | None:
    return None if value is None else {name: round(number, 6) for name, number in asdict(value).items()}


@dataclass(frozen=True)
class Spent:
    """Sums over all processes of a run; `stages` are the engine's names, `trained_tokens` by job.

    `usd` is what requests cost; `trainings_usd` what trainings did, None where a price is not known.
    """

    requests: int
    usage: Usage
    usd: float
    stages: Mapping[str, Usage]
    trained_tokens: Mapping[str, int]
    trainings_usd: float | None = None


def spent_by(config: Config) -> Spent | None:
    """The run's ledger; None where nothing was paid yet."""
    path = config.run.journal_path
    if not path.is_file():
        return None
    journal = Journal.create(path)
    try:
        totals = [t for t in journal.totals() if t.source.run == str(config.run.folder)]
    finally:
        journal.close()
    stages: dict[str, Usage] = {}
    for t in totals:
        usage = Usage(t.prompt_tokens, t.completion_tokens, t.cached_tokens)
        stages[t.source.stage] = stages.get(t.source.stage, Usage()) + usage
    jobs = _jobs(config.run.folder)
    prices = [float(job["training_usd"]) for job in jobs.values() if job.get("training_usd") is not None]
    return Spent(
        requests=sum(t.requests for t in totals),
        usage=sum(stages.values(), Usage()),
        usd=sum(t.usd for t in totals),
        stages=stages,
        trained_tokens={name: int(job["trained_tokens"]) for name, job in jobs.items() if job.get("trained_tokens")},
        trainings_usd=sum(prices) if len(prices) == len(jobs) else None,
    )


def _jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """What is noted of each model that was trained, by job."""
    return {
        model_trained_by(path.parent.name.removesuffix("-model")): json.loads(path.read_text("utf-8"))
        for path in sorted(folder.glob("jobs/*-model/model.json"))
    }
