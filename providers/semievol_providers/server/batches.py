"""Batches: what `POST /batches` takes, the lines of their files, and how one is run from its validation to its end.

Answers are appended to the batch's folder as they come; a line that is there is never asked again, so a killed server
goes on. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError, check_metadata
from semievol_providers.server.background import BackgroundTasks
from semievol_providers.server.completions import ENDPOINTS, Answers
from semievol_providers.server.disk import causes, reason_of, will_pass
from semievol_providers.server.engine_client import ENGINE_HUNG
from semievol_providers.server.settings import Limits
from semievol_providers.server.state import FileRow, Record, State, new_id

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
_MAX_FAULTS = 20
_MAX_LINE_BYTES = 4 * 2**20


class _ExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`output_expires_after`."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2592000)]


class BatchBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /batches`."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: _ExpiresAfter | None = None

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
class _InputCheck:
    """What reading a whole input file found."""

    total: int = 0
    faults: list[JsonValue] = field(default_factory=list[JsonValue])
    models: Counter[str] = field(default_factory=Counter[str])
    first_lines: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def model(self) -> str | None:
        """The model of most lines, the earlier one of two that are asked equally often."""
        return max(self.models, key=self.models.__getitem__, default=None)

    def count_model(self, model: str, line: int) -> None:
        """Note whom a line asks, and the number of the model's first lines."""
        self.models[model] += 1
        lines = self.first_lines.setdefault(model, [])
        if len(lines) < _MAX_FAULTS:
            lines.append(line)

    def fault_other_models(self) -> None:
        """Note the lines that ask another model than most."""
        others = [(line, model) for model, lines in self.first_lines.items() if model != self.model for line in lines]
        for line, model in sorted(others):
            self.fault(
                "mismatched_model",
                f"All lines of a batch must name one model: this one asks {model!r}, most ask {self.model!r}.",
                line,
            )

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


def _check_input(path: Path, endpoint: str, limits: Limits) -> _InputCheck:
    """Read the whole file once; faults name their line."""
    found, seen = _InputCheck(), set[str]()
    if path.stat().st_size > limits.batch_bytes:
        found.fault("file_too_large", f"The file is larger than {limits.batch_bytes:,} bytes.", None)
        return found
    for number, raw in batch_lines(path):
        found.total += 1
        if found.total > limits.batch_requests:
            found.fault("too_many_requests", f"A batch takes at most {limits.batch_requests:,} requests.", number)
            return found
        _check_line(found, seen, number, raw, endpoint)
    found.fault_other_models()
    if found.total == 0:
        found.fault("empty_file", "The input file has no requests.", None)
    return found


def _check_line(found: _InputCheck, seen: set[str], number: int, raw: bytes, endpoint: str) -> None:
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
    seen.add(line.custom_id)
    found.count_model(model, number)


class _Answered(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _AnswerLine(msgspec.Struct, frozen=True):
    """One line of an output or error file, as far as it is read again."""

    custom_id: str
    response: _Answered | None = None


class Tokens(msgspec.Struct, frozen=True):
    """The tokens that one answer used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Used(msgspec.Struct, frozen=True):
    usage: Tokens = Tokens()


def _tokens_of(line: _AnswerLine) -> Tokens:
    """What a line's answer used; nothing where it was refused."""
    if line.response is None or line.response.status_code != 200:
        return Tokens()
    return msgspec.json.decode(line.response.body, type=_Used).usage


def answered_line(custom_id: str, status: int, body: Record) -> bytes:
    """A line with an answer, good or bad."""
    response: Record = {"status_code": status, "request_id": new_id("req_"), "body": body}
    return _line({"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": None})


def _unanswered_line(custom_id: str, status: str) -> bytes:
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


_FILES = ("output", "errors")
_BUSY_WAIT_S = 0.5
_MAX_HUNG = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _BatchParts:
    """What the batches of one owner share: request slots, and a lock, since one input file is checked at a time."""

    state: State
    answers: Answers
    slots: asyncio.Semaphore
    checking: asyncio.Lock
    background: BackgroundTasks


class _BatchWork:
    """`run` it to the end; `cancel` it on the way."""

    def __init__(self, parts: _BatchParts, record: Record, owner: str) -> None:
        self._parts = parts
        self._id = str(record["id"])
        self._owner = owner
        self._record = record
        self._folder = parts.state.batch_folder(self._id)
        self._done: set[str] = set()
        self._counts = {"completed": 0, "failed": 0}
        self._tokens = [0, 0]
        self._cancelled = asyncio.Event()
        self._disk = parts.state.disk

    @property
    def part(self) -> str:
        """The name under which health reports its problems."""
        return f"batch {self._id}"

    @property
    def record(self) -> Record:
        """The batch object as it is now."""
        total: JsonValue = _total(self._record)
        counts: dict[str, JsonValue] = {"total": total, **self._counts}
        return {**self._record, "request_counts": counts}

    def cancel(self) -> None:
        """Stop asking; what is answered is kept."""
        self._save(status="cancelling", cancelling_at=int(time.time()))
        self._cancelled.set()

    async def run(self) -> None:
        """Continue from the batch's current status."""
        if self._record["status"] == "cancelling":
            self._cancelled.set()
        async with self._parts.checking:  # threads are few: the batches of one owner use one
            await asyncio.to_thread(self._recover)
            if self._record["status"] == "validating" and not await self._validate():
                return
        end = "completed"
        if self._record["status"] in ("in_progress", "cancelling"):
            end = await self._answer_all()
        if end == "completed":
            self._save(status="finalizing", finalizing_at=int(time.time()))
        await self._finish(end)

    async def fail(self, reason: str) -> None:
        """End the batch, which can never go on; what is answered is kept."""
        fault: Record = {"code": "internal_error", "message": reason, "param": None, "line": None}
        await self._finish("failed", errors={"object": "list", "data": [fault]})

    def _save(self, **changes: JsonValue) -> None:
        record = {**self.record, **changes}
        self._parts.state.save_batch(record)
        self._record = record

    # ----------------------------------------------------------------------------------------- validation
    async def _validate(self) -> bool:
        try:
            found = await asyncio.to_thread(
                _check_input, self._folder / "input", str(self._record["endpoint"]), self._parts.answers.limits
            )
        except OSError as error:
            if will_pass(error):
                raise
            found = _InputCheck()
            found.fault("file_unreadable", f"The input file cannot be read: {error.strerror}.", None)
        if self._cancelled.is_set():
            return True
        if found.faults:
            faults: Record = {"object": "list", "data": found.faults}
            self._save(status="failed", failed_at=int(time.time()), errors=faults)
            self._disk.remove_folder(self._folder)
            return False
        counts: Record = {"total": found.total, "completed": 0, "failed": 0}
        self._record = self._record | {"request_counts": counts, "model": found.model}
        self._save(status="in_progress", in_progress_at=int(time.time()))
        return True

    def _recover(self) -> None:
        """Read what is there already; a torn last line is cut off and asked again."""
        for name in _FILES:
            path = self._folder / f"{name}.jsonl"
            if not path.exists():
                continue
            good = 0
            with path.open("r+b") as lines:
                for raw in lines:
                    try:
                        line = msgspec.json.decode(raw, type=_AnswerLine)
                    except msgspec.DecodeError:
                        break
                    if not raw.endswith(b"\n"):  # the next line would be glued to it
                        break
                    good += len(raw)
                    self._note(line.custom_id, name, _tokens_of(line))
                lines.truncate(good)

    def _note(self, custom_id: str, name: str, used: Tokens) -> None:
        self._done.add(custom_id)
        self._counts["completed" if name == "output" else "failed"] += 1
        self._tokens[0] += used.prompt_tokens
        self._tokens[1] += used.completion_tokens

    # -------------------------------------------------------------------------------------------- answers
    async def _answer_all(self) -> str:
        """Ask every line that has no answer; returns how that ended."""
        if self._cancelled.is_set():
            return "cancelled"
        asking = asyncio.create_task(self._ask_lines())
        cancelled = asyncio.create_task(self._cancelled.wait())
        left_s = max(0.0, float(str(self._record["expires_at"])) - time.time())
        try:
            await asyncio.wait({asking, cancelled}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if self._cancelled.is_set():
                return "cancelled"
            return "completed" if asking.done() else "expired"
        finally:
            for task in (asking, cancelled):
                task.cancel()
            await asyncio.gather(asking, cancelled, return_exceptions=True)
            if asking.done() and not asking.cancelled():
                asking.result()

    async def _ask_lines(self) -> None:
        slots = self._parts.slots
        async with asyncio.TaskGroup() as group:
            for _, raw in batch_lines(self._folder / "input"):
                line = msgspec.json.decode(raw, type=BatchLine)
                if line.custom_id not in self._done:
                    await slots.acquire()
                    group.create_task(self._ask(line)).add_done_callback(lambda _: slots.release())

    async def _ask(self, line: BatchLine) -> None:
        hung = 0
        while True:
            try:
                body = await self._parts.answers.one(line.url, bytes(line.body), self._owner)
            except ApiError as error:
                hung += error.code == ENGINE_HUNG
                if error.status in (429, 503) and hung < _MAX_HUNG:
                    await asyncio.sleep(_BUSY_WAIT_S)
                    continue
                await self._keep("errors", line.custom_id, error.status, {"error": dict(error.body())})
            except Exception as error:  # noqa: BLE001 - a line fails alone
                if will_pass(error):
                    self._parts.background.report_problem(self.part, error)
                    await self._parts.background.pause()
                    continue
                _log.exception("a line of %s could not be answered", self._id)
                bug = ApiError(f"The server had an error: {type(error).__name__}.", status=500, code="internal")
                await self._keep("errors", line.custom_id, bug.status, {"error": dict(bug.body())})
            else:
                await self._keep("output", line.custom_id, 200, body)
            return

    async def _keep(self, name: str, custom_id: str, status: int, body: Record) -> None:
        """Append an answer to its file; on a full disk, keep it and try again without asking the engine again."""
        used = msgspec.convert(body["usage"], Tokens) if name == "output" else Tokens()
        line = answered_line(custom_id, status, body)
        while True:
            try:
                self._append(name, line, custom_id, used)
            except OSError as error:
                if not will_pass(error):
                    raise
                self._parts.background.report_problem(self.part, error)
                await self._parts.background.pause()
            else:
                self._parts.background.clear_problem(self.part)
                return

    def _append(self, name: str, line: bytes, custom_id: str, used: Tokens = Tokens()) -> None:
        self._disk.append(self._folder / f"{name}.jsonl", line + b"\n")
        self._note(custom_id, name, used)

    # ---------------------------------------------------------------------------------------------- files
    async def _finish(self, end: str, **fields: JsonValue) -> None:
        if end in ("cancelled", "expired"):
            await asyncio.to_thread(self._write_unanswered, end)
        made: Record = {}
        rows: list[FileRow] = []
        lifetime_s = self._parts.state.batch_output_lifetime_s(self._id)
        try:
            for name in _FILES:
                row = await asyncio.to_thread(self._publish, name, lifetime_s)
                if row is not None:
                    rows.append(row)
                    made["output_file_id" if name == "output" else "error_file_id"] = row.id
            with self._parts.state.transaction():
                for row in rows:
                    self._parts.state.add_file(row, self._owner)
                ended: Record = {**self.record, "status": end, **made, **fields, "usage": self._usage()}
                ended[f"{end}_at"] = int(time.time())
                self._parts.state.save_batch(ended)
        except BaseException:
            for row in rows:
                self._parts.state.file_path(row.id).unlink(missing_ok=True)
            raise
        self._record = ended
        self._disk.remove_folder(self._folder)

    def _write_unanswered(self, end: str) -> None:
        for _, raw in batch_lines(self._folder / "input"):
            try:
                custom_id = msgspec.json.decode(raw, type=BatchLine).custom_id
            except msgspec.DecodeError:  # cancelled before its validation
                continue
            if custom_id not in self._done:
                self._append("errors", _unanswered_line(custom_id, end), custom_id)

    def _publish(self, name: str, lifetime_s: int | None) -> FileRow | None:
        """Move the answers to the files; None if there are none."""
        source = self._folder / f"{name}.jsonl"
        if not source.exists() or source.stat().st_size == 0:
            return None
        with source.open("rb") as lines:
            self._disk.sync(lines.fileno())
        row_id, now = new_id("file-"), int(time.time())
        self._disk.second_name(source, self._parts.state.file_path(row_id))
        return FileRow(
            id=row_id,
            filename=f"{self._id}_{name}.jsonl",
            purpose="batch_output",
            bytes=self._parts.state.file_path(row_id).stat().st_size,
            created_at=now,
            expires_at=now + lifetime_s if lifetime_s is not None else None,
        )

    def _usage(self) -> Record:
        prompt, completion = self._tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }


def _total(record: Mapping[str, JsonValue]) -> int:
    counts = record["request_counts"]
    assert isinstance(counts, dict)
    return int(str(counts["total"]))


RUNNER = "batch runner"


class BatchRunner:
    """`start`, `add` new ones, `close`."""

    def __init__(self, state: State, answers: Answers, background: BackgroundTasks) -> None:
        self._state = state
        self._answers = answers
        self._background = background
        self._parts: dict[str, _BatchParts] = {}
        self._works: dict[str, _BatchWork] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Resume the batches that had not ended when the server stopped."""
        self._tasks.add(self._background.start(RUNNER, self._take_up))

    async def _take_up(self) -> None:
        for record, owner in self._state.batches_with_status(*UNFINISHED):
            if str(record["id"]) not in self._works:
                self.add(record, owner)
        self._background.finished(RUNNER)

    def add(self, record: Record, owner: str) -> None:
        """Run a batch that is already on disk."""
        work = self._works[str(record["id"])] = _BatchWork(self._parts_of(owner), record, owner)
        task = asyncio.create_task(self._run(work, owner), name=work.part)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, batch_id: str) -> None:
        """Stop a batch that is under way."""
        self._works[batch_id].cancel()

    def current(self, record: Record) -> Record:
        """The batch object with its newest numbers."""
        work = self._works.get(str(record["id"]))
        return work.record if work is not None else record

    async def close(self) -> None:
        """Leave all batches as they stand; the next server goes on with them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _parts_of(self, owner: str) -> _BatchParts:
        """What the batches of one owner share: none waits for another owner's slots."""
        if owner not in self._parts:
            slots = asyncio.Semaphore(self._answers.limits.batch_in_flight)
            self._parts[owner] = _BatchParts(self._state, self._answers, slots, asyncio.Lock(), self._background)
        return self._parts[owner]

    async def _run(self, work: _BatchWork, owner: str) -> None:
        batch_id = str(work.record["id"])
        try:
            while not await self._attempt(work):
                await self._background.pause()
                work = self._works[batch_id] = _BatchWork(self._parts_of(owner), work.record, owner)
            self._background.clear_problem(work.part)
        finally:
            self._works.pop(batch_id, None)

    async def _attempt(self, work: _BatchWork) -> bool:
        """Go on with a batch until it has ended; False where it must be tried again later."""
        try:
            try:
                await work.run()
            except Exception as error:
                lasting = [cause for cause in causes(error) if not will_pass(cause)]
                if not lasting:
                    raise
                _log.warning("%s cannot go on: %s", work.part, reason_of(lasting[0]), exc_info=error)
                await work.fail(f"The batch cannot go on: {reason_of(lasting[0])}")
        except Exception as error:  # noqa: BLE001 - one batch's trouble is that batch's
            self._background.report_problem(work.part, causes(error)[0])
            return False
        return True
