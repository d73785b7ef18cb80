"""The official SDK's async client: raw answers out, our errors instead of its own, nothing retried.

The SDK is imported when the first call is made. Its own models are left aside: they take `"error": {}` for a
failure and closed lists of states for complete. Works with majors 2 (httpx) and 3 (httpx2). Knows nothing of
what is asked.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from semievol_providers.openai.errors import error_from_answer, error_on_the_way, invalid_answer
from semievol_providers.openai.settings import Connection

if TYPE_CHECKING:
    from openai import AsyncOpenAI


NewTransport: TypeAlias = Callable[[], Any]
"""Makes an async transport of the installed major's HTTP library (httpx2 for 3, httpx for 2)."""

_PAGE = 100
_TIMEOUT_S = 120.0
_NO_KEY = "none"
"""The SDK insists on a key; servers without keys don't read it."""


def installed_major() -> int:
    """The SDK's major version: 3 goes over httpx2, 2 over httpx."""
    return int(version("openai").partition(".")[0])


class RawAnswer(Protocol):
    """What `client.x.with_raw_response.y()` gives."""

    @property
    def content(self) -> bytes:
        """The body."""
        ...


class _Listed(Protocol):
    """Anything that stands in a list with cursor paging."""

    @property
    def id(self) -> str:
        """What the cursor points at."""
        ...


_ListedT = TypeVar("_ListedT", bound=_Listed)
_ShapeT = TypeVar("_ShapeT")


class Sdk:
    """One lazily made client per event loop; connections die with the loop that made them."""

    def __init__(self, connection: Connection, new_transport: NewTransport | None = None) -> None:
        self.connection = connection
        self._new_transport = new_transport
        self._client: AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, what: str, call: Callable[[AsyncOpenAI], Awaitable[RawAnswer]]) -> bytes:
        """The body of one call.

        Raises:
            RateLimitError, TransientError, RefusedError: see error_translation.py.
        """
        import openai

        try:
            return (await call(self._open())).content
        except openai.APIStatusError as error:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            body = error.response.content
            # From None: the SDK's message quotes the vendor, who may quote the key.
            raise error_from_answer(what, error.status_code, headers, body, self.connection) from None
        except openai.APIConnectionError as error:
            raise error_on_the_way(what, error, self.connection) from error

    async def ask_for(
        self, shape: type[_ShapeT], what: str, call: Callable[[AsyncOpenAI], Awaitable[RawAnswer]]
    ) -> _ShapeT:
        """The answer of one call, decoded; a body of another shape is a `TransientError`."""
        return self.decode(shape, what, await self.ask(what, call))

    def decode(self, shape: type[_ShapeT], what: str, body: bytes) -> _ShapeT:
        """A body as a value of the shape; a `TransientError` where it is none."""
        try:
            return msgspec.json.decode(body, type=shape)
        except msgspec.DecodeError as error:
            raise invalid_answer(what, body, self.connection) from error

    async def items(
        self, shape: type[_ListedT], what: str, call: Callable[[AsyncOpenAI, dict[str, Any]], Awaitable[RawAnswer]]
    ) -> AsyncIterator[_ListedT]:
        """Everything in a list, page after page; `call` passes the paging arguments on."""
        paging: dict[str, Any] = {"limit": _PAGE}
        while True:
            body = await self.ask(what, functools.partial(_on_page, call, paging))
            page = self.decode(_page_of(shape), what, body)
            for item in page.data:
                yield item
            last = page.data[-1].id if page.data else None
            if not page.has_more or not last or last == paging.get("after"):
                return
            paging = {"limit": _PAGE, "after": last}

    async def aclose(self) -> None:
        """Close the client; a later call opens a new one."""
        client, self._client, self._loop = self._client, None, None
        if client is not None:
            await client.close()

    def _open(self) -> AsyncOpenAI:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = _new_client(self.connection, self._new_transport), loop
        return self._client


async def _on_page(
    call: Callable[[AsyncOpenAI, dict[str, Any]], Awaitable[RawAnswer]], paging: dict[str, Any], client: AsyncOpenAI
) -> RawAnswer:
    return await call(client, paging)


class _Page(Struct):
    """Paging fields; subclassed per item by `_page_of`."""

    has_more: bool | None = None


def _page_of(shape: type[_ListedT]) -> Any:
    return msgspec.defstruct(f"PageOf{shape.__name__}", [("data", GenericAlias(list, (shape,)), [])], bases=(_Page,))


def _new_client(connection: Connection, new_transport: NewTransport | None) -> AsyncOpenAI:
    """A client that takes nothing from the environment but what the connection took itself."""
    import openai

    own_header = connection.key_header != "authorization"
    wire: dict[str, Any] = {"transport": new_transport()} if new_transport else {}
    if own_header:  # the SDK insists on a bearer key, which such a vendor would take for another kind of login
        wire["event_hooks"] = {"request": [_drop_bearer]}
    client = openai.AsyncOpenAI(
        api_key=connection.api_key or _NO_KEY,
        base_url=connection.base_url,
        timeout=connection.timeout_s or _TIMEOUT_S,
        max_retries=0,
        default_headers={connection.key_header: connection.api_key} if own_header else None,
        default_query={"api-version": connection.api_version} if connection.api_version else None,
        http_client=openai.DefaultAsyncHttpxClient(**wire) if wire else None,
    )
    client.organization, client.project = connection.organization, connection.project
    return client


async def _drop_bearer(request: Any) -> None:
    request.headers.pop("authorization", None)


class Deprecation(Struct, frozen=True):
    """Azure's dates of a model's end, in Unix seconds."""

    inference: int | None = None


class ModelFacts(Struct, frozen=True):
    """One model as its vendor tells it."""

    id: str
    created: int | None = None
    owned_by: str | None = None
    shutdown_date: str | None = None
    deprecation: Deprecation | None = None

    @property
    def end(self) -> str | None:
        """The ISO date from which the model does not answer; None where the vendor announces none."""
        if self.shutdown_date or self.deprecation is None or self.deprecation.inference is None:
            return self.shutdown_date
        return datetime.datetime.fromtimestamp(self.deprecation.inference, datetime.UTC).date().isoformat()
