"""Is disagreement the task's or the annotators' fault?

Inherently high entropy is not bad quality: where two answers are equally valid, the crew splits between two labels
of which one is the gold; where answers are poor, they do not go with the gold at all. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from semievol_api.selection.alerts import Alert
from semievol_api.selection.binomial import binomial_tail
from semievol_api.selection.values import BoolArray, FloatArray, IntArray

Verdict: TypeAlias = Literal["clear", "ambiguous", "uninformative", "undecided"]

_FEWEST = 20
_SIGNIFICANCE = 0.01
_RIVAL = 1.0 / 3.0 - 1e-9
"""A label is a rival when it has a third of the leader's mass or more: one of four votes against three."""
_MOSTLY = 0.75
"""Four annotators that flip a coin each split on 7 of 8 items; crews that err now and then, on far fewer."""
_COIN = 0.65
"""A leader that is right this often or less, among items whose gold is the leader or the second, is a coin flip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguity:
    """What the calibration slice says about disagreement.

    `contested` is the share of items whose leading label has a rival; among those, `pair_rate` is how often the
    gold is one of the two. `leader_rate` is how often, on all items whose gold is the first or second label, it
    is the first. `p_informative` is the chance
    that answers without any relation to the gold agree with it as often. NaN where there is nothing to count.
    """

    verdict: Verdict
    contested: float
    pair_rate: float
    leader_rate: float
    p_informative: float


def ambiguity(probs: FloatArray, gold: IntArray, n_options: IntArray, seed: int = 0) -> Ambiguity:
    """Tell an ambiguous task from poor answers, on items whose gold is known.

    The agreement with the gold is tested against permuted gold (999 permutations), as chance-corrected agreement
    is (Cohen 1960). Two options alone cannot show a rival pair: there an uninformative crew is "undecided".

    Args:
        probs: float64, shape (n, annotators, options), NaN = abstain.
        gold: int64, shape (n,), canonical labels.
        n_options: int64, shape (n,).
        seed: of the permutations.
    """
    leader, rival, contested = _leader_and_rival(probs, n_options)
    known = (leader >= 0) & (gold >= 0)
    nan = float("nan")
    if np.count_nonzero(known) < _FEWEST:
        return Ambiguity(verdict="undecided", contested=nan, pair_rate=nan, leader_rate=nan, p_informative=nan)
    p_informative = _p_of_agreement(leader[known], gold[known], seed)
    fought = known & contested & (n_options > 2)
    in_pair = known & ((gold == leader) | (gold == rival))
    fights, pairs = int(np.count_nonzero(fought)), int(np.count_nonzero(fought & in_pair))
    share = float(np.mean(contested[known]))
    leader_rate = float(np.mean(gold[in_pair] == leader[in_pair])) if in_pair.any() else nan
    found = Ambiguity(
        verdict="clear",
        contested=share,
        pair_rate=pairs / fights if fights else nan,
        leader_rate=leader_rate,
        p_informative=p_informative,
    )
    return _with_verdict(found, fights, pairs, n_options[known])


def alerts_of_ambiguity(found: Ambiguity) -> tuple[Alert, ...]:
    """A finding for an ambiguous task, and another for answers that say nothing about the gold."""
    if found.verdict == "ambiguous":
        return (
            Alert(
                kind="ambiguous",
                message=f"The task looks ambiguous: on {found.contested:.0%} of the calibration items two answers "
                f"compete, the gold is one of the two {found.pair_rate:.0%} of the time, and which one is "
                f"close to a coin flip. The answers are not poor; the labels may allow more than one. Sharpen the "
                f"instruction or the label definitions before tuning selection.",
            ),
        )
    if found.p_informative > _SIGNIFICANCE:
        unclear = " With two options an ambiguous task looks the same." if found.verdict == "undecided" else ""
        return (
            Alert(
                kind="uninformative",
                message=f"The answers agree with the gold labels no more than chance would (p = "
                f"{found.p_informative:.2f}). Check the prompt, the answer format and the label order.{unclear}",
            ),
        )
    return ()


def _with_verdict(found: Ambiguity, fights: int, pairs: int, n_options: IntArray) -> Ambiguity:
    chance = float(np.mean(2.0 / np.maximum(n_options, 2)))
    finds_pairs = fights >= _FEWEST and 1.0 - binomial_tail(pairs - 1, fights, chance) <= _SIGNIFICANCE
    verdict: Verdict = "clear"
    if finds_pairs and found.contested >= _MOSTLY and found.leader_rate <= _COIN:
        verdict = "ambiguous"
    elif found.p_informative > _SIGNIFICANCE:
        verdict = "undecided" if bool(np.all(n_options <= 2)) else "uninformative"
    return Ambiguity(
        verdict=verdict,
        contested=found.contested,
        pair_rate=found.pair_rate,
        leader_rate=found.leader_rate,
        p_informative=found.p_informative,
    )


def _leader_and_rival(probs: FloatArray, n_options: IntArray) -> tuple[IntArray, IntArray, BoolArray]:
    """The two labels with most mass in the mean over annotators, -1 = abstain, and whether the second is a rival.

    What every label has (an estimator's prior) is taken off first.
    """
    n, _, width = probs.shape
    real: BoolArray = np.less(np.arange(width), n_options[:, None])
    spoke: BoolArray = ~np.any(np.isnan(np.where(real[:, None, :], probs, 0.0)), axis=2)
    mass = np.sum(np.where(spoke[:, :, None] & real[:, None, :], probs, 0.0), axis=1)
    mass -= np.where(n_options > 2, np.min(np.where(real, mass, np.inf), axis=1, initial=np.inf), 0.0)[:, None]
    mass[~real] = -1.0
    order = np.argsort(-mass, axis=1, kind="stable")
    silent = ~np.any(spoke, axis=1)
    leader = np.where(silent, -1, order[:, 0])
    rival = np.where(silent | (n_options < 2), -1, order[:, min(1, width - 1)])
    rows = np.arange(n)
    contested = (rival >= 0) & (mass[rows, rival] >= _RIVAL * mass[rows, leader]) & (mass[rows, leader] > 0)
    return leader.astype(np.int64), rival.astype(np.int64), np.asarray(contested, dtype=np.bool_)


def _p_of_agreement(answers: IntArray, gold: IntArray, seed: int, permutations: int = 999) -> float:
    """The share of permutations of the gold that agree with the answers at least as often."""
    rng = np.random.default_rng(seed)
    observed = int(np.count_nonzero(answers == gold))
    as_good = sum(int(np.count_nonzero(answers == rng.permutation(gold)) >= observed) for _ in range(permutations))
    return (1 + as_good) / (1 + permutations)
