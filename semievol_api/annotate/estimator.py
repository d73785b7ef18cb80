"""What an estimator is: what it needs of a server, how that is asked for, and how it scores labels.

    Estimator(name="p_true", needs="p_true", asked={...}, estimate=lambda readings: readings.sure(readings.p_true))

The table of them is in `estimators.py`; one of your own is a file beside it (`docs/howto/estimator.md`). Knows nothing
of live servers or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from semievol_api.selection.label_probabilities import REST, normalised
from semievol_api.selection.values import FloatArray, IntArray
from semievol_api.store.artifacts import Ability

EvidenceKind: TypeAlias = str
"""A column of the evidence: `option_probs`, `answer_logprob`, `mean_nll`, `p_true`, `verbal`; or `answers`, which every
server gives, and `labels`, which no server does."""
Reading: TypeAlias = str
"""How an annotator's answers are asked for and read: the name of an `Asking`; or `neighbour_vote`, which asks nobody,
or `auto`, which the probe resolves, as it does with the estimators that not every server allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How an answer is asked for, so that an estimator can read it."""

    reading: Reading
    alternatives: int = 0
    """Alternatives asked for at each token."""
    exact: bool = False
    """Whether all labels are read in one request instead of a written answer."""
    logprobs: bool = False
    """Whether the chosen tokens' log-probabilities are asked for."""
    sampled: bool = False
    """Whether answers are drawn at `[annotate] temperature` where the annotator names none."""
    measured: bool = True
    """Whether more is kept of the answer than its text and `mean_nll`."""
    request: str = ""
    """A line behind the question, in which the model is asked for more than its answer."""
    request_tokens: int = 0
    """Tokens that the reply to it may take."""
    read_words: Callable[[str], float | None] | None = None
    """The probability that the reply's words stand for; it is kept as `verbal`."""
    verified: bool = False
    """Whether the model is asked about its own answer afterwards; what it says is kept as `p_true`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """One annotator's evidence on m items, as arrays; NaN and -1 mean that there is none.

    `answers` int64 (m, samples): label indices. `n_options` int64 (m,). `option_probs` float64 (m, options),
    `answer_logprob` and `mean_nll` (natural log), `p_true` (probability that the answer is right) and `verbal` (the
    same, from words) float64 (m,), each about the first sample; None where the annotator never has them.
    `field_probs` float64 (m, fields): of each field of the first sample, where answers consist of fields.
    """

    answers: IntArray
    n_options: IntArray
    width: int
    option_probs: FloatArray | None = None
    answer_logprob: FloatArray | None = None
    mean_nll: FloatArray | None = None
    p_true: FloatArray | None = None
    verbal: FloatArray | None = None
    field_probs: FloatArray | None = None

    @property
    def nobody(self) -> FloatArray:
        """Label probabilities in which every item abstains, float64 (m, width)."""
        return np.full((self.n_options.size, self.width), np.nan)

    def sure(self, confidence: FloatArray | None, doubt: FloatArray | None = None) -> FloatArray:
        """Label probabilities from how sure the first sample's answers are, float64 (m,); None abstains."""
        if confidence is None:
            return self.nobody
        doubt = 1.0 - confidence if doubt is None else doubt
        return from_confidence(confidence, doubt, self.answers[:, 0], self.n_options, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """One row of `ESTIMATORS`: what it needs, how that is asked for, and how it becomes a probability per label."""

    name: str
    """As in `[[annotators]] estimator`, which offers `auto` beside them."""
    needs: EvidenceKind
    estimate: Callable[[Readings], FloatArray]
    """Label probabilities, float64 (m, options); NaN rows = abstain."""
    asked: Mapping[Ability, Asking] = field(default_factory=dict[Ability, Asking])
    """How its evidence is asked for, by what the probe found; an ability that is missing here cannot give it."""
    asked_of_any: Asking | None = None
    """How it is asked for of any server, by an estimator that is used only where a config names it."""
    closed_labels: bool = False
    """Whether it exists for closed sets of labels only."""
    always_scored: bool = False
    """Whether an answer without its evidence counts as one whose log-probabilities are missing."""
    note: str = ""
    """What the verdict says where annotators are read by it; `{}` are their ids."""

    @property
    def askings(self) -> tuple[Asking, ...]:
        """Every way of asking that ends in this estimator."""
        return (*self.asked.values(), *((self.asked_of_any,) if self.asked_of_any else ()))


def from_confidence(
    confidence: FloatArray, doubt: FloatArray, answers: IntArray, n_options: IntArray, width: int
) -> FloatArray:
    """Label probabilities from one number: the answer gets it, the other labels share the rest equally.

    Args:
        confidence: float64, shape (m,), probability of the answer, NaN = abstain.
        doubt: float64, shape (m,), 1 - confidence, by itself because the difference loses what is close to 1; at least
            2^-40 is shared.
        answers: int64, shape (m,), -1 = abstain.
        n_options: int64, shape (m,).
        width: columns of the result.
    """
    p, rest = np.clip(confidence, 0.0, 1.0), np.clip(doubt, REST, 1.0)
    probs = np.repeat((rest / np.maximum(n_options - 1, 1))[:, None], width, axis=1)
    rows = np.flatnonzero(answers >= 0)
    probs[rows, answers[rows]] = p[rows]
    result = normalised(probs, n_options)
    result[np.isnan(confidence) | (answers < 0)] = np.nan
    return result
