"""How much each owner may ask: requests and tokens per minute, and requests at a time.

Rates are off unless set; a bucket holds a minute's worth and fills steadily. Tokens are charged when an answer is
known, so a bucket may go below zero and the owner waits. Knows nothing of HTTP or of what is asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.settings import Limits


@dataclass(slots=True)
class _Bucket:
    per_minute: int
    level: float
    at_s: float

    def fill(self, now_s: float) -> None:
        self.level = min(self.per_minute, self.level + (now_s - self.at_s) * self.per_minute / 60)
        self.at_s = now_s

    def wait_s(self, amount: float) -> float:
        """How long until this much is there."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


class RateLimits:
    """`hold` a place while a request runs, `admit` a question, `charge` its tokens, show the `headers`."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._active: Counter[str] = Counter()

    @contextmanager
    def hold(self, owner: str) -> Generator[None]:
        """Count a request while it runs.

        Raises:
            ApiError: the owner has too many at a time.
        """
        if self._active[owner] >= self._limits.requests_per_key:
            raise _too_many("You have too many requests under way at a time", 1.0)
        self._active[owner] += 1
        try:
            yield
        finally:
            self._active[owner] -= 1
            if not self._active[owner]:
                del self._active[owner]

    def admit(self, owner: str) -> None:
        """Take one request out of the owner's bucket.

        Raises:
            ApiError: it, or that of the tokens, is empty.
        """
        requests, tokens = self._bucket(owner, "requests"), self._bucket(owner, "tokens")
        waits = {
            "requests": requests.wait_s(1) if requests is not None else 0.0,
            "tokens": tokens.wait_s(1) if tokens is not None else 0.0,
        }
        for what, wait_s in waits.items():
            if wait_s > 0:
                raise _too_many(f"The limit of {what} per minute is reached", wait_s)
        if requests is not None:
            requests.level -= 1

    def charge(self, owner: str, tokens: int) -> None:
        """Take the tokens of one answer out of the owner's bucket."""
        bucket = self._bucket(owner, "tokens")
        if bucket is not None:
            bucket.level -= tokens

    def headers(self, owner: str) -> dict[str, str]:
        """The API's headers about what is left; empty where no rate is set."""
        found: dict[str, str] = {}
        for what in ("requests", "tokens"):
            bucket = self._bucket(owner, what)
            if bucket is not None:
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level)))
                found[f"x-ratelimit-reset-{what}"] = f"{bucket.wait_s(bucket.per_minute):.3f}s"
        return found

    def _bucket(self, owner: str, what: str) -> _Bucket | None:
        rates = {"requests": self._limits.requests_per_minute, "tokens": self._limits.tokens_per_minute}
        if not rates[what]:
            return None
        now_s = self._clock()
        bucket = self._buckets.setdefault((owner, what), _Bucket(rates[what], float(rates[what]), now_s))
        bucket.fill(now_s)
        return bucket


def _too_many(why: str, wait_s: float) -> ApiError:
    return ApiError(
        f"{why}. Try again in {wait_s:.3f}s.",
        status=429,
        code="rate_limit_exceeded",
        headers={"retry-after": str(max(1, round(wait_s + 0.5))), "retry-after-ms": str(int(wait_s * 1000) + 1)},
    )
