"""Whatever field of a request breaks, a replay notices: each case breaks one on its way out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from semievol_api.capabilities import EmbedRequest, Provider, ProviderSettings, require
from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
from semievol_api.cassettes.http import HttpResponse, HttpSend
from semievol_api.cassettes.miss import CassetteMiss
from semievol_providers.openai import connect
from tests.conformance import ConformanceError, ConformingSend
from tests.providers.test_openai_cassettes import ASK, OURS, ROOT, TRAIN

Scenario = Callable[[Provider], Awaitable[Any]]


async def _chat(provider: Provider) -> None:
    await require(provider.scored, "chat", provider).complete(replace(ASK, logprobs=True, top_logprobs=3))


async def _samples(provider: Provider) -> None:
    await require(provider.chat, "chat", provider).complete(replace(ASK, n=4))


async def _embed(provider: Provider) -> None:
    await require(provider.embedder, "embeddings", provider).embed(EmbedRequest(model="tiny", texts=("one", "two")))


async def _job(provider: Provider) -> None:
    tuner = require(provider.finetuner, "fine-tuning", provider)
    await tuner.find(TRAIN)
    await tuner.submit(TRAIN)


async def _batch(provider: Provider) -> None:
    asked = {"good": ASK, "bad": replace(ASK, model="broken")}
    await require(provider.batch, "batches", provider).submit(asked, "a batch")


CHAT, JOBS, BATCHES = "/chat/completions", "/fine_tuning/jobs", "/batches"
HYPER = ("method", "supervised", "hyperparameters")
CASES: list[tuple[str, Scenario, str, tuple[str | int, ...], object]] = [
    ("chat-logprobs", _chat, CHAT, ("model",), "other"),
    ("chat-logprobs", _chat, CHAT, ("messages", 0, "content"), "Which letter ?"),
    ("chat-logprobs", _chat, CHAT, ("messages", 0, "role"), "assistant"),
    ("chat-logprobs", _chat, CHAT, ("max_tokens",), 7),
    ("chat-logprobs", _chat, CHAT, ("seed",), 2),
    ("chat-logprobs", _chat, CHAT, ("logprobs",), None),
    ("chat-logprobs", _chat, CHAT, ("top_logprobs",), 4),
    ("chat-n", _samples, CHAT, ("n",), 3),
    ("embeddings", _embed, "/embeddings", ("input",), ["one"]),
    ("embeddings", _embed, "/embeddings", ("encoding_format",), "float32"),
    ("job", _job, JOBS, ("model",), "other"),
    ("job", _job, JOBS, ("training_file",), "file-other"),
    ("job", _job, JOBS, ("seed",), 1),
    ("job", _job, JOBS, ("suffix",), "other"),
    ("job", _job, JOBS, ("metadata",), {}),
    ("job", _job, JOBS, ("method", "type"), "dpo"),
    ("job", _job, JOBS, (*HYPER, "n_epochs"), 3),
    ("job", _job, JOBS, (*HYPER, "batch_size"), "4"),
    ("batch", _batch, BATCHES, ("endpoint",), "/v1/embeddings"),
    ("batch", _batch, BATCHES, ("completion_window",), "1h"),
    ("batch", _batch, BATCHES, ("metadata",), None),
    ("batch", _batch, BATCHES, ("input_file_id",), "file-other"),
]


class BreakingSend:
    """An `HttpSend` that breaks one field of what is posted to one path."""

    def __init__(self, send: HttpSend, path: str, place: tuple[str | int, ...], value: object) -> None:
        self._send, self._path, self._place, self._value = send, path, place, value
        self.broken = 0

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        if method == "POST" and url.endswith(self._path) and body is not None:
            content: Any = msgspec.json.decode(body)
            node = content
            for step in self._place[:-1]:
                node = node[step]
            assert node[self._place[-1]] != self._value
            node[self._place[-1]] = self._value
            if self._value is None:
                del node[self._place[-1]]
            body = msgspec.json.encode(content)
            self.broken += 1
        return await self._send(method, url, body, headers, timeout_s)


def _provider(send: HttpSend) -> Provider:
    options = {"base_url": "http://192.0.2.1:9/v1", "api_key_env": ""}
    return connect(ProviderSettings(name="o", options=options, environ={}, wire=send))


def _id(value: object) -> str:
    """The same in every process, so that the suite can be shared out; a function's repr holds its address."""
    return "scenario" if callable(value) else str(value)[:40]


@pytest.mark.parametrize(("folder", "scenario", "path", "place", "value"), CASES, ids=_id)
async def test_breaking_one_field_of_a_request_turns_its_replay_red(
    folder: str, scenario: Scenario, path: str, place: tuple[str | int, ...], value: object
) -> None:
    settings = CassetteSettings(allow_unplayed=True)
    async with open_cassette(ROOT / folder, "replay", settings) as cassette:
        await scenario(_provider(ConformingSend(cassette.send, extensions=OURS, responses=False)))  # whole, it is green
    cassette = open_cassette(ROOT / folder, "replay", settings)
    breaking = BreakingSend(ConformingSend(cassette.send, extensions=OURS, responses=False), path, place, value)
    with pytest.raises((CassetteMiss, ConformanceError)):
        await scenario(_provider(breaking))
    assert breaking.broken == 1
