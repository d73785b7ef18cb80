"""Vendors by preset: Azure's deployment paths, versions, states and bodies; Nebius's LoRA; what others lack.

The Azure bodies have the fields, null fields, states and error shapes that Azure's reference documents; a job's life
has those of a real one of September 2025 (gpt-4.1), as a public notebook printed it: no suffix, no metadata, no
method, -1 for `auto`, an estimated end, metrics in its events. Ids and most numbers are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from semievol_api.capabilities import (
    ChatRequest,
    EmbedRequest,
    FineTuneRequest,
    Hyperparameters,
    JobTicket,
    OptionRequest,
    Provider,
    ProviderSettings,
)
from semievol_api.errors import RateLimitError, RefusedError
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from semievol_providers.openai.presets import load_presets
from tests.providers.openai_loopback import LoopbackServer

KEY = "0123456789abcdef0123456789abcdef"
VERSION = "2024-10-21"
CHAT = ChatRequest(model="my deployment", prompt=Prompt((Message("user", "hi"),)), max_tokens=4, logprobs=True)
TRAINING = FineTuneRequest(
    model="gpt-4o-mini-2024-07-18",
    training_file=b'{"messages":[]}\n' * 10,
    run_key="a-run-key",
    hyperparameters=Hyperparameters(n_epochs=2),
    suffix="semievol",
)
FILTERED = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}},
    }
}
NOT_DEPLOYED = {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource is absent."}}
BUSY = {
    "error": {"code": "429", "message": "Requests have exceeded the call rate limit. Please retry after 2 seconds."}
}


@dataclass
class Azure:
    """A small Azure OpenAI: everything below /openai, an api-version on every request, the key in `api-key`."""

    seen: list[tuple[str, str, Mapping[str, str], Mapping[str, str], Any]] = field(default_factory=list)
    faults: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    shows_suffix: bool = True
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.content_type == "application/json" and request.can_read_body else None
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.path, dict(request.query), headers, body))
        if request.query.get("api-version") != VERSION:
            return web.json_response({"error": {"code": "404", "message": "Resource not found"}}, status=404)
        if self.faults:
            status, fault = self.faults.pop(0)
            return web.json_response(fault, status=status, headers={"retry-after": "2"} if status == 429 else {})
        path = request.path.removeprefix("/openai")
        if path.startswith("/deployments/"):
            return web.json_response(_chat() if path.endswith("/chat/completions") else _vectors(body))
        if path == "/files" and request.method == "POST":
            form = await request.post()
            upload = form["file"]
            assert isinstance(upload, web.FileField)
            id = f"file-{len(self.files)}"
            self.files[id] = {"id": id, "filename": upload.filename, "status": "pending", "purpose": "fine-tune"}
            return web.json_response(self.files[id], status=201)
        if path == "/files":
            return web.json_response({"object": "list", "data": list(self.files.values())})
        return self._job(request, path, body)

    def _job(self, request: web.Request, path: str, body: Any) -> web.Response:
        if request.method == "POST" and path == "/fine_tuning/jobs":
            assert not {"metadata", "method"} & set(body), "Azure's classic API knows neither"
            id = f"ftjob-{len(self.jobs)}"
            self.jobs[id] = _job(id, body) | ({"suffix": body["suffix"]} if self.shows_suffix else {})
            return web.json_response(self.jobs[id], status=201)
        if path.endswith("/events"):
            return web.json_response({"object": "list", "data": EVENTS, "has_more": False})
        if path == "/fine_tuning/jobs":
            return web.json_response({"object": "list", "data": list(self.jobs.values()), "has_more": False})
        return web.json_response(self.jobs[path.split("/")[3]])


NULLS = ("error", "fine_tuned_model", "finished_at", "organization_id", "result_files", "trained_tokens")
EVENTS = [
    {"id": "ftevent-4", "created_at": 90, "message": "Training tokens billed: 8000", "data": None, "type": "message"},
    {"id": "ftevent-3", "created_at": 80, "message": "Job succeeded.", "data": None, "type": "message"},
    {
        "id": "ftevent-2",
        "created_at": 70,
        "message": "Step 80: training loss=1.25",
        "data": {"step": 80, "train_loss": 1.25, "valid_loss": 1.5, "full_valid_mean_token_accuracy": 0.625},
        "type": "metrics",
    },
    {"id": "ftevent-1", "created_at": 1, "message": "Job enqueued.", "data": None, "type": "message"},
]


def _job(id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A job that was just accepted."""
    automatic: dict[str, Any] = {"batch_size": -1, "learning_rate_multiplier": 2.0, "n_epochs": -1}
    return {
        **dict.fromkeys((*NULLS, "integrations", "metadata", "method")),
        "id": id,
        "object": "fine_tuning.job",
        "created_at": 1,
        "estimated_finish": 1081,
        "status": "pending",
        "model": body["model"],
        "seed": body.get("seed", 105),
        "hyperparameters": automatic | body.get("hyperparameters", {}),
        "training_file": body["training_file"],
        "validation_file": body.get("validation_file"),
    }


def _chat() -> dict[str, Any]:
    filters = {"hate": {"filtered": False, "severity": "safe"}}
    entry = {"token": "B", "logprob": -0.5, "bytes": [66], "top_logprobs": [{"token": "B", "logprob": -0.5}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": "B"}, "finish_reason": "stop"}
    return {
        "choices": [{**choice, "logprobs": {"content": [entry]}, "content_filter_results": filters}],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": filters}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }


def _vectors(body: Any) -> dict[str, Any]:
    data = [{"index": i, "embedding": [float(i), 1.0]} for i in range(len(body["input"]))]
    return {"data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}


class Opened(AsyncExitStack):
    """The server and a provider on it."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.azure = Azure()
        self._options = options

    async def __aenter__(self) -> Opened:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.azure.answer)
        server = TestServer(app)
        await server.start_server()
        self.push_async_callback(server.close)
        options = {"vendor": "azure", "base_url": str(server.make_url("/openai")), **self._options}
        self.provider: Provider = connect(
            ProviderSettings(name="azure", options=options, environ={"AZURE_OPENAI_API_KEY": KEY})
        )
        self.push_async_callback(self.provider.aclose)
        return self


async def test_models_are_asked_at_their_deployments_with_version_and_api_key() -> None:
    async with Opened(embedding_format="float") as opened:
        provider = opened.provider
        assert provider.scored and provider.embedder and provider.option_reader
        reply = await provider.scored.complete(CHAT)
        read = await provider.option_reader.read(OptionRequest(model="d", prompt=CHAT.prompt, labels=("B",)))
        vectors = (await provider.embedder.embed(EmbedRequest(model="e", texts=("a", "b")))).vectors
        paths = [seen[1] for seen in opened.azure.seen]
        headers = [seen[3] for seen in opened.azure.seen]
    assert reply.completions[0].text == "B" and reply.completions[0].token_logprobs is not None
    assert read.logprobs == (-0.5,)
    assert vectors.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert paths == [
        "/openai/deployments/my deployment/chat/completions",
        "/openai/deployments/d/chat/completions",
        "/openai/deployments/e/embeddings",
    ]
    assert all(each["api-key"] == KEY and "authorization" not in each for each in headers)


async def test_a_job_is_worded_as_azure_knows_it_and_found_by_suffix_and_file() -> None:
    async with Opened() as opened:
        tuner = opened.provider.finetuner
        assert tuner is not None
        assert await tuner.find(TRAINING) is None
        ticket = await tuner.submit(TRAINING)
        found = await tuner.find(TRAINING)
        posts = [seen for seen in opened.azure.seen if seen[0] == "POST" and seen[1].endswith("/jobs")]
        keys = [(seen[3].get("api-key"), seen[3].get("authorization")) for seen in opened.azure.seen]
    (_, _, query, _, body) = posts[0]
    assert found is not None and found.job_id == ticket.job_id
    assert query == {"api-version": VERSION}
    assert body["hyperparameters"] == {"n_epochs": 2}
    assert len(body["suffix"]) <= 18
    assert set(keys) == {(KEY, None)}, "the SDK's bearer token would be another kind of login"


def _changed(**changes: Any) -> FineTuneRequest:
    return replace(TRAINING, seed=7, **changes)


async def test_a_job_that_shows_no_mark_at_all_is_found_by_what_it_trains_on() -> None:
    """As the recorded ones do: the connection was cut after Azure took the job, and a second would be paid for."""
    asked = _changed()
    async with Opened() as opened:
        opened.azure.shows_suffix = False
        tuner = opened.provider.finetuner
        assert tuner is not None
        ticket = await tuner.submit(asked)
        found = await tuner.find(asked)
        strangers = [
            await tuner.find(_changed(training_file=asked.training_file * 2)),
            await tuner.find(_changed(hyperparameters=Hyperparameters(n_epochs=3))),
            await tuner.find(_changed(model="gpt-4.1-2025-04-14")),
            await tuner.find(replace(asked, seed=8)),
        ]
        opened.azure.jobs[ticket.job_id] |= {"status": "succeeded", "fine_tuned_model": "gpt-4o-mini.ft-0af3-x-1"}
        ended = await tuner.find(asked)
    assert found is not None and found.job_id == ticket.job_id
    assert ended is not None and ended.job_id == ticket.job_id
    assert strangers == [None] * 4


async def test_a_jobs_events_carry_its_curves() -> None:
    async with Opened() as opened:
        tuner = opened.provider.finetuner
        assert tuner is not None
        ticket = await tuner.submit(TRAINING)
        opened.azure.jobs[ticket.job_id] |= {
            "status": "succeeded",
            "fine_tuned_model": "gpt-4o-mini-2024-07-18.ft-0af3",
            "trained_tokens": 10_440,
            "finished_at": 90,
            "result_files": ["file-9"],
        }
        state = await tuner.poll(ticket)
        events = await tuner.events(ticket, None)
        newer = await tuner.events(ticket, "ftevent-3")
    assert (state.status, state.model, state.trained_tokens) == ("succeeded", "gpt-4o-mini-2024-07-18.ft-0af3", 10_440)
    assert [event.id for event in events] == ["ftevent-1", "ftevent-2", "ftevent-3", "ftevent-4"]
    assert events[1].metrics == {
        "step": 80.0,
        "train_loss": 1.25,
        "valid_loss": 1.5,
        "full_valid_mean_token_accuracy": 0.625,
    }
    assert [event.message for event in newer] == ["Training tokens billed: 8000"]


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("pending", "queued"),
        ("notRunning", "queued"),
        ("running", "running"),
        ("canceled", "cancelled"),
        ("failed", "failed"),
        ("succeeded", "succeeded"),
        ("paused", "paused"),
        ("somethingNew", "unknown"),
    ],
)
async def test_azures_words_for_a_jobs_state_are_understood(word: str, status: str) -> None:
    async with Opened() as opened:
        tuner = opened.provider.finetuner
        assert tuner is not None
        ticket = await tuner.submit(TRAINING)
        opened.azure.jobs[ticket.job_id] |= {
            "status": word,
            "fine_tuned_model": "gpt-4o-mini.ft-1" * (word == "succeeded"),
        }
        state = await tuner.poll(ticket)
    assert (state.status, state.raw_status) == (status, word)
    assert (state.model is not None) == (word == "succeeded")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, FILTERED, RefusedError, "content rules"),
        (404, NOT_DEPLOYED, RefusedError, "Deploy the model under this name"),
        (429, BUSY, RateLimitError, "waits"),
    ],
    ids=["filtered", "not deployed", "busy"],
)
async def test_azures_errors_say_what_to_do(
    status: int, body: dict[str, Any], kind: type[Exception], words: str
) -> None:
    async with Opened() as opened:
        opened.azure.faults.append((status, body))
        assert opened.provider.chat is not None
        with pytest.raises(kind, match=words) as caught:
            await opened.provider.chat.complete(CHAT)
    assert KEY not in str(caught.value)
    if isinstance(caught.value, RateLimitError):
        assert caught.value.retry_after_s == 2.0


async def test_another_api_version_can_be_named() -> None:
    async with Opened(api_version="2025-04-01-preview") as opened:
        assert opened.provider.chat is not None
        with pytest.raises(RefusedError, match="Resource not found"):
            await opened.provider.chat.complete(CHAT)
    assert opened.azure.seen[0][2] == {"api-version": "2025-04-01-preview"}


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
