"""Self-justification: the warm model weighs the annotators' answers and gives the final one (paper §3.3).

In the calibrated mode only where the crew is uncertain, and as one more annotator that never overrides. Knows
nothing of selection or of vendors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from semievol_api.annotate.annotators import NOBODY, Annotator, Crew, request_seed
from semievol_api.annotate.estimators import asking_of
from semievol_api.annotate.pooled import annotator_probs, evidence_columns
from semievol_api.annotate.replies import Question
from semievol_api.annotate.requests import Corpus, SamplingParams, Student, ask, question, questions_of, verification
from semievol_api.config.method import AnnotateSettings, JustifySettings, ThresholdPool
from semievol_api.data.schemas import evidence_table, joined_evidence
from semievol_api.records import Evidence, Example
from semievol_api.scale.executor import Shard
from semievol_api.selection import worth_justifying
from semievol_api.store.artifacts import EvidenceTable
from semievol_api.store.fingerprints import stage
from semievol_api.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa

Rows: TypeAlias = Mapping[str, Sequence[Evidence]]
"""Evidence rows by example id."""


@stage("collaborate")
async def collaborate(
    student: Student, corpus: Corpus, crew: Crew, settings: AnnotateSettings, pool: ThresholdPool
) -> EvidenceTable:
    """One evidence row per (example, annotator, sample); a failed request is a row with its reason."""
    sampling = SamplingParams(settings.max_tokens, settings.temperature)
    return EvidenceTable(student.run(Collaboration(corpus, crew, pool, sampling)))


@dataclass(frozen=True)
class _PoolWork:
    """Asks about the pool, part by part; see `Work`."""

    corpus: Corpus
    crew: Crew
    threshold_pool: ThresholdPool

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Work`."""
        return self.corpus.pool(self.threshold_pool).sizes

    def joined(self, part: int, tables: Sequence[pa.Table]) -> pa.Table:
        """See `Work`."""
        return joined_evidence(tables)


@dataclass(frozen=True)
class Collaboration(_PoolWork):
    """Asks all annotators about a shard of the pool."""

    sampling: SamplingParams
    stage: str = "collaborate"

    async def __call__(self, student: Student, shard: Shard) -> pa.Table:
        """The shard's evidence."""
        examples = shard.examples(self.corpus.pool(self.threshold_pool))

        def questions() -> Iterator[Question]:
            for annotator in self.crew.annotators:
                if annotator.role != NOBODY:
                    yield from questions_of(student, self.corpus, annotator, examples, self.sampling)

        rows = await ask(student, self.corpus.task, questions(), stage=self.stage)
        return evidence_table([*await self._verified(student, examples, rows), *self._learned(shard, examples)])

    def _learned(self, shard: Shard, examples: Sequence[Example]) -> Iterator[Evidence]:
        """What the annotators said that the labels taught, and nobody was asked."""
        if self.corpus.by_labels is not None:
            rows = self.corpus.by_labels.by_example(shard.part)
            yield from (row for example in examples for row in rows.get(example.id, ()))

    async def _verified(
        self, student: Student, examples: Sequence[Example], rows: Sequence[Evidence]
    ) -> Sequence[Evidence]:
        """The rows, those of annotators that check themselves with the probability of their own answer."""
        checkers = {a.id: a for a in self.crew.annotators if asking_of(a.reading).verified}
        if not checkers:
            return rows
        task, about = self.corpus.task, {e.id: e for e in examples}

        def checker(row: Evidence) -> Annotator:
            return student.unseeing(self.corpus, checkers[row.annotator_id], about[row.example_id])

        questions = [
            verification(student, task, checker(row), (about[row.example_id], row.answer), self.sampling)
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


@stage("justify")
async def justify(
    student: Student,
    corpus: Corpus,
    crew: Crew,
    evidence: EvidenceTable,
    settings: JustifySettings,
    pool: ThresholdPool,
) -> EvidenceTable:
    """One row per justified example; examples that nobody answered are left out and abstain."""
    return EvidenceTable(student.run(Justification(corpus, crew, pool, evidence, settings)))


@dataclass(frozen=True)
class Justification(_PoolWork):
    """Has the judge weigh what the annotators answered about a shard of the pool."""

    evidence: EvidenceTable
    settings: JustifySettings
    stage: str = "justify"

    async def __call__(self, student: Student, shard: Shard) -> pa.Table:
        """The shard's evidence."""
        sampling = SamplingParams(self.settings.max_tokens, self.settings.temperature)
        task = self.corpus.task

        def questions() -> Iterator[Question]:
            for example, shown in self._proposals(student, shard):
                prompt = task.justify_prompt(example, (), shown)
                judge = student.unseeing(self.corpus, self.crew.judge, example)
                yield question(student, task, judge, (example, prompt, None), sampling)

        return evidence_table(await ask(student, task, questions(), stage=self.stage))

    def _proposals(self, student: Student, shard: Shard) -> Iterator[tuple[Example, list[str]]]:
        if self.settings.on == "never":
            return
        rows = self.evidence.by_example(shard.part)
        if self.settings.on == "uncertain":
            yield from self._representatives(student, shard, rows)
        else:
            yield from self._responses(shard.examples(self.corpus.pool(self.threshold_pool)), rows)

    def _responses(self, examples: Sequence[Example], rows: Rows) -> Iterator[tuple[Example, list[str]]]:
        """Every annotator's response, as it stands."""
        task = self.corpus.task
        for example in examples:
            answered = [row for row in rows.get(example.id, []) if row.answer is not None]
            if answered and not (self.settings.on == "disagreements" and _agree(task, answered)):
                yield example, [_shown(task, example, row, self.settings) for row in answered]

    def _representatives(self, student: Student, shard: Shard, rows: Rows) -> Iterator[tuple[Example, list[str]]]:
        """One response per distinct answer, shuffled, without counts, where the annotators are not sure (§3.5)."""
        task, examples = self.corpus.task, shard.examples(self.corpus.pool("unlabeled"))
        evidence = evidence_columns((self.evidence,), shard.part)
        found = annotator_probs(self.corpus, self.crew.annotators, examples, evidence)
        for place in np.flatnonzero(worth_justifying(found.pooled, self.settings.margin)).tolist():
            example = found.examples[place]
            shown = [
                _representative(task, example, answer, rows.get(example.id, ()), self.settings)
                for answer in found.answers(task, place)
            ]
            random.Random(request_seed(student.seed, "proposals", example.id)).shuffle(shown)
            yield example, shown


def _representative(
    task: Task, example: Example, answer: str, rows: Sequence[Evidence], settings: JustifySettings
) -> str:
    row = next((row for row in rows if row.answer is not None and task.equal(row.answer, answer)), None)
    return task.target(example, answer) if row is None or not _in_own_words(task, row, settings) else row.text


def _shown(task: Task, example: Example, row: Evidence, settings: JustifySettings) -> str:
    return row.text if _in_own_words(task, row, settings) else task.target(example, row.answer or "")


def _in_own_words(task: Task, row: Evidence, settings: JustifySettings) -> bool:
    """Not where the row's letters stood for other options than the judge's."""
    return settings.show == "response" and (row.permutation is None or not task.lettered)


def _agree(task: Task, answered: Sequence[Evidence]) -> bool:
    first = answered[0].answer or ""
    return all(task.equal(row.answer or "", first) for row in answered[1:])
