"""Calls of functions by chat completions, responses and batches, on models whose template shows tools."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from server_running import RunningServer
from transformers import AutoTokenizer

from semievol_providers.local.tool_calls import CallPiece
from semievol_providers.server.completions import parse
from semievol_providers.server.engine_wire import Choice, ChoicesTell, DeltaTell
from semievol_providers.server.responses import ResponseBody, ResponseWriter
from tests.openai_types import check_answer, check_model

pytest_plugins = ("server_fixtures",)
Conforms = Callable[[object, str], None]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "weather": WEATHER,
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
FUNCTIONS: Any = [
    {"name": "weather", "description": "Tells the weather.", "parameters": WEATHER, "strict": True},
    {"name": "now"},
]
TOOLS: Any = [{"type": "function", "function": function} for function in FUNCTIONS]
FLAT: Any = [{"type": "function", **function} for function in FUNCTIONS]
MESSAGES: Any = [{"role": "user", "content": "How is the weather in Rome?"}]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
ASKED: Any = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "seed": 5, "max_tokens": 600}


@pytest.fixture
def caller(tools_server: RunningServer) -> openai.OpenAI:
    return tools_server.client()


def _chat(client: openai.OpenAI, **settings: Any) -> dict[str, Any]:
    raw = client.chat.completions.with_raw_response.create(**ASKED | settings)
    body: dict[str, Any] = json.loads(raw.content)
    return body


def _checked(calls: list[dict[str, Any]]) -> list[str]:
    """The names of the functions called, each with arguments that its schema allows."""
    for call in calls:
        assert call["id"].startswith("call_") and call["type"] == "function"
        Draft202012Validator(SCHEMAS[call["function"]["name"]]).validate(json.loads(call["function"]["arguments"]))
    assert len({call["id"] for call in calls}) == len(calls)
    return [call["function"]["name"] for call in calls]


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_required_call_is_one_that_the_schema_allows(caller: openai.OpenAI, conforms: Conforms, choice: Any) -> None:
    body = _chat(caller, tool_choice=choice, n=6, parallel_tool_calls=False, logprobs=True)
    conforms(body, "CreateChatCompletionResponse")
    names = set[str]()
    for one in body["choices"]:
        assert (one["finish_reason"], one["message"]["content"]) == ("tool_calls", None)
        (name,) = _checked(one["message"]["tool_calls"])
        names.add(name)
        assert one["logprobs"]["content"]
    assert names == ({"weather"} if choice == NAMED else {"weather", "now"})


def test_several_calls_come_only_where_they_are_allowed_and_the_template_has_them(
    caller: openai.OpenAI, tools_model: Path
) -> None:
    most = {}
    for parallel in (True, False):
        body = _chat(caller, tool_choice="required", n=24, parallel_tool_calls=parallel, temperature=1.5)
        ended = [one["message"]["tool_calls"] for one in body["choices"] if one["finish_reason"] == "tool_calls"]
        most[parallel] = max(len(_checked(calls)) for calls in ended)
    assert most[False] == 1
    assert (most[True] > 1) == (tools_model.name == "qwen")


def test_auto_is_text_or_a_call_and_none_is_text_without_tools_in_the_prompt(
    caller: openai.OpenAI, conforms: Conforms
) -> None:
    free = _chat(caller, max_tokens=40, n=4)
    conforms(free, "CreateChatCompletionResponse")
    for one in free["choices"]:
        assert one["message"]["content"] and one["finish_reason"] in ("stop", "length")
        assert "tool_calls" not in one["message"]
    none, bare = (_chat(caller, max_tokens=20, **extra) for extra in ({"tool_choice": "none"}, {"tools": openai.omit}))
    assert none["choices"] == bare["choices"] and none["usage"] == bare["usage"]
    assert free["usage"]["prompt_tokens"] > none["usage"]["prompt_tokens"] + 200


def test_the_prompt_is_what_the_template_makes_of_tools_calls_and_results(
    caller: openai.OpenAI, tools_model: Path
) -> None:
    first = caller.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0].message
    assert first.tool_calls
    call: Any = first.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "14 degrees"}
    again = _chat(caller, messages=[*MESSAGES, first.model_dump(), result], max_tokens=1)
    turn = {"function": {"name": "weather", "arguments": json.loads(call.function.arguments)}, "type": "function"}
    shown = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [turn]},
        {"role": "tool", "content": "14 degrees"},
    ]
    plain = [{k: v for k, v in function.items() if k != "strict"} for function in FUNCTIONS]
    plain[1] |= {"description": "", "parameters": SCHEMAS["now"]}
    tools = [{"type": "function", "function": function} for function in plain]
    tokenizer = AutoTokenizer.from_pretrained(tools_model)
    text = tokenizer.apply_chat_template(shown, tools=tools, tokenize=False, add_generation_prompt=True)
    assert again["usage"]["prompt_tokens"] == len(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("settings", [{"tool_choice": "required"}, {"max_tokens": 30}, {"tool_choice": NAMED, "n": 2}])
def test_a_stream_adds_up_to_the_whole_answer(
    caller: openai.OpenAI, conforms: Conforms, settings: dict[str, Any]
) -> None:
    whole = _chat(caller, logprobs=True, **settings)["choices"]
    chunks = list(caller.chat.completions.create(**ASKED | settings, stream=True, logprobs=True))
    found: dict[int, dict[str, Any]] = {one["index"]: {"text": "", "calls": [], "scores": []} for one in whole}
    for chunk in chunks:
        conforms(chunk.model_dump(mode="json", exclude_unset=True), "CreateChatCompletionStreamResponse")
        (choice,) = chunk.choices
        mine = found[choice.index]
        mine["text"] += choice.delta.content or ""
        mine["scores"] += choice.logprobs.content or [] if choice.logprobs else []
        mine["finish"] = choice.finish_reason
        for part in choice.delta.tool_calls or []:
            if part.id:
                assert part.index == len(mine["calls"]) and part.type == "function"
                mine["calls"].append([part.function.name, ""])  # type: ignore[union-attr]
            mine["calls"][part.index][1] += part.function.arguments  # type: ignore[union-attr, operator]
    for one in whole:
        mine, message = found[one["index"]], one["message"]
        assert mine["text"] == (message["content"] or "") and mine["finish"] == one["finish_reason"]
        calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", [])]
        assert mine["calls"] == calls
        assert [score.logprob for score in mine["scores"]] == [s["logprob"] for s in one["logprobs"]["content"]]
    if settings.get("tool_choice") == "required":
        assert sum(bool(c.choices[0].delta.tool_calls) for c in chunks) > 2  # in pieces, not at the end


def test_the_sdks_helper_for_streams_reads_calls_and_its_history_goes_back(caller: openai.OpenAI) -> None:
    strict: Any = [{**TOOLS[0]}]
    asked = {**ASKED, "tools": strict, "tool_choice": NAMED}
    with caller.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.content is None and message.tool_calls
    call = message.tool_calls[0]
    assert call.function.parsed_arguments == json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "14 degrees"}
    history: Any = [*MESSAGES, message.model_dump(), result]
    assert caller.chat.completions.create(**{**ASKED, "messages": history, "max_tokens": 1}).choices


def test_a_call_that_the_limit_cuts_is_told_as_cut(caller: openai.OpenAI) -> None:
    (one,) = _chat(caller, tool_choice=NAMED, max_tokens=55)["choices"]
    assert one["finish_reason"] == "length"
    for call in one["message"].get("tool_calls", []):
        with pytest.raises(json.JSONDecodeError):
            json.loads(call["function"]["arguments"])


def test_a_batch_line_calls_as_its_own_request_would(caller: openai.OpenAI) -> None:
    body = {**ASKED, "tool_choice": NAMED}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    bad = {**line, "custom_id": "b", "body": {**body, "tools": [{"type": "custom", "custom": {"name": "x"}}]}}
    data = "".join(json.dumps(one) + "\n" for one in (line, bad)).encode()
    file = caller.files.create(file=("b.jsonl", data), purpose="batch")
    batch = caller.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    deadline = time.monotonic() + 60
    while (batch := caller.batches.retrieve(batch.id)).status not in ("completed", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert batch.output_file_id is not None and batch.error_file_id is not None
    answer = json.loads(caller.files.content(batch.output_file_id).text)["response"]["body"]
    (one,) = answer["choices"]
    assert one["finish_reason"] == "tool_calls" and _checked(one["message"]["tool_calls"]) == ["weather"]
    assert one["message"]["tool_calls"][0]["function"] == _chat(caller, tool_choice=NAMED)["choices"][0]["message"][
        "tool_calls"][0]["function"]  # fmt: skip
    assert "tools[0].type" in caller.files.content(batch.error_file_id).text


# ------------------------------------------------------------------------------------------------ responses
RESPONSE: Any = {"model": "tiny", "input": "The weather?", "tools": FLAT, "temperature": 0.0, "max_output_tokens": 600}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_response_has_its_call_as_an_item(caller: openai.OpenAI, choice: Any) -> None:
    asked = {**RESPONSE, "tool_choice": choice, "parallel_tool_calls": False}
    body = json.loads(caller.responses.with_raw_response.create(**asked).content)
    check_answer("Response", body)
    (item,) = body["output"]
    assert item["type"] == "function_call" and item["call_id"].startswith("call_") and item["id"].startswith("fc_")
    Draft202012Validator(SCHEMAS[item["name"]]).validate(json.loads(item["arguments"]))
    assert body["tool_choice"] == choice and body["parallel_tool_calls"] is False and len(body["tools"]) == 2
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "14 degrees"}
    history = [{"role": "user", "content": "The weather?"}, item, output]
    answer = caller.responses.create(**{**RESPONSE, "input": history, "max_output_tokens": 5})
    call = {"id": "c", "type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
    same: Any = [
        {"role": "user", "content": "The weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "14 degrees"},
    ]
    chat = caller.chat.completions.create(**{**ASKED, "messages": same, "max_tokens": 5, "temperature": 0.0})
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None and chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


@pytest.mark.parametrize("settings", [{"tool_choice": "required"}, {"max_output_tokens": 20}])
def test_the_events_of_a_response_add_up_to_the_whole_one(caller: openai.OpenAI, settings: Any) -> None:
    asked = {**RESPONSE, **settings, "include": ["message.output_text.logprobs"]}
    whole = json.loads(caller.responses.with_raw_response.create(**asked).content)
    events = list(caller.responses.create(**asked, stream=True))
    for event in events:
        check_model(type(event), event.type, event.model_dump(mode="json", exclude_unset=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    check_answer("Response", last.response.model_dump(mode="json", exclude_unset=True))
    streamed = last.response.model_dump(mode="json", exclude_unset=True)["output"]
    own = {"id": None, "call_id": None}
    assert [item | own for item in streamed] == [item | own for item in whole["output"]]
    done = [event.item.id for event in events if event.type == "response.output_item.done"]
    assert done == [item["id"] for item in streamed]
    pieces: dict[str, str] = {}
    for event in events:
        if event.type in ("response.function_call_arguments.delta", "response.output_text.delta"):
            pieces[event.item_id] = pieces.get(event.item_id, "") + event.delta
    for item in streamed:
        assert pieces[item["id"]] == (item["arguments"] if "arguments" in item else item["content"][0]["text"])


def test_the_events_of_text_and_two_calls_open_and_close_three_items() -> None:
    body = parse(json.dumps({"model": "tiny", "input": "x", "tools": FLAT}).encode(), ResponseBody).checked()
    pieces = (
        ("Su", ()), ("re.", (CallPiece(0, name="weather"), CallPiece(0, '{"city"'))), ("", (CallPiece(0, ": 1}"),)),
        ("", (CallPiece(1, name="now"), CallPiece(1, "{}"))),
    )  # fmt: skip
    calls = (("weather", '{"city": 1}'), ("now", "{}"))
    whole = ChoicesTell(1, 3, (Choice(index=0, text="Sure.", finish="tool_calls", tokens=9, calls=calls),))
    writer = ResponseWriter(body)
    events: Any = writer.opening()
    for text, call in pieces:
        events += writer.pieces(DeltaTell(1, 0, text, calls=call))
    events += writer.closing(whole)
    kinds = [event["type"].removeprefix("response.") for event in events]
    text = ["output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done"]
    delta, done = "function_call_arguments.delta", "function_call_arguments.done"
    assert kinds == [
        "created", "in_progress", *text, "content_part.done", "output_item.done",
        "output_item.added", delta, delta, done, "output_item.done",
        "output_item.added", delta, done, "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["output_index"] for event in events[2:-1]] == [0] * 7 + [1] * 5 + [2] * 4
    own = {"id": None, "call_id": None}
    streamed = [item | own for item in events[-1]["response"]["output"]]
    again: Any = ResponseWriter(body).whole(whole)["output"]
    assert streamed == [item | own for item in again] and [item["status"] for item in streamed] == ["completed"] * 3


def test_the_sdks_helper_for_response_streams_reads_calls(caller: openai.OpenAI) -> None:
    with caller.responses.stream(**RESPONSE, tool_choice="required") as stream:
        final: Any = stream.get_final_response()
    assert final.output[0].type == "function_call" and isinstance(json.loads(final.output[0].arguments), dict)
    printed: Any = [item.model_dump() for item in final.output]
    history = [{"role": "user", "content": "x"}, *printed[:1]]
    history.append({"type": "function_call_output", "call_id": printed[0]["call_id"], "output": "14"})
    assert caller.responses.create(**{**RESPONSE, "input": history, "max_output_tokens": 2}).id


# ------------------------------------------------------------------------------------------------ refusals
CALL = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [*TOOLS, {"type": "custom", "custom": {"name": "x"}}]}, "tools[2].type"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]},
         "tools[0].function.parameters"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
        ({"tools": openai.omit, "tool_choice": "required"}, "tool_choice"),
        ({"tools": openai.omit, "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "["}}]}]},
         "messages[0].tool_calls[0]"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_of_tools_is_refused_by_name(
    caller: openai.OpenAI, conforms: Conforms, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        caller.chat.completions.create(**ASKED | extra)
    body = raised.value.response.json()
    conforms(body, "ErrorResponse")
    assert body["error"]["param"] == param


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f", "defer_loading": True}]}, "tools[0]"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"max_tool_calls": 2}, "max_tool_calls"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "message", "role": "user", "content": "x", "name": "f"}]}, "input[0].name"),
    ],
)
def test_a_response_refuses_by_name_what_it_cannot_honour_of_tools(
    caller: openai.OpenAI, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        caller.post("/responses", body={**RESPONSE, **extra}, cast_to=object)
    assert raised.value.response.json()["error"]["param"] == param


def test_a_model_whose_template_shows_no_tools_says_so(client: openai.OpenAI) -> None:
    history = [*MESSAGES, {"role": "assistant", "tool_calls": [CALL]}]
    for extra, param in (
        ({}, "tools"), ({"tool_choice": "none"}, "tools"), ({"stream": True}, "tools"),
        ({"tools": openai.omit, "messages": history}, "messages"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match="chat template shows no tools") as raised:
            client.chat.completions.create(**ASKED | {"max_tokens": 5} | extra)
        assert raised.value.response.json()["error"]["param"] == param
    with pytest.raises(openai.BadRequestError, match="chat template shows no tools"):
        client.responses.create(**{**RESPONSE, "max_output_tokens": 5})
