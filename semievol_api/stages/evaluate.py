"""Greedy answers of one model to the test questions (method §6).

Knows nothing of how the models came to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from semievol_api.artifacts import Answers, EvidenceTable, Prepared, TunedModel
from semievol_api.capabilities import ChatRequest
from semievol_api.config import EvaluateSettings
from semievol_api.records import Evidence, Example
from semievol_api.run_store import RunStore
from semievol_api.stages.annotators import request_seed
from semievol_api.stages.asking import Corpus, Student, ask
from semievol_api.stages.reading import Question
from semievol_api.tasks import Task

Part: TypeAlias = Literal["test", "development"]


@dataclass(frozen=True)
class Trial:
    """What every model answered: to the test questions, and to those of the gate."""

    tests: Sequence[Answers]
    gate: Sequence[Answers]


async def evaluate(
    student: Student, corpus: Corpus, label: str, settings: EvaluateSettings, part: Part = "test"
) -> Answers:
    """The greedy answers of the model in the student's role `subject`; an abstention is wrong."""
    task = corpus.task
    examples = corpus.data.test if part == "test" else corpus.folds.development

    def put(example: Example, shots: int) -> Question:
        prompt = corpus.prompt(example, shots)
        request = ChatRequest(
            model=student.models["subject"],
            prompt=prompt,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=request_seed(student.seed, label, example.id) if settings.temperature else None,
            logprobs=student.provider.scored is not None,
        )
        fewer = partial(put, example, shots - 1) if shots else None
        dropped = settings.shots - shots
        return Question(example, label, prompt, request, "subject", fewer=fewer, dropped_shots=dropped, measure=True)

    questions = (put(example, settings.shots) for example in examples)
    table = EvidenceTable.of(await ask(student, task, questions, stage="evaluate"))
    gold = {e.id: e.answer for e in examples}
    correct = {
        row.example_id: row.answer is not None and task.equal(row.answer, gold[row.example_id] or "")
        for row in table.rows()
    }
    return Answers(label=label, evidence=table, correct=correct)


async def examine(
    store: RunStore,
    student: Callable[[Mapping[str, TunedModel]], Student],
    corpus: Corpus,
    models: Mapping[str, TunedModel],
    views: Mapping[str, Corpus],
    settings: EvaluateSettings,
) -> Trial:
    """Every model that is a result answers the test questions; the evolved and its baseline the gate's too.

    `views` are the corpora of models that are shown demonstrations. A warm model that knows only a part of the
    labels is no result.
    """
    tests = [await store.once("evaluate/majority", Answers, majority, corpus.task, corpus.data)]
    gate: list[Answers] = []
    for name in [n for n in models if n != "warm" or "sft" not in models]:
        subject, view = student({"subject": models[name]}), views.get(name, corpus)
        asked = (subject, view, name, _as_shown(settings, views.get(name)))
        tests.append(await store.once(f"evaluate/{name}", Answers, evaluate, *asked))
        if corpus.folds.development and name in ("sft", "warm", "semievol"):
            gate.append(await store.once(f"gate/{name}", Answers, evaluate, *asked, "development"))
    return Trial(tests, gate)


def _as_shown(settings: EvaluateSettings, view: Corpus | None) -> EvaluateSettings:
    """With as many demonstrations as a view holds for each question."""
    if view is None:
        return settings
    return settings.model_copy(update={"shots": max(map(len, view.neighbours.ids.values()), default=0)})


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
