"""Connections that come to nothing: closed where a request never gets to its end of headers, noticed where one leaves.

Knows nothing of what is asked or of the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Protocol, TypeVar, cast

from starlette.requests import Request
from uvicorn.protocols.http.auto import AutoHTTPProtocol

T = TypeVar("T")
CLIENT_LEFT = 499
"""The status, for the log alone, of a request whose client left before its answer."""


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


async def while_there(request: Request, work: Coroutine[None, None, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client closes its connection.

    The request's body must have been read.

    Raises:
        ClientLeftError: it has.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


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
