"""One client under load, in a process of its own: `python -m benchmarks.load '{"client": "engine", ...}'`.

Prints one JSON line: CPU seconds, wall seconds, peak memory, and what became of every row. Knows nothing of how
the figures are judged.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.mock import cores, pin

WORDS = "the quick brown fox jumps over a lazy dog while five wizards box with jugs of liquor "
MODEL = "gpt-4o-mini"


def prompt(row: int, characters: int = 1180) -> str:
    """About 300 tokens, with the row's own id in them."""
    return f"row-{row:08d} " + (WORDS * (characters // len(WORDS) + 1))[:characters]


def hash_of(row: int, text: str | None) -> int:
    """A number for one result; combined by exclusive or, so that order does not count."""
    return int.from_bytes(hashlib.blake2b(f"{row}:{text}".encode(), digest_size=16).digest(), "big")


class Outcome:
    """Counts what became of the rows."""

    def __init__(self, rows: int) -> None:
        self._seen = bytearray(rows)
        self._digest = 0
        self.failed = 0
        self.wrong = 0
        self.duplicated = 0
        self.failures: list[str] = []

    def row(self, row: int, text: str | None, failure: str | None = None) -> None:
        """One row came back."""
        self.duplicated += self._seen[row]
        self._digest ^= hash_of(row, text)
        self._seen[row] = 1
        if text is None:
            self.failed += 1
            if len(self.failures) < 5:
                self.failures.append(failure or "?")
        elif f"row-{row:08d}" not in text:
            self.wrong += 1

    def figures(self) -> dict[str, Any]:
        """The counts; `lost` are rows without an answer."""
        return {
            "lost": len(self._seen) - sum(self._seen) + self.failed,
            "duplicated": self.duplicated,
            "wrong": self.wrong,
            "failures": self.failures,
            "digest": f"{self._digest:032x}",
        }


async def engine_client(settings: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The request engine over the `openai` provider's hot path."""
    from semievol_api.capabilities import ChatRequest, ModelLimits, ProviderSettings
    from semievol_api.config.settings import Limits
    from semievol_api.engine import Ask, RequestEngine
    from semievol_api.errors import BudgetError
    from semievol_api.records import Message, Prompt
    from semievol_providers.openai import connect

    def asks() -> Iterator[Ask[ChatRequest]]:
        for row in range(settings["rows"]):
            turn = Message("user", prompt(row))
            request = ChatRequest(
                model=MODEL, prompt=Prompt((turn,)), max_tokens=settings["tokens"], temperature=0.0, logprobs=True
            )
            yield Ask(str(row), request)

    options = {"base_url": settings["url"], "api_key_env": "MOCK_KEY", "vendor": "openai"}
    environ = {"MOCK_KEY": "sk-mock"}
    provider = connect(ProviderSettings(name="mock", options=options, environ=environ))
    if "input_usd" in settings:
        from dataclasses import replace

        price = ModelLimits(input_usd=settings["input_usd"], output_usd=settings["output_usd"])
        provider = replace(provider, limits={MODEL: price})
    limits = Limits.model_validate(settings.get("limits", {}))
    figures: dict[str, Any] = {}
    async with RequestEngine.open(Path(settings["journal"]), limits) as engine:
        try:
            async for answer in engine.chat(provider, asks(), stage="load"):
                text = None if answer.reply is None else answer.reply.completions[0].text
                outcome.row(int(answer.id), text, answer.failure)
        except BudgetError as error:
            figures["budget"] = str(error)
        bill = engine.ledger.stages["load"]
        figures |= {
            "requests": bill.requests,
            "cached": bill.cached,
            "rate_limited": bill.rate_limited,
            "usd": bill.usd,
        }
    await provider.aclose()
    return figures


Ask = Callable[[str], Awaitable[str | None]]


async def _many(settings: dict[str, Any], outcome: Outcome, ask: Ask) -> None:
    rows = iter(range(settings["rows"]))

    async def work() -> None:
        for row in rows:
            try:
                outcome.row(row, await ask(prompt(row)))
            except Exception as error:  # noqa: BLE001 - whatever another client raises is a lost row
                outcome.row(row, None, f"{type(error).__name__}: {error}"[:200])

    await asyncio.gather(*(work() for _ in range(settings["in_flight"])))


async def sdk_client(settings: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The openai SDK as it comes."""
    import openai

    client = openai.AsyncOpenAI(api_key="sk-mock", base_url=settings["url"])

    async def ask(text: str) -> str | None:
        reply = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": text}],
            max_tokens=settings["tokens"],
            temperature=0.0,
            logprobs=True,
        )
        return reply.choices[0].message.content

    await ask(prompt(0))
    await _many(settings, outcome, ask)
    await client.close()
    return {"version": openai.__version__}


async def litellm_client(settings: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """litellm as it comes."""
    import litellm

    async def ask(text: str) -> str | None:
        reply = await litellm.acompletion(
            model=f"openai/{MODEL}",
            messages=[{"role": "user", "content": text}],
            max_tokens=settings["tokens"],
            temperature=0.0,
            logprobs=True,
            api_key="sk-mock",
            api_base=settings["url"],
        )
        content: str | None = reply.choices[0].message.content
        return content

    await ask(prompt(0))
    await _many(settings, outcome, ask)
    return {}


async def raw_client(settings: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The least that can be done; see `raw_client.py`."""
    from benchmarks.raw_client import ask_all

    await ask_all(settings, prompt, MODEL, outcome.row)
    return {}


CLIENTS = {"engine": engine_client, "raw": raw_client, "sdk": sdk_client, "litellm": litellm_client}


IMPORTS = {
    "engine": ("semievol_api.engine", "semievol_providers.openai", "semievol_api.cassettes.http"),
    "raw": ("benchmarks.raw_client",),
    "sdk": ("openai", "openai.resources.chat"),
    "litellm": ("litellm",),
}


async def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one client. Imports don't count: a run pays them once, whatever its size."""
    outcome = Outcome(settings["rows"])
    client = CLIENTS[settings["client"]]
    for module in IMPORTS[settings["client"]]:
        importlib.import_module(module)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    figures = await client(settings, outcome)
    figures |= {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
    figures |= {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **outcome.figures()}
    return figures


def main() -> None:
    """Run the client that the first argument describes."""
    settings = json.loads(sys.argv[1])
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else litellm asks the network while it is imported
    pin(cores()[1])
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    print(json.dumps(run(measured(settings))))


if __name__ == "__main__":
    main()
