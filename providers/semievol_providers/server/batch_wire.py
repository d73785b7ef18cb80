"""Batches as the API shows them: the request, the object, the input lines and the answer lines.

Knows nothing of how batches are stored or run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from semievol_api.records import JsonValue
from semievol_providers.server.answers import ENDPOINTS
from semievol_providers.server.api_errors import ApiError, check_metadata
from semievol_providers.server.settings import Limits
from semievol_providers.server.state import Record, new_id

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
_MAX_FAULTS = 20
_MAX_LINE_BYTES = 4 * 2**20


class ExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`output_expires_after`."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2592000)]


class BatchBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /batches`."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None

    def checked(self) -> BatchBody:
        """This body, if the server can run it.

        Raises:
            ApiError: another endpoint, or metadata is too large.
        """
        if self.endpoint not in ENDPOINTS:
            raise ApiError(
                f"Batches for {self.endpoint!r} are not supported by this server; use one of {', '.join(ENDPOINTS)}.",
                param="endpoint",
                code="unsupported_value",
            )
        check_metadata(self.metadata)
        return self


def new_batch(body: BatchBody, limits: Limits) -> Record:
    """The batch object at its creation."""
    now = int(time.time())
    record: Record = {
        "id": new_id("batch_"),
        "object": "batch",
        "endpoint": body.endpoint,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "validating",
        "created_at": now,
        "expires_at": now + limits.batch_window_s,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }
    if body.metadata is not None:
        record["metadata"] = dict(body.metadata)
    return record


class BatchLine(msgspec.Struct, frozen=True):
    """One line of an input file; `body` stays as it was written."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _Model(msgspec.Struct, frozen=True):
    model: str


@dataclass(slots=True)
class InputCheck:
    """What reading a whole input file found."""

    total: int = 0
    model: str | None = None
    faults: list[JsonValue] = field(default_factory=list[JsonValue])

    def fault(self, code: str, message: str, line: int | None) -> None:
        """Note one fault; a file full of them shows the first ones."""
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append({"code": code, "message": message, "param": None, "line": line})


def batch_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of the lines that are not blank; one at a time."""
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE_BYTES + 1), b""), start=1):
            if line.strip():
                yield number, line
            if len(line) > _MAX_LINE_BYTES:
                return


def check_input(path: Path, endpoint: str, limits: Limits) -> InputCheck:
    """Read the whole file once; faults name their line."""
    found, seen = InputCheck(), set[str]()
    if path.stat().st_size > limits.batch_bytes:
        found.fault("file_too_large", f"The file is larger than {limits.batch_bytes:,} bytes.", None)
        return found
    for number, raw in batch_lines(path):
        found.total += 1
        if found.total > limits.batch_requests:
            found.fault("too_many_requests", f"A batch takes at most {limits.batch_requests:,} requests.", number)
            return found
        _check_line(found, seen, number, raw, endpoint)
    if found.total == 0:
        found.fault("empty_file", "The input file has no requests.", None)
    return found


def _check_line(found: InputCheck, seen: set[str], number: int, raw: bytes, endpoint: str) -> None:
    if len(raw) > _MAX_LINE_BYTES:
        found.fault("line_too_long", f"The line is longer than {_MAX_LINE_BYTES:,} bytes.", number)
        return
    try:
        line = msgspec.json.decode(raw, type=BatchLine)
        model = msgspec.json.decode(line.body, type=_Model).model
    except msgspec.ValidationError as error:
        found.fault("invalid_request", f"The line is not a batch request: {error}", number)
        return
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        found.fault("invalid_json_line", f"The line is not valid JSON: {error}", number)
        return
    if line.custom_id in seen:
        found.fault("duplicate_custom_id", f"The custom_id {line.custom_id!r} occurs twice.", number)
    if line.url != endpoint:
        found.fault("mismatched_url", f"The line asks {line.url!r}, its batch {endpoint!r}.", number)
    if found.model not in (None, model):
        found.fault("mismatched_model", "All lines of a batch must name one model.", number)
    seen.add(line.custom_id)
    found.model = model


class _Answered(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class AnswerLine(msgspec.Struct, frozen=True):
    """One line of an output or error file, as far as it is read again."""

    custom_id: str
    response: _Answered | None = None


class Tokens(msgspec.Struct, frozen=True):
    """The tokens that one answer used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Used(msgspec.Struct, frozen=True):
    usage: Tokens = Tokens()


def tokens_of(line: AnswerLine) -> Tokens:
    """What a line's answer used; nothing where it was refused."""
    if line.response is None or line.response.status_code != 200:
        return Tokens()
    return msgspec.json.decode(line.response.body, type=_Used).usage


def answered_line(custom_id: str, status: int, body: Record) -> bytes:
    """A line with an answer, good or bad."""
    response: Record = {"status_code": status, "request_id": new_id("req_"), "body": body}
    return _line({"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": None})


def unanswered_line(custom_id: str, status: str) -> bytes:
    """A line for a request that an `expired` or `cancelled` batch never answered."""
    why = {
        "expired": "This request could not be executed before the completion window expired.",
        "cancelled": "This request was not executed because its batch was cancelled.",
    }
    error: Record = {"code": f"batch_{status}", "message": why[status]}
    return _line({"id": new_id("batch_req_"), "custom_id": custom_id, "response": None, "error": error})


def _line(record: Record) -> bytes:
    """ASCII only: `str.splitlines` in a user's script breaks a line at U+2028 and others of its kind."""
    return json.dumps(record, separators=(",", ":")).encode("ascii")
