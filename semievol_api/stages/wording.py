"""How an annotator puts a question: demonstrations, order of options, words, and the kind of request.

Knows nothing of what is done with the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from semievol_api.capabilities import ChatRequest, OptionRequest
from semievol_api.records import Example, Message, Prompt
from semievol_api.selection import WORD_SCALE
from semievol_api.stages.annotators import Annotator, request_seed
from semievol_api.stages.asking import Corpus, Student, reworded
from semievol_api.stages.reading import Question
from semievol_api.tasks import Task
from semievol_api.tasks.prompts import VERDICTS

PREFILL = "Answer:"
_CONFIDENCE = (
    "Then add a second line: Confidence: and one of these phrases, as sure as you are of the answer: "
    + ", ".join(words for words, _ in WORD_SCALE)
)


@dataclass(frozen=True)
class Tone:
    """What all questions of a stage share."""

    max_tokens: int
    temperature: float


def questions_of(
    student: Student, corpus: Corpus, annotator: Annotator, examples: Sequence[Example], tone: Tone
) -> Iterator[Question]:
    """One question per example, those with the same demonstrations after each other."""
    for example in corpus.by_shot_set(examples, annotator.shots):
        yield _with_shots(student, corpus, annotator, example, tone, annotator.shots)


def _with_shots(
    student: Student, corpus: Corpus, annotator: Annotator, example: Example, tone: Tone, shots: int
) -> Question:
    """The question after so many demonstrations; where it does not fit the context, it is put with one less."""
    order = shuffled_order(corpus.task, example, annotator, student.seed)
    task = reworded(corpus.task, annotator.paraphrase, order)
    prompt = corpus.prompt(example, shots, task, _order_for(task, order))
    fewer = partial(_with_shots, student, corpus, annotator, example, tone, shots - 1) if shots else None
    asked = question(student, corpus.task, annotator, (example, prompt, order), tone)
    if not annotator.shots:
        return asked
    return replace(asked, fewer=fewer, dropped_shots=annotator.shots - shots)


def question(
    student: Student,
    task: Task,
    annotator: Annotator,
    asked: tuple[Example, Prompt, tuple[int, ...] | None],
    tone: Tone,
) -> Question:
    """An example's prompt as the annotator asks it; `asked` is the example, its prompt and the options' order."""
    example, prompt, order = asked
    labels = task.labels(example) or ()
    shown = labels if task.kind == "multiple_choice" or order is None else tuple(labels[i] for i in order)
    model = student.models[annotator.role]
    if annotator.reading == "verbal":
        prompt = _with_confidence(prompt)
    request: ChatRequest | OptionRequest
    if annotator.reading == "option_read":
        prompt, request = _read(model, prompt, shown)
    else:
        request = _chat(student, annotator, (example, prompt), tone)
    return Question(
        example=example,
        asker=annotator.id,
        prompt=prompt,
        request=request,
        role=annotator.role,
        measure=annotator.reading != "sampled",
        labels=labels,
        shown=shown,
        order=order,
        verbal=annotator.reading == "verbal",
    )


def verification(
    student: Student, task: Task, annotator: Annotator, asked: tuple[Example, str], tone: Tone
) -> Question:
    """Is this answer right? One read of the two verdicts, or a short answer with its alternatives."""
    example, answer = asked
    prompt = task.verify_prompt(example, answer)
    model = student.models[annotator.role]
    request: ChatRequest | OptionRequest
    if annotator.alternatives:
        reader = replace(annotator, reading="option_prob", temperature=0.0, n=1)
        request = _chat(student, reader, (example, prompt), tone)
    else:
        prompt, request = _read(model, prompt, VERDICTS)
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


def _read(model: str, prompt: Prompt, labels: tuple[str, ...]) -> tuple[Prompt, OptionRequest]:
    """The prompt with the answer's first word, and the one request for what comes next."""
    opened = Prompt(prompt.messages, PREFILL)
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
    return order if task.kind == "multiple_choice" else None


def _chat(student: Student, annotator: Annotator, asked: tuple[Example, Prompt], tone: Tone) -> ChatRequest:
    example, prompt = asked
    reading, model = annotator.reading, student.models[annotator.role]
    limits = student.provider_of(annotator.role).limits.get(model)
    most = limits.max_top_logprobs if limits is not None else None
    alternatives = 0 if reading == "p_true" else annotator.alternatives
    temperature = annotator.temperature
    if temperature is None:
        temperature = tone.temperature if reading in ("sampled", "votes") else 0.0
    return ChatRequest(
        model=model,
        prompt=prompt,
        max_tokens=tone.max_tokens + (12 if reading == "verbal" else 0),
        n=annotator.n,
        temperature=temperature,
        seed=request_seed(student.seed, annotator.id, example.id),
        logprobs=reading in ("sampled", "option_prob", "answer_logprob"),
        top_logprobs=min(alternatives, most or alternatives),
    )


def _with_confidence(prompt: Prompt) -> Prompt:
    *before, last = prompt.messages
    return replace(prompt, messages=(*before, Message(last.role, f"{last.content}\n{_CONFIDENCE}")))
