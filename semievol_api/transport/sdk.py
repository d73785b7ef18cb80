"""Put an `HttpSend` under a vendor's SDK: async transports for httpx and httpx2.

Both packages have the same transport interface under different names; either is imported only when asked for.
Knows nothing of cassettes: anything that sends will do.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from semievol_api.errors import MissingExtraError, TransientError
from semievol_api.transport.http import HttpSend

DEFAULT_TIMEOUT_S = 600.0
_GONE_AFTER_DECODING = frozenset(("content-encoding", "content-length", "transfer-encoding"))


def sdk_transport(package: Literal["httpx", "httpx2"], send: HttpSend) -> Any:
    """An instance of the package's `AsyncBaseTransport` that sends through `send`.

    Answers are read whole, so a streamed response arrives in one piece.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        library = import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, "dev", f"A cassette under a client that uses {package}") from error

    class SendTransport(library.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            timeout = request.extensions.get("timeout", {})
            try:
                answer = await send(
                    request.method,
                    str(request.url),
                    await request.aread(),
                    dict(request.headers),
                    timeout.get("read") or DEFAULT_TIMEOUT_S,
                )
            except TransientError as error:
                raise library.ConnectError(str(error), request=request) from error
            kept = {name: text for name, text in answer.headers.items() if name not in _GONE_AFTER_DECODING}
            return library.Response(answer.status, headers=kept, content=answer.body, request=request)

    return SendTransport()
