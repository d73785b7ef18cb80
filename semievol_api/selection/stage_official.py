"""The selection of the code released with the paper, for reproduction only (method §2).

Knows nothing of prompts or providers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from semievol_api.annotate.annotators import Crew
from semievol_api.annotate.requests import Corpus
from semievol_api.config.method import SelectSettings
from semievol_api.data.schemas import as_labels
from semievol_api.data.table import ChunkedTable
from semievol_api.records import Evidence, Example
from semievol_api.selection.columns import labels_table
from semievol_api.selection.rule_percentile import official_2025
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.store.artifacts import EvidenceTable, Selection
from semievol_api.store.verdict import PaperSummary
from semievol_api.tasks import Task

_EvidenceByExample: TypeAlias = Mapping[str, Sequence[Evidence]]

_BANNER = (
    "Mode official-2025 repeats the code released with the paper, for comparison only: unanimous answers are kept "
    "without any threshold, and nothing is promised about the labels. Use the mode calibrated for real work."
)


def official(
    corpus: Corpus, crew: Crew, annotations: EvidenceTable, final: EvidenceTable, settings: SelectSettings
) -> Selection:
    """Unanimous answers, and justified ones strictly below the percentile of the justified."""
    rounds = [
        _both_rounds(corpus.task, crew, corpus.unlabeled.part(part), (annotations.answers(part), final.answers(part)))
        for part in range(corpus.unlabeled.n_parts)
    ]
    answers = np.concatenate([found.answers for found in rounds])
    nll = np.concatenate([found.nll for found in rounds])
    found = official_2025(answers, nll, settings.share)
    ends = np.cumsum([len(one.ids) for one in rounds])[:-1]
    masks = list(zip(rounds, np.split(found.kept, ends), strict=True))
    kept = [_kept(corpus.task, one, mask) for one, mask in masks]
    summary = PaperSummary(
        rule=settings.rule,
        share=settings.share,
        threshold_mean_nll=found.threshold,
        unlabeled=len(nll),
        answered=sum(answer is not None for one in rounds for answer in one.chosen),
        unanimous=int((answers == 0).all(axis=1).sum()),
        kept=sum(map(len, kept)),
        messages=(_BANNER, *found.messages),
    )
    scores = ChunkedTable.of(*(_scores(one, mask) for one, mask in masks))
    return Selection(kept=ChunkedTable.of(*kept).typed(as_labels), scores=scores, summary=summary)


@dataclass(frozen=True, eq=False)
class _Rounds:
    """Both rounds' answers about one part.

    `answers` int64 (m, annotators) are numbers of distinct answers, -1 = abstain; `nll` is float64 (m,).
    """

    ids: list[str]
    answers: IntArray
    nll: FloatArray
    chosen: list[str | None]


def _both_rounds(
    task: Task, crew: Crew, examples: Sequence[Example], evidence: tuple[_EvidenceByExample, _EvidenceByExample]
) -> _Rounds:
    rows, justified = evidence
    answers = np.full((len(examples), len(crew.annotators)), -1, dtype=np.int64)
    nll = np.full(len(examples), np.nan)
    chosen: list[str | None] = []
    for place, example in enumerate(examples):
        texts = _first_round(task, rows.get(example.id, []), answers[place])
        last = justified.get(example.id, [])
        if last and last[0].answer is not None and last[0].mean_nll is not None:
            nll[place] = last[0].mean_nll
        unanimous = bool((answers[place] == 0).all())
        chosen.append(texts[0] if unanimous else last[0].answer if last else None)
    return _Rounds([e.id for e in examples], answers, nll, chosen)


def _kept(task: Task, found: _Rounds, kept: BoolArray) -> pa.Table:
    rows = zip(found.ids, found.chosen, found.nll, kept, strict=True)
    taken = [(name, answer, _score(nll)) for name, answer, nll, keep in rows if keep and answer is not None]
    return labels_table(
        task, [name for name, _, _ in taken], [answer for _, answer, _ in taken], [s for _, _, s in taken]
    )


def _scores(found: _Rounds, kept: BoolArray) -> pa.Table:
    return pa.table(
        {
            "example_id": pa.array(found.ids, pa.string()),
            "answer": pa.array(found.chosen, pa.string()),
            "mean_nll": pa.array(found.nll, pa.float64(), from_pandas=True),
            "kept": pa.array(kept, pa.bool_()),
            "reason": pa.array(["kept" if k else "not below the percentile" for k in kept], pa.string()),
        }
    )


def _first_round(task: Task, rows: Sequence[Evidence], into: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[str]:
    """The distinct answers; `into` gets each row's number among them, -1 for an abstention."""
    distinct: list[str] = []
    for column, row in enumerate(rows):
        if row.answer is None:
            continue
        same = next((i for i, other in enumerate(distinct) if task.equal(row.answer, other)), None)
        if same is None:
            distinct.append(row.answer)
        into[column] = len(distinct) - 1 if same is None else same
    return distinct


def _score(nll: float) -> float:
    """Lower `mean_nll` is better; unanimous answers have none and count as certain."""
    return 0.0 if np.isnan(nll) else -float(nll)
