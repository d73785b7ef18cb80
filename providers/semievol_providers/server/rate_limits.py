"""How much each owner may ask: requests and tokens per minute, and requests at a time.

Rates are off unless set; a bucket holds a minute's worth and fills steadily. Tokens are charged when an answer is
known, so a bucket may go below zero and the owner waits. Knows nothing of HTTP or of what is asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.settings import Limits

_BOUNDS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Meter:
    """Counters since the server started; `text` adds the numbers of the moment."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One finished request."""
        self._requests[route, method, status] += 1
        self._buckets.update((route, bound) for bound in (*_BOUNDS_S, float("inf")) if seconds <= bound)
        self._seconds[route] += seconds  # type: ignore[assignment]

    def count_tokens(self, prompt: int, completion: int) -> None:
        """The tokens of one answer."""
        self._tokens["prompt"] += prompt
        self._tokens["completion"] += completion

    def text(self, now: Mapping[str, Mapping[str, float]]) -> str:
        """All numbers; `now` maps a gauge's name to its value for each label pair ("" for none)."""
        lines = list(self._counters())
        for name, values in now.items():
            lines.append(f"# TYPE semievol_{name} gauge")
            lines += [f"semievol_{name}{{{label}}} {value:g}" if label else f"semievol_{name} {value:g}"
                      for label, value in values.items()]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _counters(self) -> Iterable[str]:
        yield "# TYPE semievol_requests_total counter"
        for (route, method, status), count in sorted(self._requests.items()):
            yield f'semievol_requests_total{{route="{route}",method="{method}",status="{status}"}} {count}'
        yield "# TYPE semievol_request_seconds histogram"
        for route, seconds in sorted(self._seconds.items()):
            for bound in (*_BOUNDS_S, float("inf")):
                shown = "+Inf" if bound == float("inf") else f"{bound:g}"
                count = self._buckets[route, bound]
                yield f'semievol_request_seconds_bucket{{route="{route}",le="{shown}"}} {count}'
            yield f'semievol_request_seconds_sum{{route="{route}"}} {seconds:.6f}'
            yield f'semievol_request_seconds_count{{route="{route}"}} {self._buckets[route, float("inf")]}'
        yield "# TYPE semievol_tokens_total counter"
        for kind in ("prompt", "completion"):
            yield f'semievol_tokens_total{{kind="{kind}"}} {self._tokens[kind]}'


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
