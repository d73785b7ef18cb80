"""The rows of the journal as values: where an answer came from, what it cost, what it said.

Knows nothing of SQLite, nor of the requests and replies that rows are made from.
"""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """Who answered, for whom: the journal keeps its running totals per source."""

    run: str
    provider: str
    model: str
    kind: str
    stage: str
    mode: str


class Content(NamedTuple):
    """One sample's content. `numbers` are float32 or float64 values, `extra` is MessagePack; see `kinds`."""

    text: str | None
    finish: str | None
    numbers: bytes | None
    extra: bytes | None


class Row(NamedTuple):
    """One sample to be stored. Usage and cost of a request stand in the row of its first sample.

    `requests` is 1 in that row and 0 in the others, so that sums count each request once.
    """

    key: bytes
    sample: int
    source: Source
    ask_id: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usd: float
    content: Content


class Found(NamedTuple):
    """One sample read back, usage and content without its place."""

    sample: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    content: Content


class Record(NamedTuple):
    """One stored sample with everything that is known about it; `at` is seconds since 1970."""

    source: Source
    ask_id: str
    key: bytes
    found: Found
    usd: float
    at: int


class Total(NamedTuple):
    """The sums of one source."""

    source: Source
    requests: int
    samples: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usd: float
