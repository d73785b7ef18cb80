"""Collaborative learning: every annotator answers every unlabelled question (paper §3.3).

Those that calibrate are answered in the same way. Knows nothing of selection or of vendors.
"""

from __future__ import annotations

from collections.abc import Iterator

from semievol_api.artifacts import EvidenceTable
from semievol_api.config import AnnotateSettings, ThresholdPool
from semievol_api.stages.annotators import NOBODY, Crew
from semievol_api.stages.asking import Corpus, Student, ask
from semievol_api.stages.reading import Question
from semievol_api.stages.wording import Tone, questions_of


async def collaborate(
    student: Student, corpus: Corpus, crew: Crew, settings: AnnotateSettings, pool: ThresholdPool
) -> EvidenceTable:
    """One evidence row per (example, annotator, sample); a failed request is a row with its reason."""
    tone = Tone(settings.max_tokens, settings.temperature)

    def questions() -> Iterator[Question]:
        for annotator in crew.annotators:
            if annotator.role != NOBODY:
                yield from questions_of(student, corpus, annotator, corpus.pool(pool), tone)

    return EvidenceTable.of(await ask(student, corpus.task, questions(), stage="collaborate"))
