"""Scores are the same to the last bit in any order of labels and annotators; equal answers are told apart fairly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import semievol_api
from semievol_api.annotate.estimator import Readings
from semievol_api.annotate.estimators import ESTIMATORS
from semievol_api.annotate.pooled import mean_logprob
from semievol_api.annotate.replies import read_options, read_replies
from semievol_api.selection.label_probabilities import at_label_shares, label_factors, neighbour_vote, option_prob
from semievol_api.selection.pooling import Pooled, dawid_skene, pool
from semievol_api.selection.ranking import Ranking, in_order, largest_tie, local_confidence, ranks
from semievol_api.selection.values import FloatArray, IntArray

ROWS = 5
ordering = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)
widths = st.integers(2, 77)


def same(one: FloatArray, other: FloatArray) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def sure_or_not(rng: np.random.Generator, rows: int, width: int) -> FloatArray:
    """Distributions between a coin and a certainty of which the rest is 1e-25, in no particular precision."""
    logits = rng.standard_normal((rows, width)) * rng.choice([0.3, 3.0, 25.0], size=(rows, 1))
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(probs / probs.sum(axis=1, keepdims=True), dtype=np.float64)


def readings(rng: np.random.Generator, width: int, order: IntArray) -> tuple[Readings, Readings]:
    """The same answers twice: as they are, and with label c called order[c]."""
    answers = rng.integers(-1, width, size=(ROWS, 9))
    probs = sure_or_not(rng, ROWS, width).astype(np.float32).astype(np.float64)
    numbers = {
        "answer_logprob": -rng.exponential(size=ROWS) * rng.choice([0.0, 1e-12, 1e-6, 1.0], size=ROWS),
        "p_true": rng.random(ROWS),
        "verbal": rng.random(ROWS),
    }
    counts = np.full(ROWS, width, dtype=np.int64)
    renamed = np.where(answers < 0, -1, order[answers])
    moved = np.empty_like(probs)
    moved[:, order] = probs
    one = Readings(answers=answers, n_options=counts, width=width, option_probs=probs, **numbers)
    return one, Readings(answers=renamed, n_options=counts, width=width, option_probs=moved, **numbers)


@ordering
@given(seeds, widths)
def test_no_estimator_sees_in_which_order_the_labels_stand(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    order: IntArray = rng.permutation(width)
    one, other = readings(rng, width, order)
    for estimator in ESTIMATORS:
        assert same(estimator.estimate(other)[:, order], estimator.estimate(one)), estimator.name


@ordering
@given(seeds, widths)
def test_read_distributions_do_not_depend_on_the_order_of_options(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    order: IntArray = rng.permutation(width)
    logprobs = np.log(np.maximum(sure_or_not(rng, ROWS, width), 1e-300))
    logprobs[rng.random(logprobs.shape) < 0.3] = -9999.0
    label_of = np.tile(np.arange(width), (ROWS, 1))
    counts = np.full(ROWS, width, dtype=np.int64)
    plain = option_prob(logprobs, label_of, counts, width)
    moved = option_prob(logprobs[:, np.argsort(order)], label_of, counts, width)
    assert same(moved.probs[:, order], plain.probs)
    spellings = np.repeat(logprobs, 3, axis=1) - np.tile([2.0, 3.1, 4.3], width)
    meant, tokens = np.repeat(label_of, 3, axis=1), rng.permutation(3 * width)
    again = option_prob(spellings, meant, counts, width)
    assert same(option_prob(spellings[:, tokens], meant[:, tokens], counts, width).probs, again.probs)
    wider = option_prob(
        np.pad(logprobs, ((0, 0), (0, 9)), constant_values=-9999.0),
        np.pad(label_of, ((0, 0), (0, 9))),
        counts,
        width + 9,
    )
    assert same(wider.probs[:, :width], plain.probs), "nor on how many labels the questions beside it have"


@ordering
@given(seeds, widths)
def test_the_reading_of_a_reply_does_not_depend_on_the_order_of_options(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    order: list[int] = rng.permutation(width).tolist()
    shown = np.log(np.maximum(sure_or_not(rng, 1, width)[0], 1e-300)).tolist()
    (plain,), (moved,) = read_replies([shown], [None]), read_replies([[shown[i] for i in order]], [order])
    assert plain is not None and moved is not None
    assert plain.probs == moved.probs
    labels = [f"label{i}x" for i in range(width)]
    top = [(label, value) for label, value in zip(labels, shown, strict=True)]
    one = read_options([labels[0]], [top], labels, prefill="Answer:")
    other = read_options([labels[0]], [top], [labels[i] for i in order], permutation=order, prefill="Answer:")
    assert one is not None and other is not None
    assert one.probs == other.probs


@ordering
@given(seeds, widths)
def test_votes_of_neighbours_and_label_shares_do_not_depend_on_the_order_of_labels(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    order: IntArray = rng.permutation(width)
    back = np.argsort(order)
    labels, cosine = rng.integers(-1, width, size=(ROWS, 20)), rng.random((ROWS, 20))
    renamed = np.where(labels < 0, -1, order[labels])
    assert same(neighbour_vote(renamed, cosine, width)[:, order], neighbour_vote(labels, cosine, width))
    counts, mean = rng.integers(1, 50, size=width) ** 2, rng.dirichlet(np.ones(width))
    factors = label_factors(counts, mean)
    assert same(label_factors(counts[back], mean[back])[order], factors)
    probs = sure_or_not(rng, ROWS, width)
    assert same(at_label_shares(probs[:, back], factors[back])[:, order], at_label_shares(probs, factors))


@ordering
@given(seeds, widths, st.integers(1, 6), st.booleans())
def test_no_pool_sees_the_order_of_labels_or_annotators(seed: int, width: int, annotators: int, weigh: bool) -> None:
    rng = np.random.default_rng(seed)
    order: IntArray = rng.permutation(width)
    crew: IntArray = rng.permutation(annotators)
    probs = sure_or_not(rng, ROWS * annotators, width).reshape(ROWS, annotators, width)
    probs[rng.random((ROWS, annotators)) < 0.2] = np.nan
    weights = rng.random(annotators) if weigh else None
    counts = np.full(ROWS, width, dtype=np.int64)
    moved = np.empty_like(probs)
    moved[:, :, order] = probs
    plain = pool(probs, counts, weights=weights)
    again = pool(moved[:, crew], counts, weights=None if weights is None else weights[crew])
    wider = pool(np.pad(probs, ((0, 0), (0, 0), (0, 11))), counts, weights=weights)
    assert same(again.probs[:, order], plain.probs)
    for other in (again, wider):
        for name in ("score", "log_odds", "margin", "n_annotators", "agreed"):
            assert same(getattr(other, name), getattr(plain, name)), name
    given_, logprobs = rng.integers(-1, 3, size=(ROWS, annotators)), -rng.random((ROWS, annotators))
    label = rng.integers(0, 3, size=ROWS)
    assert same(mean_logprob(given_[:, crew], logprobs[:, crew], label), mean_logprob(given_, logprobs, label))


@settings(deadline=None, max_examples=20)
@given(seeds, widths)
def test_dawid_and_skene_do_not_see_the_order_of_labels_or_annotators(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    order: IntArray = rng.permutation(width)
    answers = rng.integers(-1, width, size=(60, 4))
    answers[:, 1] = np.where(rng.random(60) < 0.8, answers[:, 0], answers[:, 1])
    renamed = np.where(answers < 0, -1, order[answers])
    crew = rng.permutation(4)
    assert same(dawid_skene(renamed[:, crew], width)[:, order], dawid_skene(answers, width))


def test_equal_answers_are_drawn_from_every_letter() -> None:
    """One label after another lost its rows to the last bits of a sum."""
    letters = np.arange(8_252) % 4
    probs = np.full((8_252, 2, 4), 1e-7 / 3)
    probs[np.arange(8_252), :, letters] = 1.0 - 1e-7
    chosen = semievol_api.select(probs, rule=semievol_api.RuleSettings(rule="top-n", n=3_000))
    assert np.bincount(letters[chosen.kept]).tolist() == pytest.approx([750] * 4, abs=100)
    assert len(set(pool(probs, np.full(8_252, 4)).score.tolist())) == 1


def test_what_a_floor_made_equal_keeps_its_order() -> None:
    doubt = np.array([1e-7, 1e-9, 1e-8, 1e-20, 1e-15])
    probs = np.stack([np.stack([1 - doubt, doubt], axis=1)] * 2, axis=1)
    pooled = pool(probs, np.full(5, 2))
    assert len(set(pooled.score.tolist())) == 1, "no annotator outvotes all others"
    assert np.argsort(ranks(pooled.score, pooled.log_odds)).tolist() == [0, 2, 1, 4, 3]
    kept = semievol_api.select(probs, rule=semievol_api.RuleSettings(rule="top-n", n=2)).kept
    assert kept.tolist() == [False, False, False, True, True]


def test_one_overconfident_annotator_does_not_outvote_three() -> None:
    sure, others = [1.0 - 1e-12, 1e-12], [0.001, 0.999]
    assert pool(np.array([[sure, others, others, others]]), np.array([2])).label.tolist() == [1]


# ---------------------------------------------------------------------------------------------------- ranks
def test_later_keys_rank_only_what_earlier_ones_left_equal() -> None:
    nan = math.nan
    found = ranks(np.array([0.5, 0.9, 0.9, 0.9, nan, 0.9]), np.array([9.0, 1.0, nan, 2.0, 3.0, 1.0]))
    assert same(found, np.array([1.0, 3.0, 2.0, 4.0, nan, 3.0]))
    assert largest_tie(found) == 2


@ordering
@given(seeds, st.integers(1, 40))
def test_scores_in_order_tell_what_the_ranks_tell(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    near = np.array([0.5, np.nextafter(0.5, 0), np.nextafter(0.5, 1), 0.25, 1.0, math.nan])
    score, second = rng.choice(near, size=count), rng.integers(4, size=count).astype(np.float64)
    ranked = ranks(score, second)
    found = in_order(score, ranked)
    assert same(ranks(found), ranks(ranked))
    assert np.allclose(found, score, atol=1e-14, equal_nan=True)


def test_what_surrounds_a_question_is_the_same_in_any_order_and_shrunk_where_little_is_known() -> None:
    confidence = np.array([1.0, 1.0, 0.4, 0.6, math.nan, 1.0])
    category = np.array([0, 0, 1, 1, 1, 2])
    found = local_confidence(confidence, category)
    assert found[0] == found[1] > found[5] > 0.8 > found[2] == found[3] == found[4]
    order = np.random.default_rng(0).permutation(6)
    assert same(local_confidence(confidence[order], category[order]), found[order])
    near = np.array([[0, 1], [1, 0], [2, -1], [2, 3], [-1, -1], [3, 0]])
    assert same(local_confidence(confidence[order], near[order]), local_confidence(confidence, near)[order])


def test_pool_and_calibration_are_exchangeable_whatever_surrounds_them() -> None:
    """Ranks depend on the items together: which of them calibrate changes nothing."""
    rng = np.random.default_rng(3)
    score, category = rng.integers(3, size=500) / 2.0, rng.integers(12, size=500)
    order = rng.permutation(500)
    whole = ranks(score, local_confidence(score, category))
    assert same(ranks(score[order], local_confidence(score[order], category[order])), whole[order])


def test_many_answers_that_nothing_tells_apart_are_told() -> None:
    nobody = np.zeros(0)
    told = Ranking(pool=np.zeros(200), calibration=nobody, scores=nobody, equal=200).message
    assert told is not None and "200 of 200 answers cannot be told apart" in told
    assert Ranking(pool=np.arange(200.0), calibration=nobody, scores=nobody, equal=1).message is None


def test_every_field_of_a_pool_is_filled() -> None:
    pooled = pool(np.full((3, 1, 2), 0.5), np.full(3, 2))
    assert all(len(getattr(pooled, name)) == 3 for name in Pooled.__dataclass_fields__)
