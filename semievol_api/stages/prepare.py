"""Stage 1: clean data. Reads nothing itself; drops leaks, duplicates and conflicts, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from semievol_api.artifacts import Prepared
from semievol_api.data import Note, clean
from semievol_api.records import Example


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
    return Prepared(
        labeled=cleaned.labeled,
        unlabeled=cleaned.unlabeled,
        test=cleaned.test[: len(test)],
        report={**cleaned.report.as_json(), **({"notes": [note.as_json() for note in notes]} if notes else {})},
    )
