"""Values as Arrow tables and back: examples, evidence rows, pseudo-labels, neighbours.

Knows nothing of files, or of what becomes of a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

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
OUTLINE = ("id", "options")
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
EVIDENCE_FIELDS = (
    *(name for name in EVIDENCE_SCHEMA.names if name not in ("prompt_tokens", "completion_tokens", "cached_tokens")),
    "p_true",
)
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
)
"""What selection reads of an evidence row."""
CHECKED_SCHEMA = EVIDENCE_SCHEMA.append(pa.field("p_true", pa.float32()))
"""Where an annotator was asked about its own answers."""


def examples_table(examples: Sequence[Example]) -> pa.Table:
    """Examples as a table."""
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


def without_texts(table: pa.Table) -> pa.Table:
    """The columns of `OUTLINE` as a table of examples whose questions are empty."""
    blank = {"question": pa.repeat("", len(table))}
    columns = [
        table[field.name] if field.name in OUTLINE else blank.get(field.name, pa.nulls(len(table), field.type))
        for field in EXAMPLE_SCHEMA
    ]
    return pa.table(columns, schema=EXAMPLE_SCHEMA)


def as_examples(table: pa.Table) -> Iterator[Example]:
    """A table's rows as examples."""
    options = _lists(table["options"])
    texts = (table[name].to_pylist() for name in ("id", "question", "answer", "group", "category"))
    for choices, name, question, answer, group, category in zip(options, *texts, strict=True):
        yield Example(id=name, question=question, options=choices or (), answer=answer, group=group, category=category)


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
    checked = any(row.p_true is not None for row in ordered)
    schema = CHECKED_SCHEMA if checked else EVIDENCE_SCHEMA
    columns: dict[str, list[object]] = {
        "example_id": [row.example_id for row in ordered],
        "annotator_id": [row.annotator_id for row in ordered],
        "prompt_hash": [row.prompt_hash for row in ordered],
        "text": [row.text for row in ordered],
        "answer": [row.answer for row in ordered],
        "finish": [row.finish for row in ordered],
        "permutation": [row.permutation for row in ordered],
        "option_probs": [row.option_probs for row in ordered],
        "answer_logprob": [row.answer_logprob for row in ordered],
        "mean_nll": [row.mean_nll for row in ordered],
        "verbal": [row.verbal for row in ordered],
        "prompt_tokens": [row.usage.prompt for row in ordered],
        "completion_tokens": [row.usage.completion for row in ordered],
        "cached_tokens": [row.usage.cached for row in ordered],
        "failure": [row.failure for row in ordered],
        "dropped_shots": [row.dropped_shots for row in ordered],
        "p_true": [row.p_true for row in ordered],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def joined_evidence(tables: Sequence[pa.Table]) -> pa.Table:
    """Evidence tables as one, sorted like a table of all their rows."""
    whole = pa.concat_tables(tables, promote_options="default").combine_chunks()
    schema = CHECKED_SCHEMA if "p_true" in whole.column_names else EVIDENCE_SCHEMA
    return whole.select(schema.names).sort_by([("example_id", "ascending"), ("annotator_id", "ascending")])


def as_evidence(table: pa.Table, *, measures_only: bool = False) -> Iterator[Evidence]:
    """A table's rows as values; `measures_only` spares what only people and bills look at."""
    if measures_only:
        yield from _as_measures(table)
        return
    names = set(table.column_names)
    wanted = tuple(name for name in EVIDENCE_FIELDS if name in names)
    columns = [_values(table, name) for name in wanted]
    counts = (table[name].to_pylist() for name in ("prompt_tokens", "completion_tokens", "cached_tokens"))
    for row, usage in zip(zip(*columns, strict=True), zip(*counts, strict=True), strict=True):
        yield Evidence(usage=Usage(*usage), **dict(zip(wanted, row, strict=True)))


def _as_measures(table: pa.Table) -> Iterator[Evidence]:
    """Selection reads every row there is: field by field this takes half the time of a mapping for each row."""
    names = set(table.column_names)
    columns = [_values(table, name) if name in names else itertools.repeat(None, len(table)) for name in MEASURES]
    for example_id, annotator_id, answer, finish, probs, logprob, nll, verbal, failure, p_true in zip(
        *columns, strict=True
    ):
        yield Evidence(
            example_id=example_id,
            annotator_id=annotator_id,
            prompt_hash="",
            text="",
            answer=answer,
            finish=finish,
            option_probs=probs,
            answer_logprob=logprob,
            mean_nll=nll,
            verbal=verbal,
            p_true=p_true,
            failure=failure,
        )


def _values(table: pa.Table, name: str) -> Iterable[Any]:
    """A column of an evidence table, lists as tuples."""
    return _lists(table[name]) if name in ("permutation", "option_probs") else table[name].to_pylist()


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


def near_ids(table: pa.Table) -> dict[str, tuple[str, ...]]:
    """The nearest examples' ids by question."""
    columns = table.select(["example_id", "neighbour_ids"]).to_pydict()
    return {k: tuple(v) for k, v in zip(columns["example_id"], columns["neighbour_ids"], strict=True)}


def near_similarities(table: pa.Table) -> dict[str, tuple[float, ...]]:
    """Their similarities by question."""
    columns = table.select(["example_id", "similarities"]).to_pydict()
    return {k: tuple(v) for k, v in zip(columns["example_id"], columns["similarities"], strict=True)}
