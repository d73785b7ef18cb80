"""How much each annotator over- and underuses every label, over the whole pool (`selection.label_factors`).

What is unlabelled and what calibrates is looked at alike, so that both stay exchangeable. Knows nothing of pooling or
of selection rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from semievol_api.artifacts import EvidenceTable
from semievol_api.selection import label_factors
from semievol_api.selection.values import FloatArray, IntArray
from semievol_api.stages.annotators import Annotator, Crew, Reading
from semievol_api.stages.asking import Corpus

Factors: TypeAlias = Mapping[str, Mapping[int, FloatArray]]
"""By annotator and number of options, float64 (options,); only those that change anything."""
_READ_AS_DISTRIBUTION: Collection[Reading] = ("option_prob", "option_read")
_GRID = 2.0**32
"""Probabilities are summed as whole multiples of 1 / _GRID: the same in any order, parts or not."""


def factors_of_crew(corpus: Corpus, crew: Crew, said: EvidenceTable, chosen_ids: Collection[str] = ()) -> Factors:
    """What brings each annotator's mean distribution towards the labels of D_warm; none for open answers.

    What calibrates is never counted among the labels, nor are pseudo-labels and examples chosen for a person
    (`chosen_ids`), which are no sample of the questions.
    """
    readers = [a for a in crew.annotators if a.reading in _READ_AS_DISTRIBUTION]
    if corpus.task.kind not in ("multiple_choice", "labels") or not readers:
        return {}
    counts = _labelled(corpus, {*chosen_ids, *(e.id for e in corpus.taught)})
    sums = _sums(said, readers, {e.id for e in corpus.folds.warm})
    found: dict[str, dict[int, FloatArray]] = {}
    for (annotator, options), (total, rows) in sorted(sums.items()):
        if options in counts and rows:
            factors = label_factors(counts[options], total / (_GRID * rows))
            if not np.array_equal(factors, np.ones(options)):
                found.setdefault(annotator, {})[options] = factors
    return found


def _labelled(corpus: Corpus, without: Collection[str]) -> dict[int, IntArray]:
    """How often each label is the answer, by the number of options."""
    counts: dict[int, IntArray] = {}
    for example in corpus.folds.warm:
        labels = corpus.task.labels(example) or ()
        if example.id not in without and example.answer in labels:
            of_this_size = counts.setdefault(len(labels), np.zeros(len(labels), dtype=np.int64))
            of_this_size[labels.index(example.answer)] += 1
    return counts


def _sums(
    said: EvidenceTable, readers: Sequence[Annotator], labelled: Collection[str]
) -> dict[tuple[str, int], tuple[IntArray, int]]:
    """The sum of distributions, in multiples of 1 / _GRID, and how many; by annotator and number of options."""
    sums: dict[tuple[str, int], tuple[IntArray, int]] = {}
    for table in said.parts.tables(["example_id", "annotator_id", "finish", "option_probs"]):
        asker, finish = (table[name].to_numpy() for name in ("annotator_id", "finish"))
        asked = np.array([example not in labelled for example in table["example_id"].to_pylist()], dtype=np.bool_)
        usable = (finish == "stop") & table["option_probs"].is_valid().to_numpy() & asked
        for annotator in readers:
            own = table["option_probs"].filter(pa.array(usable & (asker == annotator.id))).combine_chunks()
            sizes = own.value_lengths().to_numpy()
            for options in np.unique(sizes).tolist():
                flat = own.filter(pa.array(sizes == options)).flatten().to_numpy()
                probs = flat.astype(np.float64).reshape(-1, options)
                total, rows = sums.get((annotator.id, options), (np.zeros(options, dtype=np.int64), 0))
                total = total + np.rint(probs * _GRID).astype(np.int64).sum(axis=0)
                sums[annotator.id, options] = (total, rows + len(probs))
    return sums
