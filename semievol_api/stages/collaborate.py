"""Collaborative learning: every annotator answers every unlabelled question (paper §3.3).

Those that calibrate are answered in the same way. Annotators read by `p_true` are asked once more, about their own
answers. Knows nothing of selection or of vendors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from semievol_api.artifacts import EvidenceTable
from semievol_api.config import AnnotateSettings, ThresholdPool
from semievol_api.records import Evidence
from semievol_api.stages.annotators import NOBODY, Crew
from semievol_api.stages.asking import Corpus, Student, ask
from semievol_api.stages.reading import Question
from semievol_api.stages.wording import Tone, questions_of, verification


async def collaborate(
    student: Student, corpus: Corpus, crew: Crew, settings: AnnotateSettings, pool: ThresholdPool
) -> EvidenceTable:
    """One evidence row per (example, annotator, sample); a failed request is a row with its reason."""
    tone = Tone(settings.max_tokens, settings.temperature)

    def questions() -> Iterator[Question]:
        for annotator in crew.annotators:
            if annotator.role != NOBODY:
                yield from questions_of(student, corpus, annotator, corpus.pool(pool), tone)

    rows = await ask(student, corpus.task, questions(), stage="collaborate")
    return EvidenceTable.of(await _verified(student, corpus, crew, rows, tone))


async def _verified(
    student: Student, corpus: Corpus, crew: Crew, rows: Sequence[Evidence], tone: Tone
) -> Sequence[Evidence]:
    """The rows, those of annotators read by `p_true` with the probability that they give to their own answer."""
    checkers = {annotator.id: annotator for annotator in crew.annotators if annotator.reading == "p_true"}
    if not checkers:
        return rows
    examples = {e.id: e for e in (*corpus.data.unlabeled, *corpus.data.labeled)}
    questions = [
        verification(student, corpus.task, checkers[row.annotator_id], (examples[row.example_id], row.answer), tone)
        for row in rows
        if row.annotator_id in checkers and row.answer is not None
    ]
    checked = await ask(student, corpus.task, questions, stage="collaborate")
    verdicts = {(row.example_id, row.annotator_id): row for row in checked}
    return [_with_verdict(row, verdicts.get((row.example_id, row.annotator_id))) for row in rows]


def _with_verdict(row: Evidence, verdict: Evidence | None) -> Evidence:
    if verdict is None:
        return row
    p_true = verdict.option_probs[0] if verdict.option_probs else None
    return replace(row, p_true=p_true, usage=row.usage + verdict.usage)
