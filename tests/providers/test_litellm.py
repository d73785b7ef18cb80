"""Provider `litellm`: what it sends and leaves out, whose errors it translates, what it never does."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Mapping

import pytest

from semievol_api.capabilities import ChatRequest, EmbedRequest, Provider, ProviderSettings, require
from semievol_api.errors import (
    ConfigError,
    MissingAbilityError,
    ModelNotFoundError,
    RateLimitError,
    RefusedError,
    TransientError,
)
from semievol_api.records import Message, Prompt
from tests.providers.openai_loopback import Cut, Fault, LoopbackServer, error_body

pytest.importorskip("litellm", reason="needs the extra litellm")

from semievol_providers.litellm import connect

KEY = "sk-planted-0123456789abcdef"
REQUEST = ChatRequest(model="openai/tiny", prompt=Prompt((Message("user", "hi"),)), max_tokens=4, seed=7)


def _connect(options: Mapping[str, object]) -> Provider:
    return connect(ProviderSettings(name="other", options=options, environ={"MY_KEY": KEY}))


def _at(server: LoopbackServer, **options: object) -> Provider:
    provider = _connect({"api_base": server.base_url, "api_key_env": "MY_KEY", **options})
    server.clients.push_async_callback(provider.aclose)
    return provider


async def _ask(provider: Provider, **changes: object) -> object:
    assert provider.chat is not None
    fields = {name: getattr(REQUEST, name) for name in ("model", "prompt", "max_tokens", "seed")}
    return await provider.chat.complete(ChatRequest(**{**fields, **changes}))


async def test_log_probabilities_are_asked_for_whatever_the_static_lists_say() -> None:
    async with LoopbackServer() as server:
        provider = _at(server)
        assert provider.scored is not None
        reply = await provider.scored.complete(
            ChatRequest(model="openai/tiny", prompt=REQUEST.prompt, max_tokens=9, logprobs=True, top_logprobs=2)
        )
        body = server.asked("/chat/completions")[0].body
    assert body["logprobs"] is True and body["top_logprobs"] == 2
    (completion,) = reply.completions
    assert completion.token_logprobs is not None
    assert list(completion.token_logprobs) == [-0.125, -0.25, -0.5]
    assert completion.tokens == ("Answer", ":", " B")


async def test_what_a_vendor_does_not_know_is_left_out_by_name_and_visibly() -> None:
    async with LoopbackServer() as server:
        provider = _at(server, leave_out=["seed", "logprobs", "top_p"])
        assert provider.scored is None
        await _ask(provider)
        body = server.asked("/chat/completions")[0].body
    assert not {"seed", "logprobs", "top_p"} & set(body)
    with pytest.raises(MissingAbilityError, match="log-probabilities"):
        require(provider.scored, "log-probabilities", provider)


async def test_a_setting_that_the_vendor_does_not_know_is_refused_with_the_way_out() -> None:
    async with LoopbackServer() as server:
        provider = _at(server, api_base="http://127.0.0.1:9")
        with pytest.raises(RefusedError, match="leave_out") as caught:
            await _ask(provider, model="anthropic/claude-sonnet-4-5")
    assert "seed" in str(caught.value)


async def test_a_prefix_reaches_models_that_another_provider_named() -> None:
    async with LoopbackServer() as server:
        await _ask(_at(server, prefix="openai/"), model="ft:tiny:mine:semievol:x")
        assert server.asked("/chat/completions")[0].body["model"] == "ft:tiny:mine:semievol:x"


def test_fine_tuning_is_refused_with_the_reason() -> None:
    provider = _connect({"api_key_env": ""})
    with pytest.raises(MissingAbilityError, match="drops a job's method, metadata"):
        require(provider.finetuner, "fine-tuning", provider)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault(429, error_body("slow down", "rate_limit_exceeded"), {"retry-after": "3"}), RateLimitError, "waits"),
        (Fault(429, error_body("You exceeded your current quota", "insufficient_quota")), RefusedError, "add credit"),
        (Fault(401, error_body(f"bad key {KEY}", "invalid_api_key")), RefusedError, "api_key_env"),
        (Fault(404, error_body("no such model", "model_not_found")), ModelNotFoundError, "VENDOR/MODEL"),
        (Fault(400, error_body("maximum context length is 8", "context_length_exceeded")), RefusedError, "shorter"),
        (Fault(500, b"<html>oops</html>"), TransientError, "another attempt"),
        (Fault(503, b"{}"), TransientError, "another attempt"),
        (Cut(), TransientError, "another attempt"),
    ],
    ids=["429", "quota", "401", "404", "context", "500", "503", "cut"],
)
async def test_errors_are_translated_once_without_retry_and_without_the_key(
    fault: Fault | Cut, kind: type[Exception], words: str
) -> None:
    async with LoopbackServer() as server:
        server.faults.append(fault)
        with pytest.raises(kind) as caught:
            await _ask(_at(server))
        assert len(server.requests) == 1
    assert words.lower() in str(caught.value).lower()
    assert KEY not in "".join(traceback.format_exception(caught.value))
    if isinstance(caught.value, RateLimitError):
        assert caught.value.retry_after_s == 3.0


async def test_embeddings_keep_their_order() -> None:
    async with LoopbackServer() as server:
        embedder = _at(server).embedder
        assert embedder is not None
        reply = await embedder.embed(EmbedRequest(model="openai/tiny", texts=("a", "abc")))
    assert reply.vectors[:, 0].tolist() == [1.0, 3.0]


def test_prices_come_from_litellms_own_file_and_need_no_import() -> None:
    limits = _connect({"api_key_env": ""}).limits["openai/gpt-4o-mini"]
    assert (limits.input_usd, limits.output_usd, limits.cached_input_usd) == (0.15, 0.6, 0.075)
    assert "no/such-model" not in _connect({"api_key_env": ""}).limits


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_key": "sk-x"}, "keys never stand in a config"),
        ({"leave_outs": []}, "'leave_out'"),
        ({"api_key_env": "ABSENT"}, "'ABSENT'"),
        ({"leave_out": ["tools"]}, "leave_out"),
        ({"api_key_file": "absent.key"}, "absent.key"),
    ],
)
def test_a_wrong_table_gives_one_calm_paragraph(options: Mapping[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _connect(options)


def test_the_key_stands_in_no_repr() -> None:
    assert KEY not in repr(_connect({"api_key_env": "MY_KEY"}))


def test_connecting_imports_no_litellm(child_env: dict[str, str]) -> None:
    code = (
        "import sys; from semievol_providers.litellm import connect\n"
        "from semievol_api.capabilities import ProviderSettings\n"
        "connect(ProviderSettings(name='x', options={'api_key_env': ''}, environ={})).limits['gpt-4o-mini']\n"
        "assert 'litellm' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
