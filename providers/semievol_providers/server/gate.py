"""What every request passes first: its key, site, size and pace, its owner's rates, its log line and its count.

Log lines and metrics name the route and the status, never a prompt, a key or a path; the names and labels of /metrics
are a contract (docs/serve.md). Rates are off unless set. Knows nothing of what single routes do.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from semievol_providers.server.api_errors import ApiError, whole_number
from semievol_providers.server.settings import Limits, ServerSettings
from semievol_providers.server.state import new_id

_REQUEST_LOG = "semievol.server.requests"
_OPEN_PATHS = ("/healthz", "/")
_RATED_PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings")
_UPLOAD_PATH = "/v1/files"
_FORM_OVERHEAD_BYTES = 2**16
_log = logging.getLogger(_REQUEST_LOG)


@dataclass(slots=True)
class _Visit:
    """One request from its arrival to its end."""

    scope: Scope
    id: str
    since_s: float
    owner: str = ""
    status: int = 0
    received: int = 0

    @property
    def rated(self) -> bool:
        """Whether it counts against the owner's rates."""
        return self.scope["path"] in _RATED_PATHS and self.scope["method"] == "POST"


class Gate:
    """The outermost part of the application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, rates: RateLimits, meter: Meter) -> None:
        self._app = app
        self._settings = settings
        self._keys = KeyRing(settings.api_keys)
        self._rates = rates
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, new_id("req_"), time.monotonic())
        send = self._marked(visit, send)
        try:
            visit.owner = self._admitted(scope)
            scope.setdefault("state", {})["owner"] = visit.owner
            with self._rates.hold(visit.owner):
                if visit.rated:
                    self._rates.admit(visit.owner)
                await self._app(scope, _patient(visit, receive, self._settings.limits), send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        finally:
            self._note(visit)

    def _admitted(self, scope: Scope) -> str:
        """The owner.

        Raises:
            ApiError: no valid key, a foreign web page, or a body that says that it is too large.
        """
        headers = Headers(scope=scope)
        self._check_site(headers)
        is_open = scope["path"] in _OPEN_PATHS and headers.get("authorization") is None
        owner = "" if is_open else self._keys.owner(headers.get("authorization"))
        scope.setdefault("state", {})["known"] = bool(owner) or not self._settings.api_keys
        declared = headers.get("content-length", "0")
        limit = _body_limit(scope, self._settings.limits)
        length = whole_number(declared)
        if length is None or length > limit:
            raise _too_large(limit)
        return owner

    def _check_site(self, headers: Headers) -> None:
        """A page of another site must not use the browser of somebody who runs this server."""
        host, origin = headers.get("host", ""), headers.get("origin")
        own = ("127.0.0.1", "localhost", "::1", self._settings.host)
        if not self._settings.api_keys and _hostname(f"//{host}") not in own:
            raise ApiError(
                f"This server does not answer for the host {host!r}: without API keys it serves this machine only.",
                status=403,
                code="unknown_host",
            )
        if origin is not None and _host_and_port(origin) != host:
            raise ApiError(f"Requests from pages of {origin!r} are not allowed.", status=403, code="foreign_origin")

    def _marked(self, visit: _Visit, send: Send) -> Send:
        """Every answer carries the request's id, and what is left of the owner's rates."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = visit.id
                if visit.rated:
                    headers.update(self._rates.headers(visit.owner))
                if visit.status in (408, 413):  # the rest of the body is not worth reading
                    headers["connection"] = "close"
            await send(message)

        return marked

    def _note(self, visit: _Visit) -> None:
        scope, seconds = visit.scope, time.monotonic() - visit.since_s
        endpoint = scope.get("endpoint")
        route = endpoint.__name__.strip("_") if callable(endpoint) else "none"
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD") else "other"
        self._meter.count_request(route, method, visit.status, seconds)
        _log.info(
            "request",
            extra={
                "fields": {
                    "request": visit.id,
                    "route": route,
                    "method": method,
                    "status": visit.status,
                    "ms": round(seconds * 1000, 1),
                    "bytes": visit.received,
                    "owner": visit.owner[:8],
                }
            },
        )


def _patient(visit: _Visit, receive: Receive, limits: Limits) -> Receive:
    """The same body, refused as soon as it grows past its limit, pauses too long or trickles."""
    limit = _body_limit(visit.scope, limits)
    since_s = time.monotonic()
    ended = False

    async def patient() -> Message:
        nonlocal ended
        if ended:  # from here on it is waited for the client's leaving only
            return await receive()
        try:
            async with asyncio.timeout(limits.body_pause_s):
                message = await receive()
        except TimeoutError as error:
            raise _too_slow() from error
        visit.received += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if visit.received > limit:
            raise _too_large(limit)
        spent_s = time.monotonic() - since_s
        if not ended and visit.received < limits.body_bytes_per_s * (spent_s - limits.body_pause_s):
            raise _too_slow()
        return message

    return patient


def _body_limit(scope: Scope, limits: Limits) -> int:
    return limits.upload_bytes + _FORM_OVERHEAD_BYTES if scope["path"] == _UPLOAD_PATH else limits.body_bytes


def _host_and_port(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError as error:
        raise ApiError(f"The Origin header is no address: {url[:100]!r}.", code="invalid_origin") from error


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(f"The body is larger than {limit:,} bytes.", status=413, code="body_too_large")


def _too_slow() -> ApiError:
    return ApiError("The body came too slowly.", status=408, code="body_too_slow")


class _JsonLines(logging.Formatter):
    """Log records as JSON lines: time, level, event and fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = record.__dict__.get("fields", {})
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **(fields if isinstance(fields, dict) else {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json(loggers: Iterable[str], *, requests: bool) -> None:
    """Write these loggers to standard error as JSON lines; requests only if asked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    for name in (*loggers, _REQUEST_LOG):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if requests else logging.WARNING)


_OWNER_CHARACTERS = 32


class KeyRing:
    """The API keys of a server, kept as hashes; an owner is the hash of its key."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._hashes = tuple(_hash(key) for key in keys)

    def owner(self, authorization: str | None) -> str:
        """Who sent this Authorization header; empty where no key is asked for.

        Raises:
            ApiError: a key is needed and missing or wrong.
        """
        if not self._hashes:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        given = _hash(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                "Incorrect API key provided. Send one of this server's keys as 'Authorization: Bearer KEY'.",
                status=401,
                code="invalid_api_key",
            )
        return given[:_OWNER_CHARACTERS]


def owner_of_key(key: str) -> str:
    """The owner that stands for an API key in the state."""
    return _hash(key)[:_OWNER_CHARACTERS]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


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
        self._active: collections.Counter[str] = collections.Counter()

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


MEDIA_TYPE = "text/plain; version=0.0.4"
"""The format that `Meter.text` writes."""

_BOUNDS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Meter:
    """Counters since the server started; `text` adds the numbers of the moment."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "semievol_requests", "Finished requests.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "semievol_request_seconds",
            "How long a request took.",
            ("route",),
            buckets=_BOUNDS_S,
            registry=self._registry,
        )
        tokens = Counter("semievol_tokens", "Tokens read and written.", ("kind",), registry=self._registry)
        self._prompt, self._completion = tokens.labels("prompt"), tokens.labels("completion")

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One finished request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tokens(self, prompt: int, completion: int) -> None:
        """The tokens of one answer."""
        self._prompt.inc(prompt)
        self._completion.inc(completion)

    def text(self, now: Mapping[str, float], by_status: Mapping[str, Mapping[str, float]]) -> str:
        """All numbers: the counters, single gauges by name, and gauges by name and status."""
        return generate_latest(_Shown(self._registry, now, by_status)).decode()


@dataclass(frozen=True)
class _Shown(Collector):
    """The counters without the time when each began, which nobody was promised, and the gauges of the moment."""

    counters: CollectorRegistry
    now: Mapping[str, float]
    by_status: Mapping[str, Mapping[str, float]]

    def collect(self) -> Iterator[Metric]:
        for metric in self.counters.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        for name, value in self.now.items():
            yield GaugeMetricFamily(f"semievol_{name}", f"{name.replace('_', ' ')} now.".capitalize(), value=value)
        for name, counts in self.by_status.items():
            gauge = GaugeMetricFamily(f"semievol_{name}", f"{name} by status now.".capitalize(), labels=("status",))
            for status, count in counts.items():
                gauge.add_metric((status,), count)
            yield gauge


class _Cycle(Protocol):
    response_complete: bool


def patient_http(idle_s: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with a limit on the time without a request under way."""

    class PatientHttp(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
        """Looks at itself every `idle_s`: nothing asked since the last look is the end."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._look_at(asyncio.get_running_loop(), transport, None, first=True)

        def _look_at(
            self,
            loop: asyncio.AbstractEventLoop,
            transport: asyncio.BaseTransport,
            before: _Cycle | None,
            *,
            first: bool = False,
        ) -> None:
            cycle = cast("_Cycle | None", self.__dict__.get("cycle"))
            idle = cycle is None or cycle.response_complete
            if transport.is_closing():
                return
            if idle and cycle is before and not first:
                transport.close()
                return
            loop.call_later(idle_s, self._look_at, loop, transport, cycle)

    return PatientHttp
