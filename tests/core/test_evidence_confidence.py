"""What a row says about how sure the model was."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from semievol_api.records import Evidence

ROW = Evidence(example_id="q", annotator_id="m", prompt_hash="", text="Answer: C", answer="C", finish="stop")


def test_the_answers_own_tokens_count_and_not_those_that_are_always_there() -> None:
    row = replace(ROW, mean_nll=math.log(2) / 3, answer_logprob=math.log(0.5))
    assert row.confidence == pytest.approx(0.5)


def test_without_them_the_geometric_mean_over_all_tokens_does() -> None:
    assert replace(ROW, mean_nll=math.log(2)).confidence == pytest.approx(0.5)
    assert replace(ROW, mean_nll=0.0).confidence == 1.0


def test_an_abstention_and_a_row_without_log_probabilities_have_none() -> None:
    assert math.isnan(ROW.confidence)
    assert math.isnan(replace(ROW, answer=None, mean_nll=0.1, answer_logprob=-0.1).confidence)
