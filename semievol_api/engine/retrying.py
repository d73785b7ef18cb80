"""What is tried again, how often and after which waits: the only use of tenacity.

Knows nothing of what is tried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from semievol_api.errors import RateLimitError, TransientError
from semievol_api.transport.clock import Clock

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
ValueT = TypeVar("ValueT")


async def after_failure(
    first: TransientError, attempt: Callable[[], Awaitable[None]], attempts: int, clock: Clock
) -> None:
    """Go on after a first failed attempt, which counts as one of `attempts`; waits grow and are random.

    Raises:
        TransientError: the last attempt's.
    """
    known = [first]

    async def next_attempt() -> None:
        if known:
            raise known.pop()
        await attempt()

    await _retrying(attempts, clock, TransientError)(next_attempt)


async def until_it_works(attempt: Callable[[], Awaitable[ValueT]], attempts: int, clock: Clock) -> ValueT:
    """The value of the first attempt that neither fails on the way nor meets a 429."""

    async def once() -> ValueT:  # tenacity awaits coroutine functions only
        return await attempt()

    return await _retrying(attempts, clock, TransientError, RateLimitError)(once)


def _retrying(attempts: int, clock: Clock, *kinds: type[Exception]) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(kinds),
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        sleep=clock.sleep,
        reraise=True,
    )
