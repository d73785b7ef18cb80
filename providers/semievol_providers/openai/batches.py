"""Batches: the same chat bodies, uploaded together, answered within a day at half the price.

A batch carries its run key in its metadata and, for vendors that drop it, in its input file's name. Knows nothing
of splitting, waiting, re-asking or prices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from semievol_api.capabilities import BatchAnswer, BatchState, ChatRequest, Pace
from semievol_api.errors import RateLimitError, TransientError
from semievol_providers.openai.chat import ChatDecoder, chat_body, encode
from semievol_providers.openai.errors import error_from_answer, error_in_body, job_failure, read_vendor_error
from semievol_providers.openai.finetuner import RUN_KEY, Files, content_name, short_key
from semievol_providers.openai.sdk import Sdk

_BatchStatus: TypeAlias = Literal["running", "completed", "expired", "failed", "cancelled"]

_WHAT = "batches"
_ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_STATUSES: dict[str, _BatchStatus] = {
    "completed": "completed",
    "expired": "expired",
    "failed": "failed",
    "cancelled": "cancelled",
    "canceled": "cancelled",
}
_ASK_AGAIN_CODES = frozenset({"batch_expired", "batch_cancelled"})


class Counts(Struct):
    """A batch's requests."""

    total: int | None = None
    completed: int | None = None
    failed: int | None = None


class BatchFaults(Struct):
    """Why a batch was not accepted."""

    data: list[msgspec.Raw] | None = None


class Batch(Struct):
    """The fields of a batch that are used."""

    id: str
    status: str
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    metadata: dict[str, Any] | None = None
    request_counts: Counts | None = None
    errors: BatchFaults | None = None


class _LineAnswer(Struct):
    """What one request was answered."""

    status_code: int = 0
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(Struct):
    """One line of an output or error file."""

    custom_id: str
    response: _LineAnswer | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class OpenAIBatchChat:
    """`BatchChat` at one endpoint."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk
        self._files = Files(sdk)
        self._decoder = ChatDecoder()

    async def submit(self, requests: Mapping[str, ChatRequest], run_key: str) -> str:
        """Upload the requests and start the batch; returns its id.

        Raises:
            TransientError: the answer was lost; the batch may exist: look with `find` before submitting again.
            RefusedError: the vendor does not accept the file.
            RateLimitError: too many requests, or batches, for now.
        """
        content = self._content(requests)
        name = f"{_file_start(run_key)}{content_name(content)}"
        file_id = await self._files.upload_once(content, name, "batch")
        batch = await self._sdk.ask_for(
            Batch,
            _WHAT,
            lambda client: client.batches.with_raw_response.create(
                completion_window="24h", endpoint=_ENDPOINT, input_file_id=file_id, metadata={RUN_KEY: run_key}
            ),
        )
        return batch.id

    async def find(self, run_key: str) -> str | None:
        """The id of the batch with this key. One that failed, or was cancelled with nothing done, doesn't count."""
        listed = self._sdk.items(Batch, _WHAT, lambda client, paging: client.batches.with_raw_response.list(**paging))
        usable = [batch async for batch in listed if _worth_finding(batch)]
        for batch in usable:
            if batch.metadata and batch.metadata.get(RUN_KEY) == run_key:
                return batch.id
        unmarked = [batch for batch in usable if not batch.metadata]
        if not unmarked:
            return None
        inputs = {file.id for file in await self._files.named(_file_start(run_key), "batch")}
        return next((batch.id for batch in unmarked if batch.input_file_id in inputs), None)

    async def poll(self, batch_id: str) -> BatchState:
        """Where the batch stands now."""
        batch = await self._retrieve(batch_id)
        counts = batch.request_counts or Counts()
        return BatchState(
            status=_STATUSES.get(batch.status, "running"),
            raw_status=batch.status,
            done=counts.completed or 0,
            failed=counts.failed or 0,
            total=counts.total or 0,
            reason=self._reason(batch),
        )

    async def collect(self, batch_id: str) -> Sequence[BatchAnswer]:
        """All finished lines of the output and the error file, in no promised order."""
        batch = await self._retrieve(batch_id)
        answers: list[BatchAnswer] = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                content = await self._files.download(file_id)
                answers.extend(self._answer(line) for line in content.splitlines() if line.strip())
        return answers

    async def cancel(self, batch_id: str) -> None:
        """Ask the vendor to stop the batch; what is finished by then is kept and billed."""
        await self._sdk.ask(_WHAT, lambda client: client.batches.with_raw_response.cancel(batch_id))

    async def _retrieve(self, batch_id: str) -> Batch:
        return await self._sdk.ask_for(Batch, _WHAT, lambda client: client.batches.with_raw_response.retrieve(batch_id))

    def _content(self, requests: Mapping[str, ChatRequest]) -> bytes:
        dialect = self._sdk.connection.dialect
        lines = [
            encode({"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": chat_body(request, dialect)})
            for key, request in requests.items()
        ]
        return b"\n".join([*lines, b""])

    def _reason(self, batch: Batch) -> str | None:
        faults = batch.errors.data if batch.errors else None
        told = [job_failure(read_vendor_error(bytes(fault)), self._sdk.connection) for fault in (faults or [])[:3]]
        return " ".join(text for text in told if text) or None

    def _answer(self, line: bytes) -> BatchAnswer:
        """One line as an answer; a cut line is a `TransientError`, since the download may be whole next time."""
        decoded = self._sdk.decode(_Line, "files/content", line)
        response = decoded.response
        if response is None or response.status_code == 0:
            return self._unanswered(decoded)
        body = bytes(response.body)
        if response.status_code != 200:
            error = error_from_answer("batch line", response.status_code, {}, body, self._sdk.connection)
            again = isinstance(error, TransientError | RateLimitError)
            return BatchAnswer(custom_id=decoded.custom_id, reply=None, error=str(error), retryable=again)
        try:
            reply = self._decoder.reply(body, Pace(), alternatives=True)
        except msgspec.DecodeError:
            reply = None
        if reply is None:
            from semievol_api.cassettes.http import HttpResponse  # importing a provider imports no HTTP client

            hidden = error_in_body("batch line", HttpResponse(200, {}, body), self._sdk.connection)
            again = isinstance(hidden, TransientError | RateLimitError)
            return BatchAnswer(custom_id=decoded.custom_id, reply=None, error=str(hidden), retryable=again)
        return BatchAnswer(custom_id=decoded.custom_id, reply=reply)

    def _unanswered(self, line: _Line) -> BatchAnswer:
        fault = read_vendor_error(bytes(line.error))
        reason = job_failure(fault, self._sdk.connection) or "The vendor gave neither an answer nor a reason."
        again = fault.code in _ASK_AGAIN_CODES or not fault.code
        return BatchAnswer(custom_id=line.custom_id, reply=None, error=reason, retryable=again)


def _worth_finding(batch: Batch) -> bool:
    """False for a batch that can't hold a paid answer."""
    status = _STATUSES.get(batch.status, "running")
    return status not in ("failed", "cancelled") or (status == "cancelled" and bool(batch.output_file_id))


def _file_start(run_key: str) -> str:
    return f"batch-{short_key(run_key)}-"
