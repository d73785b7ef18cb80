"""Corrections to annotators' probabilities where labels teach and calibrate: each is learned from other folds' labels.

A label is never corrected by itself, and an unlabelled question is corrected as the labels of the fold that its id
draws. Knows nothing of selection rules, prompts or providers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from semievol_api.annotate.annotators import Crew
from semievol_api.annotate.learned import LEARNERS_FOLDS
from semievol_api.annotate.pooled import AnnotatorProbs, Factors, factors_of_crew
from semievol_api.annotate.requests import Corpus
from semievol_api.selection import at_label_shares, pool
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.selection.weights import fitted_weights, weighted
from semievol_api.store.artifacts import EvidenceTable


@dataclass(frozen=True, eq=False)
class Corrections:
    """What is done to each fold's probabilities: factors of label shares, and weights, float64 (annotators,)."""

    askers: Sequence[str]
    factors: Sequence[Factors] = ()
    weights: Sequence[FloatArray] = ()

    @property
    def mean_factors(self) -> Factors:
        """Over folds, for a report."""
        found: dict[str, dict[int, list[FloatArray]]] = {}
        for of_fold in self.factors:
            for asker, by_options in of_fold.items():
                for options, weights in by_options.items():
                    found.setdefault(asker, {}).setdefault(options, []).append(weights)
        return {
            asker: {
                options: (np.sum(some, axis=0) + len(self.factors) - len(some)) / len(self.factors)
                for options, some in by_options.items()
            }
            for asker, by_options in found.items()
        }

    @property
    def mean_weights(self) -> Mapping[str, float]:
        """Over folds, by annotator; empty where all count alike."""
        if not self.weights:
            return {}
        return dict(zip(self.askers, np.mean(self.weights, axis=0).round(3).tolist(), strict=True))


def label_share_corrections(
    corpus: Corpus, crew: Crew, annotations: EvidenceTable, chosen_ids: Collection[str]
) -> Corrections:
    """What brings annotators to the label shares of the labels outside each fold (see `factors_of_crew`)."""
    folds = corpus.folds
    return Corrections(
        askers=[a.id for a in crew.everybody],
        factors=[
            factors_of_crew(
                corpus,
                crew,
                annotations,
                {*chosen_ids, *(e.id for e in folds.warm if folds.fold_of(e.id, LEARNERS_FOLDS) == fold)},
            )
            for fold in range(LEARNERS_FOLDS)
        ],
    )


def with_weights(corpus: Corpus, found: AnnotatorProbs, so_far: Corrections) -> Corrections:
    """The corrections with annotators' weights, fitted for each fold on the labels of the others.

    `found` are the uncorrected probabilities on the labels that calibrate. Closed labels only: open answers have no
    common labels to learn from.
    """
    if not corpus.task.closed:
        return so_far
    fixed = corrected(corpus, found, so_far)
    gold: IntArray = np.array(
        [
            options.index(e.answer) if e.answer in options else -1
            for e, options in zip(found.examples, found.labels, strict=True)
        ],
        dtype=np.int64,
    )
    fold = _folds(corpus, found)
    weights = [fitted_weights(fixed.probs[fold != out], gold[fold != out]) for out in range(LEARNERS_FOLDS)]
    return replace(so_far, weights=weights)


def corrected(corpus: Corpus, found: AnnotatorProbs, corrections: Corrections) -> AnnotatorProbs:
    """The probabilities of every fold, corrected and pooled anew; `found` are of `crew.everybody`, in its order."""
    if not corrections.factors and not corrections.weights:
        return found
    fold, probs = _folds(corpus, found), found.probs.copy()
    for out in range(LEARNERS_FOLDS):
        here = fold == out
        if corrections.factors:
            _at_shares(probs, here, found, corrections.factors[out], corrections.askers)
        if corrections.weights:
            probs[here] = weighted(probs[here], corrections.weights[out])
    return replace(found, probs=probs, pooled=pool(probs, found.n_options, open_answers=not corpus.task.closed))


def _at_shares(
    probs: FloatArray, here: BoolArray, found: AnnotatorProbs, factors: Factors, askers: Sequence[str]
) -> None:
    """Change the probabilities of some rows in place."""
    for column, asker in enumerate(askers):
        for options, weights in factors.get(asker, {}).items():
            rows = np.flatnonzero(here & (found.n_options == options))
            probs[rows, column, :options] = at_label_shares(probs[rows, column, :options], weights)


def _folds(corpus: Corpus, found: AnnotatorProbs) -> IntArray:
    return np.array([corpus.folds.fold_of(e.id, LEARNERS_FOLDS) for e in found.examples], dtype=np.int64)
