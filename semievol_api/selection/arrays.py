"""Selection on plain arrays and lists, without a run: probabilities in, a mask and a promise out.

    chosen = select(probs, calibration_labels, calibration_probs, alpha=0.1)

Knows nothing of models, prompts, runs or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semievol_api.errors import ConfigError, DataError
from semievol_api.notebook import html_facts
from semievol_api.selection.pooling import pool
from semievol_api.selection.ranking import ranks
from semievol_api.selection.rules import RULES
from semievol_api.selection.rules import select as apply_rule
from semievol_api.selection.values import BoolArray, Calibration, FloatArray, IntArray, RuleSettings

RuleName: TypeAlias = Literal["fdr", "high-probability", "percentile", "random", "top-n"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ChosenLabels:
    """What `select` keeps of a pool, and what that promises.

    Attributes
    ----------
    kept : ndarray of bool, shape (m,)
        The mask of the kept items.
    labels : ndarray, shape (m,)
        The label of every item: int64 indices of the columns, -1 = abstain; with `classes`, an object array of their
        names, None = abstain; empty where only scores were given.
    scores : ndarray of float64, shape (m,)
        The probability of that label in [0, 1], or the scores as given; NaN = abstain.
    rule : str
        The rule that was applied: `percentile` where the chosen one had too few calibration labels.
    threshold : float or None
        The lowest kept score; None where the rule has no single cut or keeps nothing.
    false_share : float or None
        The rule's own estimate of the share of false labels among the kept, in [0, 1].
    promise : str or None
        What is promised of the kept, in words; None where nothing is.
    messages : tuple of str
        What a reader has to know.

    Examples
    --------
    >>> chosen = semievol_api.select([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], rule="percentile")
    >>> chosen
    ChosenLabels(2 of 3 kept by 'percentile', threshold 0.8, nothing promised)
    >>> chosen.labels[chosen.kept]
    array([0, 1])
    """

    kept: BoolArray
    labels: NDArray[Any]
    scores: FloatArray
    rule: str
    threshold: float | None
    false_share: float | None
    promise: str | None
    messages: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many items are kept."""
        return int(np.count_nonzero(self.kept))

    @property
    def coverage(self) -> float:
        """Kept over all items, abstentions included, in [0, 1]; 0 for an empty pool."""
        return self.count / self.kept.size if self.kept.size else 0.0

    def __repr__(self) -> str:
        cut = "" if self.threshold is None else f", threshold {self.threshold:.4g}"
        share = "" if self.false_share is None else f", about {self.false_share:.1%} false"
        promise = ", nothing promised" if self.promise is None else ""
        return f"ChosenLabels({self.count} of {self.kept.size} kept by {self.rule!r}{cut}{share}{promise})"

    def _repr_html_(self) -> str:
        """The counts as a notebook shows them."""
        facts = {
            "kept": f"{self.count} of {self.kept.size} ({self.coverage:.1%})",
            "threshold": "-" if self.threshold is None else f"{self.threshold:.4g}",
            "estimated share of false labels": "-" if self.false_share is None else f"{self.false_share:.1%}",
            "promise": self.promise or "nothing is promised",
        }
        return html_facts(f"Selected by {self.rule!r}", facts, self.messages)


def select(  # noqa: PLR0913 - a caller in a notebook names them one by one
    probs: ArrayLike,
    calibration_labels: ArrayLike | Calibration | None = None,
    calibration_probs: ArrayLike | None = None,
    *,
    rule: RuleName | RuleSettings = "fdr",
    alpha: float | None = None,
    seed: int = 0,
    classes: Sequence[Any] | None = None,
) -> ChosenLabels:
    """Keep the pseudo-labels worth learning from.

    Parameters
    ----------
    probs : array-like
        The pool. Shape (m, K): a probability in [0, 1] for each label, as `predict_proba` gives them; a row with NaN
        abstains. Shape (m, annotators, K): several annotators, pooled first (the mean of their log-probabilities).
        Shape (m,): scores of labels that the caller has, higher is better, such as `RunResult.scores`.
    calibration_labels : array-like of shape (n,), or Calibration, optional
        The true labels of held-out examples: indices of the K columns, or names in `classes`. A `Calibration`, such
        as `RunResult.calibration`, stands for both calibration arguments. With fewer than 30 nothing is promised and
        the best half by score is kept.
    calibration_probs : array-like, optional
        What the same annotators gave for the held-out examples; shape (n, K) or (n, annotators, K).
    rule : str or RuleSettings, default "fdr"
        `fdr` (expected share of false labels at most `alpha`), `high-probability` (that share in all but a tenth of
        the calibration slices), `percentile` (the better half), `random` (its control), `top-n`. `RuleSettings` has
        their other numbers: `delta`, `share`, `n`.
    alpha : float, default 0.1
        The tolerated share of false labels, in (0, 1).
    seed : int, default 0
        Of `random`, and of ties in `top-n`.
    classes : sequence of length K, optional
        The labels' names, as in `classes_` of scikit-learn.

    Returns
    -------
    ChosenLabels
        A mask, labels and scores of shape (m,), the threshold and the promise.

    Raises
    ------
    DataError
        Shapes do not fit, a probability lies outside [0, 1], or a calibration label is none of the labels.
    ConfigError
        There is no such rule, or a number lies outside its range.

    Notes
    -----
    SemiEvol, section 3.4 (adaptive selection). `percentile` is the paper's rule; `fdr` is conformal selection (Jin and
    Candes 2023, arXiv 2210.01408), valid on average over calibration slices if the calibration examples are like the
    pool.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(3, size=600)
    >>> probs = np.where(rng.random((600, 1)) < 0.9, np.eye(3)[truth], 1 / 3)
    >>> chosen = semievol_api.select(probs[:500], truth[500:], probs[500:], alpha=0.1)
    >>> chosen.kept.shape, bool(np.mean(chosen.labels[chosen.kept] != truth[:500][chosen.kept]) <= 0.1)
    ((500,), True)
    """
    settings = _settings(rule, alpha, seed)
    labels, scores, keys = _labelled(probs, "probs")
    names = None if classes is None else list(classes)
    if names is not None and labels is not None and len(names) != np.shape(probs)[-1]:
        raise DataError(f"`classes` names {len(names)} labels and `probs` has {np.shape(probs)[-1]} columns.")
    calibration, held = _calibration(calibration_labels, calibration_probs, names, np.shape(probs))
    ids = [str(row) for row in range(scores.size)]
    order, calibration = _ranked(scores, keys, calibration, held)
    chosen = apply_rule(order, ids, calibration, settings)
    lowest = chosen.threshold if order is scores or chosen.threshold is None else float(scores[chosen.kept].min())
    return ChosenLabels(
        kept=chosen.kept,
        labels=_named(labels, names),
        scores=scores,
        rule=chosen.rule,
        threshold=lowest,
        false_share=chosen.estimate,
        promise=_promise(chosen.rule, settings),
        messages=chosen.messages,
    )


def _settings(rule: str | RuleSettings, alpha: float | None, seed: int) -> RuleSettings:
    if isinstance(rule, RuleSettings):
        if alpha is not None:
            raise ConfigError("`alpha` is given twice: as an argument and in `rule`. Leave one of them out.")
        return rule
    if rule not in RULES:
        raise ConfigError(f"There is no rule {rule!r}; there are {', '.join(sorted(RULES))}.")
    return RuleSettings(rule=rule, alpha=0.1 if alpha is None else alpha, seed=seed)


def _ranked(
    scores: FloatArray, keys: FloatArray | None, calibration: Calibration | None, held: FloatArray | None
) -> tuple[FloatArray, Calibration | None]:
    """The order of the pool and of the calibration items, equal scores by the log-odds; bare scores as they are."""
    if keys is None or (calibration is not None and held is None):
        return scores, calibration
    if calibration is None or held is None:
        return ranks(scores, keys), None
    found = ranks(np.concatenate([scores, calibration.scores]), np.concatenate([keys, held]))
    return found[: scores.size], replace(calibration, scores=found[scores.size :])


def _labelled(probs: ArrayLike, name: str) -> tuple[IntArray | None, FloatArray, FloatArray | None]:
    """The label of each row, int64 (m,), -1 = abstain, its score and its log-odds, float64 (m,).

    Bare scores have neither label nor log-odds.
    """
    try:
        array = np.asarray(probs, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"`{name}` is no array of numbers with equally long rows. Pass one of shape (m, K).") from None
    if array.ndim == 1:
        return None, array, None
    if array.ndim not in (2, 3) or not array.shape[-1]:
        raise DataError(f"`{name}` has the shape {array.shape}; it must be (m, K), (m, annotators, K) or (m,).")
    known = array[~np.isnan(array)]
    if known.size and (known.min() < 0.0 or known.max() > 1.0 + 1e-6):
        raise DataError(
            f"`{name}` holds {known.min():.3g} to {known.max():.3g}; probabilities lie in [0, 1]. Pass exp() of "
            f"log-probabilities, or one score a row in an array of shape (m,)."
        )
    answered = array if array.ndim == 3 else array[:, None, :]
    pooled = pool(answered, np.full(len(array), array.shape[-1], dtype=np.int64))
    if array.ndim == 3:
        return pooled.label, pooled.score, pooled.log_odds
    silent = np.isnan(array).any(axis=1)
    label = np.where(silent, -1, np.argmax(array, axis=1)).astype(np.int64)
    return label, np.where(silent, np.nan, array[np.arange(len(array)), label]), pooled.log_odds


def _calibration(
    labels: ArrayLike | Calibration | None,
    probs: ArrayLike | None,
    names: list[Any] | None,
    pool_shape: tuple[int, ...],
) -> tuple[Calibration | None, FloatArray | None]:
    if isinstance(labels, Calibration):
        if probs is not None:
            raise DataError("A `Calibration` has its own scores: leave `calibration_probs` out.")
        return labels, None
    if labels is None and probs is None:
        return None, None
    if labels is None or probs is None:
        missing = "calibration_labels" if labels is None else "calibration_probs"
        raise DataError(f"`{missing}` is missing: calibration needs the true labels and the same annotators' answers.")
    found, scores, keys = _labelled(probs, "calibration_probs")
    if found is None or np.shape(probs)[1:] != pool_shape[1:]:
        raise DataError(
            f"`calibration_probs` has the shape {np.shape(probs)} and `probs` {pool_shape}; all but the first number "
            f"must be the same. For scores of shape (m,) pass a Calibration with scores and errors."
        )
    gold = _indices(labels, names, np.shape(probs)[-1])
    if gold.shape != found.shape:
        raise DataError(f"There are {gold.size} calibration labels and {found.size} rows of `calibration_probs`.")
    return Calibration(scores=scores, wrong=found != gold), keys


def _indices(labels: ArrayLike, names: list[Any] | None, width: int) -> IntArray:
    """True labels as columns, int64 (n,)."""
    given = np.asarray(labels)
    if given.ndim != 1:
        raise DataError(f"`calibration_labels` has the shape {given.shape}; pass one label a row, shape (n,).")
    if names is not None:
        place = {name: column for column, name in enumerate(names)}
        columns = [place.get(label, -1) for label in given.tolist()]
    elif not np.issubdtype(given.dtype, np.integer):
        raise DataError(
            f"`calibration_labels` are of type {given.dtype}; without `classes` they are the columns' numbers, 0 to "
            f"{width - 1}. Name the columns: classes=[...]."
        )
    else:
        columns = given.tolist()
    strange = [given[row] for row, column in enumerate(columns) if not 0 <= column < width]
    if strange:
        raise DataError(f"The calibration label {strange[0]!r} is none of the {width} labels of `calibration_probs`.")
    return np.array(columns, dtype=np.int64)


def _named(labels: IntArray | None, names: list[Any] | None) -> NDArray[Any]:
    if labels is None:
        return np.empty(0, dtype=np.int64)
    if names is None:
        return labels
    found = np.empty(labels.size, dtype=object)
    found[:] = [None if label < 0 else names[label] for label in labels.tolist()]
    return found


def _promise(rule: str, settings: RuleSettings) -> str | None:
    if rule == "fdr":
        return (
            f"at most {settings.alpha:.1%} of the kept labels are expected to be false, on average over calibration "
            f"slices, if the calibration examples are like the pool"
        )
    if rule == "high-probability":
        return (
            f"at most {settings.alpha:.1%} of the labels above the cut are false in {1 - settings.delta:.0%} of the "
            f"calibration slices, if the calibration examples are like the pool"
        )
    return None
