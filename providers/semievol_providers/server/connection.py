"""An HTTP connection that is closed when it starts a request and never gets to its end of headers.

Knows nothing of requests or of the application.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol


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
