"""What the engine is asked and what it answers: frozen values of token ids and numbers.

Knows nothing of torch, chat templates, HTTP or where a request came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FinishReason: TypeAlias = Literal["stop", "length"]
DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16"]

EXACT_BYTES = 64 * 2**20
"""Models with at most so many bytes of weights owe equal bits on a CPU; the demo model has 10 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Ask for `n` continuations of one tokenised prompt.

    `adapter` is the folder of a PEFT adapter, None for the base model. Sample i draws from a random stream
    that depends on `seed` and `first_sample + i` only. `max_tokens` counts the end-of-turn token.
    `top_logprobs` of None asks for no log-probabilities at all, 0 for those of the chosen tokens. `schema` is the JSON
    schema that the answer is held to, `grammar` llguidance's Lark grammar in its place; log-probabilities stay those of
    the model that is held to nothing. Requests of one `owner` share their turns; it changes when an answer comes, never
    what it is.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    adapter: str | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    schema: str | None = None
    grammar: str | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """One token with its natural-log probability under the model at temperature 1."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOutput:
    """One continuation: its tokens without the end-of-turn token, and the text before any stop string.

    `logprobs[t]` belongs to `token_ids[t]`; `top[t]` lists the likeliest alternatives, best first. Both are
    None where the request asked for none. `counted_tokens` includes the end-of-turn token.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish: FinishReason
    counted_tokens: int
    logprobs: tuple[float, ...] | None = None
    top: tuple[tuple[TokenChoice, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a continuation as soon as it is certain: `output` is set on the last piece.

    `token_ids` are the tokens that end in this piece's text, with `logprobs` and `top` as in `SampleOutput`.
    """

    index: int
    text: str
    output: SampleOutput | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    top: tuple[tuple[TokenChoice, ...], ...] | None = None


DeltaSink: TypeAlias = Callable[[Delta], None]
"""Receives pieces on the engine's own thread: must return at once."""


@dataclass(frozen=True, slots=True)
class Generated:
    """All continuations of one request, in order of their index."""

    prompt_tokens: int
    samples: tuple[SampleOutput, ...]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Ask for the vector of every tokenised text."""

    inputs: tuple[tuple[int, ...], ...]
    adapter: str | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """`vectors` is float32, shape (texts, hidden size), rows of unit length."""

    vectors: NDArray[np.float32]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Ask how likely each group of tokens is as the next one after a tokenised prompt."""

    prompt_ids: tuple[int, ...]
    token_groups: tuple[tuple[int, ...], ...]
    adapter: str | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """`logprobs[i]` is the natural log of group i's probability; None where the group is empty."""

    logprobs: tuple[float | None, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How the engine runs; `threads`, `device` and `dtype` change a result's bits.

    `dtype` "auto": models up to `exact_limit_bytes` of weights are computed in float32 on a CPU, with equal bits in any
    company (decision 0006); others in bfloat16 where the device is fast at it, else in float32. At most `decode_rows`
    samples share a step; None leaves it to the memory. `prefill_s`: how long prompts are read before all that are under
    way have taken their next step. `cache_bytes`: memory for keys and values together; None takes a share of what is
    free. `adapter_cache_bytes`: memory for adapters together. `gather_s`: how long an idle engine waits for what
    arrives together.
    """

    threads: int = 1
    device: str = "cpu"
    dtype: DtypeName = "auto"
    exact_limit_bytes: int = EXACT_BYTES
    decode_rows: int | None = None
    prefill_s: float = 0.5
    cache_bytes: int | None = None
    adapter_cache_bytes: int = 1024 * 2**20
    gather_s: float = 0.001


class ContextLengthError(ValueError):
    """A prompt and its answer do not fit the model's context."""
