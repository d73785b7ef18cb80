"""The mock server in Python, for machines without a compiler: the options, paths and counters of mock_server.c.

    python benchmarks/mock_server.py --port 0 --latency 50        prints the port that it listens on

Slower than the C server: figures taken with it say less about the client. Knows nothing of clients.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from urllib.parse import parse_qsl

DEFAULTS = {
    "port": 8099, "latency": 50, "jitter": 0, "rpm": 0, "tpm": 0, "burst": 0, "tburst": 0, "tokens": 16, "top": 0,
    "dim": 256, "fail": 0, "drop": 0, "count429": 0, "ra": 2, "busy": 0, "bad": 0, "stall": 0, "stall_ms": 10_000,
    "refuse": 0,
}  # fmt: skip
COUNTERS = (
    "conns", "need", "billed", "bad", "stalled", "busy", "refused", "total", "ok", "r429", "r500", "dropped", "emb",
    "max_inflight", "bytes_in",
)  # fmt: skip
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


class State:
    """Options, counters and buckets of the server."""

    def __init__(self, options: dict[str, int]) -> None:
        self.options = {**DEFAULTS, **options}
        self.rows: dict[int, int] = {}
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Zero the counters and fill the buckets."""
        self.counts: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self.first_s = self.last_s = 0.0
        self.level = {"rpm": self.holds("rpm"), "tpm": self.holds("tpm")}
        self.filled_s = time.monotonic()

    def holds(self, quota: str) -> float:
        """What a quota's bucket holds: its burst, else a second's worth."""
        burst = self.options["burst" if quota == "rpm" else "tburst"]
        return float(burst or max(1.0, self.options[quota] / 60))

    def chance(self, trouble: str) -> bool:
        """True with the option's probability per million."""
        return random.random() * 1_000_000 < self.options[trouble]

    def admit(self, need: float) -> float:
        """Take from both buckets; seconds to wait where one is too empty."""
        now_s = time.monotonic()
        passed_s, self.filled_s = now_s - self.filled_s, now_s
        wait_s = 0.0
        for quota, amount in (("rpm", 1.0), ("tpm", need)):
            per_minute = self.options[quota]
            if not per_minute:
                continue
            self.level[quota] = min(self.holds(quota), self.level[quota] + passed_s * per_minute / 60)
            wait_s = max(wait_s, (amount - self.level[quota]) * 60 / per_minute)
        if wait_s > 0:
            return wait_s
        self.level["rpm"] -= 1
        self.level["tpm"] -= need
        self.counts["need"] += need
        return 0.0

    def pace_headers(self) -> dict[str, str]:
        """What a server says about its quotas."""
        headers: dict[str, str] = {}
        for quota, name in (("rpm", "requests"), ("tpm", "tokens")):
            limit = self.options[quota]
            if limit:
                left = max(0.0, self.level[quota])
                headers[f"x-ratelimit-limit-{name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(int(left))
                headers[f"x-ratelimit-reset-{name}"] = f"{int((self.holds(quota) - left) * 60_000 / limit) + 1}ms"
        return headers

    def chat(self, row: str) -> bytes:
        """A valid answer that echoes the request's row."""
        size = self.options["tokens"]
        entry = {"token": " word", "bytes": [32, 65, 66], "top_logprobs": []}
        logprobs = [{**entry, "logprob": -(1000 + i * 37 % 9000) / 100_000} for i in range(size)]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "word " * max(0, size - 3) + f"Answer: B row-{row}"},
            "logprobs": {"content": logprobs},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 300, "completion_tokens": size, "total_tokens": 300 + size}
        return json.dumps({"id": "mock", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()

    def embeddings(self, body: dict[str, object]) -> bytes:
        """One vector per input."""
        inputs = body.get("input")
        count = len(inputs) if isinstance(inputs, list) else 1
        vector = [0.1] * self.options["dim"]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i in range(count)]
        return json.dumps({"data": data, "usage": {"prompt_tokens": count, "total_tokens": count}}).encode()


class Connection:
    """One client's connection: requests one after another."""

    def __init__(self, state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.state = state
        self.reader = reader
        self.writer = writer

    async def serve(self) -> None:
        """Answer until the client leaves."""
        self.state.counts["conns"] += 1
        try:
            while True:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                found = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
                body = await self.reader.readexactly(int(found[1]) if found else 0)
                method, path, _ = head.split(" ", 2)
                if not await self._answer(method, path, body):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.writer.close()

    async def _answer(self, method: str, path: str, body: bytes) -> bool:
        if path.startswith("/__"):
            return await self._control(path)
        if not path.endswith(("/chat/completions", "/embeddings")):
            return await self._send(404, b'{"error":{"message":"no such route"}}')
        state = self.state
        state.in_flight += 1
        state.counts["max_inflight"] = max(state.counts["max_inflight"], state.in_flight)
        try:
            return await self._ask(path, body)
        finally:
            state.in_flight -= 1

    async def _control(self, path: str) -> bool:
        state, (page, _, query) = self.state, path.partition("?")
        values = dict(parse_qsl(query))
        if page == "/__config":
            state.options |= {name: int(value) for name, value in values.items() if name in DEFAULTS}
            if values.get("zero"):
                state.rows.clear()
            state.reset()
        if page == "/__rows":
            first, count = int(values["from"]), int(values["n"])
            return await self._send(200, json.dumps([state.rows.get(first + i, 0) for i in range(count)]).encode())
        return await self._send(200, json.dumps({**state.counts, "span_s": state.last_s - state.first_s}).encode())

    async def _ask(self, path: str, body: bytes) -> bool:
        state, now_s = self.state, time.monotonic()
        state.first_s = state.first_s if state.counts["total"] else now_s
        state.last_s = now_s
        state.counts["total"] += 1
        state.counts["bytes_in"] += len(body)
        limit = re.search(rb'"max_(?:completion_)?tokens": *(\d+)', body)
        wait_s = state.admit(len(body) / 4 + (int(limit[1]) if limit else 0))
        if wait_s > 0 or state.chance("busy"):
            state.counts["r429" if wait_s > 0 else "busy"] += 1
            wait_ms = int((wait_s or 0.02) * 1000) + 1
            headers = {"retry-after": str(wait_ms // 1000 + 1), "retry-after-ms": str(wait_ms)}
            told = {name: headers[name] for name in list(headers)[: state.options["ra"]]}
            return await self._send(429, b'{"error":{"message":"Slow down","code":"rate_limit_exceeded"}}', told)
        headers = state.pace_headers()
        pause_s = (state.options["latency"] + random.random() * state.options["jitter"]) / 1000
        for trouble, counter, status in (("fail", "r500", 500), ("refuse", "refused", 400)):
            if state.chance(trouble):
                state.counts[counter] += 1
                await asyncio.sleep(pause_s)
                return await self._send(status, b'{"error":{"message":"No","code":"no"}}', headers)
        return await self._bill(path, body, pause_s, headers)

    async def _bill(self, path: str, body: bytes, pause_s: float, headers: dict[str, str]) -> bool:
        state = self.state
        found = re.search(rb"row-(\d{8})", body)
        row = found[1].decode() if found else "00000000"
        state.counts["billed"] += 1
        state.rows[int(row)] = state.rows.get(int(row), 0) + 1
        if state.chance("drop"):
            state.counts["dropped"] += 1
            await asyncio.sleep(pause_s)
            return False
        if state.chance("stall"):
            state.counts["stalled"] += 1
            pause_s = state.options["stall_ms"] / 1000
        await asyncio.sleep(pause_s)
        if path.endswith("/embeddings"):
            state.counts["emb"] += 1
            return await self._send(200, state.embeddings(json.loads(body)), headers)
        answer = state.chat(row)
        if state.chance("bad"):
            state.counts["bad"] += 1
            return await self._send(200, answer[: len(answer) * 2 // 3], headers)
        state.counts["ok"] += 1
        return await self._send(200, answer, headers)

    async def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> bool:
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()
        return True


async def main(arguments: list[str]) -> None:
    """Serve until killed."""
    names = [name.removeprefix("--") for name in arguments[::2]]
    state = State(dict(zip(names, map(int, arguments[1::2]), strict=True)))
    server = await asyncio.start_server(
        lambda reader, writer: Connection(state, reader, writer).serve(), "127.0.0.1", state.options["port"]
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
