"""What every provider with `chat` and `scored` promises."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from semievol_api.capabilities import Chat, ChatRequest, ScoredChat
from semievol_api.records import Message, Prompt
from tests.contract.subjects import Subject

PROMPT = Prompt(
    (Message("user", "Question: which?\n\nOptions:\nA. one\nB. two\n\nReply with one line: Answer: LETTER"),)
)


def _chat(subject: Subject) -> Chat:
    if subject.provider.chat is None:
        pytest.skip("this provider has no chat")
    return subject.provider.chat


def _scored(subject: Subject) -> ScoredChat:
    if subject.provider.scored is None:
        pytest.skip("this provider has no log-probabilities")
    return subject.provider.scored


def _request(subject: Subject, **changes: Any) -> ChatRequest:
    request = ChatRequest(model=subject.chat_model, prompt=PROMPT, max_tokens=8, seed=1)
    return dataclasses.replace(request, **changes)


async def test_n_completions_come_back_in_one_reply(subject: Subject) -> None:
    reply = await _chat(subject).complete(_request(subject, n=3))
    assert len(reply.completions) == 3
    assert {completion.finish for completion in reply.completions} <= {"stop", "length"}


async def test_the_reply_counts_its_tokens(subject: Subject) -> None:
    usage = (await _chat(subject).complete(_request(subject))).usage
    assert usage.prompt > 0
    assert 0 < usage.completion <= 8
    assert 0 <= usage.cached <= usage.prompt


async def test_a_reply_without_logprobs_asked_has_none(subject: Subject) -> None:
    (completion,) = (await _chat(subject).complete(_request(subject))).completions
    assert completion.token_logprobs is None
    assert completion.tokens is None
    assert completion.top is None


async def test_max_tokens_of_one_ends_for_length(subject: Subject) -> None:
    reply = await _chat(subject).complete(_request(subject, max_tokens=1, temperature=0.0))
    (completion,) = reply.completions
    assert completion.finish == "length"
    assert reply.usage.completion == 1
    assert 0 < len(completion.text) < 40


async def test_token_logprobs_are_a_float32_array_of_natural_logs(subject: Subject) -> None:
    (completion,) = (await _scored(subject).complete(_request(subject, logprobs=True))).completions
    logprobs = completion.token_logprobs
    assert logprobs is not None
    assert logprobs.dtype == np.float32
    assert logprobs.ndim == 1
    assert bool(np.all(logprobs <= 1e-5))
    assert completion.tokens is not None, "else the answer's own log-probability is not found among them"
    assert len(completion.tokens) == logprobs.size
    assert _whole(completion.text) in _whole("".join(completion.tokens))


def _whole(text: str) -> str:
    """The characters that no token border cuts: a random model also says bytes that are no character alone."""
    return "".join(c for c in text if c.isascii() and not c.isspace())


async def test_alternatives_line_up_with_the_tokens_and_the_text(subject: Subject) -> None:
    (completion,) = (await _scored(subject).complete(_request(subject, logprobs=True, top_logprobs=3))).completions
    assert completion.token_logprobs is not None
    if not completion.text:
        pytest.skip("the model ended at once")
    assert completion.tokens is not None
    assert completion.top is not None
    assert len(completion.tokens) == len(completion.token_logprobs) == len(completion.top)
    assert _whole(completion.text) in _whole("".join(completion.tokens))
    assert all(1 <= len(place) <= 3 for place in completion.top)


async def test_the_end_of_turn_is_no_token_of_the_answer(subject: Subject) -> None:
    (completion,) = (await _scored(subject).complete(_request(subject, logprobs=True, top_logprobs=1))).completions
    assert completion.finish == "stop" or len(completion.tokens or ()) <= 8
    assert not any(token.startswith(("<|eot", "<|im_end", "</s>")) for token in completion.tokens or ())


async def test_greedy_answers_repeat(subject: Subject) -> None:
    first = await _chat(subject).complete(_request(subject, temperature=0.0, seed=1))
    again = await _chat(subject).complete(_request(subject, temperature=0.0, seed=1))
    assert first.completions[0].text == again.completions[0].text
