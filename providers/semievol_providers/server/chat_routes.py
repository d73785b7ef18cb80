"""Routes that ask the engine: chat completions, text completions, embeddings.

Knows nothing of how the engine runs, of files or of jobs.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from array import array
from collections.abc import AsyncIterator, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError, json_response
from semievol_providers.server.chat_wire import (
    ChatBody,
    EmbeddingBody,
    TextBody,
    chat_choice,
    chat_logprobs,
    parse,
    text_choice,
    usage,
)
from semievol_providers.server.engine_wire import (
    ChatAsk,
    Choice,
    ChoicesTell,
    DeltaTell,
    EmbedAsk,
    TextAsk,
    VectorsTell,
)
from semievol_providers.server.services import Services, owner_of, services
from semievol_providers.server.state import new_id


async def create_chat(request: Request) -> Response:
    """POST /chat/completions"""
    served = services(request)
    body = parse(await request.body(), ChatBody).checked()
    model = served.models.find(body.model, owner_of(request))
    ask = ChatAsk(
        id=served.engine.next_number(),
        messages=tuple(message.plain(i) for i, message in enumerate(body.messages)),
        sampling=body.chat_sampling(served.settings.limits),
        adapter=model.adapter,
        continue_last=body.continue_final_message,
        reply_follows=body.add_generation_prompt is not False,
        stream=bool(body.stream),
    )
    head = _head("chatcmpl-", "chat.completion", body.model)
    if body.stream:
        head["object"] = "chat.completion.chunk"
        include = body.stream_options is not None and body.stream_options.include_usage
        return await _streamed(_ChatStream(head, ask.sampling.n, include), served, ask)
    tell = await served.engine.ask(ask)
    assert isinstance(tell, ChoicesTell)
    return json_response(
        head
        | {
            "choices": [chat_choice(choice) for choice in tell.choices],
            "usage": usage(tell.prompt_tokens, tell.choices),
        }
    )


async def create_completion(request: Request) -> Response:
    """POST /completions"""
    served = services(request)
    body = parse(await request.body(), TextBody)
    model = served.models.find(body.model, owner_of(request))
    # The API's own default for text completions is 16 tokens.
    sampling = body.sampling(body.max_tokens or 16, body.logprobs, served.settings.limits)
    asks = [
        TextAsk(
            id=served.engine.next_number(),
            prompt=prompt,
            sampling=sampling,
            adapter=model.adapter,
            stream=bool(body.stream),
        )
        for prompt in body.prompts()
    ]
    head = _head("cmpl-", "text_completion", body.model)
    if body.stream:
        if len(asks) != 1:
            raise ApiError("Streaming takes one prompt at a time.", param="prompt")
        include = body.stream_options is not None and body.stream_options.include_usage
        return await _streamed(_TextStream(head, include), served, asks[0])
    tells = await asyncio.gather(*(served.engine.ask(ask) for ask in asks))
    choices: list[JsonValue] = []
    counted: list[Choice] = []
    prompt_tokens = 0
    for tell in tells:
        assert isinstance(tell, ChoicesTell)
        prompt_tokens += tell.prompt_tokens
        for choice in tell.choices:
            choices.append(text_choice(choice, len(choices)))
            counted.append(choice)
    return json_response(head | {"choices": choices, "usage": usage(prompt_tokens, counted)})


async def create_embedding(request: Request) -> Response:
    """POST /embeddings"""
    served = services(request)
    body = parse(await request.body(), EmbeddingBody)
    model = served.models.find(body.model, owner_of(request))
    tell = await served.engine.ask(
        EmbedAsk(id=served.engine.next_number(), inputs=body.inputs(served.settings.limits), adapter=model.adapter)
    )
    assert isinstance(tell, VectorsTell)
    return json_response(
        {
            "object": "list",
            "model": body.model,
            "data": [
                {"object": "embedding", "index": i, "embedding": vector}
                for i, vector in enumerate(_vectors(tell, body.encoding_format))
            ],
            "usage": {"prompt_tokens": tell.prompt_tokens, "total_tokens": tell.prompt_tokens},
        }
    )


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


def _head(prefix: str, kind: str, model: str) -> dict[str, JsonValue]:
    return {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": model}


# ---------------------------------------------------------------------------------------------- streaming
class _ChatStream:
    """Turns the engine's pieces into chunks of a chat completion."""

    def __init__(self, head: dict[str, JsonValue], n: int, include_usage: bool) -> None:
        self._head = head
        self._n = n
        self._usage: dict[str, JsonValue] = {"usage": None} if include_usage else {}

    def opening(self) -> list[dict[str, JsonValue]]:
        """The chunks before any text: every choice's role."""
        delta: JsonValue = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(i, delta, None, None) for i in range(self._n)]

    def pieces(self, tell: DeltaTell) -> list[dict[str, JsonValue]]:
        """The chunks of one piece of text."""
        choice = tell.choice
        chunks: list[dict[str, JsonValue]] = []
        scores = choice.scores if choice is not None else None
        if tell.text or scores:
            chunks.append(self._chunk(tell.index, {"content": tell.text}, chat_logprobs(scores), None))
        if choice is not None:
            chunks.append(self._chunk(tell.index, {}, None, choice.finish))
        return chunks

    def closing(self, tell: ChoicesTell) -> list[dict[str, JsonValue]]:
        """The chunk behind the last one, if usage was asked for."""
        if not self._usage:
            return []
        return [{**self._head, "choices": [], "usage": usage(tell.prompt_tokens, tell.choices)}]

    def _chunk(self, index: int, delta: JsonValue, logprobs: JsonValue, finish: str | None) -> dict[str, JsonValue]:
        choice: JsonValue = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "choices": [choice], **self._usage}


class _TextStream(_ChatStream):
    """Turns the engine's pieces into chunks of a text completion."""

    def __init__(self, head: dict[str, JsonValue], include_usage: bool) -> None:
        super().__init__(head, 0, include_usage)

    def pieces(self, tell: DeltaTell) -> list[dict[str, JsonValue]]:
        choice = tell.choice
        if choice is None:
            part: JsonValue = {"index": tell.index, "text": tell.text, "logprobs": None, "finish_reason": None}
        else:
            part = text_choice(choice, tell.index) | {"text": tell.text}
        return [{**self._head, "choices": [part], **self._usage}]


async def _streamed(stream: _ChatStream, served: Services, ask: ChatAsk | TextAsk) -> Response:
    """Server-sent events; waits for the first piece, so that a refusal still gets its own status."""
    tells = served.engine.stream(ask)
    first = await anext(tells)

    async def events() -> AsyncIterator[bytes]:
        for chunk in stream.opening():
            yield _event(chunk)
        tell = first
        try:
            while isinstance(tell, DeltaTell):
                for chunk in stream.pieces(tell):
                    yield _event(chunk)
                tell = await anext(tells)
            for chunk in stream.closing(tell):
                yield _event(chunk)
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _event({"error": dict(error.body())})

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _event(chunk: dict[str, JsonValue]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
