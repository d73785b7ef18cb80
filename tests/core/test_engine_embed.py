"""Embeddings and option readings through the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_fakes import FakeServer, provider

from semievol_api.capabilities import EmbedReply, EmbedRequest, OptionRequest
from semievol_api.config.settings import Limits
from semievol_api.engine import Ask, RequestEngine
from semievol_api.errors import RefusedError, StageError
from semievol_api.records import Message, Prompt, Usage


async def test_vectors_come_in_the_order_of_the_texts_and_each_text_is_asked_once(tmp_path: Path) -> None:
    server = FakeServer()
    texts = ["bb", "a", "ccc", "a", "bb", "dddd"] * 50
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        vectors = await engine.embed(provider(server), "e", texts, stage="s", batch_size=3)
    assert vectors.dtype == np.float32 and vectors.shape == (300, 3)
    assert vectors[:, 0].tolist() == [len(text) for text in texts]
    assert sorted(server.texts) == ["a", "bb", "ccc", "dddd"]
    assert server.embed_calls == 2


async def test_another_batch_size_finds_the_same_vectors_in_the_journal(tmp_path: Path) -> None:
    server = FakeServer()
    texts = [f"text {i}" for i in range(100)]
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        first = await engine.embed(provider(server), "e", texts, stage="s", batch_size=8)
        calls = server.embed_calls
        again = await engine.embed(provider(server), "e", texts[::-1], stage="s", batch_size=32)
        assert engine.ledger.stages["s"].usage.prompt == 100
    assert server.embed_calls == calls == 13
    assert first.tobytes() == np.ascontiguousarray(again[::-1]).tobytes()


async def test_no_texts_give_an_empty_matrix(tmp_path: Path) -> None:
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        assert (await engine.embed(provider(FakeServer()), "e", [], stage="s", batch_size=8)).shape == (0, 0)


async def test_a_text_without_a_vector_stops_the_stage_and_names_the_text(tmp_path: Path) -> None:
    class Picky(FakeServer):
        async def embed(self, request: EmbedRequest) -> EmbedReply:
            if "bad" in request.texts:
                raise RefusedError("The input is too long.", status=400)
            return await super().embed(request)

    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        with pytest.raises(StageError, match=r"'bad'.*too long"):
            await engine.embed(provider(Picky()), "e", ["good", "fine", "bad"], stage="s", batch_size=1)


async def test_a_reply_with_too_few_vectors_is_tried_again(tmp_path: Path) -> None:
    class Short(FakeServer):
        async def embed(self, request: EmbedRequest) -> EmbedReply:
            reply = await super().embed(request)
            cut = reply.vectors[:1] if self.embed_calls == 1 else reply.vectors
            return EmbedReply(vectors=cut, usage=Usage(1, 0, 0))

    server = Short()
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        vectors = await engine.embed(provider(server), "e", ["a", "bb"], stage="s", batch_size=2)
    assert server.embed_calls == 2 and vectors[:, 0].tolist() == [1, 2]


async def test_option_readings_come_back_exactly_with_what_was_not_shown(tmp_path: Path) -> None:
    server = FakeServer()
    prompt = Prompt((Message("user", "Which?"),), prefill="Answer:")
    ask = Ask("q", OptionRequest(model="m", prompt=prompt, labels=("A", "B", "C")))
    replies = []
    for _ in range(2):
        async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
            replies += [a.reply async for a in engine.read_options(provider(server), [ask], stage="s")]
    assert server.reads == 1
    assert replies[0] == replies[1]
    assert replies[0].logprobs[1] is None and replies[0].logprobs[0] == -2.0
