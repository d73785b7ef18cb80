"""Collaborative learning: every annotator answers every unlabelled question (paper §3.3).

Those that calibrate are answered in the same way. Annotators read by `p_true` are asked once more, about their own
answers. Knows nothing of selection or of vendors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from semievol_api.artifacts import EvidenceTable
from semievol_api.config import AnnotateSettings, ThresholdPool
from semievol_api.fingerprints import stage
from semievol_api.records import Evidence, Example
from semievol_api.stages.annotators import NOBODY, Crew
from semievol_api.stages.asking import Corpus, Student, ask
from semievol_api.stages.reading import Question
from semievol_api.stages.spread import Shard
from semievol_api.stages.wording import Tone, questions_of, verification
from semievol_api.tables import evidence_table, joined_evidence

if TYPE_CHECKING:
    import pyarrow as pa


@stage("collaborate")
async def collaborate(
    student: Student, corpus: Corpus, crew: Crew, settings: AnnotateSettings, pool: ThresholdPool
) -> EvidenceTable:
    """One evidence row per (example, annotator, sample); a failed request is a row with its reason."""
    tone = Tone(settings.max_tokens, settings.temperature)
    return EvidenceTable(student.over(Collaboration(corpus, crew, tone, pool)))


@dataclass(frozen=True)
class Collaboration:
    """Asks the whole crew about a shard of the pool."""

    corpus: Corpus
    crew: Crew
    tone: Tone
    threshold_pool: ThresholdPool
    stage: str = "collaborate"

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Work`."""
        return self.corpus.sizes(self.threshold_pool)

    def joined(self, part: int, tables: Sequence[pa.Table]) -> pa.Table:
        """See `Work`."""
        return joined_evidence(tables)

    async def __call__(self, student: Student, shard: Shard) -> pa.Table:
        """The shard's evidence."""
        examples = self.corpus.pool(self.threshold_pool, shard)

        def questions() -> Iterator[Question]:
            for annotator in self.crew.annotators:
                if annotator.role != NOBODY:
                    yield from questions_of(student, self.corpus, annotator, examples, self.tone)

        rows = await ask(student, self.corpus.task, questions(), stage=self.stage)
        return evidence_table(await self._verified(student, examples, rows))

    async def _verified(
        self, student: Student, examples: Sequence[Example], rows: Sequence[Evidence]
    ) -> Sequence[Evidence]:
        """The rows, those of annotators read by `p_true` with the probability that they give to their own answer."""
        checkers = {annotator.id: annotator for annotator in self.crew.annotators if annotator.reading == "p_true"}
        if not checkers:
            return rows
        task, about = self.corpus.task, {e.id: e for e in examples}
        questions = [
            verification(student, task, checkers[row.annotator_id], (about[row.example_id], row.answer), self.tone)
            for row in rows
            if row.annotator_id in checkers and row.answer is not None
        ]
        checked = await ask(student, task, questions, stage=self.stage)
        verdicts = {(row.example_id, row.annotator_id): row for row in checked}
        return [_with_verdict(row, verdicts.get((row.example_id, row.annotator_id))) for row in rows]


def _with_verdict(row: Evidence, verdict: Evidence | None) -> Evidence:
    if verdict is None:
        return row
    p_true = verdict.option_probs[0] if verdict.option_probs else None
    return replace(row, p_true=p_true, usage=row.usage + verdict.usage)
