"""Stage 1: clean data. Reads nothing itself; drops leaks, duplicates and conflicts, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from semievol_api.data.examples import Note
from semievol_api.data.hygiene import clean
from semievol_api.data.large_pool import Pool, clean_pool
from semievol_api.data.parts import Rows, parts_for, spread
from semievol_api.data.tables import EXAMPLE_SCHEMA, as_examples
from semievol_api.records import Example
from semievol_api.store.artifacts import Prepared
from semievol_api.store.fingerprints import stage


@stage("prepare")
async def prepare(
    labeled: Sequence[Example],
    unlabeled: Sequence[Example],
    test: Sequence[Example],
    development: Sequence[Example],
    near_duplicates: bool,
    notes: Sequence[Note] = (),
) -> Prepared:
    """Clean splits of the user's data (method §5), with everything that was dropped in the report.

    `notes`, what was put right while reading, stand in the report. What matches the user's own development file
    leaves the others, as what matches the test does.
    """
    held_out = (*test, *development)
    if isinstance(unlabeled, Pool):
        cleaned = clean_pool(labeled, unlabeled, held_out, near=near_duplicates)
    else:
        cleaned = clean(labeled, unlabeled, held_out, near=near_duplicates)
    left = cleaned.unlabeled
    return Prepared(
        labeled=cleaned.labeled,
        unlabeled=_in_parts(left) if isinstance(left, Pool) else left,
        test=cleaned.test[: len(test)],
        report={**cleaned.report.as_json(), **({"notes": [note.as_json() for note in notes]} if notes else {})},
    )


def _in_parts(pool: Pool) -> Sequence[Example]:
    """A pool's examples in the order of their parts; the only part is held."""
    if parts_for(len(pool)) == 1:
        return tuple(pool)
    tables = (table.select(EXAMPLE_SCHEMA.names).cast(EXAMPLE_SCHEMA) for _, table in pool.tables())
    return Rows(spread(tables, len(pool)), as_examples)
