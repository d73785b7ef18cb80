"""One account at Fireworks: its SDK's client, our errors instead of its own, and the names of what lies there.

The SDK is imported when the first call is made; nothing is tried again here. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from semievol_api.cassettes.http import sdk_transport
from semievol_api.errors import RefusedError
from semievol_providers.openai.errors import error_from_answer, error_on_the_way
from semievol_providers.openai.settings import Connection

if TYPE_CHECKING:
    from fireworks import AsyncFireworks

    from semievol_api.cassettes.http import HttpSend

_ValueT = TypeVar("_ValueT")
Call: TypeAlias = "Callable[[AsyncFireworks], Awaitable[_ValueT]]"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a model is deployed on; a `shape` of Fireworks' own takes the place of the other two."""

    accelerator: str
    count: int
    shape: str | None


class Account:
    """One lazily made client per event loop."""

    def __init__(self, name: str, url: str, connection: Connection, send: HttpSend) -> None:
        self.name = name
        self.connection = connection
        self._url = url
        self._send = send
        self._client: AsyncFireworks | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def resource(self, kind: str, name: str) -> str:
        """A resource's whole name: `accounts/ACCOUNT/models/NAME`."""
        return f"accounts/{self.name}/{kind}/{name}"

    async def ask(self, what: str, call: Call[_ValueT]) -> _ValueT:
        """What one call of the SDK gives.

        Raises:
            RateLimitError, TransientError, RefusedError: what its errors stand for.
        """
        import fireworks

        try:
            return await call(self._open())
        except fireworks.APIStatusError as error:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            body = error.response.content
            # From None: the SDK's message quotes the vendor, who may quote the key.
            raise error_from_answer(what, error.status_code, headers, body, self.connection) from None
        except fireworks.APIConnectionError as error:
            raise error_on_the_way(what, error, self.connection) from error

    async def look(self, what: str, call: Call[_ValueT]) -> _ValueT | None:
        """The same, or None where there is no such thing."""
        try:
            return await self.ask(what, call)
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def aclose(self) -> None:
        """Close the client; a later call opens a new one."""
        client, self._client, self._loop = self._client, None, None
        if client is not None:
            await client.close()

    def _open(self) -> AsyncFireworks:
        import fireworks
        import httpx

        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._client = fireworks.AsyncFireworks(
                api_key=self.connection.api_key or "none",
                account_id=self.name,
                base_url=self._url,
                timeout=self.connection.timeout_s or 120.0,
                max_retries=0,
                http_client=httpx.AsyncClient(transport=sdk_transport("httpx", self._send)),
            )
        return self._client


_NOT_FOUND = 404
