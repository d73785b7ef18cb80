"""What the report shows, as frozen values: verdict, models, curves, costs, findings.

Knows nothing of where the values come from or of how they are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semievol_api.report.curves import PrecisionCoverage, Reliability, ScoreHistogram
from semievol_api.report.label_table import LabelTable


@dataclass(frozen=True)
class ModelScore:
    """One model on the test questions; accuracies are shares in [0, 1], the interval is the 95 % one."""

    name: str
    label: str
    accuracy: float
    low: float
    high: float
    abstained: int | None
    answer_tokens: int | None
    trained_tokens: int | None


@dataclass(frozen=True)
class Difference:
    """A paired difference in percentage points, with its 95 % interval."""

    of: str
    against: str
    of_label: str
    against_label: str
    points: float
    low: float
    high: float
    p_value: float | None
    smallest_detectable: float | None


@dataclass(frozen=True)
class FalseShare:
    """The share of false labels among the kept: where the figure comes from, and its range where known."""

    share: float
    low: float | None
    high: float | None
    source: str


@dataclass(frozen=True)
class CategoryChange:
    """One category's accuracy before and after, over the same `n` test questions."""

    name: str
    n: int
    before: float
    after: float


@dataclass(frozen=True)
class Confusion:
    """Counts of (gold, answered) over the test questions; the last column counts abstentions."""

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class JobCurve:
    """One metric of one training job over its steps."""

    job: str
    metric: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class StageCost:
    """Wall seconds of one stage when it was made, and the tokens of its requests where there were any.

    `cached_tokens` is the part of `prompt_tokens` that the server read from its prefix cache.
    """

    name: str
    seconds: float
    requests: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None

    @property
    def cached_share(self) -> float | None:
        """Of the prompts' tokens; None where nothing was asked."""
        return (self.cached_tokens or 0) / self.prompt_tokens if self.prompt_tokens else None


@dataclass(frozen=True, eq=False)
class Confidences:
    """How a set of confidences relates to being right; `subject` says in words whose they are."""

    subject: str
    histogram: ScoreHistogram
    reliability: Reliability
    auroc: float


@dataclass(frozen=True, eq=False)
class ReportData:
    """The whole report. An empty field is a part of the run that does not exist (yet)."""

    title: str
    sentence: str
    promoted: bool | None
    gate_items: int
    n_test: int
    counts: Mapping[str, int]
    models: Sequence[ModelScore]
    differences: Sequence[Difference]
    selection: Mapping[str, object]
    false_share: FalseShare | None
    precision_coverage: PrecisionCoverage | None
    confidences: Sequence[Confidences]
    before_after: tuple[str, str] | None
    categories: Sequence[CategoryChange]
    confusion: Confusion | None
    job_curves: Sequence[JobCurve]
    stages: Sequence[StageCost]
    hygiene: Sequence[tuple[str, str]]
    dropped: Sequence[tuple[str, str, str]]
    """(example id, split, reason) of dropped rows, as far as they are listed."""
    warnings: Sequence[str]
    config_text: str
    versions: Mapping[str, str]
    labels: LabelTable

    @property
    def main_difference(self) -> Difference | None:
        """The gain that the verdict is about."""
        gains = [d for d in self.differences if d.of == "semievol"]
        return next((d for name in ("sft", "warm", "base") for d in gains if d.against == name), None)

    @property
    def total_seconds(self) -> float:
        """Wall time of all stages, whichever process made them."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens of all stages that asked."""
        return sum((s.prompt_tokens or 0) + (s.completion_tokens or 0) for s in self.stages)
