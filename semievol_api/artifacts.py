"""What the stages hand to each other and the run store keeps: frozen values over Arrow tables.

    prepare -> Prepared, split -> Folds, retrieve -> Neighbours, probe -> Abilities,
    collaborate and justify -> EvidenceTable, select -> Selection,
    warm_up and evolve -> TrainingFile, Ticket, TunedModel, evaluate -> Answers

Knows nothing of how an artifact is made; holds no clock, host or secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Self, TypeAlias, cast

import pyarrow as pa
from msgspec import convert

from semievol_api.records import Evidence, Example, PseudoLabel
from semievol_api.run_store import Packed

Ability: TypeAlias = Literal["options", "alternatives", "logprobs", "text"]
"""What a server gives beside an answer's text: the probability of every label in one read, alternatives at each
token, the chosen tokens' log-probabilities, or nothing."""

REVIEW_QUEUE = "review_queue.jsonl"
EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("group", pa.string()),
        ("category", pa.string()),
    ]
)
EVIDENCE_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("annotator_id", pa.string()),
        ("prompt_hash", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("finish", pa.string()),
        ("permutation", pa.list_(pa.int16())),
        ("option_probs", pa.list_(pa.float32())),
        ("answer_logprob", pa.float32()),
        ("mean_nll", pa.float32()),
        ("verbal", pa.float32()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("failure", pa.string()),
        ("dropped_shots", pa.int16()),
    ]
)
CHECKED_SCHEMA = EVIDENCE_SCHEMA.append(pa.field("p_true", pa.float32()))
"""Where an annotator was asked about its own answers."""


@dataclass(frozen=True)
class Prepared:
    """Clean data: what a model may learn from, be asked, and be measured on. No hidden gold in it.

    `report` is the hygiene report as JSON values: every row that was dropped, with its reason.
    """

    labeled: tuple[Example, ...]
    unlabeled: tuple[Example, ...]
    test: tuple[Example, ...]
    report: Mapping[str, object]

    def pack(self) -> Packed:
        """Three tables and the report."""
        return Packed(
            tables={
                "labeled": _examples_table(self.labeled),
                "unlabeled": _examples_table(self.unlabeled),
                "test": _examples_table(self.test),
            },
            documents={"report": self.report},
        )

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        splits = {name: tuple(_examples(table)) for name, table in packed.tables.items()}
        return cls(report=cast("Mapping[str, object]", packed.documents["report"]), **splits)


@dataclass(frozen=True)
class Folds:
    """Which labels teach the warm model, which calibrate, which gate; the last two are never demonstrations.

    `tunable` is False where there are too few labels for a training; `note` says in words what was done.
    """

    warm: tuple[Example, ...]
    calibration: tuple[Example, ...]
    development: tuple[Example, ...]
    tunable: bool
    note: str

    def pack(self) -> Packed:
        """Three tables and a document."""
        return Packed(
            tables={
                "warm": _examples_table(self.warm),
                "calibration": _examples_table(self.calibration),
                "development": _examples_table(self.development),
            },
            documents={"folds": {"tunable": self.tunable, "note": self.note}},
        )

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        parts = {name: tuple(_examples(table)) for name, table in packed.tables.items()}
        document = cast("dict[str, object]", packed.documents["folds"])
        return cls(tunable=bool(document["tunable"]), note=str(document["note"]), **parts)


@dataclass(frozen=True)
class Abilities:
    """What each asked model's server gives, found by one cheap call each; by role."""

    of: Mapping[str, Ability]

    def pack(self) -> Packed:
        """One document."""
        return Packed(documents={"abilities": dict(self.of)})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(cast("Mapping[str, Ability]", packed.documents["abilities"]))


@dataclass(frozen=True)
class Neighbours:
    """For each question the ids of its nearest labelled examples, nearest first, and their similarities."""

    ids: Mapping[str, tuple[str, ...]]
    similarities: Mapping[str, tuple[float, ...]]

    def pack(self) -> Packed:
        """One table, a row a question."""
        table = pa.table(
            {
                "example_id": pa.array(list(self.ids), pa.string()),
                "neighbour_ids": pa.array([list(v) for v in self.ids.values()], pa.list_(pa.string())),
                "similarities": pa.array([list(self.similarities[k]) for k in self.ids], pa.list_(pa.float32())),
            }
        )
        return Packed(tables={"neighbours": table})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        columns = packed.tables["neighbours"].to_pydict()
        keys = columns["example_id"]
        return cls(
            ids={k: tuple(v) for k, v in zip(keys, columns["neighbour_ids"], strict=True)},
            similarities={k: tuple(v) for k, v in zip(keys, columns["similarities"], strict=True)},
        )


@dataclass(frozen=True)
class EvidenceTable:
    """What annotators said: one row per (example, annotator), sorted by them; columns of `EVIDENCE_SCHEMA`, or of
    `CHECKED_SCHEMA`."""

    table: pa.Table

    @classmethod
    def of(cls, rows: Iterable[Evidence]) -> Self:
        """A table of rows in any order."""
        ordered = sorted(rows, key=lambda row: (row.example_id, row.annotator_id))
        columns = [_evidence_columns(row) for row in ordered]
        checked = any(row.p_true is not None for row in ordered)
        return cls(pa.Table.from_pylist(columns, schema=CHECKED_SCHEMA if checked else EVIDENCE_SCHEMA))

    def rows(self) -> Iterator[Evidence]:
        """The rows as values, in the table's order."""
        for batch in self.table.to_batches():
            for row in batch.to_pylist():
                yield _evidence(row)

    def by_example(self) -> dict[str, list[Evidence]]:
        """The rows of each example, annotators in sorted order."""
        grouped: dict[str, list[Evidence]] = {}
        for row in self.rows():
            grouped.setdefault(row.example_id, []).append(row)
        return grouped

    def pack(self) -> Packed:
        """One Parquet table."""
        return Packed(tables={"evidence": self.table})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(packed.tables["evidence"])


@dataclass(frozen=True)
class Selection:
    """The pseudo-labels that are kept, and how the rule came to them.

    `scores` holds every unlabelled item: its candidate answer, its score (lower is better for `mean_nll`),
    whether it was kept, and why not. `summary` holds the rule, its threshold and its counts. `calibration` holds
    the calibration items with their scores and whether they are wrong, `queue` the questions for a person.
    """

    kept: tuple[PseudoLabel, ...]
    scores: pa.Table
    summary: Mapping[str, object]
    calibration: pa.Table | None = None
    queue: bytes = b""

    @property
    def enough(self) -> bool:
        """Whether there is enough to train on; rules that do not say so always train."""
        return bool(self.summary.get("enough", True))

    def pack(self) -> Packed:
        """The kept labels, all scores, and the summary."""
        kept = {
            "example_id": pa.array([p.example_id for p in self.kept], pa.string()),
            "answer": pa.array([p.answer for p in self.kept], pa.string()),
            "text": pa.array([p.text for p in self.kept], pa.string()),
            "score": pa.array([p.score for p in self.kept], pa.float64()),
        }
        tables = {"kept": pa.table(kept), "scores": self.scores}
        if self.calibration is not None:
            tables["calibration"] = self.calibration
        files = {REVIEW_QUEUE: self.queue} if self.queue else {}
        return Packed(tables=tables, documents={"summary": self.summary}, files=files)

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(
            kept=tuple(convert(row, PseudoLabel) for row in packed.tables["kept"].to_pylist()),
            scores=packed.tables["scores"],
            summary=cast("Mapping[str, object]", packed.documents["summary"]),
            calibration=packed.tables.get("calibration"),
            queue=packed.files.get(REVIEW_QUEUE, b""),
        )


@dataclass(frozen=True)
class TrainingFile:
    """A chat JSONL file, byte for byte as it is uploaded."""

    content: bytes

    def pack(self) -> Packed:
        """One file."""
        return Packed(files={"train.jsonl": self.content})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(packed.files["train.jsonl"])


@dataclass(frozen=True)
class Ticket:
    """The receipt of a paid job; on disk before anyone waits for it."""

    job_id: str
    run_key: str
    training_file_id: str | None = None

    def pack(self) -> Packed:
        """One document."""
        return Packed(documents={"ticket": asdict(self)})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return convert(packed.documents["ticket"], cls)


@dataclass(frozen=True)
class TunedModel:
    """A model that a job made, its base, and what is known of its training."""

    model: str
    base: str
    run_key: str | None = None
    trained_tokens: int | None = None
    data_sha256: str | None = field(default=None, compare=False)
    training_usd: float | None = field(default=None, compare=False)
    """What the training cost when it ended, where its tokens and price were known."""

    @property
    def identity(self) -> str:
        """Two trainings with one key are one model; a model given by the user is its name."""
        return self.run_key or self.model

    def pack(self) -> Packed:
        """One document."""
        return Packed(documents={"model": asdict(self)})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return convert(packed.documents["model"], cls)


@dataclass(frozen=True)
class Answers:
    """One model's greedy answers to the test questions, and which of them are right."""

    label: str
    evidence: EvidenceTable
    correct: Mapping[str, bool]

    @property
    def accuracy(self) -> float:
        """Share of right answers in [0, 1]; an abstention is wrong. NaN without questions."""
        return sum(self.correct.values()) / len(self.correct) if self.correct else float("nan")

    def pack(self) -> Packed:
        """The evidence and one document."""
        return Packed(
            tables=self.evidence.pack().tables,
            documents={"answers": {"label": self.label, "correct": dict(self.correct)}},
        )

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        document = cast("dict[str, object]", packed.documents["answers"])
        return cls(
            label=cast("str", document["label"]),
            evidence=EvidenceTable.unpack(packed),
            correct=cast("Mapping[str, bool]", document["correct"]),
        )


@dataclass(frozen=True)
class Verdict:
    """The comparison of all models as JSON values; what the table and the report show."""

    document: Mapping[str, object]

    def pack(self) -> Packed:
        """One document."""
        return Packed(documents={"verdict": self.document})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(cast("Mapping[str, object]", packed.documents["verdict"]))


def _examples_table(examples: Sequence[Example]) -> pa.Table:
    rows = [
        {
            "id": e.id,
            "question": e.question,
            "options": list(e.options),
            "answer": e.answer,
            "group": e.group,
            "category": e.category,
        }
        for e in examples
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def _examples(table: pa.Table) -> Iterator[Example]:
    for row in table.to_pylist():
        yield convert(row, Example)


def _evidence_columns(row: Evidence) -> Mapping[str, object]:
    columns = asdict(row)
    usage = row.usage
    return columns | {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
    }


def _evidence(row: dict[str, object]) -> Evidence:
    usage = {
        "prompt": row.pop("prompt_tokens"),
        "completion": row.pop("completion_tokens"),
        "cached": row.pop("cached_tokens"),
    }
    return convert(row | {"usage": usage}, Evidence)
