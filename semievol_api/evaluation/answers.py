"""Greedy answers of one model to the test questions (method §6).

Knows nothing of how the models came to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from semievol_api.annotate.annotators import WARM, request_seed
from semievol_api.annotate.replies import Question
from semievol_api.annotate.requests import Corpus, Student, ask
from semievol_api.capabilities import ChatRequest
from semievol_api.config.settings import EvaluateSettings
from semievol_api.data.schemas import evidence_table, joined_evidence
from semievol_api.data.table import ChunkedTable
from semievol_api.records import Evidence, Example
from semievol_api.scale.executor import Shard
from semievol_api.store.artifacts import Answers, EvidenceTable, Prepared, TunedModel
from semievol_api.store.fingerprints import fingerprinted, stage
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa

_Part: TypeAlias = Literal["test", "development"]


@fingerprinted("tests", "gate")
@dataclass(frozen=True)
class EvaluatedModels:
    """Every model's answers to the test questions, and some models' to those of the gate."""

    tests: Sequence[Answers]
    gate: Sequence[Answers]


@stage("evaluate")
async def evaluate(
    student: Student, corpus: Corpus, label: str, settings: EvaluateSettings, part: _Part = "test"
) -> Answers:
    """The greedy answers of the model in the student's role `subject`; an abstention is wrong."""
    work = _EvaluationWork(corpus, label, settings, part)
    table = EvidenceTable(ChunkedTable.of(*[table async for table in student.run(work)]))
    gold = {e.id: e.answer for e in work.examples}
    correct = {
        row.example_id: row.answer is not None and corpus.task.equal(row.answer, gold[row.example_id] or "")
        for row in table.rows()
    }
    return Answers(label=label, evidence=table, correct=correct)


@dataclass(frozen=True)
class _EvaluationWork:
    """Asks one model about a shard of the test questions, or of those of the gate."""

    corpus: Corpus
    label: str
    settings: EvaluateSettings
    part: _Part
    stage: str = "evaluate"

    @property
    def examples(self) -> tuple[Example, ...]:
        """The questions of the part."""
        return self.corpus.data.test if self.part == "test" else self.corpus.folds.development

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Work`."""
        return (len(self.examples),)

    def joined(self, part: int, tables: Sequence[pa.Table]) -> pa.Table:
        """See `Work`."""
        return joined_evidence(tables)

    async def __call__(self, student: Student, shard: Shard) -> pa.Table:
        """The shard's answers."""
        shots = self.settings.shots
        questions = (self._question(student, e, shots) for e in self.examples if shard.has(e.id, 1))
        return evidence_table(await ask(student, self.corpus.task, questions, stage=self.stage))

    def _question(self, student: Student, example: Example, shots: int) -> Question:
        settings, label = self.settings, self.label
        prompt = self.corpus.prompt(example, shots)
        request = ChatRequest(
            model=student.models["subject"],
            prompt=prompt,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=request_seed(student.seed, label, example.id) if settings.temperature else None,
            logprobs=student.provider.scored is not None,
            top_logprobs=1 if self.corpus.task.fields and student.provider.scored is not None else 0,
        )
        fewer = partial(self._question, student, example, shots - 1) if shots else None
        dropped = settings.shots - shots
        return Question(example, label, prompt, request, "subject", fewer=fewer, dropped_shots=dropped, measure=True)


async def evaluate_models(
    store: RunStore,
    student: Callable[[Mapping[str, TunedModel]], Student],
    corpus: Corpus,
    models: Mapping[str, TunedModel],
    in_context: Mapping[str, Corpus],
    settings: EvaluateSettings,
) -> EvaluatedModels:
    """Every model that is a result answers the test questions; the evolved and its baseline the gate's too.

    `in_context` are the corpora of models that are shown demonstrations. A warm model that was trained on a part of
    the labels only is no result.
    """
    tests = [await store.once("evaluate/majority", Answers, majority, corpus.task, corpus.data)]
    tests += [corpus.control] if corpus.control is not None else []
    gate: list[Answers] = []
    for name in [n for n in models if not n.startswith(WARM) or (n == WARM and "sft" not in models)]:
        subject, own = student({"subject": models[name]}), in_context.get(name, corpus)
        asked = (subject, own, name, _with_shots(settings, in_context.get(name)))
        tests.append(await store.once(f"evaluate/{name}", Answers, evaluate, *asked))
        if corpus.folds.development and name in ("sft", "warm", "semievol"):
            gate.append(await store.once(f"gate/{name}", Answers, evaluate, *asked, "development"))
    return EvaluatedModels(tests, gate)


def _with_shots(settings: EvaluateSettings, in_context: Corpus | None) -> EvaluateSettings:
    """With as many demonstrations as the corpus holds for each question."""
    if in_context is None:
        return settings
    return settings.model_copy(update={"shots": max(map(len, in_context.neighbours.ids.values()), default=0)})


@stage("majority")
async def majority(task: Task, data: Prepared) -> Answers:
    """The floor: the labelled data's most frequent answer to every test question."""
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
