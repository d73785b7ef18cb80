"""How quickly cassettes load and replay, and whether that stays so when they grow.

    python -m benchmarks.cassettes --json            # all sizes, about a minute
    python -m benchmarks.cassettes --quick --check   # small sizes; exit 1 below the targets

Exchanges look like the pipeline's: a few-shot prompt of 1.5 kB, an answer with log-probabilities. Nothing
touches the network, so time is the CPU time of this one process and other programs do not disturb it.
vcrpy is measured beside it where it is installed. Knows nothing of providers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
from semievol_api.cassettes.exchange import EXCHANGES, package_versions
from semievol_api.cassettes.http import HttpResponse

URL = "http://nobody.invalid/v1/chat/completions"
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-benchmark-0123456789abcdef"}
IN_FLIGHT = 64
TARGETS = {"load_s": 2.0, "sdk_per_s": 300.0, "hot_path_per_s": 3000.0, "growth_ratio": 1.3}
WORDS = (
    "the",
    "a",
    "of",
    "cell",
    "force",
    "market",
    "river",
    "which",
    "following",
    "most",
    "likely",
    "energy",
)


@dataclass(frozen=True)
class Sizes:
    """How many exchanges each measurement uses."""

    small: int
    loaded: int
    large: int
    through_sdk: int
    through_vcr: int


FULL = Sizes(small=1_000, loaded=20_000, large=100_000, through_sdk=2_000, through_vcr=1_000)
QUICK = Sizes(small=1_000, loaded=4_000, large=10_000, through_sdk=500, through_vcr=100)


def messages(number: int) -> list[dict[str, str]]:
    """A prompt with examples, different for every number."""
    chance = random.Random(number)
    examples = "\n\n".join(" ".join(chance.choices(WORDS, k=40)) for _ in range(5))
    return [
        {"role": "system", "content": examples},
        {"role": "user", "content": f"Question {number}: which?"},
    ]


def request_body(number: int) -> bytes:
    """The JSON of one chat request."""
    body = {"model": "m", "messages": messages(number), "n": 1, "logprobs": True, "top_logprobs": 5}
    return json.dumps(body).encode()


def response_body(number: int) -> bytes:
    """The JSON of one chat answer with log-probabilities."""
    chance = random.Random(-number)

    def token(text: str) -> dict[str, Any]:
        return {"token": text, "logprob": -chance.random(), "bytes": list(text.encode())}

    content = [{**token(text), "top_logprobs": [token(text) for _ in range(5)]} for text in ("Answer", ":", " C")]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "Answer: C", "refusal": None},
        "logprobs": {"content": content, "refusal": None},
    }
    answer = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 300, "completion_tokens": 3, "total_tokens": 303},
    }
    return json.dumps(answer).encode()


async def record(path: Path, count: int) -> None:
    """Fill a cassette without a server."""
    number = 0

    async def live(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        return HttpResponse(200, {"content-type": "application/json"}, response_body(number))

    async with open_cassette(path, "record", CassetteSettings(live=live)) as cassette:
        for number in range(count):
            await cassette.send("POST", URL, request_body(number), HEADERS, 1.0)


async def replay_hot_path(path: Path, count: int, *, rounds: int = 1) -> tuple[float, float]:
    """Load time in seconds, and the best rate in requests a second over `rounds`."""
    bodies = [request_body(number) for number in range(count)]
    best, load_s = 0.0, float("inf")
    for _ in range(rounds):
        start = time.process_time()
        cassette = open_cassette(path, "replay", CassetteSettings(allow_unplayed=True))
        load_s = min(load_s, time.process_time() - start)
        waiting = iter(bodies)

        async def worker(cassette: Any = cassette, waiting: Any = waiting) -> None:
            for body in waiting:
                await cassette.send("POST", URL, body, HEADERS, 1.0)

        start = time.process_time()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        best = max(best, count / (time.process_time() - start))
        await cassette.aclose()
    return load_s, best


async def replay_sdk(path: Path, count: int) -> float:
    """Requests a second through AsyncOpenAI."""
    openai = import_module("openai")
    library = "httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx"
    async with open_cassette(path, "replay", CassetteSettings(allow_unplayed=True)) as cassette:
        transport = cassette.httpx2_transport() if library == "httpx2" else cassette.httpx_transport()
        http_client = import_module(library).AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            api_key="k", base_url="http://nobody.invalid/v1", http_client=http_client
        ) as client:
            waiting = iter(range(count))

            async def worker() -> None:
                for number in waiting:
                    await client.chat.completions.create(
                        model="m", messages=messages(number), n=1, logprobs=True, top_logprobs=5
                    )

            start = time.process_time()
            await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
            return count / (time.process_time() - start)


def vcr_file(path: Path, count: int) -> None:
    """The same exchanges as vcrpy writes them."""
    yaml = import_module("yaml")
    interactions = [
        {
            "request": {"method": "POST", "uri": URL, "body": request_body(n).decode(), "headers": {}},
            "response": {
                "status": {"code": 200, "message": "OK"},
                "headers": {"Content-Type": ["application/json"]},
                "body": {"string": response_body(n).decode()},
            },
        }
        for n in range(count)
    ]
    path.write_text(yaml.dump({"version": 1, "interactions": interactions}, Dumper=yaml.CDumper))


async def replay_vcr(path: Path, count: int) -> dict[str, float]:
    """vcrpy under a bare aiohttp client, matching on the body as these requests need."""
    vcr, aiohttp = import_module("vcr"), import_module("aiohttp")
    start = time.process_time()
    with (
        vcr.use_cassette(str(path), record_mode="none", match_on=["method", "uri", "body"]),
        vcr.use_cassette(str(path), record_mode="none", match_on=["method", "uri", "body"]) as cassette,
    ):
        load_s = (time.process_time() - start) / 2
        async with aiohttp.ClientSession() as session:
            start = time.process_time()
            for number in range(count):
                async with session.post(URL, data=request_body(number), headers=HEADERS) as answer:
                    await answer.read()
            rate = count / (time.process_time() - start)
        assert cassette.play_count == count
    return {"exchanges": count, "load_s": load_s, "per_s": rate}


async def measure(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """All numbers of one run."""
    small, loaded, large = folder / "small", folder / "loaded", folder / "large"
    await record(small, sizes.small)
    await record(loaded, sizes.loaded)
    await record(large, sizes.large)
    load_s, hot = await replay_hot_path(loaded, sizes.loaded)
    _, hot_small = await replay_hot_path(small, sizes.small, rounds=5)
    _, hot_large = await replay_hot_path(large, sizes.large, rounds=2)
    results: dict[str, Any] = {
        "sizes": vars(sizes),
        "load_s": load_s,
        "megabytes": (loaded / EXCHANGES).stat().st_size / 1e6,
        "hot_path_per_s": hot,
        "hot_path_per_s_small": hot_small,
        "hot_path_per_s_large": hot_large,
        "growth_ratio": hot_small / hot_large,
        "sdk_per_s": await replay_sdk(loaded, sizes.through_sdk),
        "vcrpy": None,
        "python": platform.python_version(),
        "packages": package_versions(),
    }
    if find_spec("vcr") is not None:
        vcr_file(folder / "vcr.yaml", sizes.through_vcr)
        results["vcrpy"] = await replay_vcr(folder / "vcr.yaml", sizes.through_vcr)
    return results


def failures(results: dict[str, Any]) -> list[str]:
    """The targets that were missed."""
    missed: list[str] = []
    for name, target in TARGETS.items():
        highest = name in ("load_s", "growth_ratio")
        if (results[name] > target) == highest:
            missed.append(f"{name}: {results[name]:.3g}, target at {'most' if highest else 'least'} {target}")
    return missed


def main() -> int:
    """Measure, print, and with --check compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(measure(QUICK if options.quick else FULL, Path(folder)))
    missed = failures(results)
    if options.json:
        print(json.dumps({**results, "missed": missed}, indent=2))
    else:
        print("\n".join(f"{name:22} {value}" for name, value in results.items()))
        print("\n".join(missed) or "all targets met")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
