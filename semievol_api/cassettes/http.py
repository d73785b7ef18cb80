"""One HTTP request in, one whole answer out: the seam between a provider's hot path and the wire.

A provider is given an `HttpSend` and never learns whether aiohttp, a cassette or a test stands behind it:

    send = AiohttpSend()
    answer = await send("POST", url, body, {"authorization": f"Bearer {key}"}, timeout_s=60.0)
    await send.aclose()

Knows nothing of JSON, vendors, retrying, pacing or cassettes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

import aiohttp

from semievol_api.errors import ConfigError, MissingExtraError, ProviderError, TransientError

_COARSENESS = 0.05
_LONGEST_SWEEP_S = 1.0


class Deadline:
    """One task's deadline, in seconds of the event loop's clock; `more_s` is asked when it is due."""

    __slots__ = ("due_s", "more_s", "passed", "task")

    def __init__(self, task: asyncio.Task[object], due_s: float, more_s: Callable[[], float] | None) -> None:
        self.task = task
        self.due_s = due_s
        self.more_s = more_s
        self.passed = False

    def is_over(self, now_s: float) -> bool:
        """Whether the time has passed and no more is given."""
        if self.due_s > now_s:
            return False
        if self.more_s is not None and (more_s := self.more_s()) > 0:
            self.due_s = now_s + more_s
            return False
        return True


class Deadlines:
    """All deadlines of one event loop."""

    def __init__(self) -> None:
        self._open: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_s = _LONGEST_SWEEP_S

    def begin(self, timeout_s: float, more_s: Callable[[], float] | None = None) -> Deadline:
        """From now on the running task has `timeout_s` seconds, and then so many more as `more_s` gives."""
        task = asyncio.current_task()
        assert task is not None, "a deadline belongs to a task"
        loop = task.get_loop()
        deadline = Deadline(task, loop.time() + timeout_s, more_s)
        self._open[deadline] = None
        self._sweep_s = min(self._sweep_s, timeout_s * _COARSENESS)
        if self._timer is None:
            self._timer = loop.call_later(self._sweep_s, self._sweep, loop)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """The wait is over, however it ended."""
        self._open.pop(deadline, None)

    def passed(self, deadline: Deadline) -> bool:
        """True where the cancellation that was just caught is the deadline's; it is taken back then."""
        if deadline.passed:
            deadline.task.uncancel()
        return deadline.passed

    def close(self) -> None:
        """Forget all deadlines; nobody is cancelled any more."""
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for deadline in [deadline for deadline in self._open if deadline.is_over(now_s)]:
            del self._open[deadline]
            deadline.passed = True
            deadline.task.cancel()
        self._timer = loop.call_later(self._sweep_s, self._sweep, loop) if self._open else None


SLOT_HEADER = "x-semievol-slot"
"""Names the piece of work that a request belongs to, so that a cassette tells identical requests apart. It is
read by cassettes and never leaves this machine."""
LARGEST_BODY_BYTES = 512 * 2**20
"""Of one answer, after decompression; a vendor's largest batch file has 200 MB."""
_NO_TIMER = aiohttp.ClientTimeout(total=None, sock_connect=None)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete answer of any status. `headers` have lower-case names; `body` is already decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpSend(Protocol):
    """Sends one request and reads the whole answer; an answer with an error status is still an answer."""

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        """Ask once.

        Raises:
            TransientError: no connection, no answer within `timeout_s`, or an answer that broke off.
        """
        ...


class AiohttpSend:
    """`HttpSend` over one pooled aiohttp session, opened by the first request.

    `limit` caps the connections that are open at once (0: no cap; the engine bounds what is in flight).
    `trust_env` honours `HTTPS_PROXY` and its relatives, at some cost per request. Without `keep_alive` every
    request has a connection of its own, and nothing stays open between requests.
    """

    def __init__(self, *, limit: int = 0, trust_env: bool = False, keep_alive: bool = True) -> None:
        self._limit = limit
        self._trust_env = trust_env
        self._keep_alive = keep_alive
        self._session: aiohttp.ClientSession | None = None
        self._deadlines = Deadlines()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        """Ask once; see `HttpSend`.

        Raises:
            ConfigError: `url` is not an http address.
        """
        if SLOT_HEADER in headers:
            headers = {name: value for name, value in headers.items() if name != SLOT_HEADER}
        session = self._open()
        deadline = self._deadlines.begin(timeout_s)
        try:
            async with session.request(method, url, data=body, headers=headers, timeout=_NO_TIMER) as answer:
                content = await _read_whole(answer, _where(method, url))
        except asyncio.CancelledError:
            if not self._deadlines.passed(deadline):
                raise
            raise TransientError(f"{_where(method, url)} gave no answer within {timeout_s:g} s.") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ConfigError(
                f"{url!r} is not an address that can be asked. Check base_url: it begins with "
                f"http:// or https:// and usually ends with /v1."
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(
                f"{_where(method, url)} failed on the way: {str(error) or type(error).__name__}."
            ) from error
        finally:
            self._deadlines.end(deadline)
            if not self._keep_alive:
                await session.close()
        return HttpResponse(answer.status, {name.lower(): value for name, value in answer.headers.items()}, content)

    async def aclose(self) -> None:
        """Close the pooled connections; a later request opens new ones."""
        session, self._session, self._loop = self._session, None, None
        self._deadlines.close()
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections and timers die with the loop that made them
            self._session, self._loop, self._deadlines = None, loop, Deadlines()
        if not self._keep_alive:
            return self._new_session()
        if self._session is None:
            self._session = self._new_session()
        return self._session

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limit, force_close=not self._keep_alive),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._trust_env,
        )


async def _read_whole(answer: aiohttp.ClientResponse, where: str) -> bytes:
    """The body, decompressed; a small one can hold a thousand times its size."""
    content = bytearray()
    async for piece in answer.content.iter_any():
        content += piece
        if len(content) > LARGEST_BODY_BYTES:
            answer.close()
            raise ProviderError(
                f"{where} answered with more than {LARGEST_BODY_BYTES // 2**20} MiB, and was discarded. No answer "
                f"is so large: check base_url, and what stands between here and the server.",
                status=answer.status,
            )
    return bytes(content)


def _where(method: str, url: str) -> str:
    return f"{method} {url.partition('?')[0]}"


_DEFAULT_TIMEOUT_S = 600.0
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
                    timeout.get("read") or _DEFAULT_TIMEOUT_S,
                )
            except TransientError as error:
                raise library.ConnectError(str(error), request=request) from error
            kept = {name: text for name, text in answer.headers.items() if name not in _GONE_AFTER_DECODING}
            return library.Response(answer.status, headers=kept, content=answer.body, request=request)

    return SendTransport()
