"""The messages between the API process and the engine process, as msgpack frames over a pipe.

A frame is four bytes of length (big-endian) and one message. Knows nothing of HTTP, torch or how either side
works.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Mapping
from typing import IO, TypeAlias

import msgspec

from semievol_providers.local.tool_calls import CallPiece, ToolOffer

LENGTH = struct.Struct(">I")


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to continue a prompt; `max_tokens` of None is whatever fits, up to `token_limit`."""

    seed: int
    max_tokens: int | None = None
    token_limit: int = 4096
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    schema: str | None = None


class ChatAsk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="chat"):
    """Answer a chat; `adapter` is a folder, None for the base model. Questions of one `owner` share their turns."""

    id: int
    messages: tuple[Mapping[str, object], ...]
    sampling: Sampling
    adapter: str | None = None
    owner: str = ""
    continue_last: bool = False
    reply_follows: bool = True
    stream: bool = False
    tools: ToolOffer | None = None


class TextAsk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="text"):
    """Continue a text, or token ids."""

    id: int
    prompt: str | tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    owner: str = ""
    stream: bool = False


class EmbedAsk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="embed"):
    """Embed texts, or token ids."""

    id: int
    inputs: tuple[str | tuple[int, ...], ...]
    adapter: str | None = None
    owner: str = ""


class ForgetAsk(msgspec.Struct, frozen=True, tag="forget"):
    """Free an adapter's memory. Has no answer."""

    adapter: str


class DropAsk(msgspec.Struct, frozen=True, tag="drop"):
    """Nobody waits for this request any more. Has no answer."""

    id: int


Ask: TypeAlias = ChatAsk | TextAsk | EmbedAsk | ForgetAsk | DropAsk


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """One token: its text, its bytes, its natural-log probability, and its alternatives."""

    text: str
    raw: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished continuation; `calls` are names and arguments of the functions that it calls."""

    index: int
    text: str
    finish: str
    tokens: int
    scores: tuple[TokenScore, ...] | None = None
    calls: tuple[tuple[str, str], ...] = ()


class ReadyTell(msgspec.Struct, frozen=True, tag="ready"):
    """The engine can be asked."""

    context_tokens: int


class ChoicesTell(msgspec.Struct, frozen=True, tag="choices"):
    """All continuations of a request."""

    id: int
    prompt_tokens: int
    choices: tuple[Choice, ...]


class DeltaTell(msgspec.Struct, frozen=True, omit_defaults=True, tag="delta"):
    """A piece of one continuation, with the scores of the tokens that end in it; `choice` is set on its last piece."""

    id: int
    index: int
    text: str
    choice: Choice | None = None
    scores: tuple[TokenScore, ...] | None = None
    calls: tuple[CallPiece, ...] = ()


class VectorsTell(msgspec.Struct, frozen=True, tag="vectors"):
    """Float32 little-endian vectors, one after the other."""

    id: int
    data: bytes
    dimensions: int
    prompt_tokens: int


class RefusalTell(msgspec.Struct, frozen=True, tag="refusal"):
    """A request that cannot be answered; `code` and `status` are the API's."""

    id: int
    message: str
    code: str | None = None
    status: int = 400
    param: str | None = None


class BeatTell(msgspec.Struct, frozen=True, tag="beat"):
    """The engine process lives, whatever it computes."""


Tell: TypeAlias = BeatTell | ReadyTell | ChoicesTell | DeltaTell | VectorsTell | RefusalTell


def frame(message: Ask | Tell) -> bytes:
    """One message as bytes for the pipe."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def read_ask(pipe: IO[bytes], decoder: msgspec.msgpack.Decoder[Ask]) -> Ask | None:
    """The next message, or None at the end of the pipe."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    body = pipe.read(LENGTH.unpack(head)[0])
    return decoder.decode(body)


_BEATS_PER_SILENCE = 6
_MOST_S = 5.0


class SharedPipe:
    """A pipe that several threads write whole messages to."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """One whole message, sent at once."""
        with self._lock:
            self._out.write(data)
            self._out.flush()

    def flush(self) -> None:
        """Nothing waits."""


def beat_every_s(silence_s: float) -> float:
    """How often to give a sign, for a reader that takes so long a silence for the end."""
    return min(_MOST_S, silence_s / _BEATS_PER_SILENCE)


def start_beating(pipe: SharedPipe, every_s: float) -> None:
    """Give signs until the process ends."""
    threading.Thread(target=_beat, args=(pipe, every_s), name="engine-pulse", daemon=True).start()


def _beat(pipe: SharedPipe, every_s: float) -> None:
    message = frame(BeatTell())
    while True:
        pipe.write(message)
        time.sleep(every_s)
