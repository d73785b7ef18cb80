"""What every provider with a `finetuner` promises."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from semievol_api.capabilities import FineTuner, FineTuneRequest, JobState, JobTicket, TrainSpec
from tests.contract.subjects import Subject


def _finetuner(subject: Subject) -> FineTuner:
    if subject.provider.finetuner is None:
        pytest.skip("this provider has no fine-tuning")
    return subject.provider.finetuner


def _request(subject: Subject) -> FineTuneRequest:
    """A training that nobody has bought yet."""
    key = uuid.uuid4().hex
    turns = [{"role": "user", "content": f"Say {key}."}, {"role": "assistant", "content": "Answer: B"}]
    line = json.dumps({"messages": turns}).encode()
    return FineTuneRequest(
        model=subject.base_model,
        training_file=b"\n".join([line] * 12) + b"\n",
        run_key=key,
        spec=TrainSpec(n_epochs=1),
        suffix="contract",
    )


async def _wait(finetuner: FineTuner, ticket: JobTicket, poll_s: float) -> JobState:
    for _ in range(600):
        state = await finetuner.poll(ticket)
        if state.finished:
            return state
        assert state.status in ("queued", "running", "paused", "unknown")
        assert state.model is None
        await asyncio.sleep(poll_s)
    raise AssertionError("the job does not end")


async def test_a_job_ends_with_a_model_and_tells_its_story(subject: Subject) -> None:
    finetuner = _finetuner(subject)
    ticket = await finetuner.submit(_request(subject))
    state = await _wait(finetuner, ticket, subject.poll_s)
    assert state.status == "succeeded", state.reason
    assert state.model
    events = await finetuner.events(ticket, None)
    assert [event.created_at for event in events] == sorted(event.created_at for event in events)
    assert len({event.id for event in events}) == len(events) > 1
    later = await finetuner.events(ticket, events[0].id)
    assert [event.id for event in later] == [event.id for event in events[1:]]
    assert await finetuner.events(ticket, events[-1].id) == []


async def test_a_submitted_job_is_found_by_its_run_key_and_no_other(subject: Subject) -> None:
    finetuner = _finetuner(subject)
    request = _request(subject)
    assert await finetuner.find(request) is None
    ticket = await finetuner.submit(request)
    found = await finetuner.find(request)
    assert found is not None
    assert (found.job_id, found.run_key) == (ticket.job_id, request.run_key)
    assert await finetuner.find(_request(subject)) is None
    await _wait(finetuner, ticket, subject.poll_s)


async def test_a_cancelled_job_is_not_found_again(subject: Subject) -> None:
    finetuner = _finetuner(subject)
    request = _request(subject)
    ticket = await finetuner.submit(request)
    await finetuner.cancel(ticket)
    state = await _wait(finetuner, ticket, subject.poll_s)
    assert state.status == "cancelled"
    assert await finetuner.find(request) is None
