"""Vendors by preset: Azure replayed from recorded bodies; Nebius's LoRA; what others lack.

What Azure answers lies in tests/data/azure; its manifest says where that comes from.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from semievol_api.capabilities import (
    ChatRequest,
    EmbedRequest,
    FineTuner,
    FineTuneRequest,
    JobTicket,
    OptionRequest,
    Provider,
    ProviderSettings,
    TrainSpec,
)
from semievol_api.cassettes.exchange import read_manifest
from semievol_api.errors import (
    ContextLengthError,
    ModelNotFoundError,
    ProviderError,
    RateLimitError,
    RefusedError,
    TransientError,
)
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from semievol_providers.openai.finetuner import content_name
from semievol_providers.openai.settings import load_presets
from tests.conformance import validate_response
from tests.providers.openai_loopback import LoopbackServer
from tests.providers.vendor_servers import (
    AZURE,
    AZURE_KEY,
    AZURE_VERSION,
    AzureServer,
    azure_recording,
    azure_settings,
)

CHAT = ChatRequest(model="tiny", prompt=Prompt((Message("user", "hi"),)), max_tokens=4, logprobs=True)
TRAINING = FineTuneRequest(
    model="gpt-4o-mini-2024-07-18",
    training_file=b'{"messages":[]}\n' * 10,
    run_key="a-run-key",
    spec=TrainSpec(n_epochs=2),
    suffix="semievol",
)


@asynccontextmanager
async def provider_at(azure: AzureServer, **options: object) -> AsyncGenerator[Provider]:
    async with azure:
        provider = connect(azure_settings(azure, **options))
        azure.clients.push_async_callback(provider.aclose)
        yield provider


@asynccontextmanager
async def tuner_at(azure: AzureServer, **options: object) -> AsyncGenerator[FineTuner]:
    async with provider_at(azure, **options) as provider:
        assert provider.finetuner is not None
        yield provider.finetuner


def test_the_recording_says_that_azure_itself_was_never_recorded() -> None:
    manifest = read_manifest(AZURE)
    assert "no evidence about Azure or any vendor" in manifest.recorded_against
    assert AZURE_VERSION in manifest.notes


@pytest.mark.parametrize(
    ("situation", "path"),
    [("chat/answer", "/v1/chat/completions"), ("embeddings/vectors", "/v1/embeddings")],
)
def test_azures_answers_are_openais_and_more(situation: str, path: str) -> None:
    validate_response("POST", path, 200, azure_recording()[situation].body.to_bytes())


async def test_models_are_asked_at_their_deployments_with_version_and_api_key() -> None:
    azure = AzureServer()
    azure.deployments |= {"my deployment", "d", "e"}
    async with provider_at(azure, embedding_format="float") as provider:
        assert provider.scored and provider.embedder and provider.option_reader
        reply = await provider.scored.complete(replace(CHAT, model="my deployment"))
        read = await provider.option_reader.read(OptionRequest(model="d", prompt=CHAT.prompt, labels=("A", "B")))
        vectors = (await provider.embedder.embed(EmbedRequest(model="e", texts=("a", "bc")))).vectors
    assert reply.completions[0].text == "Answer: B" and reply.completions[0].token_logprobs is not None
    assert read.logprobs[0] == -1.5 and read.logprobs[1] == pytest.approx(-0.5, abs=0.1)
    assert vectors.tolist() == [[1.0, 1.0, -0.5], [2.0, 1.0, -0.5]]
    assert [seen.path for seen in azure.requests] == [
        "/openai/deployments/my deployment/chat/completions",
        "/openai/deployments/d/chat/completions",
        "/openai/deployments/e/embeddings",
    ]
    headers = [seen.headers for seen in azure.requests]
    assert all(each["api-key"] == AZURE_KEY and "authorization" not in each for each in headers)


@pytest.mark.parametrize(
    ("chat", "finish", "text"),
    [("cut off by the filter", "refused", ""), ("filter did not run", "stop", "Answer: B")],
)
async def test_a_filter_that_stops_an_answer_is_a_refusal_and_one_that_did_not_run_is_none(
    chat: str, finish: str, text: str
) -> None:
    azure = AzureServer()
    azure.chat = chat
    async with provider_at(azure) as provider:
        assert provider.chat is not None
        (completion,) = (await provider.chat.complete(CHAT)).completions
    assert (completion.finish, completion.text) == (finish, text)


async def test_a_job_is_worded_as_azure_knows_it_and_found_by_suffix_and_file() -> None:
    azure = AzureServer()
    async with tuner_at(azure) as tuner:
        assert await tuner.find(TRAINING) is None
        ticket = await tuner.submit(TRAINING)
        found = await tuner.find(TRAINING)
    (job,) = azure.asked("/fine_tuning/jobs")
    assert found is not None and found.job_id == ticket.job_id
    assert job.query == {"api-version": AZURE_VERSION}
    assert job.body["hyperparameters"] == {"n_epochs": 2}
    assert len(job.body["suffix"]) <= 18
    keys = {(seen.headers.get("api-key"), seen.headers.get("authorization")) for seen in azure.requests}
    assert keys == {(AZURE_KEY, None)}, "the SDK's bearer token would be another kind of login"


def _changed(**changes: Any) -> FineTuneRequest:
    return replace(TRAINING, **{"spec": TrainSpec(n_epochs=2, seed=7)} | changes)


async def test_a_job_that_shows_no_mark_at_all_is_found_by_what_it_trains_on() -> None:
    """As real ones do: the connection was cut after Azure took the job, and a second would be paid for."""
    asked = _changed()
    azure = AzureServer(shows_suffix=False)
    async with tuner_at(azure) as tuner:
        ticket = await tuner.submit(asked)
        found = await tuner.find(asked)
        strangers = [
            await tuner.find(_changed(training_file=asked.training_file * 2)),
            await tuner.find(_changed(spec=TrainSpec(n_epochs=3, seed=7))),
            await tuner.find(_changed(model="gpt-4.1-2025-04-14")),
            await tuner.find(_changed(spec=TrainSpec(n_epochs=2, seed=8))),
        ]
        azure.move(ticket.job_id, "succeeded")
        ended = await tuner.find(asked)
    assert found is not None and found.job_id == ticket.job_id
    assert ended is not None and ended.job_id == ticket.job_id
    assert strangers == [None] * 4


async def test_only_files_that_can_still_be_used_are_named() -> None:
    azure = AzureServer()
    listed = azure.body("files/list")["data"]
    name = content_name(TRAINING.training_file)
    azure.files |= {file["id"]: {**file, "filename": name} for file in listed}
    async with provider_at(azure) as provider:
        assert provider.remote is not None
        usable = await provider.remote.files_with(TRAINING.training_file)
    states = {file["id"]: file["status"] for file in listed}
    assert {states[id] for id in usable} == set(states.values()) - {"error", "deleting", "deleted"}


@pytest.mark.parametrize("order", ["newest first", "oldest first"])
async def test_a_jobs_events_carry_its_curves_in_whatever_order_they_are_listed(order: str) -> None:
    azure = AzureServer()
    azure.events = order
    async with tuner_at(azure) as tuner:
        ticket = await tuner.submit(TRAINING)
        events = await tuner.events(ticket, None)
        ids = [event.id for event in events]
        newer = {after: [event.id for event in await tuner.events(ticket, after)] for after in ids}
    assert [event.message.split(".")[0][:12] for event in events] == [
        "Job enqueued",
        "Job started",
        "Step 80: tra",
        "Job succeede",
        "Training tok",
    ]
    assert events[2].metrics == {
        "step": 80.0,
        "train_loss": 1.25,
        "valid_loss": 1.5,
        "full_valid_mean_token_accuracy": 0.625,
    }
    assert newer == {id: ids[place + 1 :] for place, id in enumerate(ids)}


STATES = {
    "pending": ("queued", None),
    "created": ("queued", None),
    "notRunning": ("queued", None),
    "running": ("running", None),
    "succeeded": ("succeeded", None),
    "failed": ("failed", "fewer examples than the 10"),
    "failed without a reason": ("failed", "gave no reason"),
    "failed by the safety evaluation": ("failed", "harmful rows"),
    "cancelled": ("cancelled", None),
    "canceled": ("cancelled", None),
    "cancelled by request": ("cancelled", None),
    "deleted": ("cancelled", "deleted"),
    "paused": ("paused", None),
    "somethingNew": ("unknown", None),
}


@pytest.mark.parametrize("situation", STATES)
async def test_every_state_of_a_job_is_understood_and_a_new_one_kept(situation: str) -> None:
    azure = AzureServer()
    async with tuner_at(azure) as tuner:
        ticket = await tuner.submit(TRAINING)
        azure.move(ticket.job_id, situation)
        state = await tuner.poll(ticket)
        found = await tuner.find(TRAINING)
    status, reason = STATES[situation]
    assert (state.status, state.raw_status) == (status, azure.body(f"jobs/{situation}")["status"])
    assert (state.model is not None, state.trained_tokens) == ((True, 99) if status == "succeeded" else (False, None))
    assert reason in (state.reason or "") if reason else state.reason is None
    assert (found is None) == (status in ("failed", "cancelled")), "an ended job is no reason not to train"


def test_no_recorded_state_or_error_is_without_a_test() -> None:
    recorded = {situation.partition("/")[::2] for situation in azure_recording()}
    assert {state for kind, state in recorded if kind == "jobs"} - set(STATES) == {"accepted", "list"}
    assert {error for kind, error in recorded if kind == "errors"} == set(ERRORS)


ERRORS: dict[str, tuple[str, type[ProviderError], str]] = {
    "content filter": ("chat", RefusedError, "content_filter.*content rules"),
    "content filter as the reference spells it": ("chat", RefusedError, "ResponsibleAIPolicyViolation.*content rules"),
    "not deployed": ("chat", ModelNotFoundError, "Deploy the model under this name"),
    "other api-version": ("chat", RefusedError, "Resource not found.*api_version"),
    "wrong key": ("chat", RefusedError, "AZURE_OPENAI_API_KEY"),
    "too many requests": ("chat", RateLimitError, "waits"),
    "too many tokens": ("chat", RateLimitError, "waits"),
    "context length": ("chat", ContextLengthError, "longer context"),
    "no chat model": ("chat", RefusedError, "OperationNotSupported.*model's name"),
    "broken inside": ("chat", TransientError, "another attempt"),
    "files full": ("files", RefusedError, "semievol clean --remote"),
    "file not valid": ("files", RefusedError, "at least 10 of them"),
    "jobs full": ("fine_tuning", RefusedError, "semievol clean --remote"),
    "unknown field": ("fine_tuning", RefusedError, "setting that the message names"),
    "not trained here": ("fine_tuning", RefusedError, "job_extra_body"),
    "may not": ("fine_tuning", RefusedError, "may use this model"),
    "too many calls": ("fine_tuning", RateLimitError, "waits"),
    "away": ("fine_tuning", TransientError, "another attempt"),
    "no such job": ("poll", RefusedError, "notFound"),
    "has ended": ("cancel", RefusedError, "unexpectedEntityState"),
    "no such model": ("model", RefusedError, "notFound"),
}


async def _ask(provider: Provider, azure: AzureServer, what: str, situation: str) -> None:
    """Make the request that the error answers; jobs, files and chat fail at once, the rest of themselves."""
    tuner, remote = provider.finetuner, provider.remote
    assert tuner is not None and remote is not None and provider.chat is not None
    match what:
        case "poll":
            await tuner.poll(JobTicket(job_id="ftjob-0", run_key="k"))
        case "cancel":
            ticket = await tuner.submit(TRAINING)
            await tuner.cancel(ticket)
            await tuner.cancel(ticket)
        case "model":
            await remote.model("nothing")
        case "chat":
            azure.fail(f"errors/{situation}")
            await provider.chat.complete(CHAT)
        case _:
            azure.fail(f"errors/{situation}", on=what)
            await tuner.submit(TRAINING)


@pytest.mark.parametrize("situation", ERRORS)
async def test_azures_errors_say_what_to_do(situation: str) -> None:
    what, kind, words = ERRORS[situation]
    azure = AzureServer()
    async with provider_at(azure) as provider:
        with pytest.raises(kind, match=words) as caught:
            await _ask(provider, azure, what, situation)
    assert type(caught.value) is kind
    assert AZURE_KEY not in str(caught.value)
    if isinstance(caught.value, RateLimitError):
        waits_s = {"too many requests": 1.0, "too many tokens": 7.0, "too many calls": None}
        assert caught.value.retry_after_s == waits_s[situation]


async def test_another_api_version_can_be_named_and_a_key_is_no_bearer_token() -> None:
    azure = AzureServer()
    async with provider_at(azure, api_version="2025-04-01-preview") as provider:
        assert provider.chat is not None
        with pytest.raises(RefusedError, match="Resource not found"):
            await provider.chat.complete(CHAT)
    assert azure.requests[0].query == {"api-version": "2025-04-01-preview"}


async def test_the_end_of_a_model_is_read_from_its_deprecation() -> None:
    async with provider_at(AzureServer()) as provider:
        assert provider.remote is not None
        assert (await provider.remote.model("tiny")).shutdown_date == "2027-10-01"


async def test_a_job_gets_the_fields_that_a_newer_azure_wants() -> None:
    azure = AzureServer()
    async with tuner_at(azure, job_extra_body={"trainingType": 1}) as tuner:
        with pytest.raises(RefusedError, match="unknown fields"):
            await tuner.submit(TRAINING)
    assert azure.asked("/fine_tuning/jobs")[0].body["trainingType"] == 1


async def test_nebius_trains_adapters_and_gets_no_metadata() -> None:
    async with LoopbackServer(keep_metadata=False) as server:
        provider = connect(
            ProviderSettings(
                name="n", options={"vendor": "nebius", "base_url": server.base_url}, environ={"NEBIUS_API_KEY": "k"}
            )
        )
        server.clients.push_async_callback(provider.aclose)
        assert provider.finetuner is not None
        ticket = await provider.finetuner.submit(TRAINING)
        found = await provider.finetuner.find(TRAINING)
        body = server.asked("/fine_tuning/jobs")[0].body
        server.violations.clear()  # `lora` is this vendor's own
    assert found is not None and found.job_id == ticket.job_id
    assert body["method"]["supervised"]["hyperparameters"] == {"lora": True, "n_epochs": 2}
    assert "metadata" not in body


async def test_a_vendor_that_trains_but_serves_nothing_says_what_to_do() -> None:
    async with LoopbackServer() as server:
        provider = connect(
            ProviderSettings(name="n", options={"base_url": server.base_url, "api_key_env": ""}, environ={})
        )
        server.clients.push_async_callback(provider.aclose)
        server.jobs["ftjob-1"] = {"id": "ftjob-1", "status": "succeeded", "model": "m", "user_provided_suffix": None}
        server.jobs["ftjob-1"] |= {"status": "completed", "fine_tuned_model": None}
        assert provider.finetuner is not None
        state = await provider.finetuner.poll(JobTicket(job_id="ftjob-1", run_key="k"))
    assert state.status == "succeeded" and state.model is None
    assert "register or deploy" in (state.reason or "")


@pytest.mark.parametrize("vendor", sorted(load_presets()))
def test_every_preset_connects_without_a_key_for_planning_and_never_otherwise(vendor: str) -> None:
    preset = load_presets()[vendor]
    options: dict[str, object] = {"vendor": vendor, **({} if preset.base_url else {"base_url": "https://x.test/v1"})}
    planned = connect(ProviderSettings(name="p", options=options, environ={}, planning=True))
    assert planned.vendor == vendor
    abilities = {
        "fine-tuning": planned.finetuner,
        "batches": planned.batch,
        "log-probabilities": planned.scored,
        "embeddings": planned.embedder,
    }
    assert {name for name, ability in abilities.items() if ability is None} == set(preset.lacks)
    if preset.api_key_env:
        with pytest.raises(Exception, match=preset.api_key_env):
            connect(ProviderSettings(name="p", options=options, environ={}))
    assert json.dumps(preset.model_dump(mode="json"))
