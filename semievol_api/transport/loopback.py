"""A cassette behind an address of this machine: for command lines and clients that only take a base URL.

    async with serve_loopback(cassette, upstream="https://api.openai.com/v1") as base_url:
        ...   # any client asks base_url; what is not replayed goes to upstream and is recorded

At replay `upstream` is never asked. A miss is answered with status 400 and the explanation, since no
exception can travel over HTTP; `cassette.finish()` raises it afterwards. Knows nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from semievol_api.errors import TransientError
from semievol_api.transport.cassette import Cassette, CassetteMiss

PREFIX = "/v1"
MAX_BODY_BYTES = 1 << 30
UPSTREAM_TIMEOUT_S = 600.0
_NOT_FORWARDED = frozenset(
    ("accept-encoding", "connection", "content-length", "host", "keep-alive", "te", "transfer-encoding")
)
_NOT_RETURNED = frozenset(("connection", "content-encoding", "content-length", "transfer-encoding"))


@asynccontextmanager
async def serve_loopback(
    cassette: Cassette, upstream: str = "http://nobody.invalid/v1", port: int = 0
) -> AsyncGenerator[str, None]:
    """Serve on 127.0.0.1 (port 0: any free one); gives the base URL to use, which ends with /v1."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await _forward(cassette, upstream.rstrip("/"), request)

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}"
    finally:
        await runner.cleanup()


async def _forward(cassette: Cassette, upstream: str, request: web.Request) -> web.StreamResponse:
    headers = {name.lower(): text for name, text in request.headers.items() if name.lower() not in _NOT_FORWARDED}
    url = upstream + request.raw_path.removeprefix(PREFIX)
    body = await request.read() or None
    try:
        answer = await cassette.send(request.method, url, body, headers, UPSTREAM_TIMEOUT_S)
    except CassetteMiss as miss:
        error = {"message": str(miss), "type": "cassette_miss", "param": None, "code": "cassette_miss"}
        return web.json_response({"error": error}, status=400, headers={"x-should-retry": "false"})
    except TransientError:
        if request.transport is not None:
            request.transport.abort()  # the client sees what the recorder saw: a connection that broke
        return web.Response(status=502)
    kept = {name: text for name, text in answer.headers.items() if name not in _NOT_RETURNED}
    return web.Response(status=answer.status, body=answer.body, headers=kept)
