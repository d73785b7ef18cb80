"""Every unlabelled row with every annotator's answer: what the label browser, review and the export read.

Joins the artifacts of a run folder column by column, so that 100,000 rows take seconds; of more than fit a part it
shows a sample. Knows nothing of HTML,
or of how a label was made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET
from numpy.typing import NDArray

from semievol_api.data.schemas import chunked_examples
from semievol_api.data.table import ChunkedTable
from semievol_api.errors import RunFolderError
from semievol_api.records import Example
from semievol_api.selection.values import BoolArray, FloatArray
from semievol_api.store.artifacts import EvidenceTable, Prepared, Selection
from semievol_api.store.run_store import load_artifact
from semievol_api.store.verdict import PooledSummary
from semievol_api.tasks.kind_json import alike, read_object

_GOLD_FILE = "oracle/gold.json"
"""Optional, in the run folder: {example id: hidden gold answer} of unlabelled rows, for this report alone."""

SHOWN = 100_000
"""Rows that a page shows at most of a pool in parts."""
_REASONS_HERE = {"above the threshold": "less sure than the cut"}
"""Reasons of the selection on the scale of this table, where higher is better."""


@dataclass(frozen=True, eq=False)
class AnnotatorAnswers:
    """What one annotator (or the justification) answered to every row, in the table's order.

    `confidences` is float64, shape (rows,), exp(-mean_nll); NaN where there is none. An answer of None is an
    abstention; `texts` is "" where it was not asked.
    """

    id: str
    answers: Sequence[str | None]
    confidences: FloatArray
    texts: Sequence[str]


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The unlabelled rows of a run in the order of its data.

    `confidences` is float64, shape (rows,), higher is better: the share that the selection rule ranked, or
    exp(-mean_nll) where it ranked that; NaN for an abstention. `kept` is bool, shape (rows,). `threshold` is on
    the scale of `confidences`. `gold` holds hidden gold where the run folder has it. Where answers consist of `fields`,
    `field_scores` has for each row the confidence of each, None for an abstention.
    """

    examples: Sequence[Example]
    answers: Sequence[str | None]
    confidences: FloatArray
    kept: BoolArray
    reasons: Sequence[str]
    annotators: Sequence[AnnotatorAnswers]
    justification: AnnotatorAnswers | None
    gold: Mapping[str, str]
    threshold: float | None
    fields: Sequence[str] = ()
    field_scores: Sequence[Sequence[float] | None] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def answered_by(self) -> list[AnnotatorAnswers]:
        """The annotators, behind them the justification where there is one."""
        return [*self.annotators, *([self.justification] if self.justification else [])]

    def correct(self) -> tuple[NDArray[np.int64], BoolArray]:
        """The places of rows with an answer and known gold, and whether the answer is right."""
        places = [i for i, e in enumerate(self.examples) if e.id in self.gold and self.answers[i] is not None]
        right = [same_answer(self.answers[i], self.gold[self.examples[i].id]) for i in places]
        return np.array(places, dtype=np.int64), np.array(right, dtype=np.bool_)

    def agreement(self) -> FloatArray:
        """float64, shape (rows,): the share of annotators that gave the row's answer; NaN without annotators."""
        if not self.annotators:
            return np.full(len(self), np.nan)
        votes = np.zeros(len(self))
        for annotator in self.annotators:
            votes += [a is not None and a == b for a, b in zip(annotator.answers, self.answers, strict=True)]
        return votes / len(self.annotators)


def same_answer(answer: str | None, gold: str) -> bool:
    """Whether canonical answers agree; numbers within 1 % of the gold one (paper §4.1), texts in JSON as texts."""
    if answer is None or answer == gold:
        return answer is not None
    objects = read_object(answer), read_object(gold)
    if objects[0] is not None and objects[1] is not None:
        return alike(objects[0], objects[1])
    try:
        return abs(float(answer) - float(gold)) <= 0.01 * abs(float(gold))
    except ValueError:
        return False


def read_label_table(run_folder: Path, data: Prepared | None = None) -> LabelTable:
    """The rows as far as the run has come; before selection nothing is kept and nothing has an answer.

    Of unlabelled examples in parts these are a sample, the same every time. `data` spares reading the prepared data
    again.

    Raises:
        RunFolderError: the folder holds no prepared data.
    """
    data = data or load_prepared(run_folder)
    return _Stages.read(run_folder).about(_shown_of(data), None)


def label_tables(run_folder: Path) -> Iterator[LabelTable]:
    """All rows, one part after the other; see `read_label_table`."""
    unlabeled = chunked_examples(load_prepared(run_folder).unlabeled)
    stages = _Stages.read(run_folder)
    for part in range(unlabeled.n_parts):
        yield stages.about(unlabeled.part(part), part)


def _shown_of(data: Prepared) -> Sequence[Example]:
    """The unlabelled examples that a person is shown: all, or about `SHOWN` evenly spread ones."""
    unlabeled = chunked_examples(data.unlabeled)
    if unlabeled.n_parts == 1:
        return unlabeled
    sizes = np.array(unlabeled.sizes)
    ends = np.rint(np.cumsum(sizes) * min(1.0, SHOWN / len(unlabeled))).astype(int)
    shown: list[Example] = []
    for part, (size, count) in enumerate(zip(sizes.tolist(), np.diff(ends, prepend=0).tolist(), strict=True)):
        rows = unlabeled.part(part)
        shown += [rows[place] for place in np.linspace(0, size - 1, count).astype(int).tolist()]
    return shown


@dataclass(frozen=True)
class _Stages:
    """What the stages left about the unlabelled examples, as far as they have come, and the hidden gold."""

    annotations: EvidenceTable | None
    final: EvidenceTable | None
    chosen: Selection | None
    gold: Mapping[str, str]

    @classmethod
    def read(cls, run_folder: Path) -> Self:
        """The artifacts, their tables unread."""
        gold = run_folder / _GOLD_FILE
        return cls(
            annotations=load_artifact(run_folder, "collaborate", EvidenceTable),
            final=load_artifact(run_folder, "justify", EvidenceTable),
            chosen=load_artifact(run_folder, "select", Selection),
            gold=json.loads(gold.read_text("utf-8")) if gold.is_file() else {},
        )

    def about(self, examples: Sequence[Example], part: int | None) -> LabelTable:
        """The rows of some examples, which lie in one part or anywhere."""
        ids, size = [e.id for e in examples], len(examples)
        justified = _answers_by_annotator(self.final, ids, part)
        table = LabelTable(
            examples=examples,
            answers=[None] * size,
            confidences=np.full(size, np.nan),
            kept=np.zeros(size, dtype=np.bool_),
            reasons=["not selected yet"] * size,
            annotators=_answers_by_annotator(self.annotations, ids, part),
            justification=justified[0] if justified else None,
            gold=self.gold,
            threshold=None,
        )
        if self.chosen is None:
            return table
        scores = _aligned(_about(self.chosen.scores, ids, part), ids)
        reasons = (reason or "" for reason in scores["reason"].to_pylist())
        return replace(
            table,
            answers=scores["answer"].to_pylist(),
            confidences=_scores(scores),
            kept=scores["kept"].fill_null(False).to_numpy(),
            reasons=[_REASONS_HERE.get(reason, reason) for reason in reasons],
            threshold=_threshold(self.chosen),
            fields=_fields(self.chosen),
            field_scores=scores["field_scores"].to_pylist() if "field_scores" in scores.column_names else (),
        )


def load_prepared(run_folder: Path) -> Prepared:
    """The clean data of a run.

    Raises:
        RunFolderError: there is none.
    """
    data = load_artifact(run_folder, "prepare", Prepared)
    if data is None:
        raise RunFolderError(
            f"The folder {str(run_folder)!r} holds no prepared data, so it is no run, or one that has not begun. "
            f"Name the folder that [run] folder names in your config, after `semievol run`."
        )
    return data


def _about(parts: ChunkedTable[Any], ids: Sequence[str], part: int | None) -> pa.Table:
    """The rows about some examples, which lie in one part or anywhere; all of a table in one part."""
    if parts.n_parts == 1 or part is not None:
        return parts.read(part or 0)
    wanted = set(ids)
    found: list[pa.Table] = []
    for table in parts.tables():
        found.append(table.filter(pa.array([name in wanted for name in table["example_id"].to_pylist()], pa.bool_())))
    return pa.concat_tables(found, promote_options="default")


def _aligned(table: pa.Table, ids: Sequence[str]) -> pa.Table:
    """One row for each id, in their order; all null where the table has none."""
    place = {name: row for row, name in enumerate(table["example_id"].to_pylist())}
    return table.take(pa.array([place.get(name) for name in ids], pa.int64()))


def _answers_by_annotator(
    evidence: EvidenceTable | None, ids: Sequence[str], part: int | None
) -> list[AnnotatorAnswers]:
    if evidence is None:
        return []
    table = _about(evidence.parts, ids, part)
    found: list[AnnotatorAnswers] = []
    names = np.array(table["annotator_id"].to_pylist(), dtype=np.str_)
    for name in np.unique(names).tolist():
        own = _aligned(table.filter(pa.array(names == name)), ids)
        found.append(
            AnnotatorAnswers(
                id=name,
                answers=own["answer"].to_pylist(),
                confidences=np.exp(-_floats(own["mean_nll"])),
                texts=own["text"].fill_null("").to_pylist(),
            )
        )
    return found


def _scores(table: pa.Table) -> FloatArray:
    if "mean_nll" in table.column_names:
        return np.asarray(np.exp(-_floats(table["mean_nll"])), dtype=np.float64)
    return _floats(table["score"])


def _floats(column: pa.ChunkedArray) -> FloatArray:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _fields(chosen: Selection) -> Sequence[str]:
    fields = chosen.summary.fields if isinstance(chosen.summary, PooledSummary) else UNSET
    return () if fields is UNSET else fields


def _threshold(chosen: Selection) -> float | None:
    if isinstance(chosen.summary, PooledSummary):
        return chosen.summary.threshold
    nll = chosen.summary.threshold_mean_nll
    return None if nll is None else float(np.exp(-nll))


REVIEW_FILE = "review.jsonl"
Action: TypeAlias = Literal["accept", "correct", "skip", "undo"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A person's decision on one row.

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
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
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


AUDIT_EVERY = 7
"""Every seventh row is drawn uniformly: 14 % of any budget, within the 10 to 20 % that keep a calibration
exchangeable (method §3, `human-budget`)."""


@dataclass(frozen=True)
class QueueRow:
    """One row to review: its place in the table, and whether it was drawn uniformly."""

    place: int
    audit: bool


def review_queue(labels: LabelTable, limit: int | None = None) -> list[QueueRow]:
    """Every row once, best first: fewest annotators behind its answer, then lowest confidence; none before those."""
    agreement = np.nan_to_num(labels.agreement(), nan=0.0)
    confidence = np.nan_to_num(labels.confidences, nan=-1.0)
    doubtful = np.lexsort((confidence, agreement)).tolist()
    uniform = sorted(range(len(labels)), key=lambda i: _hash(labels.examples[i].id))
    rows: list[QueueRow] = []
    seen: set[int] = set()
    sources = {False: iter(doubtful), True: iter(uniform)}
    while len(rows) < min(len(labels), limit or len(labels)):
        audit = len(rows) % AUDIT_EVERY == AUDIT_EVERY - 1
        place = next(p for p in sources[audit] if p not in seen)
        seen.add(place)
        rows.append(QueueRow(place, audit))
    return rows


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
