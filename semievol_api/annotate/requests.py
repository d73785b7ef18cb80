"""From an example to an evidence row: render, ask through the engine, parse, score.

Shared by probe, collaborate, justify and evaluate. Knows nothing of selection, of vendors or of what a row is for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from semievol_api.annotate.annotators import Annotator, fold_role, request_seed
from semievol_api.annotate.estimator import Asking
from semievol_api.annotate.estimators import VERDICT, asking_of
from semievol_api.annotate.replies import Question, rows_of_chat, rows_of_reads
from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest, Provider
from semievol_api.config.method import ThresholdPool
from semievol_api.data.schemas import chunked_examples, examples_table
from semievol_api.data.table import ChunkedTable
from semievol_api.engine import Answer, Ask, RequestEngine
from semievol_api.errors import StageError
from semievol_api.records import Evidence, Example, Prompt
from semievol_api.scale.executor import Executor, LocalExecutor, Work
from semievol_api.store.artifacts import Answers, EvidenceTable, Folds, Neighbours, Prepared
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks import Task
from semievol_api.tasks.task import VERDICTS

if TYPE_CHECKING:
    import pyarrow as pa


READ_TOGETHER = 512
"""Option reads whose distributions are computed at once."""
RequestT = TypeVar("RequestT", ChatRequest, OptionRequest)


@fingerprinted("task", "data", "folds", "neighbours", "taught", renamed={"pseudo_labeled": "taught"})
@dataclass(frozen=True)
class Corpus:
    """What is asked about: clean examples, each with its neighbours, and the task that words the questions.

    `pseudo_labeled` are pseudo-labelled examples that are shown as demonstrations beside the labelled ones: those of
    earlier rounds. `by_labels` is what annotators said that the labels taught, with the parts of `pool("unlabeled")`.
    `control` are a classifier's answers to the test questions, which shape nothing but the verdict.
    """

    task: Task
    data: Prepared
    folds: Folds
    neighbours: Neighbours
    pseudo_labeled: tuple[Example, ...] = ()
    by_labels: EvidenceTable | None = None
    control: Answers | None = field(default=None, compare=False)

    def prompt(
        self, example: Example, shots: int, task: Task | None = None, order: Sequence[int] | None = None
    ) -> Prompt:
        """The example's question after its `shots` nearest labelled examples; `order` is that of the options."""
        task = task or self.task
        if not shots:
            return task.prompt(example, (), order)
        return task.prompt(example, tuple(self._labeled[i] for i in self.neighbours.ids[example.id][:shots]), order)

    @cached_property
    def unlabeled(self) -> ChunkedTable[Example]:
        """The unlabelled examples in parts; a small pool is one part."""
        return chunked_examples(self.data.unlabeled)

    def pool(self, threshold_pool: ThresholdPool) -> ChunkedTable[Example]:
        """What annotators see: the unlabelled, and behind them those that calibrate, or all labelled ones where these
        place the threshold."""
        others = self.data.labeled if threshold_pool == "labeled" else self.folds.calibration
        return self.unlabeled.followed_by(examples_table(others))

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
        return {e.id: e for e in (*self.data.labeled, *self.pseudo_labeled)}


@dataclass(frozen=True)
class Student:
    """The models that are asked, and the engine that asks them. `models` maps a role to a model's name.

    `identities` maps a role to what the model is: a tuned model is its training, whatever its server calls it.
    `external` are the providers of roles that are not the student's own. `seed` is the root of every request's seed.
    """

    engine: RequestEngine
    provider: Provider
    models: Mapping[str, str]
    identities: Mapping[str, str]
    seed: int
    max_failed_share: float = 0.05
    external: Mapping[str, Provider] = field(default_factory=dict[str, Provider])
    executor: Executor = field(default_factory=LocalExecutor)

    def run(self, work: Work[Student]) -> AsyncGenerator[pa.Table]:
        """The table of every part of a work, in their order."""
        return self.executor.run(self, work)

    @property
    def identity(self) -> str:
        """Endpoint and models; enters fingerprints."""
        external = sorted((role, provider.identity) for role, provider in self.external.items())
        own = f"{self.provider.identity}|{sorted(self.identities.items())}|{self.seed}"
        return f"{own}|{external}" if external else own

    def unseeing(self, corpus: Corpus, annotator: Annotator, example: Example) -> Annotator:
        """The annotator, asking the warm model that has not seen the example's fold where several share the labels."""
        folds = corpus.folds
        own = fold_role(annotator.role, folds.fold_of(example.id, folds.n_models))
        return replace(annotator, role=own) if own in self.models else annotator

    def provider_of(self, role: str) -> Provider:
        """Who serves a role."""
        return self.external.get(role, self.provider)


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
    if not student.external:
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
    if order is not None and task.fixed_labels:
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


PREFILL = "Answer:"


@dataclass(frozen=True)
class SamplingParams:
    """What all questions of a stage share."""

    max_tokens: int
    temperature: float


def questions_of(
    student: Student, corpus: Corpus, annotator: Annotator, examples: Sequence[Example], sampling: SamplingParams
) -> Iterator[Question]:
    """One question per example, those with the same demonstrations after each other."""
    for example in corpus.by_shot_set(examples, annotator.shots):
        yield _with_shots(student, corpus, annotator, example, sampling, annotator.shots)


def _with_shots(
    student: Student, corpus: Corpus, annotator: Annotator, example: Example, sampling: SamplingParams, shots: int
) -> Question:
    """The question after so many demonstrations; where it does not fit the context, it is put with one less."""
    annotator = student.unseeing(corpus, annotator, example)
    order = shuffled_order(corpus.task, example, annotator, student.seed)
    task = reworded(corpus.task, annotator.paraphrase, order)
    prompt = corpus.prompt(example, shots, task, _order_for(task, order))
    fewer = partial(_with_shots, student, corpus, annotator, example, sampling, shots - 1) if shots else None
    asked = question(student, corpus.task, annotator, (example, prompt, order), sampling)
    if not annotator.shots:
        return asked
    return replace(asked, fewer=fewer, dropped_shots=annotator.shots - shots)


def question(
    student: Student,
    task: Task,
    annotator: Annotator,
    asked: tuple[Example, Prompt, tuple[int, ...] | None],
    sampling: SamplingParams,
) -> Question:
    """An example's prompt as the annotator asks it; `asked` is the example, its prompt and the options' order."""
    example, prompt, order = asked
    labels = task.labels(example) or ()
    shown = labels if task.lettered or order is None else tuple(labels[i] for i in order)
    asking = asking_of(annotator.reading)
    if asking.request:
        *before, last = prompt.messages
        prompt = replace(prompt, messages=(*before, replace(last, content=f"{last.content}\n{asking.request}")))
    request: ChatRequest | OptionRequest
    if asking.exact:
        prompt, request = _read(student.models[annotator.role], prompt, shown, None if task.chat else PREFILL)
    else:
        request = _chat(student, annotator, asking, (example, prompt), sampling, schema=task.schema)
    return Question(
        example=example,
        asker=annotator.id,
        prompt=prompt,
        request=request,
        role=annotator.role,
        measure=asking.measured,
        labels=labels,
        shown=shown,
        order=order,
        read_words=asking.read_words,
    )


def verification(
    student: Student, task: Task, annotator: Annotator, asked: tuple[Example, str], sampling: SamplingParams
) -> Question:
    """Is this answer right? One read of the two verdicts, or a short answer with its alternatives."""
    example, answer = asked
    prompt = task.verify_prompt(example, answer)
    request: ChatRequest | OptionRequest
    if annotator.alternatives:
        reader = replace(annotator, temperature=0.0, n=1)
        request = _chat(student, reader, VERDICT, (example, prompt), sampling)
    else:
        prompt, request = _read(student.models[annotator.role], prompt, VERDICTS, PREFILL)
    return Question(
        example=example,
        asker=annotator.id,
        prompt=prompt,
        request=request,
        role=annotator.role,
        measure=True,
        labels=VERDICTS,
        shown=VERDICTS,
    )


def _read(model: str, prompt: Prompt, labels: tuple[str, ...], prefill: str | None) -> tuple[Prompt, OptionRequest]:
    """The prompt with the answer's first word, where there is one, and the one request for what comes next."""
    opened = replace(prompt, prefill=prefill)
    return opened, OptionRequest(model=model, prompt=opened, labels=labels)


def shuffled_order(task: Task, example: Example, annotator: Annotator, seed: int) -> tuple[int, ...] | None:
    """The order in which an annotator shows an example's options; None for the canonical one."""
    if not annotator.permute:
        return None
    count = len(task.labels(example) or ())
    if count < 2:
        return None
    order = list(range(count))
    random.Random(request_seed(seed, f"order\x00{annotator.id}", example.id)).shuffle(order)
    return tuple(order)


def _order_for(task: Task, order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Only multiple choice is permuted in the prompt; other labels were reordered in the task's own words."""
    return order if task.lettered else None


def _chat(
    student: Student,
    annotator: Annotator,
    asking: Asking,
    asked: tuple[Example, Prompt],
    sampling: SamplingParams,
    *,
    schema: str = "",
) -> ChatRequest:
    example, prompt = asked
    model = student.models[annotator.role]
    limits = student.provider_of(annotator.role).limits.get(model)
    most = limits.max_top_logprobs if limits is not None else None
    alternatives = 0 if asking.verified else annotator.alternatives
    temperature = annotator.temperature
    if temperature is None:
        temperature = sampling.temperature if asking.sampled else 0.0
    return ChatRequest(
        model=model,
        prompt=prompt,
        max_tokens=sampling.max_tokens + asking.request_tokens,
        n=annotator.n,
        temperature=temperature,
        seed=request_seed(student.seed, annotator.id, example.id),
        logprobs=asking.logprobs,
        top_logprobs=min(alternatives, most or alternatives),
        schema=schema if annotator.held else "",
    )
