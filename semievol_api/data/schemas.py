"""Values as Arrow tables and back: examples, evidence rows, pseudo-labels, neighbours.

Knows nothing of files, or of what becomes of a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import pyarrow as pa

from semievol_api.data.table import ChunkedTable
from semievol_api.records import Evidence, Example, PseudoLabel, Usage

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
CHAT_SCHEMA = EXAMPLE_SCHEMA.append(pa.field("chat", pa.string()))
"""Of examples that are conversations."""
HIDDEN = "hidden_answer"
"""A column of examples that are not cleaned yet."""
OUTLINE = ("id", "options", "answer", "category")
"""What selection reads of an example."""
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
_USAGE = {"prompt_tokens": "usage.prompt", "completion_tokens": "usage.completion", "cached_tokens": "usage.cached"}
EVIDENCE_FIELDS = (*(name for name in EVIDENCE_SCHEMA.names if name not in _USAGE), "p_true", "field_probs")
MEASURES = (
    "example_id",
    "annotator_id",
    "answer",
    "finish",
    "option_probs",
    "answer_logprob",
    "mean_nll",
    "verbal",
    "failure",
    "p_true",
    "field_probs",
)
"""What estimators read of an evidence row."""
ANSWER_COLUMNS = ("example_id", "annotator_id", "answer", "finish", "mean_nll")
"""What the paper's selection reads of it."""
_MORE = (pa.field("p_true", pa.float32()), pa.field("field_probs", pa.list_(pa.float32())))
"""Columns that are there only where some row has a value: where an annotator was asked about its own answers, and where
answers consist of fields."""


def examples_table(examples: Sequence[Example]) -> pa.Table:
    """Examples as a table."""
    schema = CHAT_SCHEMA if any(e.chat is not None for e in examples) else EXAMPLE_SCHEMA
    rows = [
        {name: list(e.options) if name == "options" else attrgetter(name)(e) for name in schema.names} for e in examples
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def as_examples(table: pa.Table) -> Iterator[Example]:
    """A table's rows as examples; without the column their questions are empty."""
    texts = (_texts(table, name) for name in ("id", "question", "answer", "group", "category", "chat", HIDDEN))
    for options, name, question, answer, group, category, chat, hidden in zip(
        _lists(table["options"]), *texts, strict=True
    ):
        yield Example(
            id=name,
            question=question or "",
            options=options or (),
            answer=answer,
            group=group,
            category=category,
            chat=chat,
            hidden_answer=hidden,
        )


def chunked_examples(examples: Sequence[Example]) -> ChunkedTable[Example]:
    """Examples as a table: as they lie, or in one part."""
    if isinstance(examples, ChunkedTable):
        return examples
    return ChunkedTable.of(examples_table(examples)).typed(as_examples)


def chunked_labels(labels: Sequence[PseudoLabel]) -> ChunkedTable[PseudoLabel]:
    """Pseudo-labels as a table."""
    return labels if isinstance(labels, ChunkedTable) else ChunkedTable.of(kept_table(labels)).typed(as_labels)


def _texts(table: pa.Table, name: str) -> list[Any]:
    """A column's texts; None where the table does not have it."""
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def _lists(column: pa.ChunkedArray) -> list[tuple[Any, ...] | None]:
    """A column of lists as tuples; many times quicker than `to_pylist`."""
    found: list[tuple[Any, ...] | None] = []
    for chunk in column.chunks:
        ends, values = chunk.offsets.to_pylist(), chunk.values.to_pylist()
        rows: list[tuple[Any, ...] | None] = [tuple(values[a:b]) for a, b in itertools.pairwise(ends)]
        if chunk.null_count:
            rows = [row if known else None for row, known in zip(rows, chunk.is_valid().to_pylist(), strict=True)]
        found += rows
    return found


def evidence_table(rows: Iterable[Evidence]) -> pa.Table:
    """Rows in any order as a sorted table."""
    ordered = sorted(rows, key=lambda row: (row.example_id, row.annotator_id))
    schema = _evidence_schema([f.name for f in _MORE if any(attrgetter(f.name)(row) is not None for row in ordered)])
    columns = [
        pa.array(map(attrgetter(_USAGE.get(name, name)), ordered), schema.field(name).type, size=len(ordered))
        for name in map(str, schema.names)
    ]
    return pa.table(columns, schema=schema)


def joined_evidence(tables: Sequence[pa.Table]) -> pa.Table:
    """Evidence tables as one, sorted like a table of all their rows."""
    whole = pa.concat_tables(tables, promote_options="default").combine_chunks()
    schema = _evidence_schema(whole.column_names)
    return whole.select(schema.names).sort_by([("example_id", "ascending"), ("annotator_id", "ascending")])


def _evidence_schema(names: Collection[str]) -> pa.Schema:
    return pa.schema([*EVIDENCE_SCHEMA, *(field for field in _MORE if field.name in names)])


def as_evidence(table: pa.Table) -> Iterator[Evidence]:
    """A table's rows as values; what it has no column of is empty."""
    wanted = tuple(name for name in EVIDENCE_FIELDS if name in table.column_names)
    columns = [_values(table, name) for name in wanted]
    missing: dict[str, Any] = {name: "" for name in ("prompt_hash", "text") if name not in wanted}
    usage: Iterable[Usage] = itertools.repeat(Usage(), len(table))
    if "prompt_tokens" in table.column_names:
        counts = (table[name].to_pylist() for name in _USAGE)
        usage = itertools.starmap(Usage, zip(*counts, strict=True))
    for row, used in zip(zip(*columns, strict=True), usage, strict=True):
        yield Evidence(usage=used, **missing, **dict(zip(wanted, row, strict=True)))


def _values(table: pa.Table, name: str) -> Iterable[Any]:
    """A column of an evidence table, lists as tuples."""
    return _lists(table[name]) if name in ("permutation", "option_probs", "field_probs") else table[name].to_pylist()


def grouped(rows: Iterable[Evidence]) -> dict[str, list[Evidence]]:
    """Rows by example."""
    found: dict[str, list[Evidence]] = {}
    for row in rows:
        found.setdefault(row.example_id, []).append(row)
    return found


def kept_table(labels: Sequence[PseudoLabel]) -> pa.Table:
    """Pseudo-labels as a table."""
    return pa.table(
        {
            "example_id": pa.array([p.example_id for p in labels], pa.string()),
            "answer": pa.array([p.answer for p in labels], pa.string()),
            "text": pa.array([p.text for p in labels], pa.string()),
            "score": pa.array([p.score for p in labels], pa.float64()),
        }
    )


def as_labels(table: pa.Table) -> Iterator[PseudoLabel]:
    """A table's rows as pseudo-labels."""
    columns = (table[name].to_pylist() for name in ("example_id", "answer", "text", "score"))
    for example_id, answer, text, score in zip(*columns, strict=True):
        yield PseudoLabel(example_id=example_id, answer=answer, text=text, score=score)
