"""Self-justification: the warm model weighs the annotators' answers and gives the final one (paper §3.3).

In the calibrated mode only where the crew is uncertain, and as one more annotator that never overrides. Knows
nothing of selection or of vendors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from semievol_api.artifacts import EvidenceTable
from semievol_api.config import JustifySettings, ThresholdPool
from semievol_api.records import Evidence, Example
from semievol_api.selection import worth_justifying
from semievol_api.stages.annotators import Crew, request_seed
from semievol_api.stages.asking import Corpus, Student, ask
from semievol_api.stages.pooling import Rows, opinions
from semievol_api.stages.reading import Question
from semievol_api.stages.wording import Tone, question
from semievol_api.tasks import Task


async def justify(
    student: Student,
    corpus: Corpus,
    crew: Crew,
    evidence: EvidenceTable,
    settings: JustifySettings,
    pool: ThresholdPool,
) -> EvidenceTable:
    """One row per justified example; examples that nobody answered are left out and abstain."""
    tone = Tone(settings.max_tokens, settings.temperature)
    rows = evidence.by_example()

    def proposals() -> Iterator[tuple[Example, list[str]]]:
        if settings.on == "uncertain":
            yield from _representatives(student, corpus, crew, rows, settings)
        elif settings.on != "never":
            yield from _responses(corpus, corpus.pool(pool), rows, settings)

    def questions() -> Iterator[Question]:
        for example, shown in proposals():
            prompt = corpus.task.justify_prompt(example, (), shown)
            yield question(student, corpus.task, crew.judge, (example, prompt, None), tone)

    return EvidenceTable.of(await ask(student, corpus.task, questions(), stage="justify"))


def _responses(
    corpus: Corpus, examples: Sequence[Example], rows: Rows, settings: JustifySettings
) -> Iterator[tuple[Example, list[str]]]:
    """Every annotator's response, as it stands."""
    task = corpus.task
    for example in examples:
        said = [row for row in rows.get(example.id, []) if row.answer is not None]
        if said and not (settings.on == "disagreements" and _agree(task, said)):
            yield example, [_shown(task, example, row, settings) for row in said]


def _representatives(
    student: Student, corpus: Corpus, crew: Crew, rows: Rows, settings: JustifySettings
) -> Iterator[tuple[Example, list[str]]]:
    """One response per distinct answer, shuffled, without counts, where the crew is not sure (method §3.5)."""
    found = opinions(corpus, crew.annotators, corpus.pool("unlabeled"), rows)
    for place in np.flatnonzero(worth_justifying(found.pooled, settings.margin)).tolist():
        example = found.examples[place]
        shown = [
            _representative(corpus.task, example, answer, rows.get(example.id, ()), settings)
            for answer in found.answers(corpus.task, place)
        ]
        random.Random(request_seed(student.seed, "proposals", example.id)).shuffle(shown)
        yield example, shown


def _representative(
    task: Task, example: Example, answer: str, rows: Sequence[Evidence], settings: JustifySettings
) -> str:
    said = (row for row in rows if row.answer is not None and task.equal(row.answer, answer))
    row = next(said, None) if settings.show == "response" else None
    return task.target(example, answer) if row is None else row.text


def _shown(task: Task, example: Example, row: Evidence, settings: JustifySettings) -> str:
    return row.text if settings.show == "response" else task.target(example, row.answer or "")


def _agree(task: Task, said: Sequence[Evidence]) -> bool:
    first = said[0].answer or ""
    return all(task.equal(row.answer or "", first) for row in said[1:])
