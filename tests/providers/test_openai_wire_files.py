"""All recorded exchanges with api.openai.com go through the provider's own parsing: 32 sessions, 55 answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from semievol_api.capabilities import ChatRequest, EmbedRequest, JobTicket, Provider, ProviderSettings, require
from semievol_api.errors import ProviderError, RefusedError, TransientError
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from semievol_providers.openai.batches import Batch
from semievol_providers.openai.finetuner import Files, Job, RemoteFile, job_status
from semievol_providers.openai.sdk import Sdk
from semievol_providers.openai.settings import read_connection
from tests.wire import WireExchange, WireSend, wire_exchanges

ASK = ChatRequest(model="m", prompt=Prompt((Message("user", "u"),)), max_tokens=9, logprobs=True, top_logprobs=2)
TICKET = JobTicket(job_id="ftjob-x", run_key="k")
ALL = wire_exchanges()
Call = Callable[["Desk"], Awaitable[Any]]


class Desk:
    """A provider and its SDK, to whom one recorded answer is given for whatever they ask."""

    def __init__(self, recorded: WireExchange) -> None:
        self.recorded = recorded
        send = WireSend(*[recorded] * 3)
        settings = ProviderSettings(
            name="o", options={"base_url": "https://x.test/v1", "api_key_env": ""}, environ={}, wire=send
        )
        self.provider: Provider = connect(settings)
        from semievol_api.cassettes.http import sdk_transport
        from semievol_providers.openai.sdk import installed_major

        self.sdk = Sdk(
            read_connection(settings), lambda: sdk_transport("httpx2" if installed_major() >= 3 else "httpx", send)
        )

    async def read(self) -> Any:
        """The provider's own reading of the answer, by what was asked for."""
        one = self.recorded
        kind = one.path.strip("/").split("/")[0]
        return await {
            "chat": self._chat,
            "embeddings": self._embeddings,
            "files": self._files,
            "fine_tuning": self._jobs,
            "batches": self._batches,
            "models": self._models,
        }[kind]()

    async def _chat(self) -> Any:
        return await require(self.provider.scored, "log-probabilities", self.provider).complete(ASK)

    async def _embeddings(self) -> Any:
        texts = tuple(f"{i}" for i in range(len(json.loads(self.recorded.response.body).get("data", [1]))))
        return await require(self.provider.embedder, "embeddings", self.provider).embed(
            EmbedRequest(model="m", texts=texts)
        )

    async def _files(self) -> Any:
        if self.recorded.method == "DELETE":
            return await require(self.provider.remote, "files", self.provider).delete_file("file-x")
        if self.recorded.path.endswith("/content"):
            return await Files(self.sdk).download("fake_id")
        if self.recorded.path != "/files":
            return await self.sdk.ask_for(RemoteFile, "files", lambda c: c.files.with_raw_response.retrieve("f"))
        if self.recorded.method == "GET":
            return await Files(self.sdk).named("", "fine-tune")
        return await self.sdk.ask_for(
            RemoteFile, "files", lambda c: c.files.with_raw_response.create(file=("a", b"b"), purpose="fine-tune")
        )

    async def _jobs(self) -> Any:
        tuner = require(self.provider.finetuner, "fine-tuning", self.provider)
        if self.recorded.path.endswith(("/events", "/checkpoints")):
            return await tuner.events(TICKET, None)
        if self.recorded.path.endswith("/cancel"):
            await tuner.cancel(TICKET)
        if self.recorded.method == "GET":
            listed = self.sdk.items(Job, "jobs", lambda c, paging: c.fine_tuning.jobs.with_raw_response.list(**paging))
            return [job async for job in listed]
        return await tuner.poll(TICKET)

    async def _batches(self) -> Any:
        if self.recorded.method == "GET" and self.recorded.path == "/batches":
            listed = self.sdk.items(Batch, "batches", lambda c, paging: c.batches.with_raw_response.list(**paging))
            return [batch async for batch in listed]
        return await require(self.provider.batch, "batches", self.provider).poll("batch_x")

    async def _models(self) -> Any:
        return await require(self.provider.remote, "models", self.provider).model("m")

    async def aclose(self) -> None:
        await self.provider.aclose()
        await self.sdk.aclose()


def test_all_thirty_two_sessions_are_there() -> None:
    assert len({one.session for one in ALL}) == 32
    assert len(ALL) == 55


@pytest.mark.parametrize("recorded", ALL, ids=lambda one: f"{one.session} {one.method} {one.path} {one.query}")
async def test_every_recorded_answer_is_read_or_becomes_our_error(recorded: WireExchange) -> None:
    desk = Desk(recorded)
    try:
        if recorded.response.status >= 400:
            await _becomes_our_error(desk)
        elif recorded.response.body.startswith(b"data:"):
            with pytest.raises(TransientError):  # a stream, which we never ask for
                await desk.read()
        else:
            _says_what_the_answer_said(await desk.read(), recorded)
    finally:
        await desk.aclose()


async def _becomes_our_error(desk: Desk) -> None:
    said = json.loads(desk.recorded.response.body)["error"]
    with pytest.raises(ProviderError) as met:
        await desk.read()
    assert isinstance(met.value, RefusedError)
    assert met.value.status == desk.recorded.response.status
    assert met.value.code == said.get("code")
    assert met.value.param == said.get("param")
    assert len(str(met.value).split(". ")) > 1, "what happened, and what to try"


def _says_what_the_answer_said(read: Any, recorded: WireExchange) -> None:
    said = msgspec.json.decode(recorded.response.body)
    if recorded.path.startswith("/chat"):
        message = said["choices"][0]["message"]
        assert read.completions[0].text == (message["content"] or message["refusal"])
        assert read.usage.prompt == said["usage"]["prompt_tokens"]
    elif recorded.path.startswith("/embeddings"):
        assert read.vectors.shape[0] == len(said["data"]) and read.vectors.shape[1] > 8
    elif recorded.path.startswith("/fine_tuning") and isinstance(read, list) and "checkpoints" not in recorded.path:
        assert {one.id for one in read} == {one["id"] for one in said["data"]}
    elif recorded.path.startswith("/fine_tuning") and not isinstance(read, list):
        assert read.raw_status == said["status"] and read.status == job_status(said["status"])
        assert said["error"] != {} or read.reason is None, "an empty error is none"
    elif recorded.path.startswith("/batches") and not isinstance(read, list):
        assert read.raw_status == said["status"]


async def test_an_unknown_state_is_kept_and_is_not_the_end() -> None:
    (recorded,) = wire_exchanges("FineTuningClientTests__MinimalRequiredParams", "POST", "/fine_tuning/jobs/")[:1]
    body = recorded.response.body.replace(b'"status":"cancelled"', b'"status":"meditating"')
    assert b"meditating" in body
    changed = WireExchange(
        **{**vars(recorded), "response": type(recorded.response)(200, recorded.response.headers, body)}
    )
    desk = Desk(changed)
    tuner = require(desk.provider.finetuner, "fine-tuning", desk.provider)
    state = await tuner.poll(TICKET)
    assert (state.raw_status, state.status, state.finished) == ("meditating", "unknown", False)
    await desk.aclose()
