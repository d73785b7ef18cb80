"""The table of estimators: what each needs of a server, how that is asked for, and how it scores labels.

    ESTIMATORS                                          # a row each, in the order of preference
    choose_estimator(evidence_given("logprobs", closed=True)).name      # "answer_logprob"

The probe, the pooling and the selection's count of missing scores read the table; nothing else lists estimators but
the config's own choice of names. Every annotator has one estimator, fixed before the run and the same on unlabelled
and calibration items. Knows nothing of live servers or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import MissingAbilityError
from semievol_api.selection.label_probabilities import UNSEEN_LOGPROB, floored
from semievol_api.selection.values import FloatArray, IntArray
from semievol_api.store.artifacts import Ability

WORD_SCALE = (
    ("almost certain", 0.95),
    ("highly likely", 0.9),
    ("very good chance", 0.8),
    ("probable", 0.75),
    ("probably", 0.75),
    ("likely", 0.7),
    ("better than even", 0.6),
    ("about even", 0.5),
    ("probably not", 0.25),
    ("unlikely", 0.2),
    ("little chance", 0.1),
    ("highly unlikely", 0.05),
    ("almost no chance", 0.02),
)
"""Words offered to the model and the probability that each stands for."""

_PHRASES = "|".join(re.escape(words) for words, _ in sorted(WORD_SCALE, key=lambda pair: -len(pair[0])))
_SAID = re.compile(rf"\b(?:{_PHRASES})\b", re.IGNORECASE)


def verbal_probability(text: str, marker: str = "Confidence:") -> float | None:
    """The probability meant by the last phrase of the scale after the last marker, or in the whole text.

    Tian et al. 2023 (arXiv 2305.14975), linguistic confidences. None where no phrase of the scale occurs.
    """
    at = text.casefold().rfind(marker.casefold())
    said = _SAID.findall(" ".join(text[max(at, 0) :].split()))
    return dict(WORD_SCALE)[said[-1].casefold()] if said else None


EvidenceKind: TypeAlias = Literal["option_probs", "answer_logprob", "p_true", "verbal", "answers"]
"""A kind of evidence; every server gives at least `answers`."""
EstimatorName: TypeAlias = Literal["option_prob", "answer_logprob", "p_true", "verbal", "votes"]
"""As in `[[annotators]] estimator`, which offers `auto` beside them."""
Reading: TypeAlias = Literal["sampled", "auto", "option_read", "neighbour_vote"] | EstimatorName
"""How an annotator's answers are asked for and read. `sampled`: they are not made into probabilities, the paper ranks
by `mean_nll`. `option_read`: `option_prob` in one exact read. `neighbour_vote` asks nobody. `auto`, and the estimators
that not every server allows, are resolved by the probe, before anything is asked."""
TOP_ALTERNATIVES = 20
"""What OpenAI allows; servers that know of less say so in their limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How an estimator's evidence is asked for where the server has one certain ability."""

    reading: Reading
    alternatives: int = 0
    """Alternatives asked for at each token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """One annotator's evidence on m items, as arrays; NaN and -1 mean that there is none.

    `answers` int64 (m, samples): label indices. `n_options` int64 (m,). `option_probs` float64 (m, options),
    `answer_logprob` (natural log), `p_true` (probability that the answer is right) and `verbal` (the same, from
    words) float64 (m,), each about the first sample; None where the annotator never has them.
    """

    answers: IntArray
    n_options: IntArray
    width: int
    option_probs: FloatArray | None = None
    answer_logprob: FloatArray | None = None
    p_true: FloatArray | None = None
    verbal: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """One row of `ESTIMATORS`: what it needs, how that is asked for, and how it becomes a probability per label."""

    name: EstimatorName
    needs: EvidenceKind
    asked: Mapping[Ability, Asking]
    """How its evidence is asked for, by what the probe found; an ability that is missing here cannot give it. Empty:
    any server can, and the estimator is used only where a config names it."""
    estimate: Callable[[Readings], FloatArray]
    """Label probabilities, float64 (m, options); NaN rows = abstain."""
    closed_labels: bool = False
    """Whether it exists for closed sets of labels only."""
    always_scored: bool = False
    """Whether an answer without its evidence counts as one whose log-probabilities are missing."""

    @property
    def readings(self) -> frozenset[Reading]:
        """The ways of asking that end in this estimator."""
        return frozenset({self.name, *(asking.reading for asking in self.asked.values())})


def votes(answers: IntArray, n_options: IntArray, width: int) -> FloatArray:
    """s(c) = (v_c + 0.5) / (n_valid + 0.5 K): vote shares with the prior of Krichevsky and Trofimov (1981).

    An abstention (-1) is never a vote; a row without a valid answer is NaN.

    Args:
        answers: int64, shape (m, samples), label indices.
        n_options: int64, shape (m,), K of each item.
        width: columns of the result.
    """
    m = answers.shape[0]
    valid = answers >= 0
    cell = (np.arange(m)[:, None] * width + answers)[valid]
    counts = np.bincount(cell, minlength=m * width).reshape(m, width).astype(np.float64)
    total = valid.sum(axis=1)
    shares: FloatArray = (counts + 0.5) / (total + 0.5 * n_options)[:, None]
    shares[np.arange(width) >= n_options[:, None]] = 0.0
    shares[total == 0] = np.nan
    return shares


def from_confidence(confidence: FloatArray, answers: IntArray, n_options: IntArray, width: int) -> FloatArray:
    """Label probabilities from one number: the answer gets it, the other labels share the rest equally.

    Args:
        confidence: float64, shape (m,), probability of the answer, NaN = abstain.
        answers: int64, shape (m,), -1 = abstain.
        n_options: int64, shape (m,).
        width: columns of the result.
    """
    m = confidence.size
    p = np.clip(confidence, 0.0, 1.0)
    rest = np.where(n_options > 1, (1.0 - p) / np.maximum(n_options - 1, 1), 0.0)
    probs = np.repeat(rest[:, None], width, axis=1)
    rows = np.flatnonzero(answers >= 0)
    probs[rows, answers[rows]] = p[rows]
    silent = np.isnan(confidence) | (answers < 0)
    probs[silent] = 0.0
    result = floored(probs, n_options) if m else probs
    result[silent] = np.nan
    return result


def mean_nll(token_logprobs: NDArray[np.floating] | None) -> float | None:
    """Mean negative natural log-probability per token of one response; the paper calls it entropy.

    SemiEvol section 3.4: H(y) = -(1/L) sum log p(y_t | y_<t, x), without the end-of-turn token. None for a
    response whose tokens are not all ranked, see `all_ranked`.
    """
    if token_logprobs is None or not all_ranked(token_logprobs):
        return None
    return float(-token_logprobs.astype(np.float64).mean())


def all_ranked(token_logprobs: NDArray[np.floating]) -> bool:
    """Whether there are tokens and the server ranked each of them: finite, and not -9999."""
    ranked = np.isfinite(token_logprobs) & (token_logprobs > UNSEEN_LOGPROB)
    return token_logprobs.size > 0 and bool(ranked.all())


def choose_estimator(available: Collection[EvidenceKind], wanted: EstimatorName | None = None) -> Estimator:
    """The wanted estimator, or the first of the order of preference whose evidence is available.

    Raises:
        MissingAbilityError: the wanted one's evidence is not available.
    """
    for estimator in ESTIMATORS:
        if estimator.name == wanted and estimator.needs not in available:
            raise MissingAbilityError(
                f"The estimator {wanted!r} needs {estimator.needs!r}, which this model's server does not give. "
                f"Choose another estimator, or leave the choice open: 'votes' always works."
            )
        if estimator.needs in available and wanted in (None, estimator.name):
            return estimator
    return _VOTES


def evidence_given(ability: Ability, closed: bool) -> frozenset[EvidenceKind]:
    """What a server of this ability gives, for closed sets of labels or for open answers."""
    return frozenset(e.needs for e in ESTIMATORS if ability in e.asked and (closed or not e.closed_labels))


def estimator_of(reading: Reading) -> Estimator | None:
    """The estimator that a way of asking ends in; None for the ways that end in none."""
    return next((estimator for estimator in ESTIMATORS if reading in estimator.readings), None)


def is_probed(reading: Reading) -> bool:
    """Whether it depends on the server how answers are asked for."""
    found = estimator_of(reading)
    if found is None:
        return reading == "auto"
    return reading == found.name and found is not _VOTES and bool(found.asked)


def probing_of(ability: Ability) -> Asking:
    """The request that shows whether a server has this ability: that of the most preferred estimator with it."""
    return next(estimator.asked[ability] for estimator in ESTIMATORS if ability in estimator.asked)


def _option_prob(readings: Readings) -> FloatArray:
    if readings.option_probs is None:
        return _nobody(readings)
    return floored(readings.option_probs, readings.n_options)


def _answer_logprob(readings: Readings) -> FloatArray:
    if readings.answer_logprob is None:
        return _nobody(readings)
    shown = np.where(readings.answer_logprob > UNSEEN_LOGPROB, readings.answer_logprob, np.nan)
    # A long answer is improbable without being wrong: it never ranks below labels that nobody gave.
    uniform = (1.0 + 1e-6) / np.maximum(readings.n_options, 1)
    return _first_sample(np.maximum(np.exp(shown), uniform), readings)


def _p_true(readings: Readings) -> FloatArray:
    return _nobody(readings) if readings.p_true is None else _first_sample(readings.p_true, readings)


def _verbal(readings: Readings) -> FloatArray:
    return _nobody(readings) if readings.verbal is None else _first_sample(readings.verbal, readings)


def _votes(readings: Readings) -> FloatArray:
    return votes(readings.answers, readings.n_options, readings.width)


def _first_sample(confidence: FloatArray, readings: Readings) -> FloatArray:
    return from_confidence(confidence, readings.answers[:, 0], readings.n_options, readings.width)


def _nobody(readings: Readings) -> FloatArray:
    return np.full((readings.n_options.size, readings.width), np.nan)


_ABILITIES: tuple[Ability, ...] = ("options", "alternatives", "logprobs", "text")
_VOTES = Estimator(
    name="votes",
    needs="answers",
    asked=dict.fromkeys(_ABILITIES, Asking(reading="votes")),
    estimate=_votes,
)
ESTIMATORS = (
    Estimator(
        name="option_prob",
        needs="option_probs",
        asked={
            "options": Asking(reading="option_read"),
            "alternatives": Asking(reading="option_prob", alternatives=TOP_ALTERNATIVES),
        },
        estimate=_option_prob,
        closed_labels=True,
        always_scored=True,
    ),
    Estimator(
        name="answer_logprob",
        needs="answer_logprob",
        asked={
            "alternatives": Asking(reading="answer_logprob", alternatives=1),
            "logprobs": Asking(reading="answer_logprob"),
        },
        estimate=_answer_logprob,
        always_scored=True,
    ),
    Estimator(
        name="p_true",
        needs="p_true",
        asked={
            "options": Asking(reading="p_true"),
            "alternatives": Asking(reading="p_true", alternatives=TOP_ALTERNATIVES),
        },
        estimate=_p_true,
        always_scored=True,
    ),
    Estimator(name="verbal", needs="verbal", asked={}, estimate=_verbal),
    _VOTES,
)
"""In the order of preference. `p_true`: Kadavath et al. 2022 (arXiv 2207.05221)."""
