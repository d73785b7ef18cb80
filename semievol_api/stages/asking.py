"""From an example to an evidence row: render, ask through the engine, parse, score.

Shared by collaborate, justify and evaluate. Knows nothing of selection, of vendors or of what a row is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from semievol_api.artifacts import Neighbours, Prepared
from semievol_api.capabilities import ChatRequest, Provider, Reply, require
from semievol_api.config import ThresholdPool
from semievol_api.engine import Answer, Ask, RequestEngine
from semievol_api.errors import StageError
from semievol_api.records import Completion, Evidence, Example, Prompt
from semievol_api.tasks import Task


@dataclass(frozen=True)
class Corpus:
    """What is asked about: clean examples, each with its neighbours, and the task that words the questions."""

    task: Task
    data: Prepared
    neighbours: Neighbours

    def prompt(self, example: Example, shots: int) -> Prompt:
        """The example's question after its `shots` nearest labelled examples."""
        nearest = self.neighbours.ids[example.id][:shots]
        return self.task.prompt(example, tuple(self._labeled[i] for i in nearest))

    def pool(self, threshold_pool: ThresholdPool) -> tuple[Example, ...]:
        """The examples that annotators see: the labelled ones too where they place the threshold."""
        return self.data.unlabeled if threshold_pool == "unlabeled" else (*self.data.unlabeled, *self.data.labeled)

    @cached_property
    def _labeled(self) -> Mapping[str, Example]:
        return {e.id: e for e in self.data.labeled}


@dataclass(frozen=True)
class Student:
    """The models that are asked, and the engine that asks them. `models` maps a role to a model's name.

    `identities` maps a role to what the model is: a tuned model is its training, whatever its server calls it.
    `seed` is the root of every request's own seed.
    """

    engine: RequestEngine
    provider: Provider
    models: Mapping[str, str]
    identities: Mapping[str, str]
    seed: int
    max_failed_share: float = 0.05

    @property
    def identity(self) -> str:
        """Endpoint and models; enters fingerprints."""
        return f"{self.provider.identity}|{sorted(self.identities.items())}|{self.seed}"

    def check_scored(self) -> None:
        """Refuse a provider that cannot give log-probabilities."""
        require(self.provider.scored, "log-probabilities", self.provider)


@dataclass(frozen=True)
class Question:
    """One row to be asked: the prompt, who asks, and which example it is about."""

    example: Example
    asker: str
    prompt: Prompt
    request: ChatRequest


async def ask(student: Student, task: Task, questions: Iterable[Question], *, stage: str) -> list[Evidence]:
    """Ask every question and return one evidence row each, failures among them, in no promised order.

    Raises:
        StageError: more than `student.max_failed_share` of the rows failed.
    """
    waiting: dict[str, Question] = {}

    def asks() -> Iterator[Ask[ChatRequest]]:
        for question in questions:
            key = f"{question.example.id}\x00{question.asker}"
            waiting[key] = question
            yield Ask(key, question.request)

    rows = [
        _row(task, waiting.pop(answer.id), answer)
        async for answer in student.engine.chat(student.provider, asks(), stage=stage)
    ]
    _refuse_too_many_failures(rows, student.max_failed_share, stage)
    return rows


def mean_nll(completion: Completion) -> float | None:
    """Mean negative natural log-probability per token, end of turn left out (the paper's H, §3.4).

    None where the server gave no usable log-probabilities.
    """
    values = completion.token_logprobs
    if values is None or values.size == 0:
        return None
    usable = values[np.isfinite(values) & (values > -9999)]
    return float(-usable.astype(np.float64).mean()) if usable.size == values.size else None


def prompt_hash(prompt: Prompt) -> str:
    """A short content hash of what the model was shown."""
    state = hashlib.blake2b(digest_size=8)
    for message in prompt.messages:
        state.update(f"{message.role}\x00{message.content}\x00".encode())
    state.update((prompt.prefill or "").encode())
    return state.hexdigest()


def _row(task: Task, question: Question, answer: Answer[Reply]) -> Evidence:
    if answer.reply is None or not answer.reply.completions:
        return Evidence(
            example_id=question.example.id,
            annotator_id=question.asker,
            prompt_hash=prompt_hash(question.prompt),
            text="",
            answer=None,
            finish="failed",
            failure=answer.failure or "the server sent no completion",
        )
    completion = answer.reply.completions[0]
    usable = completion.finish == "stop"
    return Evidence(
        example_id=question.example.id,
        annotator_id=question.asker,
        prompt_hash=prompt_hash(question.prompt),
        text=completion.text,
        answer=task.parse(completion.text, question.example) if usable else None,
        finish=completion.finish,
        mean_nll=mean_nll(completion),
        usage=answer.reply.usage,
    )


def _refuse_too_many_failures(rows: list[Evidence], max_share: float, stage: str) -> None:
    failed = [row for row in rows if row.finish == "failed"]
    if len(failed) > max_share * len(rows):
        raise StageError(
            f"{stage}: {len(failed)} of {len(rows)} rows failed, more than [run] max_failed_share = {max_share:g} "
            f"allows. The first reason: {failed[0].failure}. What was answered is kept in the journal; mend the "
            f"cause and run again, only the failed rows are asked."
        )
