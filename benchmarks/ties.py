"""Simulated answers of a sure model: most log-probabilities are exactly 0, and some categories are easier.

    found = simulate(np.random.default_rng(0))
    found.answers, found.logprobs, found.gold, found.category

Twelve categories; in 60 % of the questions both annotators give the same answer with a log-probability of exactly 0,
which is right in .75 to .99 of the cases, by category; a category in which it is right more often also has more of
them, loosely. Knows nothing of scores or rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semievol_api.annotate.estimator import from_confidence
from semievol_api.annotate.pooled import mean_logprob
from semievol_api.selection import pool
from semievol_api.selection.values import BoolArray, FloatArray, IntArray

OPTIONS = 4
CATEGORIES = 12
TIED = 0.6
PRECISION = (0.75, 0.99)
DIMENSIONS = 16
ANCHORS = 120
NEAREST = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedAnswers:
    """Two annotators' answers to N questions.

    `answers` int64 (N, 2) label indices; `logprobs` float64 (N, 2), natural log-probabilities of those answers as a
    server shows them in float32; `gold` int64 (N,); `category` int64 (N,); `nearest` int64 (N, 3), the nearest labelled
    questions; `tied` bool (N,).
    """

    answers: IntArray
    logprobs: FloatArray
    gold: IntArray
    category: IntArray
    nearest: IntArray
    tied: BoolArray


def simulate(rng: np.random.Generator, size: int = 40_000) -> SimulatedAnswers:
    """A population of answers, one model asked twice."""
    category = rng.integers(CATEGORIES, size=size)
    low, high = PRECISION
    precision = 1.0 - np.geomspace(1.0 - low, 1.0 - high, CATEGORIES)
    ease = np.linspace(-1.0, 1.0, CATEGORIES) + 0.5 * rng.standard_normal(CATEGORIES)
    surety = 0.6 * ease[category] + rng.standard_normal(size)
    tied = surety >= np.quantile(surety, 1.0 - TIED)
    doubt = np.quantile(surety, 1.0 - TIED) - surety
    chance = np.where(tied, precision[category], 0.25 + 0.6 * np.exp(-doubt))
    right = rng.random(size) < chance
    gold = rng.integers(OPTIONS, size=size)
    other = (gold + 1 + rng.integers(OPTIONS - 1, size=size)) % OPTIONS
    first = np.where(right, gold, other)
    logprobs = -0.02 * doubt[:, None] * np.exp(1.5 * rng.standard_normal((size, 2)) + doubt[:, None])
    logprobs = np.maximum(np.where(tied[:, None], 0.0, logprobs), -1.3).astype(np.float32).astype(np.float64)
    second = np.where(
        ~tied & (rng.random(size) < 0.15), (first + 1 + rng.integers(OPTIONS - 1, size=size)) % OPTIONS, first
    )
    return SimulatedAnswers(
        answers=np.stack([first, second], axis=1).astype(np.int64),
        logprobs=logprobs,
        gold=gold.astype(np.int64),
        category=category.astype(np.int64),
        nearest=_nearest(category, rng),
        tied=np.asarray(tied, dtype=np.bool_),
    )


def _nearest(category: IntArray, rng: np.random.Generator) -> IntArray:
    """The nearest of 120 labelled questions by vectors that lie around their category's centre; int64 (N, 3)."""
    centres = rng.standard_normal((CATEGORIES, DIMENSIONS))
    vectors = centres[category] + 1.2 * rng.standard_normal((category.size, DIMENSIONS))
    labelled = centres[np.arange(ANCHORS) % CATEGORIES] + 1.2 * rng.standard_normal((ANCHORS, DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labelled /= np.linalg.norm(labelled, axis=1, keepdims=True)
    found = np.argsort(-(vectors @ labelled.T), axis=1, kind="stable")[:, :NEAREST]
    return found.astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Keys:
    """The pooled answers of a population and what ranks them: float64 (N,) each, `wrong` bool (N,)."""

    wrong: BoolArray
    score: FloatArray
    log_odds: FloatArray
    answer_logprob: FloatArray
    before: FloatArray


def pooled_keys(found: SimulatedAnswers) -> Keys:
    """Estimate and pool as a run does, and as commit a87899e did (`before`)."""
    n = np.full(found.gold.size, OPTIONS, dtype=np.int64)
    probs = np.stack(
        [
            from_confidence(np.exp(logprob), -np.expm1(logprob), answer, n, OPTIONS)
            for answer, logprob in zip(found.answers.T, found.logprobs.T, strict=True)
        ],
        axis=1,
    )
    pooled = pool(probs, n)
    return Keys(
        wrong=np.asarray(pooled.label != found.gold, dtype=np.bool_),
        score=pooled.score,
        log_odds=pooled.log_odds,
        answer_logprob=mean_logprob(found.answers, found.logprobs, pooled.label),
        before=_score_before(found),
    )


def _score_before(found: SimulatedAnswers) -> FloatArray:
    """The score of a87899e: probabilities floored at 1e-6, the mean of their logarithms, summed column by column."""
    total = np.zeros((found.gold.size, OPTIONS))
    for answer, logprob in zip(found.answers.T, found.logprobs.T, strict=True):
        p = np.exp(logprob)
        probs = np.repeat(((1.0 - p) / (OPTIONS - 1))[:, None], OPTIONS, axis=1)
        probs[np.arange(p.size), answer] = p
        probs = np.maximum(probs, 1e-6)
        total += np.log(probs / probs.sum(axis=1, keepdims=True))
    pooled = np.exp(total / 2 - (total / 2).max(axis=1, keepdims=True))
    return np.asarray((pooled / pooled.sum(axis=1, keepdims=True)).max(axis=1), dtype=np.float64)
