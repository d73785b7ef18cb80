"""Is disagreement the task's or the annotators' fault?

Inherently high entropy is not bad quality: where two answers are equally valid, the crew splits between two labels
of which one is the gold; where answers are poor, they do not go with the gold at all. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from semievol_api.selection.alerts import Alert
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
_PAIRED = 0.6
"""Two labels take nearly all that is valid when they hold the gold by this part of the way from chance to always;
crews that know little leave the gold to a third label more often."""
_PERMUTATIONS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguity:
    """What the calibration slice says about disagreement.

    `contested` is the share of items whose leading label has a rival; among those, `pair_rate` is how often the
    gold is one of the two, and `pair_chance` how often it would be without any relation to the gold. `leader_rate`
    is how often, on all items whose gold is the first or second label, it is the first. `p_informative` is the
    chance that answers without any relation to the gold give it as much probability. NaN where there is nothing to
    count.
    """

    verdict: Verdict
    contested: float
    pair_rate: float
    pair_chance: float
    leader_rate: float
    p_informative: float


def ambiguity(probs: FloatArray, gold: IntArray, n_options: IntArray, seed: int = 0) -> Ambiguity:
    """Tell an ambiguous task from poor answers, on items whose gold is known.

    What the crew says is compared with permuted gold (999 permutations among items with as many options), as
    chance-corrected agreement is (Cohen 1960): a crew that says the frequent labels knows nothing of the items. Two
    options alone cannot show a rival pair: there an uninformative crew is "undecided".

    Args:
        probs: float64, shape (n, annotators, options), NaN = abstain.
        gold: int64, shape (n,), canonical labels.
        n_options: int64, shape (n,).
        seed: of the permutations.
    """
    mass, leader, rival, contested = _leader_and_rival(probs, n_options)
    known = (leader >= 0) & (gold >= 0)
    nan = float("nan")
    found = Ambiguity(
        verdict="undecided", contested=nan, pair_rate=nan, pair_chance=nan, leader_rate=nan, p_informative=nan
    )
    if np.count_nonzero(known) < _FEWEST:
        return found
    leader, rival, gold, n_options = (column[known] for column in (leader, rival, gold, n_options))
    fought = contested[known] & (n_options > 2)
    truth = np.concatenate([gold[None], _permuted(gold, n_options, seed)])
    given = np.sum(mass[known][np.arange(gold.size), truth], axis=1)
    pairs = np.count_nonzero(((truth == leader) | (truth == rival)) & fought, axis=1)
    fights = int(np.count_nonzero(fought))
    in_pair = (gold == leader) | (gold == rival)
    found = replace(
        found,
        contested=float(np.mean(contested[known])),
        pair_rate=int(pairs[0]) / fights if fights else nan,
        pair_chance=float(np.mean(pairs[1:])) / fights if fights else nan,
        leader_rate=float(np.mean(gold[in_pair] == leader[in_pair])) if in_pair.any() else nan,
        p_informative=_p_value(given),
    )
    finds_pairs = fights >= _FEWEST and _p_value(pairs) <= _SIGNIFICANCE
    return replace(found, verdict=_verdict(found, finds_pairs, bool(np.all(n_options <= 2))))


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


def _verdict(found: Ambiguity, finds_pairs: bool, two_options: bool) -> Verdict:
    apart = found.pair_rate - found.pair_chance >= _PAIRED * (1.0 - found.pair_chance)
    if finds_pairs and apart and found.contested >= _MOSTLY and found.leader_rate <= _COIN:
        return "ambiguous"
    if found.p_informative > _SIGNIFICANCE:
        return "undecided" if two_options else "uninformative"
    return "clear"


def _leader_and_rival(probs: FloatArray, n_options: IntArray) -> tuple[FloatArray, IntArray, IntArray, BoolArray]:
    """The sum over annotators (n, options), its two largest labels, -1 = abstain, and whether the second is a rival.

    What every label has (an estimator's prior) is taken off first, for the rivalry.
    """
    n, _, width = probs.shape
    real: BoolArray = np.less(np.arange(width), n_options[:, None])
    spoke: BoolArray = ~np.any(np.isnan(np.where(real[:, None, :], probs, 0.0)), axis=2)
    total = np.sum(np.where(spoke[:, :, None] & real[:, None, :], probs, 0.0), axis=1)
    mass = total - np.where(n_options > 2, np.min(np.where(real, total, np.inf), axis=1, initial=np.inf), 0.0)[:, None]
    mass[~real] = -1.0
    order = np.argsort(-mass, axis=1, kind="stable")
    silent = ~np.any(spoke, axis=1)
    leader = np.where(silent, -1, order[:, 0])
    rival = np.where(silent | (n_options < 2), -1, order[:, min(1, width - 1)])
    rows = np.arange(n)
    contested = (rival >= 0) & (mass[rows, rival] >= _RIVAL * mass[rows, leader]) & (mass[rows, leader] > 0)
    return total, leader.astype(np.int64), rival.astype(np.int64), np.asarray(contested, dtype=np.bool_)


def _permuted(gold: IntArray, n_options: IntArray, seed: int) -> IntArray:
    """The gold in other orders, int64 (permutations, n); each among the items with as many options."""
    rng = np.random.default_rng(seed)
    shuffled = np.tile(gold, (_PERMUTATIONS, 1))
    for count in np.unique(n_options).tolist():
        same = np.flatnonzero(n_options == count)
        shuffled[:, same] = rng.permuted(shuffled[:, same], axis=1)
    return shuffled


def _p_value(values: FloatArray | IntArray) -> float:
    """The share of values, the first among them, that reach the first: float64 or int64 (1 + permutations,)."""
    return float(np.mean(values >= values[0] - 1e-9))
