"""Advice about time: the stage that took over half of it, by name, with the setting to lower."""

from __future__ import annotations

import pytest

from semievol_api.records import Evidence, Finish
from semievol_api.selection.warnings import SETTING_TO_LOWER, cut_answers, slow_stage
from semievol_api.store.artifacts import EvidenceTable


@pytest.mark.parametrize("stage", sorted(SETTING_TO_LOWER))
def test_a_stage_that_takes_over_half_of_the_time_is_named_with_its_setting(stage: str) -> None:
    said = slow_stage({"split": 20.0, f"{stage}/part-1": 30.0, f"{stage}/part-2": 40.0})
    assert said is not None
    assert repr(stage) in said
    assert SETTING_TO_LOWER[stage] in said


@pytest.mark.parametrize(
    "seconds", [{}, {"collaborate": 20.0}, {"collaborate": 50.0, "jobs/a": 30.0, "evaluate/b": 40.0}]
)
def test_short_or_even_runs_get_no_advice(seconds: dict[str, float]) -> None:
    assert slow_stage(seconds) is None


def test_answers_cut_at_max_tokens_are_told_with_the_key_to_raise() -> None:
    def table(cut: int) -> EvidenceTable:
        ends: list[Finish] = ["length" if i < cut else "stop" for i in range(100)]
        return EvidenceTable.of(
            Evidence(example_id=f"{i:03}", annotator_id="a", prompt_hash="", text="", answer=None, finish=end)
            for i, end in enumerate(ends)
        )

    assert cut_answers("answers", "[annotate] max_tokens", table(2)) == ()
    (sentence,) = cut_answers("answers", "[annotate] max_tokens", table(3))
    assert "3 of 100 answers were cut at max_tokens" in sentence and "raise [annotate] max_tokens" in sentence
