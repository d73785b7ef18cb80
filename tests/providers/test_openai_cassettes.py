"""Provider `openai` on one cassette per behaviour, in `cassettes/openai/`.

Recorded on this machine (our own server, or canned answers where it never behaves so), which every manifest says:
no evidence about any vendor. `make cassettes` records them anew; the assertions hold then and at replay alike.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from semievol_api.capabilities import (
    ChatRequest,
    EmbedRequest,
    FineTuneRequest,
    JobState,
    JobTicket,
    OptionRequest,
    Provider,
    ProviderSettings,
    TrainSpec,
    require,
)
from semievol_api.cassettes.cassette import Cassette
from semievol_api.cassettes.exchange import read_manifest
from semievol_api.errors import RateLimitError, RefusedError, TransientError
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from tests.conformance import ConformingSend, validate_response
from tests.providers.local_samples import training_lines
from tests.providers.openai_loopback import Fault, LoopbackServer, error_body

pytest_plugins = ("server_fixtures",)
FOLDER = "../../cassettes/openai"
ROOT = Path(__file__).resolve().parent / FOLDER
OURS = ("continue_final_message", "add_generation_prompt")
"""What vLLM and our own server take beside the specification."""
ASK = ChatRequest(model="tiny", prompt=Prompt((Message("user", "Which letter?"),)), max_tokens=6, seed=1)
TRAIN = FineTuneRequest(
    model="tiny",
    training_file=training_lines(20).encode(),
    run_key="cassette",
    spec=TrainSpec(n_epochs=2, batch_size=4, seed=0),
)


def taped(name: str) -> pytest.MarkDecorator:
    return pytest.mark.cassette(f"{FOLDER}/{name}")


@dataclass
class Tape:
    """A cassette and where it is recorded from."""

    cassette: Cassette
    base_url: str
    loopback: LoopbackServer | None = None

    @property
    def records(self) -> bool:
        return self.cassette.mode != "replay"

    def provider(self, conforming: bool = True, **options: object) -> Provider:
        """A provider whose every request conforms to the specification, and every answer unless told otherwise."""
        table = {"base_url": self.base_url, "api_key_env": "KEY", **options}
        key = "recorded-with-this-key" if self.records else "and-replayed-with-another"
        send = ConformingSend(self.cassette.send, extensions=OURS, responses=conforming)
        return connect(ProviderSettings(name="openai", options=table, environ={"KEY": key}, wire=send))

    async def end(self, provider: Provider, ticket: JobTicket) -> JobState:
        """The job's last state."""
        tuner = require(provider.finetuner, "fine-tuning", provider)
        while not (state := await tuner.poll(ticket)).finished:
            await self.cassette.clock.sleep(0.3)
        return state


@pytest.fixture
def ours(cassette: Cassette, request: pytest.FixtureRequest) -> Tape:
    """Our own server where it is recorded, nobody at replay."""
    if cassette.mode == "replay":
        return Tape(cassette, "http://192.0.2.1:9/v1")
    return Tape(cassette, request.getfixturevalue("server").url)


@pytest_asyncio.fixture
async def canned(cassette: Cassette) -> AsyncIterator[Tape]:
    """Canned answers where it is recorded, nobody at replay."""
    async with _canned(cassette) as tape:
        yield tape


@asynccontextmanager
async def _canned(cassette: Cassette) -> AsyncIterator[Tape]:
    if cassette.mode == "replay":
        yield Tape(cassette, "http://192.0.2.1:9/v1")
        return
    async with LoopbackServer() as server:
        yield Tape(cassette, server.base_url, server)


# --------------------------------------------------------------------------------------------- inference
@taped("chat-logprobs")
async def test_chat_with_log_probabilities_and_alternatives(ours: Tape) -> None:
    provider = ours.provider()
    asked = replace(ASK, logprobs=True, top_logprobs=3)
    reply = await require(provider.scored, "log-probabilities", provider).complete(asked)
    (completion,) = reply.completions
    assert completion.token_logprobs is not None and completion.top is not None
    assert len(completion.token_logprobs) == len(completion.top) == reply.usage.completion
    assert all(value <= 0 for value in completion.token_logprobs)
    assert all(len(alternatives) <= 3 for alternatives in completion.top)
    await provider.aclose()


@taped("chat-n")
async def test_several_samples_of_one_request(ours: Tape) -> None:
    provider = ours.provider()
    reply = await require(provider.chat, "chat", provider).complete(replace(ASK, n=4))
    assert len(reply.completions) == 4
    assert len({completion.text for completion in reply.completions}) > 1


@taped("chat-split")
async def test_parts_of_one_request_that_are_worded_alike_do_not_swap(ours: Tape) -> None:
    provider = ours.provider()
    chat = require(provider.chat, "chat", provider)
    parts = [replace(ASK, n=2, seed=None, first_sample=first) for first in (0, 2, 4)]
    backwards = parts if ours.records else parts[::-1]
    replies = {part.first_sample: await chat.complete(part) for part in backwards}
    texts = {first: [one.text for one in reply.completions] for first, reply in replies.items()}
    by_slot = {exchange.slot: exchange.response.body.to_bytes() for exchange in ours.cassette.exchanges.values()}
    for first, slot in ((0, ""), (2, "sample/2"), (4, "sample/4")):
        spoken = json.loads(by_slot[slot])["choices"]
        assert texts[first] == [choice["message"]["content"] for choice in spoken]


@taped("options")
async def test_the_distribution_over_labels(ours: Tape) -> None:
    provider = ours.provider()
    reader = require(provider.option_reader, "option reading", provider)
    prompt = Prompt((Message("user", "Which letter?"),), prefill="Answer:")
    reply = await reader.read(OptionRequest(model="tiny", prompt=prompt, labels=("A", "B")))
    assert len(reply.logprobs) == 2


@taped("embeddings")
async def test_embeddings_in_both_forms(ours: Tape) -> None:
    vectors = {}
    for form in ("base64", "float"):
        provider = ours.provider(form == "float", embedding_format=form)  # the specification knows numbers only
        embedder = require(provider.embedder, "embeddings", provider)
        vectors[form] = (await embedder.embed(EmbedRequest(model="tiny", texts=("one", "two")))).vectors
    assert vectors["base64"].dtype == np.float32 and len(vectors["base64"]) == 2
    np.testing.assert_allclose(vectors["base64"], vectors["float"], rtol=1e-6)


# ------------------------------------------------------------------------------------------------- jobs
@taped("job")
async def test_a_jobs_whole_life_with_its_events_and_checkpoints(ours: Tape) -> None:
    provider = ours.provider()
    tuner = require(provider.finetuner, "fine-tuning", provider)
    assert await tuner.find(TRAIN) is None
    ticket = await tuner.submit(TRAIN)
    assert await tuner.find(TRAIN) == ticket
    state = await ours.end(provider, ticket)
    assert state.status == "succeeded" and state.model and state.trained_tokens
    events = await tuner.events(ticket, None)
    assert any("train_loss" in event.metrics for event in events)
    assert await tuner.events(ticket, events[-1].id) == []
    path = f"/v1/fine_tuning/jobs/{ticket.job_id}/checkpoints"
    checkpoints = await ours.cassette.send("GET", ours.base_url.removesuffix("/v1") + path, None, {}, 10.0)
    validate_response("GET", path, checkpoints.status, checkpoints.body)
    assert b"step_number" in checkpoints.body


@taped("upload")
async def test_the_same_bytes_are_uploaded_once_whatever_the_boundary(ours: Tape) -> None:
    provider = ours.provider()
    tuner = require(provider.finetuner, "fine-tuning", provider)
    asked = replace(TRAIN, training_file=training_lines(12).encode(), run_key="upload")
    first = await tuner.submit(asked)
    second = await tuner.submit(replace(asked, run_key="upload, again"))
    assert first.training_file_id == second.training_file_id
    assert sum(one.label.startswith("POST /files") for one in ours.cassette.exchanges.values()) == 1
    for ticket in (first, second):
        await tuner.cancel(ticket)


@taped("job-failed")
async def test_a_job_that_fails_says_why(ours: Tape) -> None:
    provider = ours.provider()
    tuner = require(provider.finetuner, "fine-tuning", provider)
    ticket = await tuner.submit(replace(TRAIN, training_file=b'{"messages": []}\n' * 12, run_key="bad"))
    state = await ours.end(provider, ticket)
    assert state.status == "failed" and state.model is None
    assert state.reason and "invalid_training_file" in state.reason


@taped("job-cancelled")
async def test_a_cancelled_job_is_not_found_again(ours: Tape) -> None:
    provider = ours.provider()
    tuner = require(provider.finetuner, "fine-tuning", provider)
    asked = replace(TRAIN, run_key="to be cancelled", spec=TrainSpec(n_epochs=9, seed=0))
    ticket = await tuner.submit(asked)
    await tuner.cancel(ticket)
    state = await ours.end(provider, ticket)
    assert (state.status, state.model) == ("cancelled", None)
    assert await tuner.find(asked) is None


@taped("batch")
async def test_a_batch_whose_error_file_holds_the_refused_request(canned: Tape) -> None:
    provider = canned.provider(conforming=False)
    batch = require(provider.batch, "batches", provider)
    batch_id = await batch.submit({"good": ASK, "bad": replace(ASK, model="broken")}, "a batch")
    assert await batch.find("a batch") == batch_id
    state = await batch.poll(batch_id)
    while state.status == "running":
        await canned.cassette.clock.sleep(0.01)
        state = await batch.poll(batch_id)
    assert (state.status, state.done, state.failed, state.total) == ("completed", 1, 1, 2)
    answers = {answer.custom_id: answer for answer in await batch.collect(batch_id)}
    assert answers["good"].reply is not None
    assert answers["bad"].reply is None and "model_not_found" in (answers["bad"].error or "")
    assert not answers["bad"].retryable


# ----------------------------------------------------------------------------------------------- errors
@taped("errors-ours")
async def test_what_our_own_server_refuses(ours: Tape) -> None:
    provider = ours.provider()
    chat = require(provider.chat, "chat", provider)
    with pytest.raises(RefusedError) as unknown:
        await chat.complete(replace(ASK, model="nobody"))
    assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
    with pytest.raises(RefusedError) as wrong:
        await chat.complete(replace(ASK, max_tokens=100_000))
    assert wrong.value.status == 400


@taped("errors")
async def test_each_status_becomes_its_error(canned: Tape) -> None:
    faults = [
        Fault(400, error_body("bad", "invalid_value"), {"content-type": "application/json"}),
        Fault(401, error_body("no", "invalid_api_key"), {"content-type": "application/json"}),
        Fault(404, error_body("gone", "model_not_found"), {"content-type": "application/json"}),
        Fault(429, error_body("slow", "rate_limit_exceeded"), {"retry-after": "20"}),
        Fault(500, error_body("oops", None, "server_error"), {}),
    ]
    if canned.loopback is not None:
        canned.loopback.faults.extend(faults)
    provider = canned.provider(conforming=False)
    chat = require(provider.chat, "chat", provider)
    for status, kind in ((400, RefusedError), (401, RefusedError), (404, RefusedError), (500, TransientError)):
        if status == 500:
            with pytest.raises(RateLimitError) as limited:
                await chat.complete(ASK)
            assert limited.value.retry_after_s == (20.0 if canned.records else 0.001)
        with pytest.raises(kind) as met:
            await chat.complete(ASK)
        assert met.value.status == status
    assert len((await chat.complete(ASK)).completions) == 1


# ------------------------------------------------------------------------------------- odd, but legal
def _answer(content: str | None, finish: str, **message: object) -> Fault:
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": content, "refusal": None, **message},
        "logprobs": None,
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice], "usage": usage}
    return Fault(200, json.dumps(body).encode(), {"content-type": "application/json"})


@taped("no-logprobs")
async def test_a_vendor_that_ignores_log_probabilities_gives_none(canned: Tape) -> None:
    if canned.loopback is not None:
        canned.loopback.faults.append(_answer("Answer: B", "stop"))
    provider = canned.provider(conforming=False)
    reply = await require(provider.scored, "log-probabilities", provider).complete(
        replace(ASK, logprobs=True, top_logprobs=2)
    )
    assert reply.completions[0].token_logprobs is None and reply.completions[0].text == "Answer: B"


@taped("truncated")
async def test_an_answer_cut_at_its_limit_says_so(canned: Tape) -> None:
    provider = canned.provider(conforming=False)
    reply = await require(provider.chat, "chat", provider).complete(replace(ASK, max_tokens=2))
    assert reply.completions[0].finish == "length"


@taped("refused")
async def test_a_refused_answer_is_no_text(canned: Tape) -> None:
    if canned.loopback is not None:
        canned.loopback.faults += [_answer(None, "stop", refusal="I can't."), _answer("", "content_filter")]
    provider = canned.provider(conforming=False)
    chat = require(provider.chat, "chat", provider)
    first, second = await chat.complete(ASK), await chat.complete(ASK)
    assert first.completions[0].finish == "refused"
    assert second.completions[0].finish == "refused"


# ------------------------------------------------------------------------------------------- the folders
def test_every_folder_says_that_it_was_recorded_on_this_machine() -> None:
    folders = sorted(path.parent for path in ROOT.rglob("manifest.json"))
    assert len(folders) >= 14
    for folder in folders:
        assert "no evidence about any vendor" in read_manifest(folder).recorded_against, folder
