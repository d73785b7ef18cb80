"""The 55 recorded exchanges with api.openai.com that ship as test data, for parsers to be tested on.

    for recorded in wire_exchanges(path="/fine_tuning/jobs", method="GET"):
        parse(recorded.response.body)

`WireSend` gives a provider one such answer over the seam of the hot path, whatever it asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from semievol_api.cassettes.exchange import load
from semievol_api.cassettes.http import HttpResponse

WIRE = Path(__file__).resolve().parent / "data" / "wire"


@dataclass(frozen=True)
class WireExchange:
    """One exchange. `session` is the recording it belongs to, such as `ChatTests__HelloWorldChat`."""

    session: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    request: bytes
    response: HttpResponse


@lru_cache(maxsize=1)
def _all() -> tuple[WireExchange, ...]:
    return tuple(
        WireExchange(
            session=one.slot.removeprefix("openai-dotnet__"),
            method=one.request.method,
            path=one.request.path,
            query=one.request.query,
            request=one.request.body.to_bytes(),
            response=one.response.to_http(),
        )
        for one in load(WIRE).exchanges.values()
    )


def wire_exchanges(
    session: str | None = None, method: str | None = None, path: str | None = None
) -> tuple[WireExchange, ...]:
    """The exchanges of one session, method and path beginning (each optional); never empty."""
    found = tuple(
        one
        for one in _all()
        if (session is None or one.session == session)
        and (method is None or one.method == method)
        and (path is None or one.path.startswith(path))
    )
    assert found, f"no recorded exchange for {session=} {method=} {path=}"
    return found


class WireSend:
    """An `HttpSend` that gives recorded answers in their order, whatever is asked; keeps what was asked."""

    def __init__(self, *answers: WireExchange) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, str, bytes | None]] = []

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        self.asked.append((method, url, body))
        return self._answers.pop(0).response
