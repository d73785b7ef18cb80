"""Vendor errors as ours: the right class, the vendor's code, the next thing to try, and never the key."""

from __future__ import annotations

import dataclasses
import json
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from semievol_api.capabilities import ChatRequest, FineTuneRequest, Provider, ProviderSettings
from semievol_api.cassettes.http import HttpResponse
from semievol_api.errors import (
    ContextLengthError,
    ModelNotFoundError,
    ProviderError,
    RateLimitError,
    RefusedError,
    TransientError,
)
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from semievol_providers.openai.errors import error_from_answer, error_in_body, error_on_the_way
from semievol_providers.openai.settings import Connection
from tests.providers.openai_loopback import Cut, Fault, LoopbackServer, error_body

KEY = "sk-planted-0123456789abcdef"
AT = Connection(
    provider="hosted", base_url="https://example.test/v1", api_key=KEY, key_source="the variable 'OPENAI_API_KEY'"
)
REQUEST = ChatRequest(model="tiny", prompt=Prompt((Message("user", "hi"),)), max_tokens=4)
TRAINING = FineTuneRequest(model="tiny", training_file=b"{}\n", run_key="k")


def _translate(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> ProviderError:
    return error_from_answer("chat/completions", status, headers or {}, body, AT)


def _said(message: str, code: str | None = None, kind: str = "invalid_request_error") -> bytes:
    return error_body(message, code, kind)


HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502</h1></body></html>"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (429, _said("Rate limit reached", "rate_limit_exceeded"), RateLimitError, "waits"),
        (429, _said("You exceeded your current quota", "insufficient_quota"), RefusedError, "add credit"),
        (429, _said("You exceeded your current quota", None, "insufficient_quota"), RefusedError, "add credit"),
        (429, _said("limit", "billing_hard_limit_reached"), RefusedError, "add credit"),
        (401, _said(f"Incorrect API key provided: {KEY}.", "invalid_api_key"), RefusedError, "'OPENAI_API_KEY'"),
        (401, _said("Your key has expired"), RefusedError, "'OPENAI_API_KEY'"),
        (403, _said("not supported", "unsupported_country_region_territory"), RefusedError, "region"),
        (404, _said("The model x does not exist", "model_not_found"), ModelNotFoundError, "model's name"),
        (404, b'{"detail":"Not Found"}', RefusedError, "base_url (https://example.test/v1)"),
        (
            400,
            _said("This model's maximum context length is 8192", "context_length_exceeded"),
            ContextLengthError,
            "shorter",
        ),
        (
            400,
            b'{"object":"error","message":"maximum context length","type":"x","code":400}',
            ContextLengthError,
            "shorter",
        ),
        (400, _said("blocked", "content_policy_violation"), RefusedError, "content rules"),
        (400, b'{"error":{"message":"filtered","innererror":{"code":"content_filter"}}}', RefusedError, "content"),
        (400, _said("no chats", "invalid_training_file"), RefusedError, "at least 10"),
        (400, _said("gone", "model_not_available"), RefusedError, "another provider"),
        (410, _said("retired"), RefusedError, "ended"),
        (413, b"too large", RefusedError, "fewer references"),
        (422, b'{"detail":[{"loc":["body","n"],"msg":"must be 1"}]}', RefusedError, "must be 1"),
        (408, b"", TransientError, "another attempt"),
        (409, _said("conflict"), TransientError, "another attempt"),
        (500, _said("The server had an error", "server_error"), TransientError, "another attempt"),
        (502, HTML, TransientError, "502 Bad Gateway"),
        (503, b"{}", TransientError, "503"),
        (403, b"<html><title>Attention Required! | Cloudflare</title></html>", RefusedError, "Cloudflare"),
        (400, b'{"error":"model is required"}', RefusedError, "model is required"),
        (400, b"null", RefusedError, "400"),
        (418, b"\xff\xfe", RefusedError, "418"),
    ],
)
def test_a_status_and_a_body_become_one_error_with_a_next_step(
    status: int, body: bytes, kind: type[ProviderError], words: str
) -> None:
    error = _translate(status, body)
    message = str(error)
    assert type(error) is kind
    assert error.status == status
    assert words in message
    assert message.startswith("hosted: chat/completions at example.test answered")
    assert KEY not in message and "\n" not in message and "<" not in message


def test_the_vendors_code_and_param_are_kept_as_they_are() -> None:
    error = _translate(400, json.dumps({"error": {"message": "m", "code": "new_code", "param": "seed"}}).encode())
    assert (error.code, error.param) == ("new_code", "seed")
    assert "code new_code, param seed" in str(error)


def test_a_quota_without_a_code_is_named_as_such() -> None:
    assert _translate(429, _said("no money", None, "insufficient_quota")).code == "insufficient_quota"


@pytest.mark.parametrize("key", ["plain0123secret", "gsk_9876543210", "sk-proj-abcdefghijkl"])
def test_a_key_of_any_shape_is_cut_out_of_the_vendors_words(key: str) -> None:
    at = dataclasses.replace(AT, api_key=key)
    error = error_from_answer("chat/completions", 401, {}, _said(f"bad key '{key}'", "invalid_api_key"), at)
    assert key not in str(error)
    assert "[key]" in str(error)


def test_a_key_that_is_not_ours_is_cut_out_too() -> None:
    error = _translate(401, _said("Incorrect API key provided: sk-abcde****************wxyz."))
    assert "wxyz" not in str(error)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 1.0),
        ({"retry-after-ms": "2500", "retry-after": "1"}, 2.5),
        ({"retry-after-ms": "0", "retry-after": "1"}, 1.0),
        ({"retry-after-ms": "0"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "0", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "3s"}, 3.0),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "later"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2s"}, 62.0),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1m2s"}, None),
        ({}, None),
    ],
)
def test_a_rate_limit_says_how_long_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    error = _translate(429, b"{}", headers)
    assert isinstance(error, RateLimitError)
    assert error.retry_after_s == (None if wait_s is None else pytest.approx(wait_s))


def _caused(cause: Exception) -> TransientError:
    error = TransientError("POST https://example.test failed on the way")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        (ssl.SSLCertVerificationError("self-signed"), RefusedError, "certificate of 'example.test'"),
        (socket.gaierror(-2, "unknown"), TransientError, "name 'example.test' was not found"),
        (ConnectionRefusedError(111, "refused"), TransientError, "nothing listens"),
        (OSError(104, f"reset {KEY}"), TransientError, "another attempt"),
    ],
)
def test_a_request_without_an_answer_says_why(cause: Exception, kind: type[ProviderError], words: str) -> None:
    error = error_on_the_way("embeddings", _caused(cause), AT)
    assert type(error) is kind
    assert words in str(error) or words.capitalize() in str(error)
    assert KEY not in str(error)


def _recorded_errors(session_records: Path) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    for file in sorted(session_records.glob("*.json")):
        for exchange in json.loads(file.read_text(encoding="utf-8-sig"))["Entries"]:
            if exchange["StatusCode"] >= 400:
                found.append((exchange["StatusCode"], exchange["ResponseBody"]))
    return found


def test_every_recorded_error_is_a_refusal_in_openais_words(session_records: Path) -> None:
    errors = _recorded_errors(session_records)
    assert len(errors) >= 7
    for status, body in errors:
        error = _translate(status, json.dumps(body).encode())
        assert isinstance(error, RefusedError)
        assert error.code == body["error"]["code"]
        assert body["error"]["message"].split("not-a-re")[0].rstrip(".") in str(error)


# --------------------------------------------------------------------- both ways out, over a real socket
async def _chat(provider: Provider) -> object:
    assert provider.chat is not None
    return await provider.chat.complete(REQUEST)


async def _finetune(provider: Provider) -> object:
    assert provider.finetuner is not None
    return await provider.finetuner.find(TRAINING)


def _connect(base_url: str, **options: object) -> Provider:
    table = {"base_url": base_url, **options}
    return connect(ProviderSettings(name="hosted", options=table, environ={"OPENAI_API_KEY": KEY}))


@pytest.mark.parametrize("ask", [_chat, _finetune], ids=["hot path", "SDK"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(429, _said("slow down"), {"retry-after": "3"}), RateLimitError),
        (Fault(500, HTML), TransientError),
        (Fault(401, _said(f"bad key {KEY}", "invalid_api_key")), RefusedError),
        (Fault(200, b'{"choices": [{'), TransientError),
        (Cut(), TransientError),
    ],
    ids=["429", "500", "401", "cut JSON", "cut connection"],
)
async def test_both_ways_out_translate_alike_and_retry_nothing(
    ask: Callable[[Provider], Awaitable[object]], fault: Fault | Cut, kind: type[ProviderError]
) -> None:
    async with LoopbackServer() as server:
        server.faults.append(fault)
        provider = _connect(server.base_url)
        with pytest.raises(kind) as caught:
            await ask(provider)
        await provider.aclose()
    assert type(caught.value) is kind
    assert len(server.requests) == 1
    assert KEY not in "".join(traceback.format_exception(caught.value))
    if isinstance(caught.value, RateLimitError):
        assert caught.value.retry_after_s == 3.0


@pytest.mark.parametrize("ask", [_chat, _finetune], ids=["hot path", "SDK"])
async def test_a_server_that_is_not_there_is_named(ask: Callable[[Provider], Awaitable[object]]) -> None:
    async with LoopbackServer() as server:
        gone = server.base_url
    provider = _connect(gone)
    with pytest.raises(TransientError, match="nothing listens"):
        await ask(provider)
    await provider.aclose()


@pytest.mark.parametrize("ask", [_chat, _finetune], ids=["hot path", "SDK"])
async def test_a_server_that_stalls_is_left_after_the_timeout(ask: Callable[[Provider], Awaitable[object]]) -> None:
    async with LoopbackServer() as server:
        server.stall_s = 0.6
        provider = _connect(server.base_url, timeout_s=0.2)
        with pytest.raises(TransientError):
            await ask(provider)
        await provider.aclose()


async def test_an_error_inside_status_200_counts_as_what_it_says() -> None:
    async with LoopbackServer() as server:
        server.faults.append(Fault(200, b'{"error": {"message": "busy", "code": 429}}'))
        server.faults.append(Fault(200, b'{"error": {"message": "oops"}}'))
        provider = _connect(server.base_url)
        with pytest.raises(RateLimitError):
            await _chat(provider)
        with pytest.raises(TransientError, match="oops"):
            await _chat(provider)
        await provider.aclose()


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'{"error": {"code": "content_filter", "status": 400, "message": "no"}}', RefusedError, "content rules"),
        (b'{"error": {"code": "content_filter", "message": "no"}}', RefusedError, "content rules"),
        (b'{"error": {"type": "rate_limit_exceeded", "message": "slow"}}', RateLimitError, "slow"),
        (b'{"error": {"code": "insufficient_quota", "message": "empty"}}', RefusedError, "add credit"),
        (b'{"error": {"message": "busy", "status_code": 503}}', TransientError, "busy"),
        (b'{"error": null, "detail": "nobody home"}', TransientError, "nobody home"),
        (b'{"error": null}', TransientError, "without what was asked for"),
        (
            b'{"error": {"code": 400, "message": "Provider error", "metadata": {"raw": "max_tokens too big"}}}',
            RefusedError,
            "max_tokens too big",
        ),
    ],
)
def test_an_error_behind_status_200_is_read_by_its_status_code_or_words(
    body: bytes, kind: type[ProviderError], words: str
) -> None:
    error = error_in_body("chat/completions", HttpResponse(200, {}, body), AT)
    assert type(error) is kind
    assert words in str(error)
    assert "None" not in str(error)


def test_a_job_that_is_not_found_says_whose_it_is() -> None:
    error = _translate(404, _said("No such fine-tuning job", code="fine_tune_not_found"))
    assert "the key that made it" in str(error)
