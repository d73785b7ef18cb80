"""The least that a client can do: aiohttp and msgspec, no journal, no pacing, no retry.

What the engine costs is told in multiples of this. Knows nothing of the project's own code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec


class Token(msgspec.Struct):
    """One token of an answer."""

    logprob: float


class Logprobs(msgspec.Struct):
    """The chosen tokens."""

    content: list[Token]


class Turn(msgspec.Struct):
    """The answer's turn."""

    content: str


class Choice(msgspec.Struct):
    """One completion."""

    message: Turn
    logprobs: Logprobs
    finish_reason: str


class Body(msgspec.Struct):
    """An answer."""

    choices: list[Choice]


async def ask_all(
    settings: dict[str, Any], prompt: Callable[[int], str], model: str, answered: Callable[[int, str], None]
) -> None:
    """Ask every row once, `in_flight` at a time."""
    decode = msgspec.json.Decoder(Body).decode
    rows = iter(range(settings["rows"]))
    headers = {"authorization": "Bearer sk-mock", "content-type": "application/json"}
    url = settings["url"] + "/chat/completions"

    async def work(session: aiohttp.ClientSession) -> None:
        for row in rows:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": prompt(row)}],
                "max_tokens": settings["tokens"],
                "temperature": 0.0,
                "logprobs": True,
            }
            async with session.post(url, data=msgspec.json.encode(body), headers=headers) as answer:
                answered(row, decode(await answer.read()).choices[0].message.content)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        await asyncio.gather(*(work(session) for _ in range(settings["in_flight"])))
