"""Greedy answers of one model to the test questions (method §6).

Knows nothing of how the models came to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from semievol_api.artifacts import Answers, EvidenceTable, Prepared
from semievol_api.capabilities import ChatRequest
from semievol_api.config import EvaluateSettings
from semievol_api.records import Evidence
from semievol_api.stages.asking import Corpus, Question, Student, ask
from semievol_api.tasks import Task


async def evaluate(student: Student, corpus: Corpus, label: str, settings: EvaluateSettings) -> Answers:
    """The greedy answers of the model in the student's role `subject`; an abstention is wrong."""
    task, data = corpus.task, corpus.data

    def questions() -> Iterator[Question]:
        for example in data.test:
            prompt = corpus.prompt(example, settings.shots)
            request = ChatRequest(
                model=student.models["subject"],
                prompt=prompt,
                max_tokens=settings.max_tokens,
                temperature=0.0,
                logprobs=student.provider.scored is not None,
            )
            yield Question(example, label, prompt, request)

    table = EvidenceTable.of(await ask(student, task, questions(), stage="evaluate"))
    gold = {e.id: e.answer for e in data.test}
    correct = {
        row.example_id: row.answer is not None and task.equal(row.answer, gold[row.example_id] or "")
        for row in table.rows()
    }
    return Answers(label=label, evidence=table, correct=correct)


async def majority(task: Task, data: Prepared) -> Answers:
    """The floor: the labelled data's most frequent answer, given to every test question."""
    counts = Counter(e.answer for e in data.labeled if e.answer is not None)
    answer = min(counts, key=lambda a: (-counts[a], a)) if counts else None
    rows = [
        Evidence(
            example_id=e.id, annotator_id="majority", prompt_hash="", text=answer or "", answer=answer, finish="stop"
        )
        for e in data.test
    ]
    correct = {e.id: answer is not None and task.equal(answer, e.answer or "") for e in data.test}
    return Answers(label="majority", evidence=EvidenceTable.of(rows), correct=correct)
