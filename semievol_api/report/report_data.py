"""What the report shows, as frozen values: verdict, models, curves, costs, findings.

Also what a reader is warned of, and how figures are written. Knows nothing of where the values come from or of how they
are drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from semievol_api.evaluation import PrecisionCoverage, Reliability, ScoreHistogram
from semievol_api.records import Example
from semievol_api.report.labels import LabelTable
from semievol_api.store.artifacts import Prepared
from semievol_api.store.verdict import Difference, FieldScores, ModelScore


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


def categories_of(test: Sequence[Example]) -> dict[str, str]:
    """Each test question's category; its gold answer where the data names no categories."""
    named = any(e.category for e in test)
    return {e.id: (e.category if named else e.answer) or "(none)" for e in test}


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
    chosen_cut: tuple[float, float] | None
    """(coverage, precision) of what the selection rule kept."""
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
    def fields(self) -> list[ModelScore]:
        """The models whose answers are scored field by field."""
        return [m for m in self.models if isinstance(m.fields, FieldScores)]

    @property
    def total_seconds(self) -> float:
        """Wall time of all stages, whichever process made them."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens of all stages that asked."""
        return sum((s.prompt_tokens or 0) + (s.completion_tokens or 0) for s in self.stages)


_FEW_LABELS = 60
"""Fewer labels than this leave no calibration slice (method §3)."""
_SMALL_TEST = 200
_LOW_AGREEMENT = 0.6
_DOMINANT_SHARE = 0.8
_MOST_IDS_NAMED = 5


class _Note(msgspec.Struct):
    source: str
    what: str
    rows: str = ""
    example_ids: list[str] = []


def warnings_of(data: Prepared, labels: LabelTable, differences: Sequence[Difference]) -> list[str]:
    """The warnings, each one sentence that says what it means for the reader."""
    return [
        *_reading_notes(data),
        *_size_warnings(data),
        *_measurement_warnings(differences),
        *_label_warnings(data, labels),
    ]


def no_better_than_majority(label: str, low: float, high: float) -> str:
    """What it means that a trained model's lead over the most frequent answer is not above 0."""
    return (
        f"{label} is not shown to be better than always giving the most frequent answer (95 % interval of the "
        f"difference {low:+.1f} to {high:+.1f}): it may have learned nothing else. Look at its answers and the loss "
        f"curve; more labels of the rare answers or more epochs ([train] n_epochs) may help."
    )


def _reading_notes(data: Prepared) -> Iterator[str]:
    """What was put right while the files were read, with the first rows that it concerns."""
    for note in msgspec.convert(data.report.get("notes", []), list[_Note]):
        ids = ", ".join(note.example_ids[:_MOST_IDS_NAMED])
        more = "" if len(note.example_ids) <= _MOST_IDS_NAMED else " ..."
        yield f"{note.source}{', ' if note.rows else ''}{note.rows}: {note.what} (examples {ids}{more})."


def _size_warnings(data: Prepared) -> Iterator[str]:
    if len(data.labeled) < _FEW_LABELS:
        yield (
            f"There are {len(data.labeled)} labelled examples; below {_FEW_LABELS} no calibration slice can be set "
            f"aside, so the share of false labels is not guaranteed."
        )
    if 0 < len(data.test) < _SMALL_TEST:
        yield f"The test has {len(data.test)} questions; small gains cannot be told from chance with so few."


def _measurement_warnings(differences: Sequence[Difference]) -> Iterator[str]:
    for d in differences:
        if d.of == "semievol" and d.low <= 0 <= d.high:
            yield (
                f"The interval of {d.of_label} against {d.against_label} contains 0: this test does not show a "
                f"difference in either direction."
            )
        if d.against == "majority" and d.low <= 0:
            yield no_better_than_majority(d.of_label, d.low, d.high)


def _label_warnings(data: Prepared, labels: LabelTable) -> Iterator[str]:
    agreement = labels.agreement()
    answered = np.array([a is not None for a in labels.answers], dtype=np.bool_)
    if answered.any() and labels.annotators:
        mean = float(np.nanmean(agreement[answered]))
        if mean < _LOW_AGREEMENT:
            yield (
                f"On average only {100 * mean:.0f} % of the annotators gave the answer that was put forward: the "
                f"task is ambiguous for them, and their errors may be shared."
            )
    if answered.size and answered.mean() < 0.95 and labels.annotators:
        yield f"{int((~answered).sum()):,} of {len(labels):,} unlabelled rows got no answer; none of them is kept."
    counts = Counter(a for a, keep in zip(labels.answers, labels.kept, strict=True) if keep)
    if counts and len({e.answer for e in data.labeled}) > 1:
        answer, count = counts.most_common(1)[0]
        if count > _DOMINANT_SHARE * counts.total():
            yield f"{100 * count / counts.total():.0f} % of the kept labels are {answer!r}; is that the data or a bias?"


def percent(share: float | None) -> str:
    """A share as text, such as `12.3 %`."""
    return "–" if share is None or share != share else f"{100 * share:.1f} %"


def signed(points: float) -> str:
    """Percentage points with a sign, such as `+1.2`."""
    return f"{points:+.1f}"


def seconds(value: float) -> str:
    """A duration that a person can read."""
    if value < 90:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def thousands(value: float | None) -> str:
    """A count with separators; a dash for none."""
    return "–" if value is None else f"{value:,.0f}"
