"""Hygiene of a pool that is too large to be held: what can match anything is looked at, the rest passes.

    cleaned = clean_pool(labeled, pool, test, near=True)

A row is suspect where its question occurs again, in any part, or (`near`) where a band of its MinHash signature does.
Suspects go through `clean` with all labelled and test items, which gives what it would have given for the whole.
Knows nothing of files, prompts or models.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from semievol_api.data.hygiene import CleanData, clean, whole_text
from semievol_api.data.large import hash_of, repeated
from semievol_api.data.near import BANDS, band_keys, normalized
from semievol_api.data.pool import BoolArray, Pool
from semievol_api.parts import Scratch
from semievol_api.records import Example

AT_ONCE = 2048
"""Texts whose signatures are computed together."""


def clean_pool(labeled: Sequence[Example], pool: Pool, test: Sequence[Example], *, near: bool) -> CleanData:
    """See `hygiene.clean`; the unlabelled part stays a pool."""
    others = (*test, *labeled)
    marked = _same_questions(others, pool)
    if near:
        marked |= _near(others, pool)
    suspects = dict(pool.numbered(_rows(pool, marked)))
    cleaned = clean(labeled, tuple(suspects.values()), test, near=near)
    left = {e.id: e.group for e in cleaned.unlabeled}
    gone = [row for row, e in suspects.items() if e.id not in left]
    groups = {row: group for row, e in suspects.items() if (group := left.get(e.id)) is not None and group != e.group}
    return CleanData(cleaned.labeled, pool.without(gone).grouping(groups), cleaned.test, cleaned.report)


def _rows(pool: Pool, marked: BoolArray) -> BoolArray:
    """Marks of the kept rows as marks of all stored ones."""
    rows = np.zeros_like(pool.kept)
    rows[np.flatnonzero(pool.kept)[marked]] = True
    return rows


def _same_questions(others: Sequence[Example], pool: Pool) -> BoolArray:
    """bool (len(pool),): the rows whose question occurs elsewhere too."""
    keys = array("Q", (hash_of(normalized(e.question)) for e in itertools.chain(others, pool)))
    return repeated(np.frombuffer(keys, np.uint64))[len(others) :]


def _near(others: Sequence[Example], pool: Pool) -> BoolArray:
    """bool (len(pool),): the rows that `near_pairs` would compare with another, as a whole or by their questions."""
    scratch = Scratch()
    paths = [scratch.path / f"band-{number}" for number in range(2 * BANDS)]
    for some in _batches(itertools.chain(others, pool)):
        keys = np.hstack([band_keys([whole_text(e) for e in some]), band_keys([normalized(e.question) for e in some])])
        for path, column in zip(paths, keys.T, strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(column).tobytes())
    marked = np.zeros(len(others) + len(pool), dtype=np.bool_)
    for path in paths:
        marked |= repeated(np.fromfile(path, np.uint64))
    return marked[len(others) :]


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    coming = iter(examples)
    while some := list(itertools.islice(coming, AT_ONCE)):
        yield some
