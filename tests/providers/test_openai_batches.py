"""Batches through the SDK: submitted once, found by key or file name, every line accounted for."""

from __future__ import annotations

import json

import pytest

from semievol_api.capabilities import BatchAnswer, BatchChat, ChatRequest, ProviderSettings
from semievol_api.errors import TransientError
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from tests.providers.openai_loopback import Cut, LoopbackServer, error_body

PROMPT = Prompt((Message("user", "hi"),))


def _request(model: str = "tiny") -> ChatRequest:
    return ChatRequest(model=model, prompt=PROMPT, max_tokens=9, logprobs=True)


def _batches(server: LoopbackServer) -> BatchChat:
    options = {"base_url": server.base_url, "api_key_env": ""}
    provider = connect(ProviderSettings(name="openai", options=options, environ={}))
    server.clients.push_async_callback(provider.aclose)
    assert provider.batch is not None
    return provider.batch


async def _finish(server: LoopbackServer, batches: BatchChat, batch_id: str) -> dict[str, BatchAnswer]:
    while (await batches.poll(batch_id)).status == "running":
        pass
    return {answer.custom_id: answer for answer in await batches.collect(batch_id)}


async def test_lines_hold_the_same_bodies_as_the_hot_path() -> None:
    options = {"api_key_env": ""}
    async with LoopbackServer() as server:
        provider = connect(
            ProviderSettings(name="openai", options={**options, "base_url": server.base_url}, environ={})
        )
        assert provider.batch is not None and provider.chat is not None
        await provider.batch.submit({"row-1": _request()}, "key")
        await provider.chat.complete(_request())
        await provider.aclose()
    (line,) = [json.loads(line) for line in next(iter(server.contents.values())).splitlines()]
    assert line["custom_id"] == "row-1"
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert line["body"] == server.asked("/chat/completions")[0].body


async def test_answers_and_failures_come_back_under_their_ids() -> None:
    async with LoopbackServer() as server:
        batches = _batches(server)
        asked = {f"row-{i}": _request("broken" if i == 3 else "tiny") for i in range(5)}
        batch_id = await batches.submit(asked, "key")
        answers = await _finish(server, batches, batch_id)
        state = await batches.poll(batch_id)
    assert set(answers) == set(asked)
    assert (state.status, state.done, state.failed, state.total) == ("completed", 4, 1, 5)
    reply = answers["row-0"].reply
    assert reply is not None and reply.completions[0].text == "Answer: B"
    logprobs = reply.completions[0].token_logprobs
    assert logprobs is not None and logprobs.tolist() == [-0.125, -0.25, -0.5]
    assert answers["row-3"].reply is None
    assert "no such model" in (answers["row-3"].error or "")
    assert not answers["row-3"].retryable


@pytest.mark.parametrize("keep_metadata", [True, False], ids=["metadata kept", "metadata dropped"])
async def test_a_lost_answer_to_submission_leads_to_one_batch(keep_metadata: bool) -> None:
    async with LoopbackServer(keep_metadata=keep_metadata) as server:
        batches = _batches(server)
        server.faults.append(Cut(on="/batches"))
        with pytest.raises(TransientError):
            await batches.submit({"a": _request()}, "key")
        assert await batches.find("key") == next(iter(server.batches))
        assert await batches.find("other") is None
    assert len(server.asked("/batches")) == 1


async def test_a_dead_batch_is_not_found_unless_it_holds_paid_answers() -> None:
    async with LoopbackServer() as server:
        batches = _batches(server)
        batch_id = await batches.submit({"a": _request()}, "key")
        await batches.cancel(batch_id)
        assert (await batches.poll(batch_id)).status == "cancelled"
        assert await batches.find("key") is None
        server.batches[batch_id]["output_file_id"] = "file-9"
        assert await batches.find("key") == batch_id
        server.batches[batch_id]["status"] = "failed"
        assert await batches.find("key") is None


async def test_an_expired_batch_gives_what_it_finished_and_marks_the_rest_for_another_try() -> None:
    async with LoopbackServer() as server:
        batches = _batches(server)
        batch_id = await batches.submit({"a": _request(), "b": _request()}, "key")
        await _finish(server, batches, batch_id)
        batch = server.batches[batch_id]
        output = server.contents[batch["output_file_id"]].splitlines()
        server.contents[batch["output_file_id"]] = output[0] + b"\n"
        left = {
            "custom_id": "a",
            "response": None,
            "error": {"code": "batch_expired", "message": "not run in time"},
        }
        server.contents["file-e"] = json.dumps(left).encode()
        batch.update(status="expired", error_file_id="file-e")
        assert (await batches.poll(batch_id)).status == "expired"
        assert await batches.find("key") == batch_id
        answers = {answer.custom_id: answer for answer in await batches.collect(batch_id)}
    assert answers["b"].reply is not None
    assert answers["a"].reply is None and answers["a"].retryable


@pytest.mark.parametrize(("status", "again"), [(500, True), (429, True), (400, False)])
async def test_a_failed_line_says_whether_asking_again_may_help(status: int, again: bool) -> None:
    async with LoopbackServer() as server:
        batches = _batches(server)
        batch_id = await batches.submit({"a": _request()}, "key")
        await _finish(server, batches, batch_id)
        body = json.loads(error_body("because", "some_code"))
        line = {"custom_id": "a", "response": {"status_code": status, "body": body}, "error": None}
        server.contents["file-e"] = json.dumps(line).encode()
        server.batches[batch_id].update(output_file_id=None, error_file_id="file-e")
        (answer,) = await batches.collect(batch_id)
    assert answer.retryable is again
    assert "because" in (answer.error or "")


async def test_a_download_that_broke_off_is_a_transient_error() -> None:
    async with LoopbackServer() as server:
        batches = _batches(server)
        batch_id = await batches.submit({"a": _request(), "b": _request()}, "key")
        await _finish(server, batches, batch_id)
        file_id = server.batches[batch_id]["output_file_id"]
        server.contents[file_id] = server.contents[file_id][:-30]
        with pytest.raises(TransientError):
            await batches.collect(batch_id)


async def test_a_batch_that_was_not_accepted_says_why() -> None:
    async with LoopbackServer() as server:
        batches = _batches(server)
        batch_id = await batches.submit({"a": _request()}, "key")
        fault = {"code": "invalid_json_line", "message": "line 3 is no JSON", "line": 3}
        server.batches[batch_id].update(status="failed", errors={"object": "list", "data": [fault]})
        state = await batches.poll(batch_id)
    assert state.status == "failed"
    assert "line 3 is no JSON" in (state.reason or "")
