"""The vendor's errors as ours, in one place: statuses, bodies of any shape, broken connections.

A message says what happened, to what, in the vendor's words, and what to try next; it never holds the key.
Knows nothing of retrying: the class of the error is all that the engine needs.
"""

from __future__ import annotations

import email.utils
import html
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from semievol_api.errors import (
    ContextLengthError,
    ModelNotFoundError,
    ProviderError,
    RateLimitError,
    RefusedError,
    TransientError,
)
from semievol_providers.openai.advice import ABSENT_MODEL_CODES, QUOTA_CODES, is_context_length, next_step
from semievol_providers.openai.pace import duration_s, pace_of
from semievol_providers.openai.settings import Connection

if TYPE_CHECKING:
    from semievol_api.transport.http import HttpResponse

_LONGEST_QUOTE = 400
_KEY_SHAPE = re.compile(r"\b(?:sk|rk|pk|org|proj)-[A-Za-z0-9_*-]{8,}|\bBearer\s+\S+")
_WORTH_ANOTHER_TRY = frozenset({408, 409, 425})


@dataclass(frozen=True, slots=True)
class VendorError:
    """What an error body says, whatever its shape; empty where it says nothing."""

    message: str = ""
    code: str | None = None
    kind: str | None = None
    param: str | None = None


def error_from_answer(
    what: str, status: int, headers: Mapping[str, str], body: bytes, connection: Connection
) -> ProviderError:
    """The error that an answer with an error status stands for. `what` names the endpoint."""
    said = read_vendor_error(body)
    opening = _opening(what, f"answered {status}{_code_words(said)}", connection)
    quote = _quote(said.message, connection)
    if status == 429 and not _out_of_money(said):
        text = f"{opening}: too many requests or tokens for now{quote}. The engine waits and asks again."
        return RateLimitError(text, retry_after_s=_retry_after_s(headers), code=said.code)
    if status in _WORTH_ANOTHER_TRY or status >= 500:
        text = f"{opening}{quote}. The server failed, not the request; another attempt may succeed."
        return TransientError(text, status=status, code=said.code, param=said.param)
    code = "insufficient_quota" if status == 429 and said.code is None else said.code
    advice = _fill(next_step(status, code, said.message), connection)
    return _refusal(code, said.message)(f"{opening}{quote}. {advice}", status=status, code=code, param=said.param)


def _refusal(code: str | None, message: str) -> type[RefusedError]:
    if is_context_length(code, message):
        return ContextLengthError
    return ModelNotFoundError if code in ABSENT_MODEL_CODES else RefusedError


def error_in_body(what: str, answer: HttpResponse, connection: Connection) -> ProviderError:
    """The error behind status 200 and no content: some proxies put the real status into the body."""
    said = read_vendor_error(answer.body)
    if said.code is not None and said.code.isdecimal() and 400 <= int(said.code) < 600:
        return error_from_answer(what, int(said.code), answer.headers, answer.body, connection)
    opening = _opening(what, "answered 200 without what was asked for", connection)
    return TransientError(f"{opening}{_quote(said.message, connection)}. Another attempt may succeed.", status=200)


def invalid_answer(what: str, body: bytes, connection: Connection) -> TransientError:
    """For an answer that is not the JSON it should be: cut off, or somebody else's page."""
    opening = _opening(what, "sent something that is not a valid answer", connection)
    return TransientError(
        f"{opening} ({len(body)} bytes{_quote(_plain_text(body), connection)}). If this stays, check base_url "
        f"({connection.base_url}): it usually ends with /v1.",
        status=200,
    )


def error_on_the_way(what: str, error: Exception, connection: Connection) -> TransientError | RefusedError:
    """For a request without an answer: no connection, no name, no trust, no time."""
    causes = list(_causes(error))
    host = urlsplit(connection.base_url).hostname
    unasked = _opening(what, "could not be asked", connection)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return RefusedError(
            f"{unasked}: the certificate of {host!r} is not trusted. Check base_url and the clock; behind a "
            f"company proxy, point SSL_CERT_FILE to its certificates."
        )
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return TransientError(
            f"{unasked}: the name {host!r} was not found. Check base_url, the network and the proxy variables."
        )
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return TransientError(
            f"{unasked}: nothing listens at {connection.base_url}. Check that the server runs and that base_url "
            f"names its port."
        )
    reason = scrub(str(error) or type(error).__name__, connection).rstrip(".")
    opening = _opening(what, "gave no whole answer", connection)
    return TransientError(f"{opening}: {reason}. Another attempt may succeed.")


def read_vendor_error(body: bytes) -> VendorError:
    """The message, code and param of an error body: OpenAI's, Azure's, FastAPI's, vLLM's, or a page of HTML."""
    try:
        tree: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return VendorError(_plain_text(body))
    if tree is None:
        return VendorError()
    if not isinstance(tree, dict):
        return VendorError(str(tree))
    found = tree.get("error", tree)
    if not isinstance(found, dict):
        return VendorError(str(found), _word(tree.get("code")))
    inner = found.get("innererror") or found.get("inner_error")  # as Azure sends it, and as it documents it
    code = inner.get("code") if isinstance(inner, dict) and found.get("code") is None else found.get("code")
    message = found.get("message") or found.get("detail") or tree.get("message") or ""
    if isinstance(message, list):
        message = "; ".join(str(part.get("msg", part)) if isinstance(part, dict) else str(part) for part in message)
    return VendorError(str(message), _word(code), _word(found.get("type")), _word(found.get("param")))


def job_failure(said: VendorError, connection: Connection) -> str | None:
    """Why a fine-tuning job failed and what to do, or None where the vendor says nothing."""
    if not said.message and not said.code:
        return None
    advice = _fill(next_step(None, said.code, said.message), connection)
    message = scrub(said.message or "no reason given", connection).rstrip(".")
    return f"{message}{_code_words(said)}. {advice}"


def scrub(text: str, connection: Connection) -> str:
    """The text without the key or anything of its shape."""
    if connection.api_key:
        text = text.replace(connection.api_key, "[key]")
    return _KEY_SHAPE.sub("[key]", text)


def _opening(what: str, happened: str, connection: Connection) -> str:
    host = urlsplit(connection.base_url).netloc
    return f"{connection.provider}: {what} at {host} {happened}"


def _quote(message: str, connection: Connection) -> str:
    text = " ".join(scrub(message, connection).split()).rstrip(".")
    if len(text) > _LONGEST_QUOTE:
        text = text[:_LONGEST_QUOTE] + "…"
    return f': "{text}"' if text else ""


def _code_words(said: VendorError) -> str:
    words = [f"{name} {value}" for name, value in (("code", said.code), ("param", said.param)) if value]
    return f" ({', '.join(words)})" if words else ""


def _fill(advice: str, connection: Connection) -> str:
    return advice.replace("{key_source}", connection.key_source).replace("{base_url}", connection.base_url)


def _word(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


def _plain_text(body: bytes) -> str:
    """The readable part of a body that is no JSON; of an HTML page its title."""
    text = body[:20_000].decode("utf-8", errors="replace")
    if text.lstrip()[:1] == "<":
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        text = title[1] if title else re.sub(r"<[^>]*>", " ", text)
        return "a web page: " + " ".join(html.unescape(text).split())
    return text.strip()


def _out_of_money(said: VendorError) -> bool:
    return said.code in QUOTA_CODES or said.kind in QUOTA_CODES


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the vendor asks to wait: in milliseconds, in seconds, until a date, or until the quota is back."""
    wait_ms = duration_s(headers.get("retry-after-ms"))
    if wait_ms is not None:
        return wait_ms / 1000
    asked = headers.get("retry-after")
    wait_s = duration_s(asked)
    if wait_s is not None:
        return wait_s
    until, now = _moment_s(asked), _moment_s(headers.get("date"))
    if until is not None and now is not None:
        return max(0.0, until - now)
    pace = pace_of(headers)
    waits = [
        reset
        for left, reset in (
            (pace.remaining_requests, pace.reset_requests_s),
            (pace.remaining_tokens, pace.reset_tokens_s),
        )
        if left == 0 and reset is not None
    ]
    return max(waits, default=None)


def _moment_s(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything behind it."""
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        here = here.__cause__ or here.__context__
