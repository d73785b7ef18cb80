"""How much a kept-alive chat on `semievol serve` takes beyond the engine's own time.

    python -m benchmarks.serve_latency --json --check      # exit 1 above the promised ratio

The same questions in turns: to an engine in this process, and to a server through one connection that is kept open.
Medians, so that what else runs on the machine meets both. Knows nothing of throughput.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.serve import DEMO_MODEL
from benchmarks.serve_servers import semievol_server
from semievol_providers.local.engine import Engine
from semievol_providers.local.requests import EngineSettings, GenerateRequest

PROMISED = 1.3
TOKENS = 16


def _chat(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {i:04d}: " + " ".join(f"w{i * j % 97:02d}" for j in range(24))}]


def _engine_s(engine: Engine, i: int) -> float:
    since = time.perf_counter()
    prompt = engine.tokens.encode_chat(_chat(i))
    asked = GenerateRequest(prompt_ids=prompt, max_tokens=TOKENS, seed=i, temperature=0.0)
    engine.generate(asked).result()
    return time.perf_counter() - since


def _server_s(connection: HTTPConnection, path: str, body: dict[str, Any] | None) -> float:
    since = time.perf_counter()
    data = None if body is None else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, data, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}")
    return time.perf_counter() - since


def measure(count: int) -> dict[str, Any]:
    """Median milliseconds of a chat, in the engine and over HTTP, and of the list of models."""
    engine = Engine(str(DEMO_MODEL), EngineSettings())
    engine.start()
    own: list[float] = []
    served: list[float] = []
    listed: list[float] = []
    with tempfile.TemporaryDirectory() as folder, semievol_server(DEMO_MODEL, Path(folder), 1) as url:
        address = urlsplit(url)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=120)
        for i in range(-10, count):  # the first ones warm up
            body = {"model": "m", "messages": _chat(i), "max_tokens": TOKENS, "seed": i, "temperature": 0}
            times = (
                _engine_s(engine, i),
                _server_s(connection, "/v1/chat/completions", body),
                _server_s(connection, "/v1/models", None),
            )
            if i >= 0:
                for found, taken in zip((own, served, listed), times, strict=True):
                    found.append(taken)
        connection.close()
    engine.close()
    ratio = statistics.median(served) / statistics.median(own)
    figures = {"engine_ms": own, "served_ms": served, "models_ms": listed}
    medians = {name: round(1000 * statistics.median(found), 3) for name, found in figures.items()}
    return {"chats": count, **medians, "ratio": round(ratio, 3), "promised": PROMISED, "met": ratio <= PROMISED}


def main() -> int:
    """Measure, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where the promise is missed")
    parser.add_argument("--chats", type=int, default=300)
    asked = parser.parse_args()
    found = measure(asked.chats)
    sys.stdout.write(json.dumps(found, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not found["met"] else 0


if __name__ == "__main__":
    sys.exit(main())
