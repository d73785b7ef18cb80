"""A training's end as vendors report it: late names, absent event lists, states that do not move."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from semievol_api.capabilities import ChatRequest, FineTuneRequest, JobEvent, JobState, JobTicket, Provider, Reply
from semievol_api.cassettes.clock import VirtualClock
from semievol_api.config.method import TrainSettings
from semievol_api.errors import JobFailedError, ModelNotFoundError, RefusedError, TransientError
from semievol_api.records import Completion, Message, Prompt, Usage
from semievol_api.store.artifacts import TrainingFile, TunedModel
from semievol_api.store.run_store import RunStore
from semievol_api.training.fine_tuning import Trainer, fine_tune
from semievol_api.training.new_models import patient_with
from tests.pinned_keys import LINE

DONE = JobState(status="succeeded", raw_status="succeeded", model="ft:tiny")
NAMELESS = JobState(status="succeeded", raw_status="succeeded", reason="this vendor serves no model by itself")


class Vendor:
    """A vendor whose job goes through given states, and whose event list answers with an error."""

    def __init__(self, *states: JobState, events: Exception | None = None) -> None:
        self.states = list(states)
        self.fault = events

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        return None

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        return JobTicket(job_id="job", run_key=request.run_key)

    async def poll(self, ticket: JobTicket) -> JobState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        if self.fault is not None:
            raise self.fault
        return []

    async def cancel(self, ticket: JobTicket) -> None: ...


def trained(folder: Path, vendor: Vendor, poll_s: float = 10.0) -> tuple[TunedModel, list[str], VirtualClock]:
    told: list[str] = []
    clock = VirtualClock()
    provider = Provider(name="mine", identity="p", finetuner=vendor)
    trainer = Trainer(provider, "tiny", clock, 3, lambda _, event: told.append(event.message))
    with RunStore.open(folder, "key") as store:
        settings = TrainSettings(poll_s=poll_s)
        model = asyncio.run(fine_tune(trainer, store, "sft", TrainingFile(LINE * 12), settings))
    return model, told, clock


@pytest.mark.parametrize("fault", [RefusedError("no such list", status=404), TransientError("away", status=500)])
def test_a_finished_training_is_used_whatever_its_event_list_answers(tmp_path: Path, fault: Exception) -> None:
    model, told, _ = trained(tmp_path, Vendor(JobState(status="running", raw_status="running"), DONE, events=fault))
    assert model.model == "ft:tiny"
    assert not any("not reachable" in line for line in told)


def test_a_model_name_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    model, _, _ = trained(tmp_path, Vendor(*[NAMELESS] * 5, DONE))
    assert model.model == "ft:tiny"


def test_a_model_name_that_never_comes_ends_after_some_minutes(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match=r"serves no model by itself\. Fix the cause"):
        trained(tmp_path, Vendor(NAMELESS))


def test_a_state_that_does_not_move_is_told_in_the_vendors_word(tmp_path: Path) -> None:
    checking = JobState(status="queued", raw_status="validating_files")
    _, told, _ = trained(tmp_path, Vendor(*[checking] * 30, DONE))
    assert [line for line in told if "validating_files" in line] == [
        "The vendor has said 'validating_files' for 1 min.",
        "The vendor has said 'validating_files' for 2 min.",
        "The vendor has said 'validating_files' for 4 min.",
    ]


class Server:
    """Does not know its model before a time by the clock."""

    def __init__(self, clock: VirtualClock, knows_at_s: float, code: str) -> None:
        self.clock, self.knows_at_s, self.code = clock, knows_at_s, code

    async def complete(self, request: ChatRequest) -> Reply:
        if self.clock.now_s() < self.knows_at_s:
            raise ModelNotFoundError("no such model", status=404, code=self.code)
        return Reply(completions=(Completion("yes", "stop"),), usage=Usage())


def asked_of(model: str, knows_after_s: float, code: str = "model_not_found") -> str:
    clock = VirtualClock()
    made = {"young": clock.now_s()}
    server = Provider(name="mine", identity="p", chat=Server(clock, clock.now_s() + knows_after_s, code))
    chat = patient_with(server, made, clock).chat
    assert chat is not None
    request = ChatRequest(model=model, prompt=Prompt((Message("user", "?"),)), max_tokens=5, temperature=0.0)
    return asyncio.run(chat.complete(request)).completions[0].text


def test_a_model_that_was_made_seconds_ago_is_waited_for_and_another_is_not() -> None:
    assert asked_of("young", 60.0) == "yes"
    for model, after_s in (("young", 900.0), ("old", 60.0)):
        with pytest.raises(ModelNotFoundError):
            asked_of(model, after_s)


def test_a_model_that_somebody_must_deploy_is_not_waited_for() -> None:
    with pytest.raises(ModelNotFoundError):
        asked_of("young", 60.0, "DeploymentNotFound")
