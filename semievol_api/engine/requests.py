"""The three kinds of request, each seen the same way: its key, its parts, its samples as rows and back.

A key is the BLAKE2b hash of everything in a request that can change its answer, and of the provider's
identity; `n` stays out, since samples are numbered. Knows nothing of storing, sending or pacing.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, cast

import msgspec
import numpy as np

from semievol_api.capabilities import ChatRequest, EmbedReply, EmbedRequest, OptionReply, OptionRequest, Pace, Reply
from semievol_api.engine.journal import Content, Found, Record
from semievol_api.records import Completion, Finish, JsonValue, Prompt, Usage

RequestT = TypeVar("RequestT", bound="_ModelRequest")
ReplyT = TypeVar("ReplyT", bound="_PacedReply")


@dataclass(frozen=True, slots=True)
class Ask(Generic[RequestT]):
    """One request of a stage, under the stage's own id."""

    id: str
    request: RequestT


@dataclass(frozen=True, slots=True)
class Answer(Generic[ReplyT]):
    """What became of one ask: a reply, or the reason why there is none.

    `cached` is True where nothing was sent for this ask: the journal held the reply, or an identical ask was
    on its way already. `too_long` is True where the failure is the prompt's length.
    """

    id: str
    reply: ReplyT | None
    failure: str | None = None
    cached: bool = False
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """One finished row of a stage, for whoever draws bars."""

    stage: str
    id: str
    cached: bool
    failed: bool


_KEY_BYTES = 20
_KEY_FORMAT = "semievol-key-1"
_encode = msgspec.msgpack.encode
_Extra = tuple[tuple[str, ...] | None, tuple[tuple[tuple[str, float], ...], ...] | None]
_decode_extra = msgspec.msgpack.Decoder(_Extra).decode


class _PacedReply(Protocol):
    """What every reply has."""

    @property
    def usage(self) -> Usage: ...

    @property
    def pace(self) -> Pace: ...


class _ModelRequest(Protocol):
    """What every request has."""

    @property
    def model(self) -> str: ...


class Kind(ABC, Generic[RequestT, ReplyT]):
    """One kind of request. `group` is how many asks one request may carry; `call` asks the provider once."""

    name: str
    group = 1

    def __init__(self, call: Callable[[RequestT], Awaitable[ReplyT]]) -> None:
        self.call = call

    @abstractmethod
    def key(self, identity: str, request: RequestT) -> bytes:
        """The hash that names the request's answers for ever; 20 bytes."""

    def model(self, request: RequestT) -> str:
        """The model that is asked."""
        return request.model

    def samples(self, request: RequestT) -> int:
        """How many samples the request wants."""
        return 1

    def part(self, requests: Sequence[RequestT], first: int, n: int) -> RequestT:
        """The request to send for samples first..first+n-1 of one request, or for a group of requests."""
        return requests[0]

    @abstractmethod
    def size(self, request: RequestT) -> tuple[int, int]:
        """UTF-8 bytes of all prompt text with room for the chat frame, and the most tokens of the answer."""

    @abstractmethod
    def contents(self, reply: ReplyT) -> list[Content]:
        """The reply's samples (or the group's answers), in order."""

    @abstractmethod
    def build(self, samples: Sequence[Found]) -> ReplyT:
        """A reply from stored samples."""


def _hash(parts: object) -> bytes:
    return hashlib.blake2b(_encode(parts), digest_size=_KEY_BYTES).digest()


def _turns(prompt: Prompt) -> list[tuple[str, ...]]:
    """What a model is shown; turns without further keys, and prompts without tools, are known as they always were."""
    turns: list[tuple[str, ...]] = [(t.role, t.content, *((t.more,) if t.more else ())) for t in prompt.messages]
    return [*turns, ("tools", prompt.tools)] if prompt.tools else turns


def _prompt_bytes(prompt: Prompt) -> int:
    """An upper bound of the prompt's tokens for byte-level tokenizers: its bytes, and 16 per turn."""
    size = 16 + len((prompt.prefill or "").encode()) + len(prompt.tools.encode())
    for turn in prompt.messages:
        text = turn.content + turn.more
        size += 16 + (len(text) if text.isascii() else len(text.encode()))
    return size


def _usage(samples: Sequence[Found]) -> Usage:
    return Usage(
        sum(s.prompt_tokens for s in samples),
        sum(s.completion_tokens for s in samples),
        sum(s.cached_tokens for s in samples),
    )


class ChatKind(Kind[ChatRequest, Reply]):
    """Chat requests: n samples each, log-probabilities as float32 in `numbers`, tokens and top in `extra`."""

    name = "chat"

    def key(self, identity: str, request: ChatRequest) -> bytes:
        return _hash(
            (
                _KEY_FORMAT,
                identity,
                self.name,
                request.model,
                _turns(request.prompt),
                request.prompt.prefill,
                request.max_tokens,
                float(request.temperature),
                float(request.top_p),
                request.seed,
                request.stop,
                request.logprobs,
                request.top_logprobs,
                *((request.schema,) if request.schema else ()),
            )
        )

    def samples(self, request: ChatRequest) -> int:
        return request.n

    def part(self, requests: Sequence[ChatRequest], first: int, n: int) -> ChatRequest:
        request = requests[0]
        if first == 0 and n == request.n:
            return request
        return replace(request, n=n, seed=_seed_of_part(request.seed, first), first_sample=first)

    def size(self, request: ChatRequest) -> tuple[int, int]:
        return _prompt_bytes(request.prompt), request.max_tokens * request.n

    def contents(self, reply: Reply) -> list[Content]:
        return self.contents_of(reply)

    @staticmethod
    def contents_of(reply: Reply) -> list[Content]:
        """The rows' contents of a reply, which need no request."""
        return [_completion_content(completion) for completion in reply.completions]

    def build(self, samples: Sequence[Found]) -> Reply:
        completions = tuple([_completion(found.content) for found in samples])
        return Reply(completions=completions, usage=_usage(samples))


def _seed_of_part(seed: int | None, first: int) -> int | None:
    """Later parts of a seeded request get a seed of their own, else they would repeat the first part."""
    if seed is None or first == 0:
        return seed
    return int.from_bytes(_hash((seed, first))[:4], "big") >> 1


def _completion_content(completion: Completion) -> Content:
    numbers = completion.token_logprobs
    extra = None
    if completion.tokens is not None or completion.top is not None:
        extra = _encode((completion.tokens, completion.top))
    return Content(
        _storable(completion.text),
        completion.finish,
        None if numbers is None else np.asarray(numbers, np.float32).tobytes(),
        extra,
    )


def _storable(text: str) -> str:
    """The text without lone surrogates, which some servers escape into their JSON."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _completion(content: Content) -> Completion:
    text, finish, numbers, extra = content
    tokens, top = _decode_extra(extra) if extra is not None else (None, None)
    return Completion(
        text=text or "",
        finish=cast(Finish, finish),
        token_logprobs=None if numbers is None else np.frombuffer(numbers, np.float32),
        tokens=tokens,
        top=top,
    )


class OptionKind(Kind[OptionRequest, OptionReply]):
    """Option readings: one sample, its log-probabilities as float64 in `numbers`, NaN where not shown; other tokens'
    in `extra`, as alternatives without a text."""

    name = "options"

    def key(self, identity: str, request: OptionRequest) -> bytes:
        prompt = request.prompt
        return _hash((_KEY_FORMAT, identity, self.name, request.model, _turns(prompt), prompt.prefill, request.labels))

    def size(self, request: OptionRequest) -> tuple[int, int]:
        return _prompt_bytes(request.prompt), 1

    def contents(self, reply: OptionReply) -> list[Content]:
        values = [np.nan if value is None else value for value in reply.logprobs]
        others = _encode((None, (tuple([("", value) for value in reply.others]),))) if reply.others else None
        return [Content(None, None, np.asarray(values, np.float64).tobytes(), others)]

    def build(self, samples: Sequence[Found]) -> OptionReply:
        content = samples[0].content
        values = np.frombuffer(content.numbers or b"", np.float64)
        shown = tuple(None if np.isnan(value) else float(value) for value in values)
        _, top = _decode_extra(content.extra) if content.extra else (None, None)
        others = tuple([value for place in top or () for _, value in place])
        return OptionReply(logprobs=shown, usage=_usage(samples), others=others)


class EmbedKind(Kind[EmbedRequest, EmbedReply]):
    """Embeddings: one text per ask, `group` texts per request, the vector as float32 in `numbers`."""

    name = "embed"

    def __init__(self, embed: Callable[[EmbedRequest], Awaitable[EmbedReply]], group: int) -> None:
        super().__init__(embed)
        self.group = group

    def key(self, identity: str, request: EmbedRequest) -> bytes:
        return _hash((_KEY_FORMAT, identity, self.name, request.model, request.texts))

    def part(self, requests: Sequence[EmbedRequest], first: int, n: int) -> EmbedRequest:
        return EmbedRequest(model=requests[0].model, texts=tuple(r.texts[0] for r in requests))

    def size(self, request: EmbedRequest) -> tuple[int, int]:
        return sum(len(text.encode()) + 2 for text in request.texts), 0

    def contents(self, reply: EmbedReply) -> list[Content]:
        vectors = np.ascontiguousarray(reply.vectors, np.float32)
        return [Content(None, None, vector.tobytes(), None) for vector in vectors]

    def build(self, samples: Sequence[Found]) -> EmbedReply:
        vector = np.frombuffer(samples[0].content.numbers or b"", np.float32)
        return EmbedReply(vectors=vector.reshape(1, -1), usage=_usage(samples))


def as_json(record: Record) -> dict[str, JsonValue]:
    """One line of an export; log-probabilities and vectors are lists of numbers, null where unknown."""
    source, found = record.source, record.found
    line: dict[str, JsonValue] = {
        "key": record.key.hex(),
        "sample": found.sample,
        "ask_id": record.ask_id,
        "stage": source.stage,
        "kind": source.kind,
        "model": source.model,
        "provider": source.provider,
        "run": source.run,
        "mode": source.mode,
        "prompt_tokens": found.prompt_tokens,
        "cached_tokens": found.cached_tokens,
        "completion_tokens": found.completion_tokens,
        "usd": record.usd,
        "at": record.at,
    }
    content = found.content
    if source.kind == "chat":
        line |= {"text": content.text, "finish": content.finish, "token_logprobs": None, "tokens": None, "top": None}
        if content.numbers is not None:
            line["token_logprobs"] = _numbers(content.numbers, "float32")
        if content.extra is not None:
            tokens, top = _decode_extra(content.extra)
            line["tokens"] = None if tokens is None else list(tokens)
            line["top"] = None if top is None else [[[text, value] for text, value in row] for row in top]
    else:
        kind = "float64" if source.kind == "options" else "float32"
        line["values"] = _numbers(content.numbers or b"", kind)
    return line


def _numbers(blob: bytes, kind: str) -> list[JsonValue]:
    values = np.frombuffer(blob, np.dtype(kind))
    return [float(value) if np.isfinite(value) else None for value in values]
