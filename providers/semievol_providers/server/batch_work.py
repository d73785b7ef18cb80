"""One batch from its validation to its files. Everything done is on disk at once, so a killed server goes on.

Answers are appended to the batch's folder as they come; a line that is there is never asked again. Knows nothing
of HTTP or of other batches.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from semievol_api.records import JsonValue
from semievol_providers.server.answers import Answers
from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.batch_wire import (
    AnswerLine,
    BatchLine,
    InputCheck,
    Tokens,
    answered_line,
    batch_lines,
    check_input,
    tokens_of,
    unanswered_line,
)
from semievol_providers.server.state import FileRow, Record, State, link_or_copy, new_id

_FILES = ("output", "errors")
_BUSY_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class BatchParts:
    """What every batch works with; its owner's batches share `slots` and advance in turns, one is checked at a time."""

    state: State
    answers: Answers
    slots: asyncio.Semaphore
    checking: asyncio.Lock


class BatchWork:
    """`run` it to the end; `cancel` it on the way."""

    def __init__(self, parts: BatchParts, record: Record, owner: str) -> None:
        self._parts = parts
        self._id = str(record["id"])
        self._owner = owner
        self._record = record
        self._folder = parts.state.batch_folder(self._id)
        self._done: set[str] = set()
        self._counts = {"completed": 0, "failed": 0}
        self._tokens = [0, 0]
        self._cancelled = asyncio.Event()

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
        """Go on from wherever the batch stands."""
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

    def _save(self, **changes: JsonValue) -> None:
        self._record = {**self.record, **changes}
        self._parts.state.save_batch(self._record)

    # ----------------------------------------------------------------------------------------- validation
    async def _validate(self) -> bool:
        try:
            found = await asyncio.to_thread(
                check_input, self._folder / "input", str(self._record["endpoint"]), self._parts.answers.limits
            )
        except OSError as error:
            found = InputCheck()
            found.fault("file_unreadable", f"The input file cannot be read: {error.strerror}.", None)
        if self._cancelled.is_set():
            return True
        if found.faults:
            faults: Record = {"object": "list", "data": found.faults}
            self._save(status="failed", failed_at=int(time.time()), errors=faults)
            shutil.rmtree(self._folder, ignore_errors=True)
            return False
        counts: Record = {"total": found.total, "completed": 0, "failed": 0}
        self._record = self._record | {"request_counts": counts, "model": found.model}
        self._save(status="in_progress", in_progress_at=int(time.time()))
        return True

    def _recover(self) -> None:
        """Read what an earlier server wrote; a torn last line is cut off and asked again."""
        for name in _FILES:
            path = self._folder / f"{name}.jsonl"
            if not path.exists():
                continue
            good = 0
            with path.open("r+b") as lines:
                for raw in lines:
                    try:
                        line = msgspec.json.decode(raw, type=AnswerLine)
                    except msgspec.DecodeError:
                        break
                    good += len(raw)
                    self._note(line.custom_id, name, tokens_of(line))
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
        while True:
            try:
                body = await self._parts.answers.one(line.url, bytes(line.body), self._owner)
            except ApiError as error:
                if error.status in (429, 503):
                    await asyncio.sleep(_BUSY_WAIT_S)
                    continue
                self._append(
                    "errors", answered_line(line.custom_id, error.status, {"error": dict(error.body())}), line.custom_id
                )
            else:
                used = msgspec.convert(body["usage"], Tokens)
                self._append("output", answered_line(line.custom_id, 200, body), line.custom_id, used)
            return

    def _append(self, name: str, line: bytes, custom_id: str, used: Tokens = Tokens()) -> None:
        with (self._folder / f"{name}.jsonl").open("ab", buffering=0) as out:
            out.write(line + b"\n")
        self._note(custom_id, name, used)

    # ---------------------------------------------------------------------------------------------- files
    async def _finish(self, end: str) -> None:
        if end != "completed":
            await asyncio.to_thread(self._write_unanswered, end)
        made: Record = {}
        rows: list[FileRow] = []
        lifetime_s = self._parts.state.batch_output_lifetime_s(self._id)
        for name in _FILES:
            row = await asyncio.to_thread(self._publish, name, lifetime_s)
            if row is not None:
                rows.append(row)
                made["output_file_id" if name == "output" else "error_file_id"] = row.id
        with self._parts.state.transaction():
            for row in rows:
                self._parts.state.add_file(row, self._owner)
            self._save(status=end, **made, **{f"{end}_at": int(time.time())}, usage=self._usage())
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_unanswered(self, end: str) -> None:
        for _, raw in batch_lines(self._folder / "input"):
            try:
                custom_id = msgspec.json.decode(raw, type=BatchLine).custom_id
            except msgspec.DecodeError:  # cancelled before its validation
                continue
            if custom_id not in self._done:
                self._append("errors", unanswered_line(custom_id, end), custom_id)

    def _publish(self, name: str, lifetime_s: int | None) -> FileRow | None:
        """Give the answers their place among the files; None if there are none."""
        source = self._folder / f"{name}.jsonl"
        if not source.exists() or source.stat().st_size == 0:
            return None
        with source.open("rb") as lines:
            os.fsync(lines.fileno())
        row_id, now = new_id("file-"), int(time.time())
        link_or_copy(source, self._parts.state.file_path(row_id))
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
