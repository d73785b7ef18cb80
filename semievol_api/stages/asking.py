"""From an example to an evidence row: render, ask through the engine, parse, score.

Shared by probe, collaborate, justify and evaluate. Knows nothing of selection, of vendors or of what a row is for.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from semievol_api.artifacts import Folds, Neighbours, Prepared
from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest, Provider, require
from semievol_api.config import ThresholdPool
from semievol_api.engine import Answer, Ask, RequestEngine
from semievol_api.errors import StageError
from semievol_api.fingerprints import fingerprinted
from semievol_api.parts import Rows
from semievol_api.records import Evidence, Example, Prompt
from semievol_api.stages.reading import Question, rows_of_chat, rows_of_reads
from semievol_api.stages.spread import Here, Shard, Spread, Work
from semievol_api.tables import OUTLINE, without_texts
from semievol_api.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa


READ_TOGETHER = 512
"""Option reads whose distributions are computed at once."""
RequestT = TypeVar("RequestT", ChatRequest, OptionRequest)


@fingerprinted("task", "data", "folds", "neighbours", "taught")
@dataclass(frozen=True)
class Corpus:
    """What is asked about: clean examples, each with its neighbours, and the task that words the questions.

    `taught` are pseudo-labelled examples that are shown as demonstrations beside the labelled ones: those of
    earlier rounds.
    """

    task: Task
    data: Prepared
    folds: Folds
    neighbours: Neighbours
    taught: tuple[Example, ...] = ()

    def prompt(
        self, example: Example, shots: int, task: Task | None = None, order: Sequence[int] | None = None
    ) -> Prompt:
        """The example's question after its `shots` nearest labelled examples; `order` is that of the options."""
        task = task or self.task
        if not shots:
            return task.prompt(example, (), order)
        return task.prompt(example, tuple(self._labeled[i] for i in self.neighbours.ids[example.id][:shots]), order)

    def sizes(self, threshold_pool: ThresholdPool) -> tuple[int, ...]:
        """How many examples each part of the pool has: those of the unlabelled, and one for what is beside them.

        One part holds all of a small pool.
        """
        unlabeled, beside = self.data.unlabeled, self.beside(threshold_pool)
        if isinstance(unlabeled, Rows):
            return (*unlabeled.parts.sizes, len(beside))
        return (len(unlabeled) + len(beside),)

    def pool(self, threshold_pool: ThresholdPool, shard: Shard) -> Sequence[Example]:
        """The examples of a shard that annotators see: the unlabelled, those that calibrate, and the labelled ones too
        where they place the threshold."""
        unlabeled, parts = self.data.unlabeled, 1
        if not isinstance(unlabeled, Rows):
            examples: Sequence[Example] = (*unlabeled, *self.beside(threshold_pool))
        elif shard.part < unlabeled.parts.count:
            examples, parts = unlabeled.part(shard.part), unlabeled.parts.count
        else:
            examples = self.beside(threshold_pool)
        return examples if shard.of == 1 else [e for e in examples if shard.has(e.id, parts)]

    def outlines(self, part: int) -> Sequence[Example]:
        """The examples of a part of the unlabelled pool and of those that calibrate, in `pool`'s order; unlabelled
        ones of a pool in parts come without their questions' texts, which are most of what there is to read."""
        unlabeled = self.data.unlabeled
        if not isinstance(unlabeled, Rows) or part == unlabeled.parts.count:
            return self.pool("unlabeled", Shard(part))
        return tuple(unlabeled.make(without_texts(unlabeled.parts.read(part, OUTLINE))))

    def beside(self, threshold_pool: ThresholdPool) -> tuple[Example, ...]:
        """The examples of the pool that are not unlabelled."""
        return self.data.labeled if threshold_pool == "labeled" else self.folds.calibration

    def by_shot_set(self, examples: Sequence[Example], shots: int) -> Sequence[Example]:
        """The examples ordered so that prompts with the same demonstrations follow each other."""
        if shots == 0:
            return examples
        return sorted(examples, key=lambda e: self.neighbours.ids[e.id][:shots][::-1])

    @cached_property
    def learned(self) -> tuple[Example, ...]:
        """Every label that may be learned from in the end: all but those that gate."""
        held = {e.id for e in self.folds.development}
        return tuple(e for e in self.data.labeled if e.id not in held)

    @cached_property
    def _labeled(self) -> Mapping[str, Example]:
        return {e.id: e for e in (*self.data.labeled, *self.taught)}


@dataclass(frozen=True)
class Student:
    """The models that are asked, and the engine that asks them. `models` maps a role to a model's name.

    `identities` maps a role to what the model is: a tuned model is its training, whatever its server calls it.
    `guests` are the providers of roles that are not the student's own. `seed` is the root of every request's seed.
    """

    engine: RequestEngine
    provider: Provider
    models: Mapping[str, str]
    identities: Mapping[str, str]
    seed: int
    max_failed_share: float = 0.05
    guests: Mapping[str, Provider] = field(default_factory=dict[str, Provider])
    spread: Spread = field(default_factory=Here)

    def over(self, work: Work[Student]) -> AsyncGenerator[pa.Table]:
        """The table of every part of a work, in their order."""
        return self.spread.over(self, work)

    @property
    def identity(self) -> str:
        """Endpoint and models; enters fingerprints."""
        guests = sorted((role, provider.identity) for role, provider in self.guests.items())
        own = f"{self.provider.identity}|{sorted(self.identities.items())}|{self.seed}"
        return f"{own}|{guests}" if guests else own

    def provider_of(self, role: str) -> Provider:
        """Who serves a role."""
        return self.guests.get(role, self.provider)

    def check_scored(self) -> None:
        """Refuse a provider that cannot give log-probabilities."""
        require(self.provider.scored, "log-probabilities", self.provider)


async def ask(student: Student, task: Task, questions: Iterable[Question], *, stage: str) -> list[Evidence]:
    """Ask every question and return its evidence rows, failures among them, in no promised order.

    Questions are taken as there is room for them. A prompt that does not fit the model's context is asked again with
    one demonstration less, the farthest.

    Raises:
        StageError: more than `student.max_failed_share` of the rows failed.
    """
    rows: list[Evidence] = []
    for role, of_one in _by_provider(student, questions):
        asked: Iterable[Question] = of_one
        while asked:
            asked = await _ask_one_provider(student, student.provider_of(role), (task, stage), asked, rows)
    _refuse_too_many_failures(rows, student.max_failed_share, stage)
    return rows


def _by_provider(student: Student, questions: Iterable[Question]) -> Iterable[tuple[str, Iterable[Question]]]:
    """The questions by the first role of each provider, in their order."""
    coming = iter(questions)
    start = next(coming, None)
    if start is None:
        return ()
    if not student.guests:
        return ((start.role, itertools.chain((start,), coming)),)
    first: dict[int, str] = {}
    grouped: dict[str, list[Question]] = {}
    for question in (start, *coming):
        role = first.setdefault(id(student.provider_of(question.role)), question.role)
        grouped.setdefault(role, []).append(question)
    return tuple(grouped.items())


async def _ask_one_provider(
    student: Student, provider: Provider, what: tuple[Task, str], questions: Iterable[Question], rows: list[Evidence]
) -> list[Question]:
    """Adds the rows of all questions but those that were too long and can be put with fewer demonstrations."""
    task, stage = what
    shorter: list[Question] = []
    for reads, of_a_kind in itertools.groupby(questions, key=lambda q: isinstance(q.request, OptionRequest)):
        under_way: dict[str, Question] = {}
        if reads:
            wanted = _asks(of_a_kind, under_way, OptionRequest)
            some: list[tuple[Question, Answer[OptionReply]]] = []
            async for read in student.engine.read_options(provider, wanted, stage=stage):
                question = under_way.pop(read.id)
                if read.too_long and question.fewer is not None:
                    shorter.append(question.fewer())
                    continue
                some.append((question, read))
                if len(some) == READ_TOGETHER:
                    rows += rows_of_reads(some)
                    some.clear()
            rows += rows_of_reads(some)
            continue
        asks = _asks(of_a_kind, under_way, ChatRequest)
        async for answer in student.engine.chat(provider, asks, stage=stage):
            question = under_way.pop(answer.id)
            if answer.too_long and question.fewer is not None:
                shorter.append(question.fewer())
            else:
                rows += rows_of_chat(task, question, answer)
    return shorter


def _asks(
    questions: Iterable[Question], under_way: dict[str, Question], kind: type[RequestT]
) -> Iterator[Ask[RequestT]]:
    """What the engine is asked, one by one; `under_way` holds the questions whose answers are not here yet."""
    for question in questions:
        assert isinstance(question.request, kind)
        key = f"{question.example.id}\x00{question.asker}"
        under_way[key] = question
        yield Ask(key, question.request)


def reworded(task: Task, paraphrase: str | None, order: Sequence[int] | None = None) -> Task:
    """The task in other words, and with its fixed labels in another order."""
    update: dict[str, object] = {} if paraphrase is None else {"instruction": paraphrase.strip()}
    if order is not None and task.kind == "labels":
        update["labels"] = tuple(task.definition.labels[i] for i in order)
    return replace(task, definition=task.definition.model_copy(update=update)) if update else task


def _refuse_too_many_failures(rows: list[Evidence], max_share: float, stage: str) -> None:
    failed = [row for row in rows if row.finish == "failed"]
    if len(failed) > max_share * len(rows):
        raise StageError(
            f"{stage}: {len(failed)} of {len(rows)} rows failed, more than [run] max_failed_share = {max_share:g} "
            f"allows. The first reason: {(failed[0].failure or '').rstrip('.')}. What was answered is kept in the "
            f"journal; mend the cause and run again, only the failed rows are asked."
        )
