"""From tokens, answers and words to label probabilities, and from those to one pooled label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import semievol_api
from semievol_api.annotate.estimator import Readings, from_confidence
from semievol_api.annotate.estimators import (
    ESTIMATORS,
    WORD_SCALE,
    choose_estimator,
    evidence_given,
    is_probed,
    mean_nll,
    verbal_probability,
    votes,
)
from semievol_api.annotate.pooled import readings_of
from semievol_api.annotate.replies import LabelIndex, answer_position, read_options, read_replies
from semievol_api.config.method import AnnotatorSettings
from semievol_api.data.schemas import evidence_table
from semievol_api.errors import DataError, MissingAbilityError
from semievol_api.records import Evidence
from semievol_api.selection.label_probabilities import neighbour_vote, option_prob
from semievol_api.selection.pooling import dawid_skene, pool, worth_justifying
from semievol_api.tasks import Task, TaskDefinition

NAN = float("nan")
LETTERS = ("A", "B", "C", "D")


def log(*probabilities: float) -> list[float]:
    return [math.log(p) if p > 0 else -9999.0 for p in probabilities]


def tops(*rows: dict[str, float]) -> list[list[tuple[str, float]]]:
    return [[(token, math.log(p)) for token, p in row.items()] for row in rows]


# --------------------------------------------------------------------------------------- option_prob
def test_tokens_of_one_label_are_summed_and_unseen_labels_share_what_is_left() -> None:
    result = option_prob(np.array([log(0.5, 0.3, 0.1, 0.04)]), np.array([[0, 0, 1, -1]]), np.array([4]), width=4)
    expected = np.array([0.8, 0.1, 0.03, 0.03])  # (1 - 0.94) / 2 = 0.03 < smallest shown 0.04
    assert result.probs[0] == pytest.approx(expected / expected.sum())
    assert result.seen[0].tolist() == [True, True, False, False]


def test_an_unseen_label_never_gets_more_than_the_smallest_shown_probability() -> None:
    result = option_prob(np.array([log(0.6, 0.01)]), np.array([[0, 1]]), np.array([3]), width=3)
    expected = np.array([0.6, 0.01, 0.01])
    assert result.probs[0] == pytest.approx(expected / expected.sum())


@pytest.mark.parametrize("unseen", [-9999.0, NAN, -np.inf])
def test_minus_9999_and_nan_count_as_unseen(unseen: float) -> None:
    result = option_prob(np.array([[math.log(0.9), unseen]]), np.array([[0, 1]]), np.array([2]), width=2)
    assert result.seen[0].tolist() == [True, False]
    assert result.probs[0] == pytest.approx([0.9, 0.1])


def test_a_log_probability_of_exactly_zero_leaves_the_other_labels_what_it_cannot_show() -> None:
    result = option_prob(np.array([[0.0]]), np.array([[2]]), np.array([4]), width=4)
    assert result.probs[0, 0] == pytest.approx(2.0**-40 / 3)
    assert result.probs[0].sum() == pytest.approx(1.0)


def test_what_is_shown_beside_a_sure_token_is_read_as_it_stands() -> None:
    shown = np.array([[0.0, -18.0], [0.0, -25.0], [0.0, -40.0]])
    result = option_prob(shown, np.array([[0, 1]] * 3), np.full(3, 2), width=2)
    assert np.log(result.probs[:, 1]) == pytest.approx([-18.0, -25.0, -40.0])


def test_no_label_seen_is_an_abstention_not_a_guess() -> None:
    result = option_prob(np.array([log(0.9, 0.1)]), np.array([[-1, -1]]), np.array([4]), width=4)
    assert np.isnan(result.probs).all()


def test_items_with_fewer_options_get_nothing_beyond_them() -> None:
    result = option_prob(np.array([log(0.9), log(0.9)]), np.array([[0], [0]]), np.array([2, 4]), width=4)
    assert result.probs[0].tolist()[2:] == [0.0, 0.0]
    assert result.probs.sum(axis=1) == pytest.approx([1.0, 1.0])


# ------------------------------------------------------------------------------------- reading tokens
@pytest.mark.parametrize("token", ["B", " B", "b", "(B)", "**B**", "B.", "\u0120B", "\u2581B", "\uff22", ":B"])
def test_many_spellings_mean_one_label(token: str) -> None:
    reading = read_options(["Answer", ":", token], tops({"Answer": 1.0}, {":": 1.0}, {token: 0.8, " A": 0.1}), LETTERS)
    assert reading is not None
    assert reading.probs[1] == pytest.approx(0.8 / 1.0, abs=1e-6)
    assert reading.missing == (2, 3)


def test_the_first_label_token_after_the_last_marker_counts() -> None:
    tokens = ["Answer", ":", " A", "\n", "**", "Answer", ":**", " ", "(", "C", ")"]
    assert answer_position(tokens, LabelIndex.of(LETTERS)) == 9


def test_a_full_width_colon_and_another_marker_announce_an_answer_too() -> None:
    assert answer_position(["Answer", "\uff1a", "B"], LabelIndex.of(LETTERS)) == 2
    assert answer_position(["\u7b54\u6848", "\uff1a", "B"], LabelIndex.of(LETTERS), marker="\u7b54\u6848") == 2
    assert answer_position(["الإجابة", ":", " ب"], LabelIndex.of(("أ", "ب")), marker="الإجابة") == 2


def test_a_prefilled_marker_makes_the_first_token_the_answer() -> None:
    assert answer_position([" D"], LabelIndex.of(LETTERS), prefill="Answer:") == 0


@pytest.mark.parametrize(("tokens", "position"), [([" B", "."], 0), (["I", " say", " B"], None), ([], None)])
def test_without_a_marker_only_a_bare_label_is_read(tokens: list[str], position: int | None) -> None:
    assert answer_position(tokens, LabelIndex.of(LETTERS)) == position


def test_the_option_permutation_is_undone() -> None:
    top = tops({"A": 0.6, "B": 0.3, "C": 0.1})
    reading = read_options(["A"], top, ("A", "B", "C"), permutation=(2, 0, 1), prefill="Answer:")
    assert reading is not None
    assert reading.probs == pytest.approx((0.3, 0.1, 0.6), abs=1e-5)


def test_a_word_of_several_tokens_is_followed_while_it_is_ambiguous() -> None:
    labels = ("negative", "neutral", "positive")
    top = tops({" ne": 0.8, " pos": 0.2}, {"utral": 0.75, "gative": 0.25})
    reading = read_options([" ne", "utral"], top, labels, prefill="Answer:")
    assert reading is not None
    assert reading.probs == pytest.approx((0.2, 0.6, 0.2), abs=1e-5)
    assert reading.unresolved == 0.0


def test_an_ambiguous_beginning_that_was_not_chosen_is_reported() -> None:
    reading = read_options(
        [" pos"], tops({" pos": 0.7, " ne": 0.3}), ("negative", "neutral", "positive"), prefill="Answer:"
    )
    assert reading is not None
    assert reading.unresolved == pytest.approx(0.3)
    assert reading.missing == (0, 1)


def test_a_label_that_begins_another_is_told_apart_by_the_next_token() -> None:
    labels = ("no", "no opinion")
    top = tops({" no": 1.0}, {" opinion": 0.3, ".": 0.7})
    reading = read_options([" no", "."], top, labels, prefill="Answer:")
    assert reading is not None
    assert reading.probs == pytest.approx((0.7, 0.3), abs=1e-5)


def test_labels_that_differ_in_case_only_are_kept_apart_and_equal_ones_refused() -> None:
    assert LabelIndex.of(("a", "A")).exact("A") == 1
    with pytest.raises(DataError, match="cannot be told apart"):
        LabelIndex.of(("yes", "yes."))


def test_an_exact_reading_reports_the_labels_that_the_server_did_not_show() -> None:
    (reading,) = read_replies([(math.log(0.7), None, math.log(0.2))], [None])
    assert reading is not None
    assert reading.probs == pytest.approx((0.7, 0.1, 0.2))
    assert reading.missing == (1,)
    assert read_replies([(None, None)], [None]) == [None]


# ---------------------------------------------------------------------------------------- estimators
def test_what_else_was_shown_bounds_a_label_that_was_not() -> None:
    lg = np.log
    plain, bounded, full = read_replies(
        [[lg(0.6), None, lg(0.3)], [lg(0.6), None, lg(0.3)], [lg(0.6), lg(0.1), lg(0.3)]],
        [None, (2, 1, 0), None],
        [(), (lg(0.08), lg(0.001)), ()],
    )
    assert plain is not None and bounded is not None and full is not None
    assert plain.probs == pytest.approx((0.6, 0.1, 0.3))
    assert bounded.probs == pytest.approx(np.array([0.3, 0.001, 0.6]) / 0.901), "the least shown, not all that is left"
    assert (plain.missing, bounded.missing, full.missing) == ((1,), (1,), ())


def test_votes_follow_the_formula_and_an_abstention_is_no_vote() -> None:
    shares = votes(np.array([[0, 0, 1, -1], [-1, -1, -1, -1]]), np.array([3, 3]), width=3)
    assert shares[0] == pytest.approx([2.5 / 4.5, 1.5 / 4.5, 0.5 / 4.5])
    assert np.isnan(shares[1]).all()


def test_one_confidence_becomes_probabilities_over_the_items_own_labels() -> None:
    nobody = from_confidence(np.array([0.9]), np.array([0.1]), np.array([-1]), np.array([4]), width=4)
    assert np.isnan(nobody).all(), "a confidence in no answer is an abstention"
    sure, doubt = np.array([0.7, NAN, 1.0]), np.array([0.3, NAN, 0.0])
    probs = from_confidence(sure, doubt, np.array([1, 0, 0]), np.array([4, 4, 2]), width=4)
    assert probs[0] == pytest.approx([0.1, 0.7, 0.1, 0.1])
    assert np.isnan(probs[1]).all()
    assert probs[2] == pytest.approx([1.0, 2.0**-40, 0.0, 0.0], rel=1e-9)


def test_mean_nll_leaves_out_a_token_that_was_not_ranked_and_is_none_without_any() -> None:
    assert mean_nll(np.array([-0.5, -1.5])) == 1.0
    assert mean_nll(np.array([0.0, -0.0])) == 0.0
    for voided in (-9999.0, np.nan, -np.inf):
        assert mean_nll(np.array([-0.1, voided, -0.3])) == pytest.approx(0.2)
        assert mean_nll(np.array([voided])) is None
    assert mean_nll(None) is None
    assert mean_nll(np.array([])) is None


def test_there_is_one_mean_nll() -> None:
    package = Path(semievol_api.__file__).parent
    found = [path.name for path in package.rglob("*.py") if "\ndef mean_nll(" in path.read_text(encoding="utf-8")]
    assert found == ["estimators.py"]


def test_words_become_probabilities_and_the_longest_phrase_wins() -> None:
    assert verbal_probability("Confidence: Highly unlikely") == 0.05
    assert verbal_probability("It is likely A.\nConfidence: probably\n not") == 0.25
    assert verbal_probability("no idea") is None
    for words, probability in WORD_SCALE:
        assert verbal_probability(words) == probability


def test_the_first_available_estimator_is_chosen_and_an_impossible_wish_refused() -> None:
    assert choose_estimator({"answers", "answer_logprob", "option_probs"}).name == "option_prob"
    assert choose_estimator({"answers", "verbal"}).name == "verbal"
    assert choose_estimator({"answers"}).name == "votes"
    assert choose_estimator({"answers", "option_probs"}, "votes").name == "votes"
    with pytest.raises(MissingAbilityError, match="option_prob"):
        choose_estimator({"answers"}, "option_prob")


def test_the_config_offers_every_estimator_of_the_table_and_auto() -> None:
    offered = get_args(AnnotatorSettings.model_fields["estimator"].annotation)
    assert offered == ("auto", *(one.name for one in ESTIMATORS if one.needs != "labels"))
    assert {name for name in offered if is_probed(name)} == {"auto", "option_prob", "answer_logprob", "p_true"}


def test_a_servers_ability_decides_which_evidence_there_is() -> None:
    assert evidence_given("text", closed=True) == {"answers"}
    assert evidence_given("logprobs", closed=True) == {"answers", "answer_logprob"}
    assert evidence_given("alternatives", closed=False) == {"answers", "answer_logprob", "p_true"}
    assert evidence_given("options", closed=True) == {"answers", "option_probs", "p_true"}


def readings(labels: Sequence[tuple[str, ...]], *rows: tuple[str, Mapping[str, object]] | None) -> Readings:
    """An annotator's answers to as many questions, each with what was measured of it; None for no row."""
    evidence = [
        Evidence(
            example_id=str(place),
            annotator_id="a",
            prompt_hash="h",
            text="",
            answer=row[0],
            **{"finish": "stop", **row[1]},  # type: ignore[arg-type]
        )
        for place, row in enumerate(rows)
        if row is not None
    ]
    task = Task(TaskDefinition(name="c", kind="multiple_choice", instruction="Which?"))
    return readings_of(task, [evidence_table(evidence)], [str(place) for place in range(len(rows))], labels)


def test_evidence_rows_become_arrays_in_which_cut_or_refused_answers_abstain() -> None:
    found = readings(
        [("A", "B"), LETTERS[:3], LETTERS[:3], LETTERS[:3]],
        ("B", {"option_probs": (0.2, 0.8), "answer_logprob": math.log(0.5)}),
        ("A", {"finish": "length", "option_probs": (1.0, 0.0, 0.0)}),
        ("Z", {}),
        None,
    )
    assert found.answers[:, 0].tolist() == [1, -1, -1, -1]
    by_name = {estimator.name: estimator.estimate(found) for estimator in ESTIMATORS}
    assert by_name["option_prob"][0] == pytest.approx([0.2, 0.8, 0.0])
    assert by_name["answer_logprob"][0] == pytest.approx([0.5, 0.5, 0.0])
    assert by_name["votes"][0] == pytest.approx([0.25, 0.75, 0.0])
    assert np.isnan(by_name["p_true"]).all()
    for probs in by_name.values():
        assert np.isnan(probs[1:]).all()


def test_an_improbable_answer_stays_the_annotators_first_choice() -> None:
    found = readings([LETTERS], ("C", {"answer_logprob": -20.0}))
    probs = choose_estimator({"answer_logprob"}).estimate(found)
    assert probs[0].argmax() == 2
    assert probs[0, 2] == pytest.approx(0.25, abs=1e-5)


def test_the_neighbours_vote_with_half_a_vote_of_prior() -> None:
    probs = neighbour_vote(np.array([[0, 0, 2], [-1, -1, -1]]), np.array([[0.1, 0.0, 0.2], [0, 0, 0]]), 3)
    weight = np.exp([1.0, 0.0, 2.0])
    total = weight.sum() + 0.5
    assert probs[0] == pytest.approx(
        [(weight[0] + weight[1] + 0.5 / 3) / total, 0.5 / 3 / total, (weight[2] + 0.5 / 3) / total]
    )
    assert np.isnan(probs[1]).all()


# ----------------------------------------------------------------------------------------------- pool
distributions = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(lambda w: np.array(w) / max(sum(w), 1e-9))


@settings(deadline=None, max_examples=400)
@given(st.lists(st.lists(distributions, min_size=4, max_size=4), min_size=1, max_size=8), st.permutations(range(4)))
def test_the_pool_is_the_normalised_geometric_mean_whatever_the_annotators_order(raw, order) -> None:  # type: ignore[no-untyped-def]
    probs = np.array(raw)
    k = np.full(len(probs), 3)
    pooled = pool(probs, k)
    expected = np.exp(np.log(np.maximum(probs, 1e-6)).mean(axis=1))
    expected /= expected.sum(axis=1, keepdims=True)
    assert pooled.probs == pytest.approx(expected, abs=1e-9)
    again = pool(probs[:, order], k)
    assert (again.score == pooled.score).all()
    assert (again.label == pooled.label).all()


def test_two_annotators_certain_of_different_labels_tie_without_nan() -> None:
    pooled = pool(np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), np.array([3]))
    assert pooled.score[0] == pytest.approx(0.5, abs=1e-3)
    assert pooled.margin[0] == 0.0
    assert not pooled.agreed[0]
    assert worth_justifying(pooled).tolist() == [True]


def test_partial_evidence_pools_what_there_is_and_silence_abstains() -> None:
    probs = np.full((2, 3, 2), NAN)
    probs[0, 1] = [0.1, 0.9]
    pooled = pool(probs, np.array([2, 2]))
    assert pooled.label.tolist() == [1, -1]
    assert pooled.score[0] == pytest.approx(0.9)
    assert np.isnan(pooled.score[1])
    assert pooled.n_annotators.tolist() == [1, 0]
    assert worth_justifying(pooled).tolist() == [False, False]


def test_items_with_different_numbers_of_options_pool_side_by_side() -> None:
    probs = np.array([[[0.6, 0.4, 0.0, 0.0]], [[0.1, 0.2, 0.3, 0.4]], [[0.6, 0.4, NAN, NAN]]])
    pooled = pool(probs, np.array([2, 4, 2]))
    assert pooled.score == pytest.approx([0.6, 0.4, 0.6])
    assert pooled.label.tolist() == [0, 3, 0]
    assert pooled.probs[0].tolist()[2:] == [0.0, 0.0]
    assert pooled.probs[2].tolist()[2:] == [0.0, 0.0]


def test_a_single_option_is_certain_and_no_annotator_is_silence() -> None:
    assert pool(np.ones((1, 2, 1)), np.array([1])).score.tolist() == [1.0]
    assert pool(np.ones((1, 0, 2)), np.array([2])).label.tolist() == [-1]
    assert pool(np.ones((0, 2, 2)), np.array([], dtype=np.int64)).label.size == 0


def test_some_other_answer_takes_probability_but_is_never_the_label() -> None:
    pooled = pool(np.array([[[0.3, 0.2, 0.5]]]), np.array([3]), open_answers=True)
    assert pooled.label.tolist() == [0]
    assert pooled.score[0] == pytest.approx(0.3)


def test_agreement_with_a_thin_margin_is_worth_justifying() -> None:
    pooled = pool(np.array([[[0.55, 0.45], [0.55, 0.45]], [[0.9, 0.1], [0.8, 0.2]]]), np.array([2, 2]))
    assert pooled.agreed.tolist() == [True, True]
    assert worth_justifying(pooled).tolist() == [True, False]


def test_one_who_differs_is_worth_a_justification_whatever_the_margin() -> None:
    sure, other, nobody = [0.98, 0.01, 0.01], [0.3, 0.4, 0.3], [NAN] * 3
    pooled = pool(np.array([[sure, sure, other], [sure, sure, nobody], [nobody] * 3]), np.full(3, 3))
    assert pooled.margin[0] > 0.5
    assert worth_justifying(pooled).tolist() == [True, False, False]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        pool(np.ones((2, 3)), np.array([3, 3]))


def test_a_heavier_annotator_counts_for_more() -> None:
    probs = np.array([[[0.8, 0.2], [0.4, 0.6], [NAN, NAN]]])
    pooled = pool(probs, np.array([2]), weights=np.array([3.0, 1.0, 9.0]))
    expected = np.exp([0.75 * math.log(0.8) + 0.25 * math.log(0.4), 0.75 * math.log(0.2) + 0.25 * math.log(0.6)])
    assert pooled.probs[0] == pytest.approx(expected / expected.sum())


def test_many_items_pool_like_a_few() -> None:
    few = np.random.default_rng(0).dirichlet(np.ones(3), size=(7, 2))
    many = pool(np.tile(few, (6000, 1, 1)), np.full(42_000, 3))
    once = pool(few, np.full(7, 3))
    assert (many.score.reshape(6000, 7) == once.score).all()
    assert (many.label.reshape(6000, 7) == once.label).all()


def test_dawid_and_skene_learn_whom_to_trust_and_undo_a_systematic_swap() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(3, size=2000)

    def annotator(skill: float) -> np.ndarray:
        return np.where(rng.random(2000) < skill, gold, rng.integers(3, size=2000))

    swapped = np.array([0, 2, 1])[annotator(0.9)]
    answers = np.stack([annotator(0.9), annotator(0.8), annotator(0.7), swapped, annotator(0.0)], axis=1)
    answers[0] = -1
    probs = dawid_skene(answers, 3)
    majority = votes(answers, np.full(2000, 3), 3)
    found, voted = (np.mean(p[1:].argmax(axis=1) == gold[1:]) for p in (probs, majority))
    assert found > voted + 0.02
    assert np.isnan(probs[0]).all()
    assert probs[1:].sum(axis=1) == pytest.approx(np.ones(1999))
