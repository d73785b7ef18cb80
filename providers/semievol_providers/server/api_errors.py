"""Refusals in the API's own shape: `{"error": {"message", "type", "param", "code"}}`.

Knows nothing of routes or why something was refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response


class ApiError(Exception):
    """A refusal that the client sees as it stands."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The HTTP answer."""
        return json_response({"error": self.body()}, self.status, self.headers)

    def body(self) -> dict[str, str | None]:
        """The error object itself."""
        return {
            "message": self.message,
            "type": _error_type(self.status),
            "param": self.param,
            "code": self.code,
        }


def _error_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def unsupported(param: str, why: str = "is not supported by this server") -> ApiError:
    """The refusal for a documented setting that this server cannot honour."""
    return ApiError(f"The parameter '{param}' {why}.", param=param, code="unsupported_parameter")


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Metadata within the API's limits.

    Raises:
        ApiError: too many pairs, or too long ones.
    """
    pairs = metadata or {}
    if len(pairs) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in pairs.items()):
        raise ApiError(
            "'metadata' takes at most 16 pairs, keys up to 64 and values up to 512 characters.", param="metadata"
        )


def whole_number(text: str) -> int | None:
    """A count that a client wrote in decimal digits; None for anything else, and for more than 18 digits."""
    return int(text) if len(text) <= 18 and text.isascii() and text.isdigit() else None
