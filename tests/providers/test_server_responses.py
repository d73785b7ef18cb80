"""The Responses API: the same answers as a chat completion's, in its own bodies and events, through the SDK."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.openai_types import check_answer, check_model

pytest_plugins = ("server_fixtures",)
LOGPROBS: Any = ["message.output_text.logprobs"]
GREEDY: Any = {"model": "tiny", "temperature": 0.0, "max_output_tokens": 12}


def test_a_response_has_the_text_and_log_probabilities_of_the_chat_completion(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Which one?"}],
        temperature=0.0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=2,
    )
    raw = client.responses.with_raw_response.create(
        **GREEDY, instructions="Be short.", input="Which one?", include=LOGPROBS, top_logprobs=2, store=False
    )
    body = json.loads(raw.content)
    check_answer("Response", body)
    (choice,), (item,) = chat.choices, body["output"]
    assert raw.parse().output_text == choice.message.content
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert item["content"][0]["logprobs"] == [token.model_dump() for token in choice.logprobs.content]
    ended = {"stop": ("completed", None), "length": ("incomplete", {"reason": "max_output_tokens"})}
    assert (body["status"], body["incomplete_details"]) == ended[choice.finish_reason]
    assert chat.usage is not None
    assert body["usage"]["input_tokens"] == chat.usage.prompt_tokens
    assert body["usage"]["output_tokens"] == chat.usage.completion_tokens


def test_a_streamed_response_adds_up_to_the_plain_one(client: openai.OpenAI) -> None:
    asked: Any = {**GREEDY, "input": "Which one?", "include": LOGPROBS}
    plain = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    for event in events:
        check_model(type(event), event.type, event.model_dump(mode="json", exclude_unset=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{plain.status}",
    ]
    deltas: list[Any] = [event for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(delta.delta for delta in deltas) == plain.output_text
    last: Any = events[-1]
    assert last.response.output_text == plain.output_text
    assert last.response.usage == plain.usage
    scored = [token.logprob for delta in deltas for token in delta.logprobs]
    assert scored == [token.logprob for token in plain.output[0].content[0].logprobs]  # type: ignore[union-attr]


def test_the_sdks_helper_for_streams_reads_ours(client: openai.OpenAI) -> None:
    with client.responses.stream(**GREEDY, input="Which one?") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert snapshots[-1] == client.responses.create(**GREEDY, input="Which one?").output_text


def test_earlier_answers_go_back_as_the_sdk_prints_them(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, input="Which one?")
    printed: Any = [item.model_dump(exclude_none=True) for item in first.output]
    question: Any = {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]}
    bare: Any = [
        {"role": "user", "content": "Which one?"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And now?"},
    ]
    answers = [
        client.responses.create(**GREEDY, input=history).output_text
        for history in (bare, [{"role": "user", "content": "Which one?"}, *printed, question])
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"input": []}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "role": "user", "content": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"max_output_tokens": 100000}, "max_output_tokens"),
        ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)  # fmt: skip
def test_what_a_response_cannot_honour_is_refused_by_name(
    client: openai.OpenAI, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.post("/responses", body={"model": "tiny", "input": "x", **extra}, cast_to=object)
    assert raised.value.response.json()["error"]["param"] == param


def test_a_response_is_held_to_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["A", "B"]}}, "required": ["label"]}
    schema["additionalProperties"] = False
    text: Any = {"format": {"type": "json_schema", "name": "label", "schema": schema, "strict": True}}
    raw = client.responses.with_raw_response.create(model="tiny", input="Which one?", text=text, max_output_tokens=60)
    body = json.loads(raw.content)
    check_answer("Response", body)
    assert json.loads(raw.parse().output_text) in ({"label": "A"}, {"label": "B"})
    assert body["text"]["format"]["schema"] == schema


def test_a_prompt_that_does_not_fit_and_an_unknown_model_are_refused_before_the_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.responses.create(model="tiny", input="word " * 5000, stream=True)
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.responses.create(model="nobody", input="x")
