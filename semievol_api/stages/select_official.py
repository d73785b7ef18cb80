"""The selection of the code released with the paper, for reproduction only (method §2).

Knows nothing of prompts or providers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from semievol_api.artifacts import EvidenceTable, Selection
from semievol_api.config import SelectSettings
from semievol_api.records import Evidence, PseudoLabel
from semievol_api.selection import official_2025
from semievol_api.stages.annotators import Crew
from semievol_api.stages.asking import Corpus
from semievol_api.tasks import Task

BANNER = (
    "Mode official-2025 repeats the code released with the paper, for comparison only: unanimous answers are kept "
    "without any threshold, and nothing is promised about the labels. Use the mode calibrated for real work."
)


def official(
    corpus: Corpus, crew: Crew, said: EvidenceTable, final: EvidenceTable, settings: SelectSettings
) -> Selection:
    """Unanimous answers, and justified ones strictly below the percentile of the justified."""
    task, examples = corpus.task, corpus.data.unlabeled
    rows, justified = said.by_example(), final.by_example()
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
    found = official_2025(answers, nll, settings.share)
    kept = tuple(
        PseudoLabel(example_id=e.id, answer=answer, text=task.target(e, answer), score=_score(nll[i]))
        for i, (e, answer) in enumerate(zip(examples, chosen, strict=True))
        if found.kept[i] and answer is not None
    )
    table = {
        "example_id": pa.array([e.id for e in examples], pa.string()),
        "answer": pa.array(chosen, pa.string()),
        "mean_nll": pa.array(nll, pa.float64(), from_pandas=True),
        "kept": pa.array(found.kept, pa.bool_()),
        "reason": pa.array(["kept" if k else "not below the percentile" for k in found.kept], pa.string()),
    }
    summary = {
        "rule": settings.rule,
        "share": settings.share,
        "threshold_mean_nll": found.threshold,
        "unlabeled": len(examples),
        "answered": sum(answer is not None for answer in chosen),
        "unanimous": int((answers == 0).all(axis=1).sum()),
        "kept": len(kept),
        "messages": [BANNER, *found.messages],
    }
    return Selection(kept=kept, scores=pa.table(table), summary=summary)


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
