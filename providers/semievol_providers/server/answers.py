"""Answers one request body of an owner: chat completion, text completion or embedding, as the API's JSON.

Routes and batches both ask here, so a batch line is answered as its own request would be. Knows nothing of HTTP,
streaming, files or jobs.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.chat_wire import (
    ChatBody,
    EmbeddingBody,
    TextBody,
    chat_choice,
    parse,
    text_choice,
    usage,
)
from semievol_providers.server.engine_client import EngineClient
from semievol_providers.server.engine_wire import ChatAsk, Choice, ChoicesTell, EmbedAsk, TextAsk, VectorsTell
from semievol_providers.server.settings import Limits
from semievol_providers.server.state import ModelTable, Record, new_id

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings", "/v1/completions")
_DEFAULT_TEXT_TOKENS = 16  # the API's own default for text completions


@dataclass(frozen=True, slots=True)
class Answers:
    """Turns bodies into questions to the engine, and its answers into JSON."""

    engine: EngineClient
    models: ModelTable
    limits: Limits

    async def one(self, endpoint: str, body: bytes, owner: str) -> Record:
        """The answer to one body at one of `ENDPOINTS`, never streamed.

        Raises:
            ApiError: the body cannot be answered.
        """
        kinds: dict[str, Callable[[bytes, str], Awaitable[Record]]] = {
            "/v1/chat/completions": self._whole_chat,
            "/v1/completions": self._whole_text,
            "/v1/embeddings": self._whole_embedding,
        }
        return await kinds[endpoint](body, owner)

    async def _whole_chat(self, body: bytes, owner: str) -> Record:
        asked = parse(body, ChatBody).checked()
        _refuse_stream(asked.stream)
        return await self.chat(asked, self.chat_ask(asked, owner))

    async def _whole_text(self, body: bytes, owner: str) -> Record:
        asked = parse(body, TextBody)
        _refuse_stream(asked.stream)
        return await self.text(asked, self.text_asks(asked, owner))

    async def _whole_embedding(self, body: bytes, owner: str) -> Record:
        return await self.embedding(parse(body, EmbeddingBody), owner)

    # ----------------------------------------------------------------------------------------------- chat
    def chat_ask(self, body: ChatBody, owner: str) -> ChatAsk:
        """The question of a checked chat body."""
        model = self.models.find(body.model, owner)
        return ChatAsk(
            id=self.engine.next_number(),
            messages=tuple(message.plain(i) for i, message in enumerate(body.messages)),
            sampling=body.chat_sampling(self.limits),
            adapter=model.adapter,
            owner=owner,
            continue_last=body.continue_final_message,
            reply_follows=body.add_generation_prompt is not False,
            stream=bool(body.stream),
        )

    async def chat(self, body: ChatBody, ask: ChatAsk) -> Record:
        """The whole chat completion."""
        tell = await self.engine.ask(ask)
        assert isinstance(tell, ChoicesTell)
        choices: list[JsonValue] = [chat_choice(choice) for choice in tell.choices]
        fields: Record = {"choices": choices, "usage": usage(tell.prompt_tokens, tell.choices)}
        return head("chatcmpl-", "chat.completion", body.model) | fields

    # ----------------------------------------------------------------------------------------------- text
    def text_asks(self, body: TextBody, owner: str) -> list[TextAsk]:
        """One question for each prompt."""
        model = self.models.find(body.model, owner)
        sampling = body.sampling(body.max_tokens or _DEFAULT_TEXT_TOKENS, body.logprobs, self.limits)
        return [
            TextAsk(
                id=self.engine.next_number(),
                prompt=prompt,
                sampling=sampling,
                adapter=model.adapter,
                owner=owner,
                stream=bool(body.stream),
            )
            for prompt in body.prompts(self.limits)
        ]

    async def text(self, body: TextBody, asks: Sequence[TextAsk]) -> Record:
        """The whole text completion."""
        choices: list[JsonValue] = []
        counted: list[Choice] = []
        prompt_tokens = 0
        for tell in await _together([self.engine.ask(ask) for ask in asks]):
            assert isinstance(tell, ChoicesTell)
            prompt_tokens += tell.prompt_tokens
            for choice in tell.choices:
                choices.append(text_choice(choice, len(choices)))
                counted.append(choice)
        fields: Record = {"choices": choices, "usage": usage(prompt_tokens, counted)}
        return head("cmpl-", "text_completion", body.model) | fields

    # ------------------------------------------------------------------------------------------ embedding
    async def embedding(self, body: EmbeddingBody, owner: str) -> Record:
        """The vectors of all inputs."""
        model = self.models.find(body.model, owner)
        inputs = body.inputs(self.limits)
        number = self.engine.next_number()
        tell = await self.engine.ask(EmbedAsk(id=number, inputs=inputs, adapter=model.adapter, owner=owner))
        assert isinstance(tell, VectorsTell)
        return {
            "object": "list",
            "model": body.model,
            "data": [
                {"object": "embedding", "index": i, "embedding": vector}
                for i, vector in enumerate(_vectors(tell, body.encoding_format))
            ],
            "usage": {"prompt_tokens": tell.prompt_tokens, "total_tokens": tell.prompt_tokens},
        }


def head(prefix: str, kind: str, model: str) -> Record:
    """What every completion starts with."""
    return {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": model}


async def _together(
    questions: Sequence[Awaitable[ChoicesTell | VectorsTell]],
) -> list[ChoicesTell | VectorsTell]:
    """All answers; when one is refused the others are no longer waited for."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _refuse_stream(stream: bool | None) -> None:
    if stream:
        raise ApiError("A batch does not stream.", param="stream", code="unsupported_parameter")


def _vectors(tell: VectorsTell, encoding: str) -> Sequence[JsonValue]:
    size = 4 * tell.dimensions
    rows = [tell.data[start : start + size] for start in range(0, len(tell.data), size)]
    if encoding == "base64":
        return [base64.b64encode(row).decode() for row in rows]
    vectors: list[JsonValue] = []
    for row in rows:
        numbers = array("f", row)
        if sys.byteorder == "big":
            numbers.byteswap()
        vectors.append(list(numbers))
    return vectors
