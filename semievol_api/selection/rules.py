"""Apply the chosen selection rule, or a fallback where it could guarantee nothing, with a message about it.

Knows nothing of how scores are made, of models, prompts or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from semievol_api.errors import ConfigError, StageError
from semievol_api.records import Finish
from semievol_api.selection.promises import feasibility
from semievol_api.selection.rule_fdr import exact_alpha, fdr
from semievol_api.selection.rule_high_probability import high_probability
from semievol_api.selection.rule_percentile import percentile_of_score
from semievol_api.selection.rule_ranking import at_random, top_n
from semievol_api.selection.values import (
    ENOUGH_CALIBRATION,
    ENOUGH_KEPT,
    BoolArray,
    Calibration,
    FloatArray,
    RuleSettings,
    Selected,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstentions:
    """Why items of a pool have no score; the counts are disjoint, `total` is the size of the pool."""

    total: int
    truncated: int
    refused: int
    failed: int
    no_answer: int
    missing_logprobs: int

    def __add__(self, other: Abstentions) -> Abstentions:
        return Abstentions(
            total=self.total + other.total,
            truncated=self.truncated + other.truncated,
            refused=self.refused + other.refused,
            failed=self.failed + other.failed,
            no_answer=self.no_answer + other.no_answer,
            missing_logprobs=self.missing_logprobs + other.missing_logprobs,
        )

    @property
    def count(self) -> int:
        """All abstentions."""
        return self.truncated + self.refused + self.failed + self.no_answer + self.missing_logprobs


def select(scores: FloatArray, ids: Sequence[str], calibration: Calibration | None, settings: RuleSettings) -> Selected:
    """The items that the chosen rule keeps, with messages for the user.

    With fewer than 30 calibration labels no guarantee is given: the percentile rule on the score takes over.

    Args:
        scores: float64, shape (m,), higher is better, NaN = abstain.
        ids: m example ids, used to break ties in `top-n` and to draw by `random` only.
        calibration: the calibration slice, None where the labels were too few to split.
        settings: the rule.

    Raises:
        ConfigError: there is no such rule, or a setting lies outside its range.
    """
    rule = RULES.get(settings.rule)
    if rule is None:
        raise ConfigError(f"There is no rule {settings.rule!r}; there are {', '.join(sorted(RULES))}.")
    return rule(scores, ids, calibration, settings)


def too_few(kept: int, of: int) -> tuple[str, ...]:
    """A message where fewer than 20 pseudo-labels are left in the end; none where there are enough."""
    if kept >= ENOUGH_KEPT:
        return ()
    return (
        f"Only {kept} of {of:,} items were kept; fewer than {ENOUGH_KEPT} are not worth a training, so the final "
        f"stage is skipped.",
    )


def budget_per_round(settings: RuleSettings) -> Fraction:
    """The alpha of one round: all of it with a fresh calibration fold, else its part (Bonferroni).

    Raises:
        ConfigError: fewer than one round, or an impossible alpha.
    """
    if settings.rounds < 1:
        raise ConfigError(f"The setting 'rounds' is {settings.rounds}; at least one round is needed.")
    alpha = exact_alpha(settings.alpha)
    return alpha if settings.fresh_fold_per_round else alpha / settings.rounds


def count_abstentions(finishes: Sequence[Finish], answered: BoolArray, scored: BoolArray) -> Abstentions:
    """Sort m items by the reason for which they have no score; `answered` and `scored` are bool, shape (m,)."""
    finish = np.array(finishes, dtype=np.str_)
    whole = finish == "stop"
    return Abstentions(
        total=finish.size,
        truncated=int(np.count_nonzero(finish == "length")),
        refused=int(np.count_nonzero(finish == "refused")),
        failed=int(np.count_nonzero(finish == "failed")),
        no_answer=int(np.count_nonzero(whole & ~answered)),
        missing_logprobs=int(np.count_nonzero(whole & answered & ~scored)),
    )


def check_missing_logprobs(abstentions: Abstentions, limit: float = 0.05) -> None:
    """Let a run with few missing log-probabilities pass.

    Raises:
        StageError: more than `limit` of the pool was answered without log-probabilities.
    """
    if abstentions.missing_logprobs > limit * abstentions.total:
        raise StageError(
            f"{abstentions.missing_logprobs:,} of {abstentions.total:,} answers came without log-probabilities; "
            f"more than {limit:.0%} would distort the selection. Check that the server returns them for this "
            f"model, or choose an estimator that needs none, such as 'votes'."
        )


def _percentile(
    scores: FloatArray, ids: Sequence[str], calibration: Calibration | None, settings: RuleSettings
) -> Selected:
    return percentile_of_score(scores, settings.share)


def _random(
    scores: FloatArray, ids: Sequence[str], calibration: Calibration | None, settings: RuleSettings
) -> Selected:
    return at_random(scores, ids, settings.share, settings.seed)


def _top_n(scores: FloatArray, ids: Sequence[str], calibration: Calibration | None, settings: RuleSettings) -> Selected:
    return top_n(scores, ids, settings.n, settings.seed)


def _with_budget(
    scores: FloatArray, ids: Sequence[str], calibration: Calibration | None, settings: RuleSettings
) -> Selected:
    """A rule that promises something, or the percentile rule where there are too few labels to promise it with."""
    if calibration is None or calibration.size < ENOUGH_CALIBRATION:
        return percentile_of_score(scores, settings.share).with_messages(_no_guarantee(calibration, settings))
    alpha = budget_per_round(settings)
    if settings.rule == "high-probability":
        return high_probability(scores, calibration, alpha, settings.delta)
    selected = fdr(scores, calibration, alpha, gone=settings.gone)
    return selected.with_messages(feasibility(calibration.size, calibration.error, alpha).message)


def _no_guarantee(calibration: Calibration | None, settings: RuleSettings) -> str:
    n = 0 if calibration is None else calibration.size
    return (
        f"No guarantee: the rule {settings.rule!r} needs at least {ENOUGH_CALIBRATION} calibration labels and "
        f"there are {n}. The best {settings.share:.0%} by score were kept instead."
    )


Rule: TypeAlias = Callable[[FloatArray, Sequence[str], Calibration | None, RuleSettings], Selected]
"""Scores, ids, calibration slice and settings in, as `select` has them; what is kept out."""
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "fdr": _with_budget,
        "high-probability": _with_budget,
        "percentile": _percentile,
        "random": _random,
        "top-n": _top_n,
    }
)
"""Every rule that ranks by a score, by its name in `[select] rule`."""
