"""A person's decisions about rows, one JSON line each, on disk before anyone is told that they are.

    with DecisionLog.open(run_folder / "review.jsonl") as log:
        log.append(Decision(example_id="q17", action="correct", answer="C", proposed="A"))
    read_decisions(run_folder / "review.jsonl")["q17"].answer      # "C"

The file is only ever appended to; an undo is a line too. A line that a kill cut off was never confirmed to
anyone and is set aside. Knows nothing of pages or of which rows are worth asking about.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from semievol_api.errors import RunFolderError

REVIEW_FILE = "review.jsonl"
Action: TypeAlias = Literal["accept", "correct", "skip", "undo"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a person said of one row.

    `answer` is the label that now holds (None for skip and undo), `proposed` what the method had put forward.
    `audit` marks a row that was drawn uniformly rather than for its doubt: only these keep a calibration
    exchangeable. `at` is an ISO 8601 time in UTC.
    """

    example_id: str
    action: Action
    answer: str | None = None
    proposed: str | None = None
    audit: bool = False
    at: str = ""


class DecisionLog:
    """The open file, held by one process at a time."""

    def __init__(self, descriptor: int, decisions: Iterable[Decision]) -> None:
        self._descriptor = descriptor
        self._lines = list(decisions)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Generator[DecisionLog]:
        """Hold the file until the block ends.

        Raises:
            RunFolderError: another review holds it, or it cannot be written.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise RunFolderError(
                f"The decisions cannot be written to {str(path)!r}: {error.strerror}. Make the folder writable."
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"Another review of {str(path.parent)!r} is open. Go on in its page, or end it with Ctrl-C first."
                ) from None
            _end_cut_line(descriptor, path)
            yield cls(descriptor, _read_lines(path))
        finally:
            os.close(descriptor)

    def append(self, decision: Decision) -> Decision:
        """Write one line and return once it is on disk."""
        stamped = _stamped(decision)
        line = json.dumps(asdict(stamped), ensure_ascii=False).encode() + b"\n"
        written = 0
        while written < len(line):
            written += os.write(self._descriptor, line[written:])
        os.fsync(self._descriptor)
        self._lines.append(stamped)
        return stamped

    def undo(self) -> Decision | None:
        """Take back the latest decision that still stands, and return it; None where there is none."""
        standing = _standing(self._lines)
        if not standing:
            return None
        last = standing[-1]
        self.append(Decision(example_id=last.example_id, action="undo", proposed=last.proposed, audit=last.audit))
        return last

    @property
    def decisions(self) -> dict[str, Decision]:
        """The decision that holds for each row."""
        return {d.example_id: d for d in _standing(self._lines)}


def read_decisions(path: Path) -> dict[str, Decision]:
    """The decision that holds for each reviewed row, undone ones left out; empty where there is no file.

    Raises:
        RunFolderError: a line in the middle of the file is no decision.
    """
    return {d.example_id: d for d in _standing(_read_lines(path))} if path.is_file() else {}


def _standing(lines: Iterable[Decision]) -> list[Decision]:
    """In the order in which they were made. An undo takes back the row's latest decision, not all of them."""
    stacks: dict[str, list[tuple[int, Decision]]] = {}
    for place, line in enumerate(lines):
        stack = stacks.setdefault(line.example_id, [])
        if line.action != "undo":
            stack.append((place, line))
        elif stack:
            stack.pop()
    return [decision for _, decision in sorted((s[-1] for s in stacks.values() if s), key=lambda pair: pair[0])]


def _read_lines(path: Path) -> Iterator[Decision]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            yield msgspec.json.decode(line, type=Decision)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if number == len(lines):
                return
            raise RunFolderError(
                f"Line {number} of {str(path)!r} is no decision. Mend it, or put a # before it to leave it out."
            ) from None


def _end_cut_line(descriptor: int, path: Path) -> None:
    """Cut off a last line that a kill left unfinished: it was never confirmed, and would spoil the next one."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
        os.fsync(descriptor)


def _stamped(decision: Decision) -> Decision:
    return replace(decision, at=decision.at or datetime.now(UTC).isoformat(timespec="seconds"))
