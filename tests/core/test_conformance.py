"""The validator of the wire is itself tested: on real traffic, and on requests with one thing wrong."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from semievol_api.cassettes.http import AiohttpSend
from tests.conformance import (
    ConformanceError,
    ConformingSend,
    validate_batch_line,
    validate_batch_result_line,
    validate_request,
    validate_response,
    validate_sft_line,
)
from tests.transport_server import small_server
from tests.wire import wire_exchanges

CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    "max_tokens": 16,
    "n": 2,
    "temperature": 1.0,
    "top_p": 1.0,
    "seed": 7,
    "stop": ["\n"],
    "logprobs": True,
    "top_logprobs": 5,
}
JOB: dict[str, Any] = {
    "model": "gpt-4o-mini-2024-07-18",
    "training_file": "file-1",
    "validation_file": "file-2",
    "seed": 7,
    "suffix": "semievol",
    "metadata": {"run": "abc"},
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.1}},
    },
}
BATCH = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "metadata": {"run": "abc"},
}
EMBED = {"model": "text-embedding-3-small", "input": ["a", "b"], "encoding_format": "base64"}
REQUESTS = {"/chat/completions": CHAT, "/fine_tuning/jobs": JOB, "/batches": BATCH, "/embeddings": EMBED}


@pytest.mark.parametrize("path", REQUESTS)
def test_the_requests_that_we_mean_to_send_conform(path: str) -> None:
    validate_request("POST", f"/v1{path}", REQUESTS[path])
    validate_request("POST", f"/openai/v1{path}", json.dumps(REQUESTS[path]).encode())


BROKEN = [
    (path, place, value)
    for path, places in {
        "/chat/completions": [
            (("model",), None),
            (("messages",), "u"),
            (("messages", 1, "content"), 3),
            (("messages", 1, "role"), "human"),
            (("n",), 0),
            (("temperature",), 9.0),
            (("logprobs",), "yes"),
            (("top_logprobs",), 21),
            (("seed",), "x"),
            (("max_token",), 5),
        ],
        "/fine_tuning/jobs": [
            (("training_file",), None),
            (("suffix",), "x" * 65),
            (("metadata",), {"run": 3}),
            (("method", "type"), "supervise"),
            (("method", "supervised", "hyperparameters", "n_epochs"), "three"),
            (("method", "supervised", "hyperparameters", "learning_rate"), 0.1),
            (("hyper_parameters",), {}),
        ],
        "/batches": [
            (("endpoint",), "/v1/chat"),
            (("completion_window",), "1h"),
            (("input_file",), "file-1"),
        ],
        "/embeddings": [(("encoding_format",), "hex"), (("input",), {"text": "a"}), (("texts",), ["a"])],
    }.items()
    for place, value in places
]


@pytest.mark.parametrize(("path", "place", "value"), BROKEN)
def test_one_wrong_field_is_refused(path: str, place: tuple[str | int, ...], value: object) -> None:
    body = copy.deepcopy(REQUESTS[path])
    node: Any = body
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    with pytest.raises(ConformanceError, match=f"POST /v1{path} request"):
        validate_request("POST", f"/v1{path}", body)


@pytest.mark.parametrize("path", REQUESTS)
def test_every_required_field_is_missed(path: str) -> None:
    required = {
        "/chat/completions": ("model", "messages"),
        "/fine_tuning/jobs": ("model", "training_file"),
        "/batches": ("input_file_id", "endpoint", "completion_window"),
        "/embeddings": ("model", "input"),
    }
    for name in required[path]:
        body = {key: value for key, value in REQUESTS[path].items() if key != name}
        with pytest.raises(ConformanceError, match=f"'{name}' is a required property"):
            validate_request("POST", path, body)


def test_paths_methods_and_query_parameters_are_held_to_the_specification() -> None:
    validate_request("GET", "/v1/fine_tuning/jobs?limit=10&after=ftjob-1&metadata[run]=abc")
    validate_request("GET", "/v1/models/ft:gpt-4o-mini:org::id")
    for method, path in [
        ("GET", "/v1/fine_tuning/jobs?limit=ten"),
        ("GET", "/v1/fine_tuning/jobs?before=x"),
        ("GET", "/v1/files?order=up"),
        ("PUT", "/v1/files"),
        ("GET", "/v1/fine-tunes"),
    ]:
        with pytest.raises(ConformanceError):
            validate_request(method, path)
    with pytest.raises(ConformanceError, match="takes no body"):
        validate_request("POST", "/v1/batches/b/cancel", {"why": "so"})


def test_a_vendors_own_field_passes_only_where_it_is_named() -> None:
    body = {**CHAT, "guided_choice": ["A", "B"]}
    with pytest.raises(ConformanceError, match="guided_choice"):
        validate_request("POST", "/chat/completions", body)
    validate_request("POST", "/chat/completions", body, extensions=("guided_choice",))


DEPARTURES = {
    # what | how the vendor itself departs from its own specification, in recorded traffic
    "body.output_file_id: None is not of type 'string'",
    "body.data.output_file_id: None is not of type 'string'",
    "body.status_details: None is not of type 'string'",
    "body.data.status_details: None is not of type 'string'",
    "body.error: {} is not valid under any of the given schemas",
    "body.data.error: {} is not valid under any of the given schemas",
    "body.choices: 'logprobs' is a required property",
    "body.data.embedding: base64 is not of type 'array'",
    "body.dimensions: -42 is less than the minimum of 1",
}


def test_real_traffic_conforms_but_for_the_departures_that_parsers_must_bear() -> None:
    met: set[str] = set()
    for one in wire_exchanges():
        query = "&".join(f"{name}={value}" for name, value in one.query)
        path = f"{one.path}?{query}" if query else one.path
        try:
            if one.path != "/files" or one.method != "POST":  # uploads were recorded without their bodies
                validate_request(one.method, path, one.request)
        except ConformanceError as error:
            met.add(_departure(error))
        try:
            validate_response(one.method, path, one.response.status, one.response.body)
        except ConformanceError as error:
            met.add(_departure(error))
    assert met == DEPARTURES


def _departure(error: ConformanceError) -> str:
    text = re.sub(r"\[\d+\]", "", str(error).partition(": ")[2])
    return re.sub(r"'[\w+/=]{100,}.* is not", "base64 is not", text)


GOOD = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
]


class TestLines:
    """Training lines and batch lines, which the specification lacks."""

    def test_a_training_line_is_read(self) -> None:
        assert validate_sft_line(json.dumps({"messages": GOOD})).messages[-1].content == "a"
        validate_sft_line(json.dumps({"messages": [*GOOD[:2], {**GOOD[2], "weight": 0}]}))

    @pytest.mark.parametrize(
        "messages",
        [
            [],
            GOOD[:2],
            GOOD[2:],
            [GOOD[1], GOOD[0], GOOD[2]],
            [GOOD[1], {"role": "assistant", "content": ""}],
            [GOOD[1], {"role": "assistant", "content": "a", "weight": 0.5}],
            [{**GOOD[1], "weight": 1}, GOOD[2]],
            [GOOD[1], {"role": "assistant", "text": "a"}],
        ],
    )
    def test_a_training_line_with_a_fault_is_refused(self, messages: list[dict[str, Any]]) -> None:
        with pytest.raises(ConformanceError, match="is no SftLine"):
            validate_sft_line(json.dumps({"messages": messages}))
        with pytest.raises(ConformanceError):
            validate_sft_line(json.dumps({"messages": GOOD, "extra": 1}))

    def test_a_batch_line_is_checked_with_the_request_inside_it(self) -> None:
        line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
        assert validate_batch_line(json.dumps(line)).custom_id == "1"
        for fault in ({"custom_id": ""}, {"method": "GET"}, {"url": "/chat/completions"}, {"body": {}}):
            with pytest.raises(ConformanceError):
                validate_batch_line(json.dumps({**line, **fault}))

    def test_a_batch_result_says_one_thing(self) -> None:
        body = json.loads(wire_exchanges("ChatTests__HelloWorldChat")[0].response.body)
        answer = {"status_code": 200, "request_id": "r", "body": body}
        line = {"id": "b", "custom_id": "1", "response": answer, "error": None}
        validate_batch_result_line(json.dumps(line))
        failure = {"code": "batch_expired", "message": "m"}
        validate_batch_result_line(json.dumps({**line, "response": None, "error": failure}))
        for fault in ({"error": failure}, {"response": None}, {"response": {**answer, "body": {"id": "x"}}}):
            with pytest.raises(ConformanceError):
                validate_batch_result_line(json.dumps({**line, **fault}))


async def test_a_checking_sender_refuses_before_anything_leaves() -> None:
    live = AiohttpSend()
    send = ConformingSend(live)
    headers = {"content-type": "application/json"}
    async with small_server() as server:
        url = f"{server.base_url}/chat/completions"
        answer = await send("POST", url, json.dumps(CHAT).encode(), headers, 5.0)
        assert answer.status == 200
        with pytest.raises(ConformanceError):
            await send("POST", url, json.dumps({**CHAT, "max_token": 1}).encode(), headers, 5.0)
        assert len(server.seen) == 1
        with pytest.raises(ConformanceError, match="response 200"):
            await send("GET", f"{server.base_url}/fine_tuning/jobs/j", None, {}, 5.0)
    await live.aclose()


def test_an_upload_is_checked_as_its_parts() -> None:
    def upload(purpose: str, *, file: bool = True) -> bytes:
        parts = [f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n']
        parts += ['--b\r\nContent-Disposition: form-data; name="expires_after[anchor]"\r\n\r\ncreated_at\r\n']
        parts += ['--b\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n3600\r\n']
        if file:
            parts += ['--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n']
        return "".join([*parts, "--b--\r\n"]).encode()

    kind = "multipart/form-data; boundary=b"
    validate_request("POST", "/v1/files", upload("fine-tune"), content_type=kind)
    for fault in (upload("finetune"), upload("batch", file=False)):
        with pytest.raises(ConformanceError):
            validate_request("POST", "/v1/files", fault, content_type=kind)
