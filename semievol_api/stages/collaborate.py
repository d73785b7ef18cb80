"""Collaborative learning: every annotator answers every unlabelled question (paper §3.3).

Knows nothing of selection or of vendors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from semievol_api.artifacts import EvidenceTable
from semievol_api.capabilities import ChatRequest
from semievol_api.config import AnnotateSettings, ThresholdPool
from semievol_api.stages.annotators import Annotator, request_seed
from semievol_api.stages.asking import Corpus, Question, Student, ask


async def collaborate(
    student: Student, corpus: Corpus, crew: Sequence[Annotator], settings: AnnotateSettings, pool: ThresholdPool
) -> EvidenceTable:
    """One evidence row per (example, annotator); a failed request is a row with its reason."""

    def questions() -> Iterator[Question]:
        for annotator in crew:
            for example in corpus.pool(pool):
                prompt = corpus.prompt(example, annotator.shots)
                request = ChatRequest(
                    model=student.models[annotator.role],
                    prompt=prompt,
                    max_tokens=settings.max_tokens,
                    temperature=settings.temperature,
                    seed=request_seed(student.seed, annotator.id, example.id),
                    logprobs=True,
                )
                yield Question(example, annotator.id, prompt, request)

    return EvidenceTable.of(await ask(student, corpus.task, questions(), stage="collaborate"))
