"""One HTTP request in, one whole answer out: the seam between a provider's hot path and the wire.

A provider is given an `HttpSend` and never learns whether aiohttp, a cassette or a test stands behind it:

    send = AiohttpSend()
    answer = await send("POST", url, body, {"authorization": f"Bearer {key}"}, timeout_s=60.0)
    await send.aclose()

Knows nothing of JSON, vendors, retrying, pacing or cassettes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from semievol_api.errors import ConfigError, TransientError
from semievol_api.transport.deadlines import Deadlines

SLOT_HEADER = "x-semievol-slot"
"""Names the piece of work that a request belongs to, so that a cassette tells identical requests apart. It is
read by cassettes and never leaves this machine."""
_NO_TIMER = aiohttp.ClientTimeout(total=None, sock_connect=None)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete answer of any status. `headers` have lower-case names; `body` is already decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpSend(Protocol):
    """Sends one request and reads the whole answer; an answer with an error status is still an answer."""

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        """Ask once.

        Raises:
            TransientError: no connection, no answer within `timeout_s`, or an answer that broke off.
        """
        ...


class AiohttpSend:
    """`HttpSend` over one pooled aiohttp session, opened by the first request.

    `limit` caps the connections that are open at once (0: no cap; the engine bounds what is in flight).
    `trust_env` honours `HTTPS_PROXY` and its relatives, at some cost per request. Without `keep_alive` every
    request has a connection of its own, and nothing stays open between requests.
    """

    def __init__(self, *, limit: int = 0, trust_env: bool = False, keep_alive: bool = True) -> None:
        self._limit = limit
        self._trust_env = trust_env
        self._keep_alive = keep_alive
        self._session: aiohttp.ClientSession | None = None
        self._deadlines = Deadlines()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        """Ask once; see `HttpSend`.

        Raises:
            ConfigError: `url` is not an http address.
        """
        if SLOT_HEADER in headers:
            headers = {name: value for name, value in headers.items() if name != SLOT_HEADER}
        session = self._open()
        deadline = self._deadlines.begin(timeout_s)
        try:
            async with session.request(method, url, data=body, headers=headers, timeout=_NO_TIMER) as answer:
                content = await answer.read()
        except asyncio.CancelledError:
            if not self._deadlines.passed(deadline):
                raise
            raise TransientError(f"{_where(method, url)} gave no answer within {timeout_s:g} s.") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ConfigError(
                f"{url!r} is not an address that can be asked. Check base_url: it begins with "
                f"http:// or https:// and usually ends with /v1."
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(
                f"{_where(method, url)} failed on the way: {str(error) or type(error).__name__}."
            ) from error
        finally:
            self._deadlines.end(deadline)
            if not self._keep_alive:
                await session.close()
        return HttpResponse(answer.status, {name.lower(): value for name, value in answer.headers.items()}, content)

    async def aclose(self) -> None:
        """Close the pooled connections; a later request opens new ones."""
        session, self._session, self._loop = self._session, None, None
        self._deadlines.close()
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections and timers die with the loop that made them
            self._session, self._loop, self._deadlines = None, loop, Deadlines()
        if not self._keep_alive:
            return self._new_session()
        if self._session is None:
            self._session = self._new_session()
        return self._session

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limit, force_close=not self._keep_alive),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._trust_env,
        )


def _where(method: str, url: str) -> str:
    return f"{method} {url.partition('?')[0]}"
