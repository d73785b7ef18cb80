"""What every provider with an `option_reader` promises."""

from __future__ import annotations

import math

import pytest

from semievol_api.capabilities import OptionReader, OptionRequest
from semievol_api.records import Message, Prompt
from tests.contract.subjects import Subject

LABELS = ("A", "B", "C", "D")
PROMPT = Prompt(
    (Message("user", "Question: which?\n\nOptions:\nA. 1\nB. 2\n\nReply with one line: Answer: LETTER"),), "Answer:"
)


def _reader(subject: Subject) -> OptionReader:
    if subject.provider.option_reader is None:
        pytest.skip("this provider reads no options")
    return subject.provider.option_reader


async def test_labels_get_log_probabilities_that_fit_into_one(subject: Subject) -> None:
    reply = await _reader(subject).read(OptionRequest(model=subject.chat_model, prompt=PROMPT, labels=LABELS))
    read = [logprob for logprob in reply.logprobs if logprob is not None]
    assert len(reply.logprobs) == 4
    assert all(logprob <= 1e-5 for logprob in read)
    assert sum(math.exp(logprob) for logprob in read) <= 1.001
    assert reply.usage.prompt > 0


async def test_the_order_of_the_labels_is_the_order_of_the_answer(subject: Subject) -> None:
    reader = _reader(subject)
    one = await reader.read(OptionRequest(model=subject.chat_model, prompt=PROMPT, labels=LABELS))
    other = await reader.read(OptionRequest(model=subject.chat_model, prompt=PROMPT, labels=LABELS[::-1]))
    for there, back in zip(one.logprobs, other.logprobs[::-1], strict=True):
        assert there == (None if back is None else pytest.approx(back, abs=1e-3))


async def test_a_label_that_no_model_says_is_unread_or_unlikely(subject: Subject) -> None:
    request = OptionRequest(model=subject.chat_model, prompt=PROMPT, labels=("Qxzzyq",))
    (logprob,) = (await _reader(subject).read(request)).logprobs
    assert logprob is None or logprob < math.log(0.5)
