"""A small server on loopback that speaks enough of the OpenAI protocol to be recorded.

Every chat answer is different, so a test sees which recording it was given. Keeps what it received, so a test
sees what left the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class SmallServer:
    """`limited` and `broken` count down the next answers that are a 429 or a cut connection."""

    base_url: str = ""
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    limited: int = 0
    broken: int = 0
    polls_left: int = 3
    delay_s: float = 0.0
    compress: bool = False
    extra: dict[str, str] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        number = len(self.seen) + 1
        self.seen.append((request.method, request.path_qs, dict(request.headers), body))
        if self.broken:
            self.broken -= 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=502)
        if self.limited and request.method == "POST":
            self.limited -= 1
            error = {"message": "slow down", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
            return web.json_response({"error": error}, status=429, headers={"retry-after": "20", **self.extra})
        await asyncio.sleep(self.delay_s)
        answer = web.json_response(self.content(request.path, number), headers=self.extra)
        if self.compress:
            answer.enable_compression()
        return answer

    def content(self, path: str, number: int) -> dict[str, object]:
        if path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": f"sample {number}", "refusal": None}
            choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
            return {
                "id": f"chatcmpl-{number}",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [choice],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            }
        if path.endswith("/files"):
            return {
                "id": f"file-{number}",
                "object": "file",
                "bytes": 3,
                "created_at": 1,
                "filename": "train.jsonl",
                "purpose": "fine-tune",
                "status": "processed",
            }
        if path.endswith("/models"):
            return {"object": "list", "data": []}
        self.polls_left -= 1
        return {"id": "job", "status": "running" if self.polls_left > 0 else "succeeded"}


@asynccontextmanager
async def small_server() -> AsyncGenerator[SmallServer, None]:
    """A running server and its address."""
    server = SmallServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
