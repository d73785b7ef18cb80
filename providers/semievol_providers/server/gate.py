"""What every request passes first: who asks, from which site, how large, how slowly, how often; and its log line.

Log lines and metrics name the route and the status, never a prompt, a key or a path. Knows nothing of what single
routes do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.metrics import Meter
from semievol_providers.server.rate_limits import RateLimits
from semievol_providers.server.services import KeyRing
from semievol_providers.server.settings import Limits, ServerSettings
from semievol_providers.server.state import new_id

REQUEST_LOG = "semievol.server.requests"
_OPEN_PATHS = ("/healthz", "/")
_RATED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_UPLOAD_PATH = "/v1/files"
_FORM_OVERHEAD_BYTES = 2**16
_log = logging.getLogger(REQUEST_LOG)


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
        if not declared.isdigit() or int(declared) > limit:
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
        if origin is not None and urlsplit(origin).netloc != host:
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


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(f"The body is larger than {limit:,} bytes.", status=413, code="body_too_large")


def _too_slow() -> ApiError:
    return ApiError("The body came too slowly.", status=408, code="body_too_slow")


class JsonLines(logging.Formatter):
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
    handler.setFormatter(JsonLines())
    for name in (*loggers, REQUEST_LOG):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if requests else logging.WARNING)
