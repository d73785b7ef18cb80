"""What a run asks for and trains on, counted: one line per stage and model, scaled from a sample to the whole.

Knows nothing of prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from semievol_api.records import Usage

PROBE = "probe"
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
        if stage == PROBE:
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
