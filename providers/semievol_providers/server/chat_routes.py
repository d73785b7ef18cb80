"""Routes that ask the engine: chat completions, responses, text completions, embeddings.

Work for a client that disconnects is cancelled. Knows nothing of how the engine runs, of files or of jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from semievol_api.records import JsonValue
from semievol_providers.local.tool_calls import CallPiece
from semievol_providers.server.api_errors import ApiError, json_response
from semievol_providers.server.completions import (
    ChatBody,
    EmbeddingBody,
    TextBody,
    chat_logprobs,
    head,
    parse,
    text_logprobs,
    usage,
)
from semievol_providers.server.conversation import chat_call
from semievol_providers.server.engine_wire import ChatAsk, ChoicesTell, DeltaTell, TextAsk
from semievol_providers.server.responses import ResponseBody, ResponseWriter
from semievol_providers.server.services import owner_of, services
from semievol_providers.server.state import Record, new_id

T = TypeVar("T")
_CLIENT_LEFT = 499
"""The status, for the log alone, of a request whose client left before its answer."""


class _ClientLeftError(Exception):
    """The client has closed its connection."""


async def _while_there(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client closes its connection.

    The request's body must have been read.

    Raises:
        _ClientLeftError: it has.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _ClientLeftError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def create_chat(request: Request) -> Response:
    """POST /chat/completions"""
    answers, owner = services(request).answers, owner_of(request)
    body = parse(await request.body(), ChatBody).checked()
    ask = answers.chat_ask(body, owner)
    if not body.stream:
        return await _charged(request, answers.chat(body, ask))
    include = body.stream_options is not None and body.stream_options.include_usage
    begun = head("chatcmpl-", "chat.completion.chunk", body.model)
    stream = _ChatStream(begun, ask.sampling.n, include, may_call=ask.tools is not None)
    return await _streamed(stream, request, ask)


async def list_chats(_request: Request) -> Response:
    """GET /chat/completions: stored completions, which this server has none of, since it refuses `store`."""
    return json_response({"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False})


async def create_response(request: Request) -> Response:
    """POST /responses"""
    answers, owner = services(request).answers, owner_of(request)
    body = parse(await request.body(), ResponseBody).checked()
    writer = ResponseWriter(body)
    ask = ChatAsk(
        id=answers.engine.next_number(),
        messages=body.messages(),
        sampling=body.sampling(answers.limits),
        adapter=answers.models.find(body.model, owner).adapter,
        owner=owner,
        stream=bool(body.stream),
        tools=body.offer(),
    )
    if body.stream:
        return await _streamed(writer, request, ask)
    try:
        tell = await _while_there(request, answers.engine.ask(ask))
    except _ClientLeftError:
        return Response(status_code=_CLIENT_LEFT)
    assert isinstance(tell, ChoicesTell)
    services(request).charge(owner, usage(tell.prompt_tokens, tell.choices))
    return json_response(writer.whole(tell))


async def create_completion(request: Request) -> Response:
    """POST /completions"""
    answers, owner = services(request).answers, owner_of(request)
    body = parse(await request.body(), TextBody)
    asks = answers.text_asks(body, owner)
    if not body.stream:
        return await _charged(request, answers.text(body, asks))
    if len(asks) != 1:
        raise ApiError("Streaming takes one prompt at a time.", param="prompt")
    include = body.stream_options is not None and body.stream_options.include_usage
    stream = _TextStream(head("cmpl-", "text_completion", body.model), include)
    return await _streamed(stream, request, asks[0])


async def create_embedding(request: Request) -> Response:
    """POST /embeddings"""
    body = parse(await request.body(), EmbeddingBody)
    return await _charged(request, services(request).answers.embedding(body, owner_of(request)))


async def _charged(request: Request, asking: Coroutine[None, None, Record]) -> Response:
    try:
        answer = await _while_there(request, asking)
    except _ClientLeftError:
        return Response(status_code=_CLIENT_LEFT)
    services(request).charge(owner_of(request), answer["usage"])
    return json_response(answer)


# ---------------------------------------------------------------------------------------------- streaming
class _Stream(Protocol):
    """Turns the engine's pieces into a stream's events."""

    end: bytes

    def opening(self) -> list[dict[str, JsonValue]]: ...
    def pieces(self, tell: DeltaTell) -> list[dict[str, JsonValue]]: ...
    def closing(self, tell: ChoicesTell) -> list[dict[str, JsonValue]]: ...
    def failed(self, error: ApiError) -> dict[str, JsonValue]: ...
    def encoded(self, event: dict[str, JsonValue]) -> bytes: ...


class _ChatStream:
    """Turns the engine's pieces into chunks of a chat completion."""

    def __init__(self, head: dict[str, JsonValue], n: int, include_usage: bool, may_call: bool = False) -> None:
        self._head = head
        self._n = n
        self._first_content = None if may_call else ""
        self._usage: dict[str, JsonValue] = {"usage": None} if include_usage else {}

    def opening(self) -> list[dict[str, JsonValue]]:
        """The chunks before any text: every choice's role."""
        delta: JsonValue = {"role": "assistant", "content": self._first_content, "refusal": None}
        return [self._chunk(i, delta, None, None) for i in range(self._n)]

    def pieces(self, tell: DeltaTell) -> list[dict[str, JsonValue]]:
        """The chunks of one piece of text, or of a call; the scores of its tokens stand in the first one."""
        choice, scores = tell.choice, chat_logprobs(tell.scores)
        chunks: list[dict[str, JsonValue]] = []
        if tell.text or (tell.scores and not tell.calls):
            chunks.append(self._chunk(tell.index, {"content": tell.text} if tell.text else {}, scores, None))
            scores = None
        for piece in tell.calls:
            delta: JsonValue = {"tool_calls": [_call_delta(piece)]}
            chunks.append(self._chunk(tell.index, delta, scores, None))
            scores = None
        if choice is not None:
            chunks.append(self._chunk(tell.index, {}, None, choice.finish))
        return chunks

    def closing(self, tell: ChoicesTell) -> list[dict[str, JsonValue]]:
        """The final chunk with usage, if asked for."""
        if not self._usage:
            return []
        return [{**self._head, "choices": [], "usage": usage(tell.prompt_tokens, tell.choices)}]

    def failed(self, error: ApiError) -> dict[str, JsonValue]:
        """The last chunk of a stream that cannot go on."""
        return {"error": dict(error.body())}

    @staticmethod
    def encoded(event: dict[str, JsonValue]) -> bytes:
        """One server-sent event."""
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    end = b"data: [DONE]\n\n"
    """What follows the last chunk."""

    def _chunk(self, index: int, delta: JsonValue, logprobs: JsonValue, finish: str | None) -> dict[str, JsonValue]:
        choice: JsonValue = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "choices": [choice], **self._usage}


def _call_delta(piece: CallPiece) -> JsonValue:
    if piece.name is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    return {"index": piece.index, **chat_call(new_id("call_"), piece.name, piece.arguments)}


class _TextStream(_ChatStream):
    """Turns the engine's pieces into chunks of a text completion."""

    def __init__(self, head: dict[str, JsonValue], include_usage: bool) -> None:
        super().__init__(head, 0, include_usage)
        self._scored_characters: dict[int, int] = {}

    def pieces(self, tell: DeltaTell) -> list[dict[str, JsonValue]]:
        before = self._scored_characters.get(tell.index, 0)
        part: JsonValue = {
            "index": tell.index,
            "text": tell.text,
            "logprobs": text_logprobs(tell.scores, before),
            "finish_reason": tell.choice.finish if tell.choice is not None else None,
        }
        self._scored_characters[tell.index] = before + sum(len(score.text) for score in tell.scores or ())
        return [{**self._head, "choices": [part], **self._usage}]


async def _streamed(stream: _Stream, request: Request, ask: ChatAsk | TextAsk) -> Response:
    """Server-sent events; waits for the first piece, so that a refusal still gets its own status."""
    served, owner = services(request), owner_of(request)
    tells = served.engine.stream(ask)
    try:
        first = await _while_there(request, _next_of(tells))
    except _ClientLeftError:
        return Response(status_code=_CLIENT_LEFT)

    async def events() -> AsyncIterator[bytes]:
        async with aclosing(tells):
            for chunk in stream.opening():
                yield stream.encoded(chunk)
            tell = first
            try:
                while isinstance(tell, DeltaTell):
                    for chunk in stream.pieces(tell):
                        yield stream.encoded(chunk)
                    tell = await anext(tells)
                served.charge(owner, usage(tell.prompt_tokens, tell.choices))
                for chunk in stream.closing(tell):
                    yield stream.encoded(chunk)
                yield stream.end
            except ApiError as error:
                yield stream.encoded(stream.failed(error))

    return _ClosingStream(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _next_of(tells: AsyncGenerator[DeltaTell | ChoicesTell]) -> DeltaTell | ChoicesTell:
    return await anext(tells)


class _ClosingStream(StreamingResponse):
    """Closes its source however the response ends, also when the client disconnects within a chunk."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        source = self.body_iterator
        assert isinstance(source, AsyncGenerator)
        async with aclosing(source):
            await super().__call__(scope, receive, send)
