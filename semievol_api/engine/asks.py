"""The values that a stage and the engine exchange: an ask goes in, an answer with the same id comes out.

Knows nothing of how a request is sent, paced, stored or paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")


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
