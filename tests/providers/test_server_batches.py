"""Batches through the unmodified openai SDK on a running server: every status, both files, kills."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from server_running import RunningServer

from semievol_providers.server.batches import answered_line

pytest_plugins = ("server_fixtures",)
Conforms = Callable[[object, str], None]
CHAT: Any = "/v1/chat/completions"
EMBED: Any = "/v1/embeddings"


def _chat_line(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Item {number}"}]
    settings = {"model": "tiny", "messages": messages, "max_tokens": 6, "seed": number}
    return {"custom_id": f"row-{number}", "method": "POST", "url": CHAT, "body": settings | body}


def _start(client: openai.OpenAI, lines: list[Any], endpoint: Any = CHAT, **settings: Any) -> Any:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **settings)


def _wait(client: openai.OpenAI, batch_id: str, *statuses: str) -> Any:
    deadline = time.monotonic() + 90
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in (statuses or ("completed", "failed", "expired", "cancelled")):
            return batch
        assert time.monotonic() < deadline, f"the batch stayed {batch.status}"
        time.sleep(0.05)


def _lines(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({line["custom_id"] for line in found}) == len(found)
    return {line["custom_id"]: line for line in found}


def test_a_batch_answers_each_line_as_its_own_request_would_be(client: openai.OpenAI, conforms: Conforms) -> None:
    lines = [_chat_line(i, logprobs=True) for i in range(5)]
    broken = [_chat_line(5, temperature=9), _chat_line(6, stream=True), _chat_line(7, no_such_field=1)]
    batch = _start(client, [*lines, *broken], metadata={"semievol_run_key": "k"})
    assert batch.status == "validating"
    done = _wait(client, batch.id)
    conforms(json.loads(client.batches.with_raw_response.retrieve(batch.id).content), "Batch")
    assert done.status == "completed" and done.metadata == {"semievol_run_key": "k"}
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (8, 5, 3)
    good, bad = _lines(client, done.output_file_id), _lines(client, done.error_file_id)
    assert sorted(good) == [f"row-{i}" for i in range(5)]
    for i, line in enumerate(lines):
        answer = good[f"row-{i}"]["response"]
        conforms(answer["body"], "CreateChatCompletionResponse")
        alone: Any = client.post("/chat/completions", body=line["body"], cast_to=object)
        assert answer["status_code"] == 200 and answer["body"]["choices"] == alone["choices"]
    params = {key: line["response"]["body"]["error"]["param"] for key, line in bad.items()}
    assert params == {"row-5": "temperature", "row-6": "stream", "row-7": "no_such_field"}
    assert {line["response"]["status_code"] for line in bad.values()} == {400}
    used = sum(line["response"]["body"]["usage"]["total_tokens"] for line in good.values())
    assert done.usage.total_tokens == used


def test_embeddings_come_by_batch_and_batches_are_paged(client: openai.OpenAI, conforms: Conforms) -> None:
    body = {"model": "tiny", "input": ["a", "b"]}
    line = {"custom_id": "e", "method": "POST", "url": EMBED, "body": body}
    made = [_start(client, [line], EMBED) for _ in range(3)]
    done = [_wait(client, batch.id) for batch in made]
    conforms(_lines(client, done[0].output_file_id)["e"]["response"]["body"], "CreateEmbeddingResponse")
    assert done[0].error_file_id is None
    conforms(json.loads(client.batches.with_raw_response.list(limit=2).content), "ListBatchesResponse")
    assert [batch.id for batch in client.batches.list(limit=2)][:3] == [batch.id for batch in reversed(made)]


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([], "empty_file", None),
        ([_chat_line(1), "{"], "invalid_json_line", 2),
        ([_chat_line(1), "", "[]"], "invalid_request", 3),
        ([_chat_line(1), _chat_line(1)], "duplicate_custom_id", 2),
        ([_chat_line(1) | {"url": EMBED}], "mismatched_url", 1),
        ([_chat_line(1) | {"method": "GET"}], "invalid_request", 1),
        ([{"custom_id": "x"}], "invalid_request", 1),
        ([_chat_line(1), _chat_line(2, model="other")], "mismatched_model", 2),
        ([_chat_line(1, model="other"), _chat_line(2), _chat_line(3)], "mismatched_model", 1),
        ([_chat_line(1) | {"body": {}}], "invalid_request", 1),
    ],
)
def test_a_file_that_is_no_batch_fails_with_the_line(
    client: openai.OpenAI, conforms: Conforms, lines: list[Any], code: str, line: int | None
) -> None:
    failed = _wait(client, _start(client, lines).id)
    conforms(failed.model_dump(mode="json", exclude_unset=True), "Batch")
    assert failed.status == "failed"
    assert (failed.errors.data[0].code, failed.errors.data[0].line) == (code, line)


def test_what_is_no_batch_is_refused(client: openai.OpenAI) -> None:
    file = client.files.create(file=("t.jsonl", b"x"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="../../etc/passwd", endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="/v1/moderations"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="completion_window"):
        client.post(
            "/batches", body={"input_file_id": file.id, "endpoint": CHAT, "completion_window": "1h"}, cast_to=object
        )
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_nothing")


def test_a_cancelled_batch_keeps_what_it_answered(client: openai.OpenAI) -> None:
    batch = _start(client, [_chat_line(i, max_tokens=300) for i in range(400)])
    while _wait(client, batch.id, "in_progress").request_counts.completed == 0:
        time.sleep(0.05)
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = _wait(client, batch.id, "cancelled")
    good, rest = _lines(client, ended.output_file_id), _lines(client, ended.error_file_id)
    assert 0 < len(good) < 400 and len(good) + len(rest) == 400
    assert {line["error"]["code"] for line in rest.values()} == {"batch_cancelled"}
    with pytest.raises(openai.BadRequestError, match="has the status 'cancelled'"):
        client.batches.cancel(batch.id)


def test_an_expired_batch_keeps_what_it_answered(tiny_model: Path, tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("batch_window_s = 2")
    with RunningServer(tiny_model, tmp_path, ("--limits", str(limits))) as server:
        client = server.client()
        client.embeddings.create(model="tiny", input="wake up")
        ended = _wait(client, _start(client, [_chat_line(i, max_tokens=300, n=16) for i in range(400)]).id)
        assert ended.status == "expired" and ended.expired_at >= ended.expires_at
        good, rest = _lines(client, ended.output_file_id), _lines(client, ended.error_file_id)
        assert len(good) + len(rest) == 400 and rest
        assert {line["error"]["code"] for line in rest.values()} == {"batch_expired"}


def test_a_killed_server_goes_on_with_its_batch_and_asks_nothing_twice(tiny_model: Path, tmp_path: Path) -> None:
    lines = [_chat_line(i, max_tokens=60) for i in range(200)]
    with RunningServer(tiny_model, tmp_path) as server:
        client = server.client()
        batch = _start(client, lines)
        while _wait(client, batch.id, "in_progress").request_counts.completed < 20:
            time.sleep(0.02)
        server.kill()
    folder = tmp_path / "state" / "batches" / batch.id
    before = (folder / "output.jsonl").read_text().splitlines()
    with (folder / "output.jsonl").open("a") as torn:
        torn.write('{"id": "batch_req_x", "custom_')
    with RunningServer(tiny_model, tmp_path) as server:
        client = server.client()
        done = _wait(client, batch.id)
        assert done.status == "completed" and done.request_counts.completed == 200
        after = client.files.content(done.output_file_id).text.splitlines()
        assert after[: len(before)] == before
        assert sorted(_lines(client, done.output_file_id)) == sorted(line["custom_id"] for line in lines)
        assert not folder.exists()


def test_a_line_of_an_answer_is_one_line_for_every_reader() -> None:
    said = "before\u2028after\x85end"
    line = answered_line("row-0", 200, {"text": said}).decode()
    assert line.splitlines() == [line]
    assert json.loads(line)["response"]["body"]["text"] == said
