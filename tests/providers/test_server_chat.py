"""Chat, completions and embeddings through the unmodified openai SDK on a running server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
from server_running import RunningServer

pytest_plugins = ("server_fixtures",)
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is mass?"}]
Conforms = Callable[[object, str], None]


def test_a_chat_with_every_setting_conforms_to_the_specification(client: openai.OpenAI, conforms: Conforms) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, n=3, seed=4, temperature=0.8, top_p=0.9, max_completion_tokens=9,
        stop=["zq", "\n\n"], logprobs=True, top_logprobs=4, presence_penalty=0.5, frequency_penalty=0.1, user="me",
        metadata={"a": "b"}, response_format={"type": "text"},
    )  # fmt: skip
    body = json.loads(raw.content)
    conforms(body, "CreateChatCompletionResponse")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    for choice in body["choices"]:
        assert 0 < len(choice["logprobs"]["content"]) <= 9
        assert all(len(token["top_logprobs"]) == 4 for token in choice["logprobs"]["content"])
        spelled = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
        assert spelled.decode("utf-8", errors="replace").startswith(choice["message"]["content"])
    assert body["usage"]["completion_tokens"] <= 27


def test_equal_seeds_give_equal_answers_and_none_gives_new_ones(client: openai.OpenAI) -> None:
    def text(**settings: Any) -> str | None:
        reply = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, **settings)
        return reply.choices[0].message.content

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text() != text()


def test_a_streamed_chat_adds_up_to_the_plain_one(client: openai.OpenAI, conforms: Conforms) -> None:
    settings: Any = {"model": "tiny", "messages": MESSAGES, "n": 2, "seed": 3, "max_tokens": 15, "logprobs": True}
    plain = client.chat.completions.create(**settings)
    texts, reasons, usage = {0: "", 1: ""}, {}, None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        conforms(chunk.model_dump(mode="json", exclude_unset=True), "CreateChatCompletionStreamResponse")
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {choice.index: choice.message.content for choice in plain.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in plain.choices}
    assert usage == plain.usage


async def test_the_async_client_gets_the_same_bits_among_many_requests(server: RunningServer) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=server.url, api_key="x", max_retries=0) as client:

        async def ask(i: int) -> Any:
            messages: Any = [{"role": "user", "content": f"Question {i} " + "long " * (i % 7)}]
            reply = await client.chat.completions.create(
                model="tiny", messages=messages, seed=i, n=1 + i % 2, max_tokens=6, logprobs=True, top_logprobs=2
            )
            return [choice.model_dump() for choice in reply.choices]

        alone = [await ask(i) for i in range(6)]
        together = await asyncio.gather(*(ask(i) for i in reversed(range(60))))
    assert list(reversed(together))[:6] == alone


def test_the_assistants_open_turn_is_continued(client: openai.OpenAI) -> None:
    started: Any = [*MESSAGES, {"role": "assistant", "content": "Answer: B, bec"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    reply = client.chat.completions.create(model="tiny", messages=started, max_tokens=1, seed=0, extra_body=extra)
    closed = client.chat.completions.create(model="tiny", messages=started, max_tokens=1, seed=0)
    assert reply.usage is not None and closed.usage is not None
    # A closed turn and the opening of the next: <|eot|><|start|>assistant<|end|> are 12 tokens more.
    assert closed.usage.prompt_tokens == reply.usage.prompt_tokens + 12


def test_text_completions_conform_and_echo_the_token_scores(client: openai.OpenAI, conforms: Conforms) -> None:
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt=["one", "two"], max_tokens=5, logprobs=2, seed=1, n=2
    )
    body = json.loads(raw.content)
    conforms(body, "CreateCompletionResponse")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    pieces = client.completions.create(model="tiny", prompt="one", max_tokens=5, seed=1, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == body["choices"][0]["text"]


def test_a_streamed_token_comes_with_its_own_log_probability(client: openai.OpenAI) -> None:
    settings: Any = {"model": "tiny", "messages": MESSAGES, "n": 2, "seed": 3, "max_tokens": 15, "logprobs": True}
    settings["top_logprobs"] = 3
    plain = client.chat.completions.create(**settings)
    streamed: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in client.chat.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            if choice.delta.content:
                assert choice.logprobs is not None and choice.logprobs.content
                bytes_of = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
                assert bytes_of.decode("utf-8", errors="replace") == choice.delta.content
                streamed[choice.index] += choice.logprobs.content
    assert [streamed[c.index] for c in plain.choices] == [c.logprobs and c.logprobs.content for c in plain.choices]


def test_a_streamed_text_completion_has_the_scores_and_offsets_of_the_whole_one(client: openai.OpenAI) -> None:
    settings: Any = {"model": "tiny", "prompt": "one", "max_tokens": 9, "logprobs": 2, "seed": 1}
    whole = client.completions.create(**settings).choices[0].logprobs
    assert whole is not None
    pieces = [c.choices[0].logprobs for c in client.completions.create(**settings, stream=True)]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for piece in pieces if piece is not None for x in getattr(piece, field)] == getattr(whole, field)


def test_an_answer_goes_back_into_the_history_as_the_sdk_prints_it(client: openai.OpenAI) -> None:
    settings: Any = {"model": "tiny", "seed": 1, "max_tokens": 5}
    first = client.chat.completions.create(**settings, messages=MESSAGES)
    assert first.usage is not None and first.usage.prompt_tokens_details is not None
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert first.usage.completion_tokens_details is not None
    text = first.choices[0].message.content
    again: Any = {"role": "user", "content": "and now?"}
    bare: Any = [*MESSAGES, {"role": "assistant", "content": text}, again]
    printed = {**first.choices[0].message.model_dump(), "annotations": [], "audio": None, "tool_calls": []}
    answers = [
        client.chat.completions.create(**settings, messages=history).choices[0].message.content
        for history in (bare, [*MESSAGES, printed, again])
    ]
    assert answers[0] == answers[1]
    refused = {"role": "assistant", "content": None, "refusal": text, "tool_calls": None, "function_call": None}
    refused_history: Any = [*MESSAGES, refused, again]
    assert client.chat.completions.create(**settings, messages=refused_history).choices[0].message.content == answers[0]


def test_embeddings_come_as_floats_and_as_base64(client: openai.OpenAI, conforms: Conforms) -> None:
    raw = client.embeddings.with_raw_response.create(model="tiny", input=["a", "b c"], encoding_format="float")
    body = json.loads(raw.content)
    conforms(body, "CreateEmbeddingResponse")
    floats = np.array([row["embedding"] for row in body["data"]], dtype=np.float32)
    packed = client.embeddings.with_raw_response.create(model="tiny", input=["a", "b c"], encoding_format="base64")
    rows = [base64.b64decode(row["embedding"]) for row in json.loads(packed.content)["data"]]
    assert np.array_equal(np.array([np.frombuffer(row, "<f4") for row in rows]), floats)
    assert np.allclose(np.linalg.norm(floats, axis=1), 1, atol=1e-5)
    parsed = client.embeddings.create(model="tiny", input="a")
    assert np.array_equal(np.array(parsed.data[0].embedding, dtype=np.float32), floats[0])


def test_models_are_listed_found_by_alias_and_unknown_ones_refused(client: openai.OpenAI, conforms: Conforms) -> None:
    body = json.loads(client.models.with_raw_response.list().content)
    conforms(body, "ListModelsResponse")
    assert [model["id"] for model in body["data"]][:2] == ["tiny", "gpt-4o-mini-2024-07-18"]
    name = "gpt-4o-mini-2024-07-18"
    assert client.models.retrieve(name).id == name
    same = [
        client.chat.completions.create(model=m, messages=MESSAGES, seed=1, max_tokens=5).choices[0].message.content
        for m in ("tiny", name)
    ]
    assert same[0] == same[1]
    for call in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError, match="ft:nothing"):
            call("ft:nothing")
    with pytest.raises(openai.PermissionDeniedError, match="not a fine-tuned model"):
        client.models.delete("tiny")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
         "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"temperature": 2.5}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2000}, "messages"),
        ({"max_tokens": 100000}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "name": "ann", "content": "x"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}], "content": "x"}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}, "content": "x"}]}, "messages[0].audio"),
        ({"messages": [{"role": "user", "content": None, "refusal": "no"}]}, "messages[0].content"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"audio": {}}, "audio"),
        ({"prediction": {}}, "prediction"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"prompt_cache_options": {}}, "prompt_cache_options"),
        ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    client: openai.OpenAI, conforms: Conforms, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.post("/chat/completions", body={"model": "tiny", "messages": MESSAGES} | extra, cast_to=object)
    body = raised.value.response.json()
    conforms(body, "ErrorResponse")
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("tokens", [[10**30], [-1], [2**31], [5000], [[1], [10**30]], []])
@pytest.mark.parametrize("path", ["/completions", "/embeddings"])
def test_tokens_that_the_model_has_not_are_refused(client: openai.OpenAI, path: str, tokens: Any) -> None:
    body = {"model": "tiny", "prompt" if path == "/completions" else "input": tokens}
    with pytest.raises(openai.BadRequestError):
        client.post(path, body=body, cast_to=object)


def test_a_broken_body_and_an_unknown_path_are_refused_in_the_apis_shape(
    client: openai.OpenAI, conforms: Conforms
) -> None:
    import urllib.error
    import urllib.request

    base = str(client.base_url).rstrip("/")
    for path, data, status in (
        ("/chat/completions", b"{", 400),
        ("/nowhere", None, 404),
        ("/embeddings", None, 405),
    ):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(urllib.request.Request(base + path, data))
        assert raised.value.code == status
        conforms(json.loads(raised.value.read()), "ErrorResponse")
        raised.value.close()


def test_an_answer_is_held_to_a_schema_in_chats_streams_and_batch_lines(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["A", "B"]}}, "required": ["label"]}
    schema["additionalProperties"] = False
    shape: Any = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema, "strict": True}}
    asked: Any = {"model": "tiny", "messages": MESSAGES, "seed": 5, "max_tokens": 60, "response_format": shape}
    whole = client.chat.completions.create(**asked, n=3, logprobs=True, top_logprobs=2)
    for choice in whole.choices:
        assert json.loads(choice.message.content or "") in ({"label": "A"}, {"label": "B"})
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
