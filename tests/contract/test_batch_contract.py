"""What every provider with `batch` promises."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from semievol_api.capabilities import BatchChat, BatchState, ChatRequest
from semievol_api.records import Message, Prompt
from tests.contract.subjects import Subject


def _batch(subject: Subject) -> BatchChat:
    if subject.provider.batch is None:
        pytest.skip("this provider has no batches")
    return subject.provider.batch


def _requests(subject: Subject) -> dict[str, ChatRequest]:
    prompt = Prompt((Message("user", "Reply with one line: Answer: LETTER"),))
    return {
        f"row-{i}": ChatRequest(model=subject.chat_model, prompt=prompt, max_tokens=4, seed=i, logprobs=True)
        for i in range(3)
    }


async def _wait(batch: BatchChat, batch_id: str, poll_s: float) -> BatchState:
    for _ in range(600):
        state = await batch.poll(batch_id)
        if state.status != "running":
            return state
        await asyncio.sleep(poll_s)
    raise AssertionError("the batch does not end")


async def test_every_request_is_answered_under_its_id(subject: Subject) -> None:
    batch = _batch(subject)
    requests = _requests(subject)
    batch_id = await batch.submit(requests, uuid.uuid4().hex)
    state = await _wait(batch, batch_id, subject.poll_s)
    answers = await batch.collect(batch_id)
    assert state.status == "completed", state.reason
    assert (state.done, state.failed, state.total) == (3, 0, 3)
    assert sorted(answer.custom_id for answer in answers) == sorted(requests)
    for answer in answers:
        assert answer.error is None
        assert answer.reply is not None
        assert answer.reply.usage.completion > 0
        assert answer.reply.completions[0].token_logprobs is not None


async def test_a_batch_is_found_by_its_key_and_by_no_other(subject: Subject) -> None:
    batch = _batch(subject)
    key = uuid.uuid4().hex
    assert await batch.find(key) is None
    batch_id = await batch.submit(_requests(subject), key)
    assert await batch.find(key) == batch_id
    assert await batch.find(uuid.uuid4().hex) is None
    await _wait(batch, batch_id, subject.poll_s)
