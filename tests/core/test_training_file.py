"""A training file is looked at before it is uploaded."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from semievol_api.errors import DataError
from semievol_api.records import Message
from semievol_api.training.fine_tuning import check_training_file


def _line(question: str, answer: str = "Answer: A", last: str = "assistant") -> bytes:
    turns = [{"role": "user", "content": question}, {"role": last, "content": answer}]
    return json.dumps({"messages": turns}).encode() + b"\n"


GOOD = b"".join(_line(f"q{i}") for i in range(12))


def test_a_good_file_is_told_in_one_sentence() -> None:
    report = check_training_file(GOOD + _line("q1") + _line("a much longer question"))
    assert (report.examples, report.duplicates, report.longest_characters) == (14, 1, 31)
    assert "14 examples, 1 of them repeated" in report.sentence


def test_tokens_of_examples_are_counted_and_too_long_ones_are_told() -> None:
    def count(chat: Sequence[Message]) -> int:
        return sum(len(turn.content) for turn in chat)

    report = check_training_file(GOOD + _line("x" * 90), count, context_tokens=50)
    by_hand = len("q0") * 10 + len("q10") * 2 + 90 + 13 * len("Answer: A")
    assert (report.tokens, report.longest_tokens, report.too_long) == (by_hand, 99, 1)
    assert f"{by_hand} tokens, 18 in an example and 99 in the longest." in report.sentence
    assert "1 are longer than the model's context" in report.sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"".join(_line(f"q{i}") for i in range(9)), "9 examples.*at least 10"),
        (b"", "0 examples"),
        (GOOD + _line("q", last="user"), "Line 13 .* no answer"),
        (GOOD + _line("q", answer="  "), "Line 13 .* no answer"),
        (GOOD + b"{}\n", "Line 13 .* no chat"),
        (GOOD + b"not json\n", "Line 13 .* no chat"),
        (GOOD + b'{"messages": []}\n', "Line 13 .* no chat"),
    ],
)
def test_what_a_vendor_would_refuse_is_refused_before_the_upload(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_training_file(content)
