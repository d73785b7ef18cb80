"""The alerts of a run about labels, pool, answers and selection (method §6), and advice about its slowest stage.

Knows nothing of how the alerts are decided.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import numpy as np

from semievol_api.annotate.annotators import one_set_of_options
from semievol_api.annotate.pooled import AnnotatorProbs
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import EmbeddingTool, embedded
from semievol_api.config.settings import RetrieveSettings
from semievol_api.records import Alert, Example
from semievol_api.selection.alerts import (
    alerts_of_ambiguity,
    alerts_of_drift,
    alerts_of_labels,
    alerts_of_selection,
    ambiguity,
    class_coverage,
    drift_test,
)
from semievol_api.selection.values import BoolArray, LabelArray

_DRIFT_ROWS = 500
"""Questions of each side that the drift test looks at."""


_LEAST_SECONDS = 60.0
"""Shorter runs are not worth advice about time."""
SETTING_TO_LOWER = {
    "prepare": "[data] near_duplicates or max_unlabeled",
    "retrieve": '[data] max_unlabeled, or set [retrieve] method = "bm25"',
    "collaborate": "[annotate] n, max_shots or max_tokens",
    "justify": "[justify] on or max_tokens",
    "select": "[data] max_unlabeled",
    "jobs": "[train] n_epochs or final_epochs",
    "evaluate": "[data] max_test or [evaluate] max_tokens",
}


def slow_stage(seconds: Mapping[str, float]) -> str | None:
    """A sentence about the stage that took over half of a run's time, with the setting to lower; None without one."""
    spent: dict[str, float] = {}
    for name, value in seconds.items():
        stage = name.partition("/")[0]
        spent[stage] = spent.get(stage, 0.0) + value
    total = sum(spent.values())
    slowest = max(spent, key=lambda stage: spent[stage], default="")
    if total < _LEAST_SECONDS or spent[slowest] <= total / 2 or slowest not in SETTING_TO_LOWER:
        return None
    return (
        f"The stage {slowest!r} took {spent[slowest] / total:.0%} of the {total:.0f} s that this run needed; to make "
        f"it shorter, lower {SETTING_TO_LOWER[slowest]}."
    )


def label_alerts(corpus: Corpus, predicted: LabelArray, calibrating: AnnotatorProbs, kept: BoolArray) -> list[Alert]:
    """Alerts about classes and about the annotators' disagreement; none for open answers.

    `predicted` integers (m,) and `kept` bool (m,) are about the unlabelled examples. Classes are looked at only where
    all questions have the same ones.
    """
    if not corpus.task.closed:
        return []
    alerts: list[Alert] = []
    names = class_names(corpus)
    if names:
        letters = corpus.task.labels(corpus.data.unlabeled[0]) or ()
        gold = np.array([letters.index(e.answer) for e in corpus.data.labeled if e.answer in letters], dtype=np.int64)
        alerts += alerts_of_labels(gold, predicted, names)
        alerts += alerts_of_selection(class_coverage(predicted, kept, len(names)), names)
    gold = np.array(
        [_index(labels, e) for labels, e in zip(calibrating.labels, calibrating.examples, strict=True)], dtype=np.int64
    )
    return [*alerts, *alerts_of_ambiguity(ambiguity(calibrating.probs, gold, calibrating.n_options))]


async def drift_alerts(
    corpus: Corpus, embedder: EmbeddingTool | None, settings: RetrieveSettings, seed: int
) -> tuple[Alert, ...]:
    """An alert where the unlabelled questions are unlike the labelled ones; none without an embedder."""
    if embedder is None:
        return ()
    labeled, unlabeled = _sample(corpus.data.labeled, seed), _sample(corpus.unlabeled, seed)
    rows = await embedded(embedder, (*labeled, *unlabeled), settings)
    return alerts_of_drift(drift_test(rows[: len(labeled)], rows[len(labeled) :]))


def class_names(corpus: Corpus) -> tuple[str, ...]:
    """The words of the classes where every question has the same ones; empty otherwise."""
    first = next(itertools.chain(corpus.data.unlabeled, corpus.data.labeled))
    if corpus.task.fixed_labels:
        return corpus.task.labels(first) or ()
    return first.options if one_set_of_options(corpus.data) else ()


def _index(labels: Sequence[str], example: Example) -> int:
    return labels.index(example.answer) if example.answer in labels else -1


def _sample(examples: Sequence[Example], seed: int) -> Sequence[Example]:
    if len(examples) <= _DRIFT_ROWS:
        return examples
    places = random.Random(seed).sample(range(len(examples)), _DRIFT_ROWS)
    found = {place: examples[place] for place in sorted(places)}  # parts are read one after the other
    return [found[place] for place in places]
