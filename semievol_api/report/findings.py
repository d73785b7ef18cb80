"""What a careful reader would warn of: small tests, few labels, truncated answers, quarrelling annotators.

Looks at what a run made and says so in plain sentences. Knows nothing of HTML or of where a run is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from semievol_api.artifacts import Prepared
from semievol_api.report.label_table import LabelTable
from semievol_api.report.report_data import Difference

FEW_LABELS = 60
"""Fewer labels than this leave no calibration slice (method §3)."""
SMALL_TEST = 200
LOW_AGREEMENT = 0.6
DOMINANT_SHARE = 0.8
MOST_IDS_NAMED = 5


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
        ids = ", ".join(note.example_ids[:MOST_IDS_NAMED])
        more = "" if len(note.example_ids) <= MOST_IDS_NAMED else " ..."
        yield f"{note.source}{', ' if note.rows else ''}{note.rows}: {note.what} (examples {ids}{more})."


def _size_warnings(data: Prepared) -> Iterator[str]:
    if len(data.labeled) < FEW_LABELS:
        yield (
            f"There are {len(data.labeled)} labelled examples; below {FEW_LABELS} no calibration slice can be set "
            f"aside, so the share of false labels is not guaranteed."
        )
    if 0 < len(data.test) < SMALL_TEST:
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
    if answered.any() and labels.voices:
        mean = float(np.nanmean(agreement[answered]))
        if mean < LOW_AGREEMENT:
            yield (
                f"On average only {100 * mean:.0f} % of the annotators gave the answer that was put forward: the "
                f"task is ambiguous for them, and their errors may be shared."
            )
    if answered.size and answered.mean() < 0.95 and labels.voices:
        yield f"{int((~answered).sum()):,} of {len(labels):,} unlabelled rows got no answer; none of them is kept."
    counts = Counter(a for a, keep in zip(labels.answers, labels.kept, strict=True) if keep)
    if counts and len({e.answer for e in data.labeled}) > 1:
        answer, count = counts.most_common(1)[0]
        if count > DOMINANT_SHARE * counts.total():
            yield f"{100 * count / counts.total():.0f} % of the kept labels are {answer!r}; is that the data or a bias?"
