"""From a reply to evidence rows: the answer, and every measure of confidence that the reply holds.

Knows nothing of how a question came about or what a row is for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest, Reply
from semievol_api.engine import Answer
from semievol_api.records import Completion, Evidence, Example, Finish, Prompt, Usage
from semievol_api.selection import read_options, verbal_probability
from semievol_api.selection.answer_reading import OptionReading, read_replies
from semievol_api.tasks import Task

UNSEEN = "not among the server's alternatives"
"""How the `failure` of an answered row begins, where labels had to be filled in."""
NOTHING_USED = Usage()
_MARKER = re.compile(r"answer[\s*_]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One row to be asked: the prompt, who asks which role, and which example it is about.

    `labels` are the canonical ones of a closed set, `shown` those that stand in the prompt, in its order;
    `order[i]` is the canonical index of the one at position i. `measure` asks for every measure of confidence.
    `fewer` puts the same question with one demonstration less, the farthest; None where there is none left.
    """

    example: Example
    asker: str
    prompt: Prompt
    request: ChatRequest | OptionRequest
    role: str = ""
    measure: bool = False
    labels: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    verbal: bool = False
    fewer: Callable[[], Question] | None = None
    dropped_shots: int = 0


def prompt_hash(prompt: Prompt) -> str:
    """A short content hash of what the model was shown."""
    state = hashlib.blake2b(digest_size=8)
    for message in prompt.messages:
        state.update(f"{message.role}\x00{message.content}\x00".encode())
    state.update((prompt.prefill or "").encode())
    return state.hexdigest()


def mean_nll(completion: Completion) -> float | None:
    """Mean negative natural log-probability per token, end of turn left out (the paper's H, §3.4).

    None where the server gave no usable log-probabilities.
    """
    values = completion.token_logprobs
    if values is None or values.size == 0:
        return None
    usable = values[np.isfinite(values) & (values > -9999)]
    return float(-usable.astype(np.float64).mean()) if usable.size == values.size else None


def answer_logprob(completion: Completion) -> float | None:
    """Natural log-probability of the answer: the tokens after the last `Answer:`, up to the end of the line.

    Without token texts, or without the marker, that of the whole response. None without log-probabilities.
    """
    values = completion.token_logprobs
    if values is None or values.size == 0 or not bool(np.all(np.isfinite(values) & (values > -9999))):
        return None
    wanted = values
    found = list(_MARKER.finditer("".join(completion.tokens or ())))
    if completion.tokens is not None and found:
        start, at, chosen = found[-1].end(), 0, list[int]()
        for place, token in enumerate(completion.tokens):
            at += len(token)
            if at > start and token.strip():
                chosen.append(place)
            if chosen and "\n" in token:
                break
        wanted = values[chosen] if chosen else values
    return float(wanted.astype(np.float64).sum())


def rows_of_chat(task: Task, question: Question, answer: Answer[Reply]) -> list[Evidence]:
    """A row per sample; later samples get the asker's id with their number."""
    if answer.reply is None or not answer.reply.completions:
        return [_failed(question, answer.failure or "the server sent no completion")]
    usage = answer.reply.usage
    return [
        _row(task, question, completion, number, usage if number == 0 else Usage())
        for number, completion in enumerate(answer.reply.completions)
    ]


def sample_of(asker: str, number: int) -> str:
    """The annotator id of a sample: the asker's own for the first."""
    return asker if number == 0 else f"{asker}#{number + 1}"


def asker_of(annotator_id: str) -> str:
    """The asker of a row, whatever the sample."""
    return annotator_id.partition("#")[0]


def rows_of_reads(reads: Sequence[tuple[Question, Answer[OptionReply]]]) -> list[Evidence]:
    """A row a read: the likeliest label and the whole distribution; labels not shown are named in `failure`."""
    answered = [answer.reply for _, answer in reads if answer.reply is not None]
    orders = [question.order for question, answer in reads if answer.reply is not None]
    shown, others = [reply.logprobs for reply in answered], [reply.others for reply in answered]
    distributions = iter(read_replies(shown, orders, others))
    return [
        _failed(question, answer.failure or "the server sent no distribution")
        if answer.reply is None
        else _row_of_read(question, answer.reply, next(distributions))
        for question, answer in reads
    ]


def _row_of_read(question: Question, reply: OptionReply, found: OptionReading | None) -> Evidence:
    if found is None:
        return _silent(question, f"{UNSEEN}: any label", usage=reply.usage)
    likeliest = question.labels[found.probs.index(max(found.probs))]
    unseen = ", ".join([question.labels[i] for i in found.missing]) if found.missing else ""
    return Evidence(
        example_id=question.example.id,
        annotator_id=question.asker,
        prompt_hash=prompt_hash(question.prompt),
        text=f"Answer: {likeliest}",
        answer=likeliest,
        finish="stop",
        permutation=question.order,
        option_probs=found.probs,
        usage=reply.usage,
        failure=f"{UNSEEN}: {unseen}" if unseen else None,
        dropped_shots=question.dropped_shots,
    )


def _row(task: Task, question: Question, completion: Completion, number: int, usage: Usage) -> Evidence:
    usable = completion.finish == "stop"
    order = question.order if task.kind == "multiple_choice" else None
    row = Evidence(
        example_id=question.example.id,
        annotator_id=sample_of(question.asker, number),
        prompt_hash=prompt_hash(question.prompt),
        text=completion.text,
        answer=task.parse(completion.text, question.example, order) if usable else None,
        finish=completion.finish,
        permutation=question.order,
        mean_nll=mean_nll(completion),
        usage=usage,
        dropped_shots=question.dropped_shots,
    )
    return replace(row, **_measured(question, completion)) if question.measure else row


def _measured(question: Question, completion: Completion) -> dict[str, Any]:
    """What estimators read, as far as the reply holds it."""
    found = None
    if question.labels and completion.tokens is not None and completion.top is not None:
        found = read_options(completion.tokens, completion.top, question.shown, permutation=question.order)
    missing = ", ".join(question.labels[i] for i in found.missing) if found else ""
    return {
        "option_probs": found.probs if found else None,
        "answer_logprob": answer_logprob(completion),
        "verbal": verbal_probability(completion.text) if question.verbal else None,
        "failure": f"{UNSEEN}: {missing}" if missing else None,
    }


def _failed(question: Question, reason: str) -> Evidence:
    return _silent(question, reason, finish="failed")


def _silent(question: Question, failure: str, *, usage: Usage = NOTHING_USED, finish: Finish = "stop") -> Evidence:
    """A row without an answer."""
    return Evidence(
        example_id=question.example.id,
        annotator_id=question.asker,
        prompt_hash=prompt_hash(question.prompt),
        text="",
        answer=None,
        finish=finish,
        permutation=question.order,
        usage=usage,
        failure=failure,
        dropped_shots=question.dropped_shots,
    )
