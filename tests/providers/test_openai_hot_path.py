"""The hot path of provider `openai`: bodies equal to the SDK's, answers read whole, headers as pace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from semievol_api.capabilities import ChatRequest, EmbedRequest, Pace, Provider, ProviderSettings
from semievol_api.cassettes.http import HttpResponse
from semievol_api.errors import DataError, MissingAbilityError, TransientError
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from semievol_providers.openai.chat import ChatDecoder, finish_of, message_tokens
from semievol_providers.openai.errors import duration_s, pace_of
from semievol_providers.openai.provider import Wires, provider_over
from semievol_providers.openai.settings import Connection, Dialect
from tests.providers.openai_loopback import Fault, LoopbackServer

PROMPT = Prompt((Message("system", "Be brief."), Message("user", "Grüße, 世界 – which?\n“A” or \\B\x7f")))
FULL = ChatRequest(
    model="tiny",
    prompt=PROMPT,
    max_tokens=9,
    n=2,
    temperature=0.7,
    top_p=0.9,
    seed=3,
    stop=("\n", "END"),
    logprobs=True,
    top_logprobs=4,
)


def _provider(server: LoopbackServer, **options: object) -> Provider:
    table = {"base_url": server.base_url, "api_key_env": "", **options}
    return connect(ProviderSettings(name="openai", options=table, environ={}))


async def _nothing() -> None:
    return None


def _replaying(answer: Any, answer_headers: dict[str, str] | None = None, dialect: Dialect | None = None) -> Provider:
    """A provider whose every request is answered so."""

    async def send(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        return HttpResponse(200, answer_headers or {}, json.dumps(answer).encode())

    connection = Connection(
        provider="openai",
        base_url="https://example.test/v1",
        api_key="",
        key_source="no key",
        dialect=dialect or Dialect(),
    )
    return provider_over(connection, Wires(send=send, close_send=_nothing))


async def _ask(provider: Provider, request: ChatRequest) -> Any:
    assert provider.chat is not None
    return await provider.chat.complete(request)


async def test_chat_bodies_equal_the_sdks() -> None:
    async with LoopbackServer() as server, openai.AsyncOpenAI(api_key="none", base_url=server.base_url) as client:
        provider = _provider(server)
        await _ask(provider, FULL)
        await client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": PROMPT.messages[1].content},
            ],
            max_tokens=9,
            n=2,
            temperature=0.7,
            top_p=0.9,
            seed=3,
            stop=["\n", "END"],
            logprobs=True,
            top_logprobs=4,
        )
        await _ask(provider, ChatRequest(model="tiny", prompt=PROMPT, max_tokens=5))
        await client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": PROMPT.messages[1].content},
            ],
            max_tokens=5,
            temperature=1.0,
            top_p=1.0,
        )
        ours, sdks, our_short, sdks_short = [seen.body for seen in server.requests]
        await provider.aclose()
    assert ours == sdks
    assert our_short == sdks_short


async def test_embedding_bodies_equal_the_sdks() -> None:
    async with LoopbackServer() as server, openai.AsyncOpenAI(api_key="none", base_url=server.base_url) as client:
        provider = _provider(server)
        assert provider.embedder is not None
        reply = await provider.embedder.embed(EmbedRequest(model="tiny", texts=("a", "bcd")))
        sdks = await client.embeddings.create(model="tiny", input=["a", "bcd"])
        await provider.aclose()
    assert server.requests[0].body == server.requests[1].body
    np.testing.assert_array_equal(reply.vectors, [row.embedding for row in sorted(sdks.data, key=lambda r: r.index)])


async def test_embeddings_as_numbers_read_the_same_as_base64() -> None:
    request = EmbedRequest(model="tiny", texts=("a", "bcd"))
    async with LoopbackServer() as server:
        packed, plain = _provider(server), _provider(server, embedding_format="float")
        assert packed.embedder is not None and plain.embedder is not None
        one, other = await packed.embedder.embed(request), await plain.embedder.embed(request)
        await packed.aclose()
        await plain.aclose()
    np.testing.assert_array_equal(one.vectors, other.vectors)
    assert one.vectors.dtype == other.vectors.dtype == np.float32


async def test_too_few_vectors_are_a_transient_error() -> None:
    provider = _replaying({"data": [{"index": 0, "embedding": [1.0]}]})
    assert provider.embedder is not None
    with pytest.raises(TransientError):
        await provider.embedder.embed(EmbedRequest(model="tiny", texts=("a", "b")))


async def test_the_end_of_turn_and_the_alternatives_are_read() -> None:
    async with LoopbackServer() as server:
        provider = _provider(server)
        reply = await _ask(provider, FULL)
        await provider.aclose()
    first = reply.completions[0]
    assert first.text == "Answer: B"
    assert first.tokens == ("Answer", ":", " B")
    np.testing.assert_array_equal(first.token_logprobs, np.array([-0.125, -0.25, -0.5], np.float32))
    assert first.top[2] == ((" B", -0.5), (" A", -1.5), ("B", -3.0), (" C", -9999.0))
    assert (reply.usage.prompt, reply.usage.completion, reply.usage.cached) == (7, 6, 3)


async def test_the_tokens_texts_are_kept_where_no_alternatives_were_asked() -> None:
    async with LoopbackServer() as server:
        provider = _provider(server)
        reply = await _ask(provider, ChatRequest(model="tiny", prompt=PROMPT, max_tokens=9, logprobs=True))
        await provider.aclose()
    (completion,) = reply.completions
    assert completion.tokens == ("Answer", ":", " B") and completion.top is None
    assert completion.token_logprobs.tolist() == [-0.125, -0.25, -0.5]


@pytest.mark.parametrize(
    ("tokens", "text", "kept"),
    [
        (["A", "B"], "AB", 2),
        (["A", "B", "<|eot_id|>"], "AB", 2),
        (["A", "B", ""], "AB", 2),
        (["<|eot_id|>"], "", 0),
        ([" A", "B", "</s>"], "AB", 2),  # the server stripped the leading space
        (["A", " END", " of", "</s>"], "A", 1),  # a stop string was cut off
        (["A B", "\n\nEND"], "A B\n", 2),  # ... in the middle of a token
        (["\\xf0\\x9f", "\\x98\\x80"], "😀", 2),
        (["\ufffd", "\ufffd", "</s>"], "😀", 2),
        ([], "", 0),
    ],
)
def test_entries_outside_the_message_are_left_out(tokens: list[str], text: str, kept: int) -> None:
    assert message_tokens(tokens, text) == kept


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        (None, "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("content_filter", "refused"),
        ("refusal", "refused"),
        ("abort", "failed"),
        ("something new", "stop"),
    ],
)
def test_finish_reasons_of_any_vendor_become_ours(reason: str | None, finish: str) -> None:
    assert finish_of(reason) == finish


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("0s", 0.0),
        ("1d", 86400.0),
        ("2", 2.0),
        ("0.25", 0.25),
        ("-1", None),
        ("soon", None),
        ("3s later", None),
        ("", None),
        (None, None),
    ],
)
def test_durations_of_rate_limit_headers_are_seconds(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_headers_become_pace_and_nonsense_is_not_said() -> None:
    headers = {
        "x-ratelimit-limit-requests": "30000",
        "x-ratelimit-remaining-requests": "29999",
        "x-ratelimit-reset-requests": "2ms",
        "x-ratelimit-limit-tokens": "unlimited",
        "x-ratelimit-reset-tokens": "1m",
    }
    assert pace_of(headers) == Pace(
        limit_requests=30000, remaining_requests=29999, reset_requests_s=0.002, reset_tokens_s=60.0
    )
    assert pace_of({}) == Pace()


async def test_a_prefill_is_refused_where_the_server_cannot_go_on_from_it() -> None:
    provider = _replaying({}, dialect=Dialect(continue_final_message=False))
    with pytest.raises(MissingAbilityError, match="prefill"):
        await _ask(provider, ChatRequest(model="m", prompt=Prompt(PROMPT.messages, "Answer:"), max_tokens=1))


async def test_a_broken_character_in_a_prompt_is_a_calm_data_error() -> None:
    prompt = Prompt((Message("user", "half \ud83d"),))
    with pytest.raises(DataError, match="surrogate"):
        await _ask(_replaying({}), ChatRequest(model="m", prompt=prompt, max_tokens=1))


async def test_extra_fields_of_the_config_reach_the_body_and_the_identity() -> None:
    async with LoopbackServer() as server:
        plain = _provider(server)
        thinking = _provider(server, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        await _ask(thinking, ChatRequest(model="m", prompt=PROMPT, max_tokens=1))
        await thinking.aclose()
    assert server.requests[0].body["chat_template_kwargs"] == {"enable_thinking": False}
    assert thinking.identity.startswith(plain.identity + "#")


async def test_the_key_is_sent_and_none_where_there_is_none() -> None:
    async with LoopbackServer() as server:
        options = {"base_url": server.base_url}
        keyed = connect(ProviderSettings(name="x", options=options, environ={"OPENAI_API_KEY": "sk-test"}))
        bare = _provider(server)
        for provider in (keyed, bare):
            await _ask(provider, ChatRequest(model="m", prompt=PROMPT, max_tokens=1))
            await provider.aclose()
    assert server.requests[0].headers["authorization"] == "Bearer sk-test"
    assert "authorization" not in server.requests[1].headers


async def test_a_page_of_html_with_status_200_is_a_transient_error() -> None:
    async with LoopbackServer() as server:
        server.faults.append(Fault(200, b"<html><title>Welcome to nginx!</title></html>"))
        provider = _provider(server)
        with pytest.raises(TransientError, match="Welcome to nginx"):
            await _ask(provider, ChatRequest(model="m", prompt=PROMPT, max_tokens=1))
        await provider.aclose()


# ------------------------------------------------------------------- recorded exchanges with api.openai.com
def _recorded(session_records: Path, name: str) -> list[dict[str, Any]]:
    text = (session_records / f"openai-dotnet__{name}.json").read_text(encoding="utf-8-sig")
    entries: list[dict[str, Any]] = json.loads(text)["Entries"]
    return entries


async def test_a_recorded_answer_with_alternatives_is_read_whole(session_records: Path) -> None:
    (exchange,) = _recorded(session_records, "ChatTests__TokenLogProbabilities-True-")
    headers = {name.lower(): str(value) for name, value in exchange["ResponseHeaders"].items()}
    reply = await _ask(_replaying(exchange["ResponseBody"], headers), FULL)
    (completion,) = reply.completions
    entries = exchange["ResponseBody"]["choices"][0]["logprobs"]["content"]
    assert completion.text == exchange["ResponseBody"]["choices"][0]["message"]["content"]
    assert "".join(completion.tokens) == completion.text
    assert completion.token_logprobs.tolist() == pytest.approx([entry["logprob"] for entry in entries], rel=1e-6)
    assert all(len(place) == 3 for place in completion.top)
    assert reply.usage.completion == len(entries)
    assert reply.pace.limit_requests == 30000
    assert reply.pace.reset_requests_s == pytest.approx(0.002)


async def test_recorded_answers_keep_their_text_finish_and_usage(session_records: Path) -> None:
    for name in ("HelloWorldChat", "MultiMessageChat", "ReasoningTokensWork", "StructuredOutputsWork"):
        for exchange in _recorded(session_records, f"ChatTests__{name}"):
            body = exchange["ResponseBody"]
            reply = await _ask(_replaying(body), FULL)
            assert reply.completions[0].text == body["choices"][0]["message"]["content"]
            assert reply.completions[0].finish == "stop"
            assert reply.completions[0].token_logprobs is None
            assert reply.usage.prompt == body["usage"]["prompt_tokens"]
            assert reply.usage.completion == body["usage"]["completion_tokens"]


async def test_a_recorded_refusal_is_a_refused_completion(session_records: Path) -> None:
    first = _recorded(session_records, "ChatTests__StructuredRefusalWorks")[0]
    (completion,) = (await _ask(_replaying(first["ResponseBody"]), FULL)).completions
    assert completion.finish == "refused"
    assert completion.text.startswith("I'm very sorry")


async def test_recorded_embeddings_decode_from_base64(session_records: Path) -> None:
    (exchange,) = _recorded(session_records, "EmbeddingsTests__GenerateMultipleEmbeddings-UsingStrings-")
    provider = _replaying(exchange["ResponseBody"], dialect=Dialect(embedding_dimensions=456))
    assert provider.embedder is not None
    reply = await provider.embedder.embed(EmbedRequest(model="m", texts=("a", "b", "c")))
    assert reply.vectors.shape == (3, 456)
    np.testing.assert_allclose(np.linalg.norm(reply.vectors, axis=1), 1.0, atol=1e-3)
    assert reply.usage.prompt == 12


def test_completions_stand_in_the_order_of_their_index() -> None:
    choices = [{"index": i, "message": {"content": f"text {i}"}, "finish_reason": "stop"} for i in (2, 0, 1)]
    reply = ChatDecoder().reply(json.dumps({"choices": choices}).encode(), Pace(), alternatives=False)
    assert reply is not None
    assert [completion.text for completion in reply.completions] == ["text 0", "text 1", "text 2"]


def test_a_logprob_that_the_server_left_out_empties_the_array() -> None:
    content = [{"token": "A", "logprob": None}]
    body = {"choices": [{"message": {"content": "A"}, "logprobs": {"content": content}}]}
    reply = ChatDecoder().reply(json.dumps(body).encode(), Pace(), alternatives=False)
    assert reply is not None
    assert reply.completions[0].token_logprobs is None
