"""Self-justification: the warm model weighs the annotators' answers and gives the final one (paper §3.3).

Knows nothing of selection or of vendors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from semievol_api.artifacts import EvidenceTable
from semievol_api.capabilities import ChatRequest
from semievol_api.config import JustifySettings, ThresholdPool
from semievol_api.records import Evidence, Example
from semievol_api.stages.annotators import request_seed
from semievol_api.stages.asking import Corpus, Question, Student, ask
from semievol_api.tasks import Task

ASKER = "justify"


async def justify(
    student: Student, corpus: Corpus, evidence: EvidenceTable, settings: JustifySettings, pool: ThresholdPool
) -> EvidenceTable:
    """One row per justified example; examples that nobody answered are left out and abstain."""
    task, rows = corpus.task, evidence.by_example()

    def questions() -> Iterator[Question]:
        for example in corpus.pool(pool):
            said = [row for row in rows.get(example.id, []) if row.answer is not None]
            if not said or (settings.on == "disagreements" and _agree(task, said)):
                continue
            proposals = [_shown(task, example, row, settings) for row in said]
            prompt = task.justify_prompt(example, (), proposals)
            request = ChatRequest(
                model=student.models["judge"],
                prompt=prompt,
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                seed=request_seed(student.seed, ASKER, example.id),
                logprobs=True,
            )
            yield Question(example, ASKER, prompt, request)

    return EvidenceTable.of(await ask(student, task, questions(), stage="justify"))


def _shown(task: Task, example: Example, row: Evidence, settings: JustifySettings) -> str:
    return row.text if settings.show == "response" else task.target(example, row.answer or "")


def _agree(task: Task, said: Sequence[Evidence]) -> bool:
    first = said[0].answer or ""
    return all(task.equal(row.answer or "", first) for row in said[1:])
