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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from semievol_api.capabilities import Pace
from semievol_api.errors import (
    ContextLengthError,
    ModelNotFoundError,
    ProviderError,
    RateLimitError,
    RefusedError,
    SettingRefusedError,
    TransientError,
)
from semievol_providers.openai.settings import Connection

if TYPE_CHECKING:
    from semievol_api.cassettes.http import HttpResponse


_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|us|µs|ns|d|h|m|s)")
_UNSAID = Pace()


def pace_of(headers: Mapping[str, str]) -> Pace:
    """The `x-ratelimit-*` headers (lower-case names) as a `Pace`; nonsense counts as not said."""
    read = headers.get
    limit, left = read("x-ratelimit-limit-requests"), read("x-ratelimit-remaining-requests")
    limit_tokens, left_tokens = read("x-ratelimit-limit-tokens"), read("x-ratelimit-remaining-tokens")
    if limit is None and left is None and limit_tokens is None and left_tokens is None:
        return _UNSAID
    return Pace(
        limit_requests=_count(limit),
        limit_tokens=_count(limit_tokens),
        remaining_requests=_count(left),
        remaining_tokens=_count(left_tokens),
        reset_requests_s=duration_s(read("x-ratelimit-reset-requests")),
        reset_tokens_s=duration_s(read("x-ratelimit-reset-tokens")),
    )


def duration_s(text: str | None) -> float | None:
    """Seconds of `6m0s`, `12ms`, `1h2m3.5s` or a bare number; None for anything else."""
    if not text:
        return None
    if text.endswith("ms") and text[:-2].isdecimal():  # by far the most frequent form
        return int(text[:-2]) / 1000.0
    total, end = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end:
            return None
        total += float(part[1]) * _UNIT_S[part[2]]
        end = part.end()
    if end == len(text):
        return total
    return _seconds(text) if end == 0 else None


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "access_terminated",
        "credits_exhausted",
        "insufficient_balance",
    }
)
"""Codes that vendors send with status 429 although waiting would not help."""

_RATE_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "too_many_requests", "tokens_exceeded"})
_ABSENT_MODEL_CODES = frozenset({"model_not_found", "model_not_deployed", "DeploymentNotFound", "NOT_FOUND"})

_MONEY = "The account has no money or quota left: add credit or raise the limit at the vendor, then start again."
_KEY = "Check that {key_source} holds a current key of this vendor, then start again; nothing is lost."
_MODEL = "Check the model's name for this vendor, and whether the key's project may use it or the vendor ended it."
_CONTENT = "The vendor's content rules stopped this text; the row is recorded as refused and asking again won't help."
_LENGTH = "Use fewer or shorter references (few-shot examples), a smaller max_tokens, or a model with a longer context."
_FILE = "Check the training file: one chat per line, at least 10 of them, each ending with the assistant's turn."
_ROOM = "The quota of files, jobs or deployments is used up: look at `semievol clean --remote`, or ask for more."
_TRAINING = "Choose a base model that this vendor still trains, or give the trainer role to another provider."

_BY_CODE: Mapping[str, str] = {
    **dict.fromkeys(_QUOTA_CODES, _MONEY),
    "invalid_api_key": _KEY,
    "invalid_organization": "Check the organization and project variables; a key works only within its own.",
    "mismatched_organization": "Check the organization and project variables; a key works only within its own.",
    "mismatched_project": "Check the organization and project variables; a key works only within its own.",
    "unsupported_country_region_territory": "Not served in this region: use another provider for the role.",
    "unknown_url": "This server does not offer that: give the role to another provider, or choose another mode.",
    "model_not_found": _MODEL,
    "model_not_deployed": "Set deployments = true in the provider's table, so that the run deploys what it tunes.",
    "DeploymentNotFound": (
        "Deploy the model under this name at the vendor (a tuned one under its own name), wait some minutes until "
        "it answers, and run again: nothing is lost."
    ),
    "OperationNotSupported": _MODEL,
    "model_not_available": _TRAINING,
    "model_not_supported": _TRAINING,
    "fine_tuning_not_supported": _TRAINING,
    "fine_tune_not_found": (
        "This key's project has no such job: use the key that made it (`semievol jobs` lists what your runs bought). "
        "To buy it anew, remove its ticket from the run's jobs folder and run again."
    ),
    "context_length_exceeded": _LENGTH,
    "string_above_max_length": _LENGTH,
    "content_filter": _CONTENT,
    "content_policy_violation": _CONTENT,
    "ResponsibleAIPolicyViolation": _CONTENT,
    "invalid_prompt": _CONTENT,
    "invalid_training_file": _FILE,
    "invalid_file_format": _FILE,
    "invalid_n_examples": _FILE,
    "too_few_examples": _FILE,
    "deleted_training_file": "Someone deleted the uploaded file. Start again: it is uploaded anew.",
    "exceeded_quota": _MONEY,
    "jsonlValidationFailed": _FILE,
    "fileImportFailed": _FILE,
    "contentFilter": _CONTENT,
    "unauthorized": _KEY,
    "quotaExceeded": _ROOM,
    "daily_rate_limit_exceeded": "The day's number of fine-tuning jobs is used up. Start again tomorrow.",
    "safety_eval_failed": "The vendor's safety evaluation failed: look for harmful rows in the data.",
    "unsupported_value": "Change or leave out the setting that the message names.",
    "unsupported_parameter": "Change or leave out the setting that the message names.",
    "unknown_parameter": "This server does not know the setting that the message names: leave it out.",
}

_UNSAFE = (
    "Rows of the training data look harmful to the vendor's moderation: find them (semievol report lists every label "
    "with its text), take them out of the data files, and run again; or give the trainer role to another provider."
)
_SETTINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"max_completion_tokens|'max_tokens'"), 'Set max_tokens_field = "max_completion_tokens" in {table}.'),
    (re.compile(r"temperature"), "Set extra_body = { temperature = 1 } in {table}: this model takes no other."),
    (
        re.compile(r"system (?:role|message|prompt)|role '?system|'system' role|system is not", re.IGNORECASE),
        "Set fold_system = true in {table}: the system text then stands at the beginning of the user's turn.",
    ),
    (
        re.compile(r"logprobs", re.IGNORECASE),
        "Set top_logprobs in {table} to what the message allows; without log-probabilities the run goes on by votes.",
    ),
    (
        re.compile(r"(?:^|\W)n(?:\W|$).*(?:support|must|only)", re.IGNORECASE),
        "Set n = 1 at the [[annotators]] of this model.",
    ),
)
"""What to set where a server does not take a setting, by the words of its refusal."""
_REFUSES_SETTING = re.compile(
    r"unsupported|not supported|does not support|not allowed to request|greater than max allowed|unknown parameter|"
    r"unrecognized request argument|extra inputs are not permitted|is not permitted",
    re.IGNORECASE,
)
_SETTING_CODES = frozenset({"unsupported_value", "unsupported_parameter", "unknown_parameter"})

_BY_STATUS: Mapping[int, str] = {
    400: "Change the setting that the message names.",
    401: _KEY,
    402: _MONEY,
    403: "Check that the key in {key_source} may use this model and endpoint, and that the region is served.",
    404: "Check the model's name, and base_url ({base_url}): it usually ends with /v1.",
    405: "Check base_url ({base_url}): it usually ends with /v1.",
    410: _MODEL,
    413: "The request is too large: use fewer references, or a smaller file.",
    415: "Check base_url ({base_url}); this server does not speak the OpenAI protocol there.",
    422: "Change the setting that the message names.",
    451: _CONTENT,
}

_BY_WORDS: tuple[tuple[str, str], ...] = (
    ("maximum context length", _LENGTH),
    ("context window", _LENGTH),
    ("expired", _KEY),
    ("content management policy", _CONTENT),
    ("resource not found", "Check api_version and base_url ({base_url}): Azure's end with /openai, or /openai/v1."),
    ("does not support fine-tuning", _TRAINING + " Newer Azure wants job_extra_body = { trainingType = 1 } here."),
    ("unsafe training file", _UNSAFE),
    ("moderation", _UNSAFE),
    ("safety", "Look at the vendor's reason; harmful rows in the training data are the usual cause."),
    ("country", "Not served in this region: use another provider for the role."),
)


def _is_context_length(code: str | None, message: str) -> bool:
    """Whether a refusal is about the prompt's length, in this vendor's words."""
    return _next_step(None, code, message) is _LENGTH


def _next_step(status: int | None, code: str | None, message: str) -> str:
    """One sentence; `{key_source}` and `{base_url}` in it are the caller's to fill."""
    if code is not None and code in _BY_CODE:
        return _BY_CODE[code]
    lowered = message.lower()
    for words, advice in _BY_WORDS:
        if words in lowered:
            return advice
    if status is not None and status in _BY_STATUS:
        return _BY_STATUS[status]
    return "The vendor's message is all that is known; its documentation may say more."


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
    status: int | None = None
    """An HTTP status that the body names, whatever the answer's own."""


def error_from_answer(
    what: str, status: int, headers: Mapping[str, str], body: bytes, connection: Connection
) -> ProviderError:
    """The error that an answer with an error status stands for. `what` names the endpoint."""
    fault = read_vendor_error(body)
    opening = _opening(what, f"answered {status}{_code_words(fault)}", connection)
    quote = _quote(fault.message, connection)
    if status == 429 and not _out_of_money(fault):
        text = f"{opening}: too many requests or tokens for now{quote}. The engine waits and asks again."
        return RateLimitError(text, retry_after_s=_retry_after_s(headers), code=fault.code)
    if status in _WORTH_ANOTHER_TRY or status >= 500:
        text = f"{opening}{quote}. The server failed, not the request; another attempt may succeed."
        return TransientError(text, status=status, code=fault.code, param=fault.param)
    code = "insufficient_quota" if status == 429 and fault.code is None else fault.code
    setting = _setting_refused(status, code, fault)
    advice = _fill(setting or _next_step(status, code, fault.message), connection)
    refusal = SettingRefusedError if setting else _refusal(code, fault.message)
    return refusal(f"{opening}{quote}. {advice}", status=status, code=code, param=fault.param)


def _setting_refused(status: int, code: str | None, fault: VendorError) -> str | None:
    """What to set where the refusal is of a setting and not of a text; None for any other."""
    if status not in (400, 403, 422) or _is_context_length(code, fault.message):
        return None
    if code not in _SETTING_CODES and not _REFUSES_SETTING.search(fault.message):
        return None
    words = f"{fault.message} '{fault.param}'"
    return next((advice for pattern, advice in _SETTINGS if pattern.search(words)), None)


def _refusal(code: str | None, message: str) -> type[RefusedError]:
    if _is_context_length(code, message):
        return ContextLengthError
    return ModelNotFoundError if code in _ABSENT_MODEL_CODES else RefusedError


def error_in_body(what: str, answer: HttpResponse, connection: Connection) -> ProviderError:
    """The error behind status 200 and no content: some proxies put the real status, or only a code, into the body."""
    fault = read_vendor_error(answer.body)
    status = fault.status or _status_of_code(fault)
    if status is not None:
        return error_from_answer(what, status, answer.headers, answer.body, connection)
    lacking = "with an empty list of choices" if b'"choices"' in answer.body else "without what was asked for"
    opening = _opening(what, f"answered 200 {lacking}", connection)
    return TransientError(f"{opening}{_quote(fault.message, connection)}. Another attempt may succeed.", status=200)


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
    reason = _scrub(str(error) or type(error).__name__, connection).rstrip(".")
    opening = _opening(what, "gave no whole answer", connection)
    return TransientError(f"{opening}: {reason}. Another attempt may succeed.")


def read_vendor_error(body: bytes) -> VendorError:
    """The message, code and param of an error body: OpenAI's, Azure's, FastAPI's, vLLM's, or a page of HTML."""
    try:
        tree: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return VendorError(_plain_text(body))
    if tree is None:
        return VendorError()
    if not isinstance(tree, dict):
        return VendorError(str(tree))
    found = tree.get("error")
    if found is None:  # an answer may say that it has none
        found = {name: value for name, value in tree.items() if name != "error"}
    if not isinstance(found, dict):
        return VendorError(str(found), _word(tree.get("code")), status=_status_in(tree))
    inner = found.get("innererror") or found.get("inner_error")  # as Azure sends it, and as it documents it
    code = inner.get("code") if isinstance(inner, dict) and found.get("code") is None else found.get("code")
    message = found.get("message") or found.get("detail") or tree.get("message") or ""
    if isinstance(message, list):
        message = "; ".join(str(part.get("msg", part)) if isinstance(part, dict) else str(part) for part in message)
    message = f"{message}{_behind(found, str(message))}"
    status = _status_in(found) or _status_in(tree)
    return VendorError(message, _word(code), _word(found.get("type")), _word(found.get("param")), status)


def _status_in(tree: Mapping[str, Any]) -> int | None:
    """The HTTP status that a body names as its status or, like OpenRouter, as its code."""
    for name in ("status", "status_code", "code"):
        status = str(tree.get(name))
        if status.isdecimal() and 400 <= int(status) < 600:
            return int(status)
    return None


def _behind(found: Mapping[str, Any], message: str) -> str:
    """What the vendor behind a router said, which OpenRouter keeps in `metadata.raw`."""
    metadata = found.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    text = "" if raw is None else (raw if isinstance(raw, str) else msgspec.json.encode(raw).decode())
    return f" ({text})" if text and text not in message else ""


def _status_of_code(fault: VendorError) -> int | None:
    """The status that goes with a known code where a body names none; None for a code that nobody knows."""
    for word in (fault.code, fault.kind):
        if word in _RATE_CODES:
            return 429
        if word in _QUOTA_CODES:
            return 429
        if word in _BY_CODE:
            return 404 if word in _ABSENT_MODEL_CODES else 400
    return None


def job_failure(fault: VendorError, connection: Connection) -> str | None:
    """Why a fine-tuning job failed and what to do, or None where the vendor says nothing."""
    if not fault.message and not fault.code:
        return None
    advice = _fill(_next_step(None, fault.code, fault.message), connection)
    message = _scrub(fault.message or "no reason given", connection).rstrip(".")
    return f"{message}{_code_words(fault)}. {advice}"


def _scrub(text: str, connection: Connection) -> str:
    """The text without the key or anything of its shape."""
    if connection.api_key:
        text = text.replace(connection.api_key, "[key]")
    return _KEY_SHAPE.sub("[key]", text)


def _opening(what: str, happened: str, connection: Connection) -> str:
    host = urlsplit(connection.base_url).netloc
    return f"{connection.provider}: {what} at {host} {happened}"


def _quote(message: str, connection: Connection) -> str:
    text = " ".join(_scrub(message, connection).split()).rstrip(".")
    if len(text) > _LONGEST_QUOTE:
        text = text[:_LONGEST_QUOTE] + "…"
    return f': "{text}"' if text else ""


def _code_words(fault: VendorError) -> str:
    words = [f"{name} {value}" for name, value in (("code", fault.code), ("param", fault.param)) if value]
    return f" ({', '.join(words)})" if words else ""


def _fill(advice: str, connection: Connection) -> str:
    table = f"[providers.{connection.provider}]"
    return (
        advice.replace("{table}", table)
        .replace("{key_source}", connection.key_source)
        .replace("{base_url}", connection.base_url)
    )


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


def _out_of_money(fault: VendorError) -> bool:
    return fault.code in _QUOTA_CODES or fault.kind in _QUOTA_CODES


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the vendor asks to wait: the longest of its milliseconds, seconds, date; else until the quota is back.

    A wait of 0 says nothing.
    """
    wait_ms, asked = duration_s(headers.get("retry-after-ms")), headers.get("retry-after")
    until, now = _moment_s(asked), _moment_s(headers.get("date"))
    named = (
        None if wait_ms is None else wait_ms / 1000,
        duration_s(asked),
        None if until is None or now is None else until - now,
    )
    pace = pace_of(headers)
    back = (
        pace.reset_requests_s if pace.remaining_requests == 0 else None,
        pace.reset_tokens_s if pace.remaining_tokens == 0 else None,
    )
    return _longest_s(named) or _longest_s(back)


def _longest_s(waits: Iterable[float | None]) -> float | None:
    return max((wait_s for wait_s in waits if wait_s is not None and wait_s > 0), default=None)


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
