"""The table of estimators: what each needs of a server, how that is asked for, and how it scores labels.

    ESTIMATORS                                          # a row each, in the order of preference
    choose_estimator(evidence_given("logprobs", closed=True)).name      # "answer_logprob"

The probe, the requests, the pooling and the selection's count of missing scores read the table; nothing else lists
estimators but the config's own choice of names. Every annotator has one estimator, fixed before the run and the same on
unlabelled and calibration items. Knows nothing of live servers or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from semievol_api.annotate.estimator import Asking, Estimator, EvidenceKind, Reading, Readings
from semievol_api.errors import MissingAbilityError
from semievol_api.records import UNSEEN_LOGPROB
from semievol_api.selection.label_probabilities import normalised
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
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
_PHRASE = re.compile(rf"\b(?:{_PHRASES})\b", re.IGNORECASE)


def verbal_probability(text: str, marker: str = "Confidence:") -> float | None:
    """The probability meant by the last phrase of the scale after the last marker, or in the whole text.

    Tian et al. 2023 (arXiv 2305.14975), linguistic confidences. None where no phrase of the scale occurs.
    """
    at = text.casefold().rfind(marker.casefold())
    phrases = _PHRASE.findall(" ".join(text[max(at, 0) :].split()))
    return dict(WORD_SCALE)[phrases[-1].casefold()] if phrases else None


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


def mean_nll(token_logprobs: NDArray[np.floating] | None) -> float | None:
    """Mean negative natural log-probability per token of one response; the paper calls it entropy.

    SemiEvol section 3.4: H(y) = -(1/L) sum log p(y_t | y_<t, x), without the end-of-turn token. L counts the tokens
    that the server ranked, see `ranked`; None where it ranked none.
    """
    if token_logprobs is None:
        return None
    values = token_logprobs[ranked(token_logprobs)].astype(np.float64)
    return float(-values.mean()) if values.size else None


def ranked(token_logprobs: NDArray[np.floating]) -> BoolArray:
    """Which tokens the server ranked, bool (tokens,): those that are finite and not -9999."""
    return np.asarray(np.isfinite(token_logprobs) & (token_logprobs > UNSEEN_LOGPROB), dtype=np.bool_)


def choose_estimator(available: Collection[EvidenceKind], wanted: str | None = None) -> Estimator:
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
    return VOTES


def evidence_given(ability: Ability, closed: bool) -> frozenset[EvidenceKind]:
    """What a server of this ability gives, for closed sets of labels or for open answers."""
    return frozenset(e.needs for e in ESTIMATORS if ability in e.asked and (closed or not e.closed_labels))


def estimator_of(reading: Reading) -> Estimator | None:
    """The estimator that a way of asking ends in; None for the ways that end in none."""
    return next((e for e in ESTIMATORS if reading in (e.name, *(one.reading for one in e.askings))), None)


def asking_of(reading: Reading) -> Asking:
    """How the answers of an annotator that is read so are asked for."""
    found = estimator_of(reading)
    return SAMPLED if found is None else next(one for one in found.askings if one.reading == reading)


def is_probed(reading: Reading) -> bool:
    """Whether it depends on the server how answers are asked for."""
    found = estimator_of(reading)
    if found is None:
        return reading == "auto"
    return reading == found.name and found is not VOTES and bool(found.asked)


def probing_of(ability: Ability) -> Asking:
    """The request that shows whether a server has this ability: that of the most preferred estimator with it."""
    return next(estimator.asked[ability] for estimator in ESTIMATORS if ability in estimator.asked)


def _option_prob(readings: Readings) -> FloatArray:
    return readings.nobody if readings.option_probs is None else normalised(readings.option_probs, readings.n_options)


def _answer_logprob(readings: Readings) -> FloatArray:
    if readings.answer_logprob is None:
        return readings.nobody
    shown = np.where(readings.answer_logprob > UNSEEN_LOGPROB, readings.answer_logprob, np.nan)
    # A long answer is improbable without being wrong: it never ranks below labels that nobody gave.
    uniform = (1.0 + 1e-9) / np.maximum(readings.n_options, 1)
    doubt = np.minimum(-np.expm1(shown), np.maximum(1.0 - uniform, 0.0))
    return readings.sure(np.maximum(np.exp(shown), uniform), doubt)


TOP_ALTERNATIVES = 20
"""What OpenAI allows; servers that know of less say so in their limits."""
SAMPLED = Asking(reading="sampled", logprobs=True, sampled=True, measured=False)
"""The paper's way, which no estimator reads: responses are ranked by `mean_nll`."""
VERDICT = Asking(reading="p_true", logprobs=True)
"""How the model is asked whether its own answer is right, where that is no exact read."""
_VOTED = Asking(reading="votes", sampled=True)
_ASKED_IN_WORDS = Asking(
    reading="verbal",
    request="Then add a second line: Confidence: and one of these phrases, as sure as you are of the answer: "
    + ", ".join(words for words, _ in WORD_SCALE),
    request_tokens=12,
    read_words=verbal_probability,
)


def _of_labels(name: str) -> Estimator:
    """An annotator that the labels taught (`annotate/learned.py`): its distribution is computed, no server is asked."""
    return Estimator(
        name=name,
        needs="labels",
        asked_of_any=Asking(reading=name, measured=False),
        estimate=_option_prob,
        closed_labels=True,
    )


VOTES = Estimator(
    name="votes",
    needs="answers",
    asked={"options": _VOTED, "alternatives": _VOTED, "logprobs": _VOTED, "text": _VOTED},
    estimate=lambda readings: votes(readings.answers, readings.n_options, readings.width),
    note="No log-probabilities came for {}: their confidence is by votes.",
)
ESTIMATORS: tuple[Estimator, ...] = (
    Estimator(
        name="option_prob",
        needs="option_probs",
        asked={
            "options": Asking(reading="option_read", exact=True),
            "alternatives": Asking(reading="option_prob", alternatives=TOP_ALTERNATIVES, logprobs=True),
        },
        estimate=_option_prob,
        closed_labels=True,
        always_scored=True,
    ),
    Estimator(
        name="answer_logprob",
        needs="answer_logprob",
        asked={
            "alternatives": Asking(reading="answer_logprob", alternatives=1, logprobs=True),
            "logprobs": Asking(reading="answer_logprob", logprobs=True),
        },
        estimate=_answer_logprob,
        always_scored=True,
    ),
    Estimator(
        name="p_true",
        needs="p_true",
        asked={
            "options": Asking(reading="p_true", verified=True),
            "alternatives": Asking(reading="p_true", alternatives=TOP_ALTERNATIVES, verified=True),
        },
        estimate=lambda readings: readings.sure(readings.p_true),
        always_scored=True,
    ),
    Estimator(
        name="verbal",
        needs="verbal",
        asked_of_any=_ASKED_IN_WORDS,
        estimate=lambda readings: readings.sure(readings.verbal),
    ),
    _of_labels("classifier"),
    _of_labels("label_propagation"),
    VOTES,
)
"""In the order of preference. `p_true`: Kadavath et al. 2022 (arXiv 2207.05221)."""
