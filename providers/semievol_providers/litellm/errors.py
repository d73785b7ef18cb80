"""litellm's errors as ours: the class by status, the message without keys, and what to try next.

Knows nothing of retrying.
"""

from __future__ import annotations

import re
from typing import Any

from semievol_api.errors import ModelNotFoundError, ProviderError, RateLimitError, RefusedError, TransientError
from semievol_providers.litellm.settings import Access

_KEY_SHAPE = re.compile(r"\b(?:sk|rk|pk|gsk|org|proj)[-_][A-Za-z0-9_*-]{8,}|\bBearer\s+\S+|\bAIza[\w-]{20,}")
_LONGEST_QUOTE = 400
_QUOTA = ("insufficient_quota", "exceeded your current quota", "billing", "credit balance")

_ADVICE: dict[int, str] = {
    400: "Change the setting that the message names; one that this vendor does not know can stand in leave_out.",
    401: "Check the key's variable (api_key_env, or the one that litellm reads for this vendor), then start again.",
    402: "The account has no money left: add credit at the vendor, then start again.",
    403: "Check that the key may use this model, and that the region is served.",
    404: "Check the model's name: litellm wants VENDOR/MODEL, such as anthropic/claude-sonnet-4-5.",
    422: "Change the setting that the message names; one that this vendor does not know can stand in leave_out.",
}


def translate(what: str, error: Exception, access: Access) -> ProviderError:
    """The error that an exception of litellm's stands for. `what` names the call."""
    known: Any = error
    status = _status(known)
    name = type(error).__name__
    said = _said(str(error), access)
    opening = f"{access.provider}: {what} through litellm failed ({name}{f', {status}' if status else ''})"
    if name == "ContextWindowExceededError" or (status == 400 and "context length" in said.lower()):
        return RefusedError(
            f'{opening}: "{said}". Use fewer or shorter references, or a model with a longer context.', status=400
        )
    if name == "ContentPolicyViolationError":
        return RefusedError(
            f'{opening}: "{said}". The row is recorded as refused; asking again won\'t help.', status=400
        )
    if name == "UnsupportedParamsError":
        return RefusedError(
            f'{opening}: "{said}". Name the setting in leave_out of [providers.{access.provider}], and it is not sent.',
            status=400,
            code="unsupported_parameter",
        )
    if status == 429:
        if any(word in said.lower() for word in _QUOTA):
            return RefusedError(f'{opening}: "{said}". {_ADVICE[402]}', status=429, code="insufficient_quota")
        return RateLimitError(f'{opening}: "{said}". The engine waits and asks again.', retry_after_s=_wait_s(known))
    if status is None or status >= 500 or status in (408, 409, 425):
        return TransientError(f'{opening}: "{said}". Another attempt may succeed.', status=status)
    advice = _ADVICE.get(status, "The vendor's message is all that is known.")
    refusal = ModelNotFoundError if status == 404 else RefusedError
    return refusal(f'{opening}: "{said}". {advice}', status=status)


def scrub(text: str, access: Access) -> str:
    """The text without the key or anything of its shape."""
    if access.api_key and access.api_key != "none":
        text = text.replace(access.api_key, "[key]")
    return _KEY_SHAPE.sub("[key]", text)


def _said(text: str, access: Access) -> str:
    said = " ".join(scrub(text, access).split()).rstrip(".")
    return said if len(said) <= _LONGEST_QUOTE else said[:_LONGEST_QUOTE] + "…"


def _status(error: Any) -> int | None:
    """The HTTP status; litellm gives timeouts 408 and lost connections 500."""
    try:
        return int(error.status_code)
    except (AttributeError, TypeError, ValueError):
        return None


def _wait_s(error: Any) -> float | None:
    """What the vendor asks to wait; litellm keeps its headers in one of two places, or in none."""
    kept: dict[str, Any] = vars(error)
    response = kept.get("response")
    for headers in (kept.get("litellm_response_headers"), response.headers if response is not None else None):
        if not headers:
            continue
        milliseconds, seconds = headers.get("retry-after-ms"), headers.get("retry-after")
        try:
            return float(milliseconds) / 1000 if milliseconds else float(seconds)
        except (TypeError, ValueError):
            continue
    return None
