"""What the stages hand to each other and the run store keeps: frozen values over Arrow tables.

    prepare -> Prepared, split -> Folds, retrieve -> Neighbours, probe -> Abilities,
    collaborate and justify -> EvidenceTable, select -> Selection,
    warm_up and evolve -> TrainingFile, Ticket, TunedModel, evaluate -> Answers

Knows nothing of how an artifact is made; holds no clock, host or secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, cast

import pyarrow as pa
from msgspec import convert, to_builtins

from semievol_api.data.schemas import (
    ANSWER_COLUMNS,
    as_evidence,
    as_examples,
    as_labels,
    chunked_examples,
    chunked_labels,
    evidence_table,
    examples_table,
    grouped,
)
from semievol_api.data.table import ChunkedTable, Tabular, file_chunks
from semievol_api.records import Evidence, Example, PseudoLabel
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.store.run_store import Packed
from semievol_api.store.verdict import PaperSummary, PooledSummary, summary_of
from semievol_api.store.verdict import Verdict as Verdict

Ability: TypeAlias = Literal["options", "alternatives", "logprobs", "text"]
"""What a server gives beside an answer's text: the probability of every label in one read, alternatives at each
token, the chosen tokens' log-probabilities, or nothing."""

REVIEW_QUEUE = "review_queue.jsonl"


@fingerprinted("labeled", "unlabeled", "test", "report")
@dataclass(frozen=True)
class Prepared:
    """Clean data: what a model may learn from, be asked, and be measured on. No hidden gold in it.

    `unlabeled` lie in the order of their parts, in a `ChunkedTable` where they were cleaned or read. `report` is the
    hygiene report as JSON values: every row that was dropped, with its reason.
    """

    labeled: tuple[Example, ...]
    unlabeled: Sequence[Example]
    test: tuple[Example, ...]
    report: Mapping[str, object]

    def pack(self) -> Packed:
        """Three tables and the report."""
        return Packed(
            tables={
                "labeled": ChunkedTable.of(examples_table(self.labeled)),
                "unlabeled": chunked_examples(self.unlabeled),
                "test": ChunkedTable.of(examples_table(self.test)),
            },
            documents={"report": self.report},
        )

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(
            labeled=tuple(as_examples(packed.table("labeled"))),
            unlabeled=packed.parts("unlabeled").typed(as_examples),
            test=tuple(as_examples(packed.table("test"))),
            report=cast("Mapping[str, object]", packed.documents["report"]),
        )


FINEST = 10
"""Folds of calibrating labels that teach too: coarser folds, 2 or 5, are made of them."""


@fingerprinted("warm", "calibration", "development", "tunable", "note")
@dataclass(frozen=True)
class Folds:
    """Which labels teach the warm model, which calibrate, which gate; the last two are never demonstrations.

    `tunable` is False where there are too few labels for a training; `note` says in words what was done.

    `cross` are the ids of calibrating labels in `FINEST` folds where these teach too, each by models that have not seen
    it; `n_models` is how many warm models share them.
    """

    warm: tuple[Example, ...]
    calibration: tuple[Example, ...]
    development: tuple[Example, ...]
    tunable: bool
    note: str
    cross: tuple[tuple[str, ...], ...] = ()
    n_models: int = 1

    def fold_of(self, example_id: str, of: int) -> int:
        """Which of `of` folds an example is in (`of` divides `FINEST`): a calibrating label in its own, an unlabelled
        example in one that its id draws. -1 for what always teaches; 0 without folds."""
        if not self.cross:
            return 0
        finest = self._finest.get(example_id)
        if finest is None:
            finest = int.from_bytes(hashlib.blake2b(f"fold\x00{example_id}".encode(), digest_size=8).digest()) % FINEST
        return finest * of // FINEST

    @cached_property
    def _finest(self) -> Mapping[str, int]:
        always = {e.id: -1 for e in self.warm}
        return always | {name: place for place, ids in enumerate(self.cross) for name in ids}

    def taught_without(self, fold: int) -> tuple[Example, ...]:
        """What teaches the warm model that answers a fold's examples."""
        return tuple(e for e in self.warm if self.fold_of(e.id, self.n_models) != fold)

    def pack(self) -> Packed:
        """Three tables and a document."""
        crossed = {"cross": [list(ids) for ids in self.cross], "n_models": self.n_models} if self.cross else {}
        return Packed(
            tables={
                "warm": ChunkedTable.of(examples_table(self.warm)),
                "calibration": ChunkedTable.of(examples_table(self.calibration)),
                "development": ChunkedTable.of(examples_table(self.development)),
            },
            documents={"folds": {"tunable": self.tunable, "note": self.note, **crossed}},
        )

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        parts = {name: tuple(as_examples(packed.table(name))) for name in packed.tables}
        document = cast("dict[str, Any]", packed.documents["folds"])
        return cls(
            tunable=bool(document["tunable"]),
            note=str(document["note"]),
            cross=tuple(tuple(ids) for ids in document.get("cross", ())),
            n_models=int(document.get("n_models", 1)),
            **parts,
        )


@dataclass(frozen=True)
class Abilities:
    """What each asked model's server gives, found by one cheap call each; by role.

    `schemas` are the roles whose server holds an answer to a JSON schema.
    """

    of: Mapping[str, Ability]
    most: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many alternatives of a token a role's server shows, where it refused as many as were wanted."""
    schemas: tuple[str, ...] = ()

    def pack(self) -> Packed:
        """One document, another where a server shows few alternatives, and one where there are schemas."""
        few = {"most_alternatives": dict(self.most)} if self.most else {}
        held = {"schemas": list(self.schemas)} if self.schemas else {}
        return Packed(documents={"abilities": dict(self.of), **few, **held})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        of = cast("Mapping[str, Ability]", packed.documents["abilities"])
        most = cast("Mapping[str, int]", packed.documents.get("most_alternatives", {}))
        return cls(of, most, tuple(cast("list[str]", packed.documents.get("schemas", []))))


@fingerprinted("ids", "similarities", "making", "note")
@dataclass(frozen=True)
class Neighbours:
    """For each question the ids of its nearest labelled examples, nearest first, and their similarities.

    `making`: parts that are still being made, in the order of the unlabelled examples' and one for all others.
    """

    ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    similarities: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    making: Tabular | None = None
    note: str = ""
    """How they were searched, where that was not exact."""

    def table(self) -> pa.Table:
        """A row a question."""
        return pa.table(
            {
                "example_id": pa.array(list(self.ids), pa.string()),
                "neighbour_ids": pa.array([list(v) for v in self.ids.values()], pa.list_(pa.string())),
                "similarities": pa.array([list(self.similarities[k]) for k in self.ids], pa.list_(pa.float32())),
            }
        )

    def pack(self) -> Packed:
        """One table."""
        found = ChunkedTable.of(self.table()) if self.making is None else self.making
        return Packed(tables={"neighbours": found}, documents={"search": {"note": self.note}} if self.note else {})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        table = packed.parts("neighbours")
        note = cast("dict[str, str]", packed.documents.get("search", {})).get("note", "")
        ids, similarities = (table.by_key("example_id", name) for name in ("neighbour_ids", "similarities"))
        return cls(ids, similarities, note=note)


@dataclass(frozen=True)
class EvidenceTable:
    """What annotators said: one row per (example, annotator); columns of `schemas.EVIDENCE_SCHEMA`, and
    those that only some rows have.

    Each part is sorted by example and annotator. Where the unlabelled examples lie in parts, part i is about those of
    their part i, and the last one about all other examples. `source` may still be being made: then it can be stored
    and nothing else.
    """

    source: Tabular

    @classmethod
    def of(cls, rows: Iterable[Evidence]) -> Self:
        """A table of rows in any order."""
        return cls(ChunkedTable.of(evidence_table(rows)))

    @property
    def parts(self) -> ChunkedTable[Evidence]:
        """The stored parts."""
        return cast("ChunkedTable[Any]", self.source).typed(as_evidence)

    @property
    def table(self) -> pa.Table:
        """All parts as one table."""
        return self.parts.whole()

    def rows(self) -> Iterator[Evidence]:
        """The rows as values, in the table's order."""
        return iter(self.parts)

    def by_example(self, part: int) -> dict[str, list[Evidence]]:
        """The rows of each example of a part, annotators in sorted order."""
        return grouped(as_evidence(self.parts.read(part)))

    def answers(self, part: int) -> dict[str, list[Evidence]]:
        """The rows of each example of a part, with their answers and `mean_nll` and no more."""
        return grouped(as_evidence(self.parts.read(part, ANSWER_COLUMNS)))

    def pack(self) -> Packed:
        """One Parquet table."""
        return Packed(tables={"evidence": self.source})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(packed.parts("evidence"))


@dataclass(frozen=True)
class Selection:
    """The pseudo-labels that are kept, and how the rule came to them.

    `scores` holds every unlabelled item: its candidate answer, its score (lower is better for `mean_nll`),
    whether it was kept, and why not. `summary` holds the rule, its threshold and its counts. `calibration` holds
    the calibration items with their scores and whether they are wrong, `queue` the questions for a person.
    """

    kept: Sequence[PseudoLabel]
    scores: ChunkedTable[Mapping[str, Any]]
    summary: PaperSummary | PooledSummary
    calibration: pa.Table | None = None
    queue: bytes = b""

    @property
    def enough(self) -> bool:
        """Whether there is enough to train on."""
        return self.summary.enough_to_train

    def pack(self) -> Packed:
        """The kept labels, all scores, and the summary."""
        tables: dict[str, Tabular] = {"kept": chunked_labels(self.kept), "scores": self.scores}
        if self.calibration is not None:
            tables["calibration"] = ChunkedTable.of(self.calibration)
        files = {REVIEW_QUEUE: self.queue} if self.queue else {}
        return Packed(tables=tables, documents={"summary": to_builtins(self.summary)}, files=files)

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls(
            kept=packed.parts("kept").typed(as_labels),
            scores=packed.parts("scores"),
            summary=summary_of(cast("Mapping[str, object]", packed.documents["summary"])),
            calibration=packed.table("calibration") if "calibration" in packed.tables else None,
            queue=packed.content(REVIEW_QUEUE),
        )


@dataclass(frozen=True)
class TrainingFile:
    """A chat JSONL file, byte for byte as it is uploaded: in memory, stored, or in chunks that are still being made."""

    source: bytes | Path | Iterable[bytes]

    @property
    def content(self) -> bytes:
        """The whole file."""
        return self.pack().content("train.jsonl")

    def chunks(self) -> Iterable[bytes]:
        """The file, a little at a time."""
        if isinstance(self.source, bytes):
            return (self.source,)
        return file_chunks(self.source) if isinstance(self.source, Path) else self.source

    def pack(self) -> Packed:
        """One file."""
        return Packed(files={"train.jsonl": self.source})

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
            tables={"evidence": self.evidence.source},
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
