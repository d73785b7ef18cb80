"""Stage 1: clean data. Reads nothing itself; drops leaks, duplicates and conflicts, each with its reason.

Knows nothing of models or prompts. Stands beside `hygiene.py`, which the artifact that it makes cannot be known to.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from semievol_api.data.examples import Note
from semievol_api.data.hygiene import clean
from semievol_api.data.schemas import CHAT_SCHEMA, EXAMPLE_SCHEMA, as_examples
from semievol_api.data.table import cut_in_parts
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
    cleaned = clean(labeled, unlabeled, (*test, *development), near=near_duplicates)
    schema = CHAT_SCHEMA if any(e.chat is not None for e in itertools.islice(cleaned.unlabeled, 1)) else EXAMPLE_SCHEMA
    tables = (table.select(schema.names).cast(schema) for table in cleaned.unlabeled.tables())
    return Prepared(
        labeled=cleaned.labeled,
        unlabeled=cut_in_parts(tables, len(cleaned.unlabeled), schema, as_examples),
        test=cleaned.test[: len(test)],
        report={**cleaned.report.as_json(), **({"notes": [note.as_json() for note in notes]} if notes else {})},
    )
