"""The arrays and results that pass through selection.

A score is a confidence, higher is better; NaN stands for an abstention everywhere. Knows nothing of how scores
are made, of models, prompts or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import ConfigError, DataError

FloatArray: TypeAlias = NDArray[np.float64]
"""float64 array; its shape stands in the docstring that names it."""
BoolArray: TypeAlias = NDArray[np.bool_]
"""Boolean array."""
IntArray: TypeAlias = NDArray[np.int64]
"""int64 array; a label is an index into the canonical options, -1 an abstention."""

LabelArray: TypeAlias = NDArray[np.signedinteger[Any]]
"""Labels in any width: many of them are held as int16."""

ENOUGH_KEPT = 20
"""Fewer kept pseudo-labels than this are not worth a training."""
ENOUGH_CALIBRATION = 30
"""With fewer calibration labels than this no guarantee is given."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selected:
    """The pseudo-labels that a rule keeps.

    `kept` is bool, shape (m,). `threshold` is the worst ranked value that was kept (a score kept when at least
    as high, a mean_nll kept when at most as high), None where the rule has no single cut or keeps nothing.
    `estimate` is the rule's own estimate of the share of false labels among the kept, None where it has none.
    `abstained` counts the items without an answer: they stay in every coverage's denominator.
    """

    rule: str
    kept: BoolArray
    abstained: int
    threshold: float | None = None
    estimate: float | None = None
    messages: tuple[str, ...] = field(default=())

    @property
    def count(self) -> int:
        """How many items were kept."""
        return int(np.count_nonzero(self.kept))

    @property
    def coverage(self) -> float:
        """Kept items over all items, abstentions included; 0 for an empty pool."""
        return self.count / self.kept.size if self.kept.size else 0.0

    @property
    def enough(self) -> bool:
        """Whether there is enough to train on: at least `ENOUGH_KEPT` items."""
        return self.count >= ENOUGH_KEPT

    def with_messages(self, *messages: str) -> Selected:
        """The same selection with further messages."""
        return replace(self, messages=self.messages + messages)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Held-out examples whose answers are known: how sure the annotators were, and where they were wrong.

    Attributes
    ----------
    scores : ndarray of float64, shape (n,)
        The score of each example's answer, higher is better; NaN = abstain.
    wrong : ndarray of bool, shape (n,)
        Whether that answer is wrong.

    Raises
    ------
    DataError
        The two are not one-dimensional or differ in length.

    Examples
    --------
    >>> calibration = semievol_api.Calibration(scores=np.array([0.9, 0.4]), wrong=np.array([False, True]))
    >>> calibration
    Calibration(n=2, wrong=1)
    >>> calibration.error
    0.5
    """

    scores: FloatArray
    wrong: BoolArray

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.shape != self.wrong.shape:
            raise DataError(
                f"Calibration needs one score and one verdict per item; got shapes {self.scores.shape} and "
                f"{self.wrong.shape}. Pass two one-dimensional arrays of equal length."
            )

    def __repr__(self) -> str:
        return f"Calibration(n={self.size}, wrong={int(np.count_nonzero(self.wrong))})"

    @property
    def size(self) -> int:
        """How many calibration items there are, abstentions included."""
        return int(self.scores.size)

    @property
    def error(self) -> float:
        """Share of calibration items answered wrongly or not at all; NaN for an empty slice."""
        return float(np.mean(self.wrong | np.isnan(self.scores))) if self.size else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """Which selection rule, and its numbers.

    Attributes
    ----------
    rule : str
        `fdr`, `high-probability`, `percentile`, `random` or `top-n`.
    alpha : float
        The tolerated share of false labels, in (0, 1): of `fdr` on average, of `high-probability` mostly.
    delta : float
        How often `high-probability` may exceed alpha, in (0, 1).
    share : float
        theta, the share that `percentile`, `random` and the fallback keep, in [0, 1].
    n : int
        How many `top-n` keeps.
    seed : int
        Of `random`, and of ties in `top-n`.
    rounds, fresh_fold_per_round : int, bool
        Over several rounds the budget is shared out, unless each has a calibration fold of its own.
    gone : int
        Items of the pool that earlier rounds kept.

    Raises
    ------
    ConfigError
        By `select`, where a number lies outside its range.

    Examples
    --------
    >>> best_two = semievol_api.RuleSettings(rule="top-n", n=2)
    >>> semievol_api.select([0.3, 0.9, 0.8], rule=best_two).kept
    array([False,  True,  True])
    """

    rule: str = "fdr"
    alpha: float = 0.1
    delta: float = 0.1
    share: float = 0.5
    n: int = 0
    seed: int = 0
    rounds: int = 1
    fresh_fold_per_round: bool = True
    gone: int = 0


def share_in_unit_interval(value: float, name: str) -> float:
    """The value, or a refusal when it is not a share in [0, 1].

    Raises:
        ConfigError: it is NaN, below 0 or above 1.
    """
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"The setting {name!r} is {value!r}; it is a share and must lie between 0 and 1.")
    return value
