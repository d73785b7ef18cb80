"""Record what went over the wire once; replay it offline, strictly, at memory speed.

    async with open_cassette(Path("cassettes/demo"), "replay") as cassette:
        provider = connect(settings, send=cassette.send)                       # the hot path
        client = AsyncOpenAI(http_client=httpx2.AsyncClient(transport=cassette.httpx2_transport()))
        ...

Leaving the block without an error writes a recording, or, at replay, fails if a recorded exchange was never
played. While recording, the caller is given what a replay will give: the answer without secrets.
Knows nothing of providers, pipelines or what the exchanges mean.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, cast, get_args
from urllib.parse import urlsplit

import msgspec

from semievol_api.cassettes.clock import Clock, RealClock, VirtualClock
from semievol_api.cassettes.compare import describe_difference, nearest_exchange
from semievol_api.cassettes.exchange import (
    Exchange,
    Manifest,
    Request,
    Response,
    canonical_request,
    is_cassette,
    load,
    package_versions,
    refuse_other_format,
    response_content,
    save,
)
from semievol_api.cassettes.http import SLOT_HEADER, AiohttpSend, HttpResponse, HttpSend, sdk_transport
from semievol_api.cassettes.miss import MODE_VARIABLE
from semievol_api.cassettes.miss import CassetteMiss as CassetteMiss
from semievol_api.cassettes.miss import CassetteMode as Mode
from semievol_api.cassettes.scrub import Scrubber, secret_values
from semievol_api.errors import ConfigError, TransientError, UserError

_SHORTENED_S = 0.001
"""What a replay says instead of a recorded `retry-after`; clients ignore a zero and fall back to seconds."""
_EXPLAINED_MISSES = 3
_GIVEN_UP = "When this was recorded, the request was given up before its answer came."
_LEARNED_SECRET = 16
"""Keys seen in request headers are scrubbed from bodies too, from this length on (local keys are words)."""
_RETRIED = frozenset((408, 409, 429, 500, 502, 503, 504))
_SECRET_HEADERS = frozenset(
    ("authorization", "api-key", "x-api-key", "cookie", "openai-organization", "openai-project")
)
_LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))


class CassetteUnplayed(UserError):
    """A replay ended before every recorded exchange was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CassetteSettings:
    """What a cassette may be told besides its path and mode.

    `secrets` are values to scrub besides those known by shape; `live` sends what is not replayed (default:
    aiohttp). `shorten_waits` makes a replay ask for millisecond pauses where the server asked for seconds.
    """

    seed: int | None = None
    recorded_against: str | None = None
    notes: str = ""
    secrets: tuple[str, ...] = ()
    live: HttpSend | None = None
    shorten_waits: bool = True
    allow_unplayed: bool = False


class Cassette:
    """One open cassette, from `cassette` or `open_cassette`: `send` and the SDK transports share its exchanges.

    Attributes
    ----------
    path : Path
        Its folder.
    mode : str
        `replay`, `record`, `record-missing` or `off`.
    clock : Clock
        Virtual at replay, so that whoever waits by it does not wait; in seconds.
    misses : list of CassetteMiss
        Every request that a replay could not answer, even when somebody swallowed the error.
    exchanges : Mapping
        All exchanges that are known now.

    Raises
    ------
    ConfigError
        There is no such mode.
    DataError
        At replay, there is no readable cassette.

    Examples
    --------
    >>> with semievol_api.cassette("cassettes/colours", allow_unplayed=True) as tape:
    ...     len(tape.exchanges), len(tape.unplayed())
    (1, 1)
    """

    def __init__(self, path: Path, mode: Mode, settings: CassetteSettings) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"cassette mode {mode!r} is none of {', '.join(get_args(Mode))}.")
        self.path = path
        self.mode: Mode = mode
        self.clock: Clock = VirtualClock() if mode == "replay" else RealClock()
        self.misses: list[CassetteMiss] = []
        self._settings = settings
        self._own_live = AiohttpSend()
        self._live: HttpSend = self._own_live if settings.live is None else settings.live
        self._scrubber = Scrubber(settings.secrets)
        self._learned: set[str] = set()
        self._turns: Counter[tuple[str, str]] = Counter()
        self._played: set[tuple[str, str, int]] = set()
        self._added = 0
        self._hosts: set[str] = set()
        self._manifest: Manifest | None = None
        self._exchanges: dict[tuple[str, str, int], Exchange] = {}
        if mode in ("record", "record-missing"):
            refuse_other_format(path)  # it would be replaced in the end
        if mode == "replay" or (mode == "record-missing" and is_cassette(path)):
            recording = load(path)
            self._manifest, self._exchanges = recording.manifest, dict(recording.exchanges)

    # ------------------------------------------------------------------------------------- front ends
    async def send(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        """Answer from the recording, or from the wire, as the mode says: an `HttpSend`.

        Raises:
            CassetteMiss: at replay, for a request that was not recorded.
            TransientError: the connection failed, now or when it was recorded.
        """
        if self.mode == "off":
            return await self._live(method, url, body, headers, timeout_s)
        slot = self._read_headers(headers)
        key, request = canonical_request(method, url, body, headers, self._scrubber)
        turn = self._turns[key, slot]  # taken at the start: identical concurrent requests must not swap
        self._turns[key, slot] = turn + 1
        identity = (key, slot, turn)
        known = self._exchanges.get(identity)
        if known is not None:
            self._played.add(identity)
            await asyncio.sleep(0)
            return self._replay(known.response)
        if self.mode == "replay":
            raise self._miss(request, identity)
        self._hosts.add(urlsplit(url).hostname or "")
        response = Response(status=0, failure=_GIVEN_UP)  # stays if the caller's patience ends first
        try:
            response = self._clean(await self._live(method, url, body, headers, timeout_s))
        except TransientError as error:
            response = Response(status=0, failure=self._scrubber.clean_text(str(error)))
        finally:
            self._add(Exchange(key=key, slot=slot, turn=turn, request=request, response=response))
        return _deliver(response)

    def httpx_transport(self) -> Any:
        """An `httpx.AsyncBaseTransport`, for `httpx.AsyncClient(transport=...)` and openai 2.x."""
        return sdk_transport("httpx", self.send)

    def httpx2_transport(self) -> Any:
        """An `httpx2.AsyncBaseTransport`, for `httpx2.AsyncClient(transport=...)` and openai 3.x."""
        return sdk_transport("httpx2", self.send)

    # ------------------------------------------------------------------------------------ begin and end
    async def __aenter__(self) -> Cassette:
        """The cassette itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish after success; after an error keep what "record-missing" got. Close connections."""
        try:
            self.leave(failed=kind is not None)
        finally:
            await self.aclose()

    def leave(self, *, failed: bool) -> None:
        """`finish` after success; after a failure keep what "record-missing" got and write nothing else."""
        if not failed:
            self.finish()
        elif self.mode == "record-missing" and self._added:
            self._exchanges = {
                identity: one for identity, one in self._exchanges.items() if one.response.failure != _GIVEN_UP
            }
            self.save()

    def finish(self) -> None:
        """Write a recording, or check a replay.

        Raises:
            CassetteMiss: a request was not recorded, and somebody swallowed the error.
            CassetteUnplayed: recorded exchanges were never asked for.
        """
        if self.mode == "record" or (self.mode == "record-missing" and self._added):
            self.save()
        elif self.mode == "replay":
            if self.misses:
                raise self.misses[0]
            left = self.unplayed()
            if left and not self._settings.allow_unplayed:
                raise CassetteUnplayed(_describe_unplayed(self.path, left, len(self._exchanges)))

    @property
    def exchanges(self) -> Mapping[tuple[str, str, int], Exchange]:
        """All exchanges that are known now, by `Exchange.identity`."""
        return self._exchanges

    def unplayed(self) -> tuple[Exchange, ...]:
        """The recorded exchanges that nobody has asked for yet."""
        return tuple(one for identity, one in self._exchanges.items() if identity not in self._played)

    def save(self, *, keep_unplayed: bool = True) -> None:
        """Write the cassette, with or without the old exchanges that were not asked for this time."""
        kept = [one for identity, one in self._exchanges.items() if keep_unplayed or identity in self._played]
        save(self.path, self._new_manifest(), kept)

    async def aclose(self) -> None:
        """Close the connections that the cassette itself opened."""
        await self._own_live.aclose()

    # ----------------------------------------------------------------------------------------- inside
    def _read_headers(self, headers: Mapping[str, str]) -> str:
        """The slot; keys met on the way are scrubbed from now on."""
        slot = ""
        for name, value in headers.items():
            lowered = name.lower()
            if lowered == SLOT_HEADER:
                slot = value
            elif lowered in _SECRET_HEADERS and value not in self._learned:
                self._learned.add(value)
                secrets = [one.removeprefix("Bearer ") for one in self._learned]
                long = [one for one in secrets if len(one) >= _LEARNED_SECRET]
                self._scrubber = Scrubber([*self._settings.secrets, *long])
        return slot

    def _clean(self, answer: HttpResponse) -> Response:
        content_type = answer.headers.get("content-type", "")
        return Response(
            status=answer.status,
            headers=self._scrubber.clean_headers(answer.headers),
            body=response_content(answer.body, content_type, self._scrubber),
        )

    def _add(self, exchange: Exchange) -> None:
        self._exchanges[exchange.identity] = exchange
        self._played.add(exchange.identity)
        self._added += 1

    def _replay(self, response: Response) -> HttpResponse:
        if self._settings.shorten_waits:
            response = shorten_waits(response)
        return _deliver(response)

    def _miss(self, request: Request, identity: tuple[str, str, int]) -> CassetteMiss:
        key, slot, turn = identity
        lines = [
            f"The cassette {str(self.path)!r} holds no answer to this request, and its mode is replay.",
            f"  asked:    {request.method} {request.path}{f', slot {slot!r}' if slot else ''}, turn {turn}",
        ]
        if turn and (key, slot, turn - 1) in self._exchanges:
            lines.append(f"  recorded: the same request {turn} time{'s' if turn > 1 else ''}, not once more")
        elif len(self.misses) < _EXPLAINED_MISSES:
            lines += _explain(request, nearest_exchange(request, slot, self._exchanges.values()))
        lines.append(
            "If the new request is meant, record it: mode record-missing adds what is missing, mode record "
            "starts again."
        )
        miss = CassetteMiss("\n".join(lines))
        self.misses.append(miss)
        return miss

    def _new_manifest(self) -> Manifest:
        settings = self._settings
        old = self._manifest or Manifest(recorded_against="nobody", date="")
        if not self._added and self._manifest:
            return old
        return msgspec.structs.replace(
            old,
            recorded_against=settings.recorded_against or _describe_hosts(self._hosts),
            date=datetime.now(UTC).date().isoformat(),
            seed=old.seed if settings.seed is None else settings.seed,
            packages=package_versions(),
            notes=settings.notes or old.notes,
        )


def open_cassette(path: Path, mode: Mode = "replay", settings: CassetteSettings | None = None) -> Cassette:
    """Open the cassette in folder `path`; use it as `async with`, or call `finish` and `aclose` yourself.

    Raises:
        ConfigError: `mode` is unknown.
        DataError: at replay, there is no readable cassette.
    """
    return Cassette(path, mode, settings or CassetteSettings())


@contextmanager
def cassette(
    path: str | Path, mode: Mode | None = None, *, seed: int | None = None, allow_unplayed: bool = False
) -> Generator[Cassette, None, None]:
    """Record what goes over the wire inside the block, or replay it with no network and no key.

    A test that uses it is recorded once, with `pytest --cassette-mode=record`, and replayed ever after. Works around
    synchronous and asynchronous code.

    Parameters
    ----------
    path : path
        The cassette's folder.
    mode : str, optional
        `replay` (strict: an unknown request fails), `record` (starts again), `record-missing` (adds) or `off`. Default:
        pytest's `--cassette-mode`, the variable SEMIEVOL_CASSETTE_MODE, or `replay`.
    seed : int, optional
        Noted in the recording, for whoever repeats it.
    allow_unplayed : bool, default False
        Whether a replay may end before every recorded exchange was asked for.

    Yields
    ------
    Cassette
        For `connect(..., cassette=...)`; `httpx_transport()` and `httpx2_transport()` are for the SDK's own clients.

    Raises
    ------
    DataError
        At replay, there is no readable cassette.
    CassetteMiss
        A request was not recorded; the message shows where it differs from the nearest one.
    CassetteUnplayed
        Recorded exchanges were never asked for.
    ConfigError
        There is no such mode.

    Examples
    --------
    >>> with semievol_api.cassette("cassettes/colours") as tape:
    ...     provider = semievol_api.connect("openai", base_url="http://127.0.0.1:8000/v1", cassette=tape)
    ...     replies = semievol_api.ask(provider, ["Which colour? cue: red"], "tiny")
    >>> replies.texts
    ['Answer: red']
    """
    # A connection per request: nothing is left to be closed in an event loop that has gone by then.
    settings = CassetteSettings(
        seed=seed,
        secrets=secret_values(os.environ),
        live=AiohttpSend(keep_alive=False),
        allow_unplayed=allow_unplayed,
    )
    opened = open_cassette(Path(path), mode or cast("Mode", os.environ.get(MODE_VARIABLE, "replay")), settings)
    try:
        yield opened
    except BaseException:
        opened.leave(failed=True)
        raise
    opened.leave(failed=False)


def shorten_waits(response: Response) -> Response:
    """The same answer, asking for a pause of a millisecond wherever it asked, or let guess, for more."""
    headers = response.headers
    waits = [name for name in headers if name == "retry-after" or name.startswith("x-ratelimit-reset")]
    retried = response.status in _RETRIED
    if not waits and not retried:
        return response
    short = {name: str(_SHORTENED_S) if name == "retry-after" else "1ms" for name in waits}
    if retried:
        short["retry-after-ms"] = "1"
    return msgspec.structs.replace(response, headers={**headers, **short})


def _deliver(response: Response) -> HttpResponse:
    if response.status == 0:
        raise TransientError(response.failure)
    return response.to_http()


def _explain(request: Request, nearest: Exchange | None) -> list[str]:
    if nearest is None:
        return [f"  nearest:  none; {request.method} {request.path} was never recorded"]
    place = f", slot {nearest.slot!r}" if nearest.slot else ""
    difference = describe_difference(nearest.request, request) or "    only the slot or the turn"
    return [f"  nearest:  {nearest.label}{place}; - recorded, + asked:", difference]


def _describe_unplayed(path: Path, left: tuple[Exchange, ...], total: int) -> str:
    counts = Counter(exchange.label for exchange in left)
    listed = "; ".join(f"{count} x {label}" for label, count in counts.most_common(5))
    return (
        f"{len(left)} of {total} exchanges of the cassette {str(path)!r} were never asked for: {listed}. "
        f"The program asks for less than it did when this was recorded. If that is meant, record again, or "
        f"drop them with `semievol cassette prune`."
    )


def _describe_hosts(hosts: set[str]) -> str:
    local = " (a server on this machine: no evidence about any vendor)"
    return ", ".join(f"{host}{local if host in _LOOPBACK else ''}" for host in sorted(hosts)) or "nobody"
