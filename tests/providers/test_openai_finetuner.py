"""Fine-tuning jobs through the SDK: bought once, found after a crash, vendors' states and errors understood."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from semievol_api.capabilities import FineTuner, FineTuneRequest, JobTicket, ProviderSettings, TrainSpec
from semievol_api.cassettes.http import HttpResponse
from semievol_api.errors import RefusedError, TransientError
from semievol_providers.openai import connect
from semievol_providers.openai.finetuner import OpenAIStorage, job_status, job_suffix
from semievol_providers.openai.provider import Wires, provider_over
from semievol_providers.openai.sdk import Sdk
from semievol_providers.openai.settings import Connection, read_connection
from tests.providers.openai_loopback import Cut, Fault, LoopbackServer, error_body

REQUEST = FineTuneRequest(
    model="tiny", training_file=b'{"messages":[]}\n' * 10, run_key="run 7/warm-up", suffix="warm up!"
)
TICKET = JobTicket(job_id="ftjob-x", run_key="k")


def _finetuner(server: LoopbackServer) -> FineTuner:
    options = {"base_url": server.base_url, "api_key_env": ""}
    provider = connect(ProviderSettings(name="openai", options=options, environ={}))
    server.clients.push_async_callback(provider.aclose)
    assert provider.finetuner is not None
    return provider.finetuner


async def test_a_job_carries_its_run_key_twice_and_its_settings_as_a_method() -> None:
    wanted = dataclasses.replace(
        REQUEST,
        spec=TrainSpec(n_epochs=2, learning_rate_multiplier=0.1, seed=5),
        validation_file=b"{}\n",
    )
    async with LoopbackServer() as server:
        ticket = await _finetuner(server).submit(wanted)
        (created,) = server.asked("/fine_tuning/jobs")
        names = [file["filename"] for file in server.files.values()]
    body = created.body
    assert body["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.1}},
    }
    assert body["metadata"] == {"semievol_run_key": "run 7/warm-up"}
    assert body["suffix"].startswith("warm-up-") and len(body["suffix"]) == len("warm-up-") + 8
    assert body["seed"] == 5
    assert ticket.training_file_id == body["training_file"] != body["validation_file"]
    assert all(name.startswith("semievol-") and name.endswith(".jsonl") for name in names)


async def test_the_same_bytes_are_uploaded_once() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        await finetuner.submit(REQUEST)
        await finetuner.submit(dataclasses.replace(REQUEST, run_key="other"))
        await finetuner.submit(dataclasses.replace(REQUEST, training_file=b"{}\n", run_key="third"))
    assert len(server.asked("/files")) == 2
    assert len(server.jobs) == 3


async def test_a_file_that_the_vendor_could_not_read_is_uploaded_again() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        await finetuner.submit(REQUEST)
        next(iter(server.files.values()))["status"] = "error"
        await finetuner.submit(dataclasses.replace(REQUEST, run_key="other"))
    assert len(server.asked("/files")) == 2


@pytest.mark.parametrize("keep_metadata", [True, False], ids=["metadata kept", "metadata dropped"])
async def test_a_lost_answer_to_creation_leads_to_one_job(keep_metadata: bool) -> None:
    async with LoopbackServer(keep_metadata=keep_metadata) as server:
        finetuner = _finetuner(server)
        server.faults.append(Cut(on="/fine_tuning/jobs"))
        with pytest.raises(TransientError):
            await finetuner.submit(REQUEST)
        found = await finetuner.find(REQUEST)
    assert found is not None
    assert list(server.jobs) == [found.job_id]
    assert len(server.asked("/fine_tuning/jobs")) == 1


async def test_an_error_about_a_jobs_events_names_that_endpoint() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        ticket = await finetuner.submit(REQUEST)
        server.faults.append(Fault(500, b"{}", on="/events"))
        with pytest.raises(TransientError, match=r"openai: fine_tuning/jobs/events at 127\.0\.0\.1"):
            await finetuner.events(ticket, None)


async def test_a_server_error_on_creation_is_not_retried() -> None:
    async with LoopbackServer() as server:
        server.faults.append(Fault(500, b"{}", on="/fine_tuning/jobs"))
        with pytest.raises(TransientError):
            await _finetuner(server).submit(REQUEST)
    assert len(server.asked("/fine_tuning/jobs")) == 1


async def test_without_metadata_another_training_on_the_same_file_is_not_mistaken_for_this_one() -> None:
    async with LoopbackServer(keep_metadata=False) as server:
        finetuner = _finetuner(server)
        await finetuner.submit(REQUEST)
        assert await finetuner.find(dataclasses.replace(REQUEST, run_key="other")) is None
        assert await finetuner.find(dataclasses.replace(REQUEST, training_file=b"other")) is None


@pytest.mark.parametrize("status", ["failed", "cancelled", "canceled", "Failed"])
async def test_a_dead_job_is_not_found_but_its_living_twin_is(status: str) -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        first = await finetuner.submit(REQUEST)
        server.jobs[first.job_id]["status"] = status
        assert await finetuner.find(REQUEST) is None
        second = await finetuner.submit(REQUEST)
        found = await finetuner.find(REQUEST)
    assert found is not None and found.job_id == second.job_id


async def test_of_two_living_jobs_the_finished_one_is_meant() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        first = await finetuner.submit(REQUEST)
        await finetuner.submit(REQUEST)
        server.jobs[first.job_id]["status"] = "succeeded"
        found = await finetuner.find(REQUEST)
    assert found is not None and found.job_id == first.job_id


async def test_a_job_beyond_the_first_page_is_found_where_the_filter_is_unknown() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        ticket = await finetuner.submit(REQUEST)
        for number in range(230):
            server.jobs[f"later-{number}"] = {**server.jobs[ticket.job_id], "id": f"later-{number}", "metadata": {}}
            server.jobs[f"later-{number}"]["user_provided_suffix"] = None
        server.faults.append(Fault(400, error_body("unknown query parameter: metadata"), on="/fine_tuning/jobs"))
        found = await finetuner.find(REQUEST)
    assert found is not None and found.job_id == ticket.job_id


async def test_a_job_whose_suffix_is_not_told_is_found_by_its_metadata_alone() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        ticket = await finetuner.submit(REQUEST)
        server.jobs[ticket.job_id]["user_provided_suffix"] = None
        server.faults.append(Fault(400, error_body("unknown query parameter: metadata"), on="/fine_tuning/jobs"))
        found = await finetuner.find(REQUEST)
    assert found is not None and found.job_id == ticket.job_id


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("validating_files", "queued"),
        ("notRunning", "queued"),
        ("pending", "queued"),
        ("running", "running"),
        ("succeeded", "succeeded"),
        ("failed", "failed"),
        ("canceled", "cancelled"),
        ("paused", "paused"),
        ("pausing", "paused"),
        ("resting", "unknown"),
    ],
)
def test_states_of_any_vendor_become_ours(raw: str, status: str) -> None:
    assert job_status(raw) == status


async def test_an_unknown_state_keeps_the_vendors_word_and_is_not_finished() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        ticket = await finetuner.submit(REQUEST)
        server.jobs[ticket.job_id]["status"] = "resting"
        state = await finetuner.poll(ticket)
    assert (state.status, state.raw_status, state.finished) == ("unknown", "resting", False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"code": "invalid_training_file", "message": "too few chats", "param": "training_file"}, "at least 10"),
        ({"code": "x", "message": "The model failed our safety checks", "param": None}, "harmful"),
        ({}, "gave no reason"),
        (None, "gave no reason"),
    ],
)
async def test_a_failed_job_says_why_and_what_to_do(error: Any, words: str) -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        ticket = await finetuner.submit(REQUEST)
        server.jobs[ticket.job_id].update(status="failed", error=error)
        state = await finetuner.poll(ticket)
    assert state.status == "failed"
    assert state.reason is not None and words in state.reason


async def test_a_finished_job_names_its_model_and_tokens() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        ticket = await finetuner.submit(REQUEST)
        states = [await finetuner.poll(ticket) for _ in range(4)]
    assert [state.status for state in states] == ["queued", "queued", "running", "succeeded"]
    assert states[-1].model is not None and states[-1].model.startswith("ft:tiny:")
    assert states[-1].trained_tokens == 99
    assert [state.reason for state in states] == [None] * 4


async def test_events_come_oldest_first_over_all_pages_with_numbers_only() -> None:
    async with LoopbackServer() as server:
        finetuner = _finetuner(server)
        ticket = await finetuner.submit(REQUEST)
        events = await finetuner.events(ticket, None)
        later = await finetuner.events(ticket, "ftevent-247")
    assert [event.id for event in events] == [f"ftevent-{i}" for i in range(250)]
    assert [event.id for event in later] == ["ftevent-248", "ftevent-249"]
    assert events[4].metrics == {"step": 4.0, "train_loss": 0.2}


async def test_a_job_that_is_gone_is_a_refusal() -> None:
    async with LoopbackServer() as server:
        with pytest.raises(RefusedError) as caught:
            await _finetuner(server).poll(TICKET)
    assert caught.value.code == "fine_tune_not_found"


def test_a_suffix_fits_the_vendor_and_still_ends_with_the_run_key() -> None:
    long = dataclasses.replace(REQUEST, suffix="x" * 90)
    assert len(job_suffix(long, 64)) == 64
    assert job_suffix(long, 18)[-8:] == job_suffix(REQUEST, 64)[-8:]
    assert job_suffix(dataclasses.replace(REQUEST, suffix=None), 64).startswith("semievol-")
    assert job_suffix(REQUEST, 64) != job_suffix(dataclasses.replace(REQUEST, run_key="other"), 64)


async def test_models_tell_their_shutdown_date() -> None:
    async with LoopbackServer() as server:
        options = {"base_url": server.base_url, "api_key_env": ""}
        sdk = Sdk(read_connection(ProviderSettings(name="x", options=options, environ={})))
        storage = OpenAIStorage(sdk)
        found = await storage.model("tiny")
        with pytest.raises(RefusedError) as caught:
            await storage.model("absent")
        await sdk.aclose()
    assert (found.name, found.shutdown_date) == ("tiny", "2027-01-14")
    assert caught.value.code == "model_not_found"


async def test_the_sdks_transport_can_be_replaced() -> None:
    library = importlib.import_module("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")
    asked: list[str] = []

    def answer(request: Any) -> Any:
        asked.append(f"{request.method} {request.url.path}")
        return library.Response(200, json={"id": "ftjob-x", "status": "running", "error": {}})

    async def send(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        raise AssertionError("jobs don't take the hot path")

    async def nothing() -> None:
        return None

    connection = Connection(provider="x", base_url="https://example.test/v1", api_key="k", key_source="here")
    wires = Wires(send=send, close_send=nothing, sdk_transport=lambda: library.MockTransport(answer))
    provider = provider_over(connection, wires)
    assert provider.finetuner is not None
    state = await provider.finetuner.poll(TICKET)
    await provider.aclose()
    assert state.status == "running"
    assert asked == ["GET /v1/fine_tuning/jobs/ftjob-x"]


def _recorded_jobs(session_records: Path) -> dict[str, dict[str, Any]]:
    jobs: dict[str, dict[str, Any]] = {}
    for file in session_records.glob("openai-dotnet__FineTuning*.json"):
        for exchange in json.loads(file.read_text(encoding="utf-8-sig"))["Entries"]:
            body = exchange["ResponseBody"]
            for job in body.get("data", [body]) if isinstance(body, dict) else []:
                if job.get("object") == "fine_tuning.job":
                    jobs[job["id"]] = job
    return jobs


async def test_recorded_jobs_are_understood_and_an_empty_error_is_no_failure(session_records: Path) -> None:
    jobs = _recorded_jobs(session_records)
    assert len(jobs) > 20
    async with LoopbackServer() as server:
        server.jobs.update({name: dict(job) for name, job in jobs.items()})
        finetuner = _finetuner(server)
        for name, job in jobs.items():
            state = await finetuner.poll(JobTicket(job_id=name, run_key="k"))
            assert state.raw_status == job["status"]
            assert state.status != "unknown"
            assert (state.reason is None) == (job["error"] == {})
            assert (state.model is not None) == (job["status"] == "succeeded")
        assert await finetuner.find(REQUEST) is None
