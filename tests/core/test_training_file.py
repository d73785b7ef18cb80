"""A training file is looked at before it is uploaded."""

from __future__ import annotations

import json

import pytest

from semievol_api.errors import DataError
from semievol_api.training_file import check_training_file


def _line(question: str, answer: str = "Answer: A", last: str = "assistant") -> bytes:
    turns = [{"role": "user", "content": question}, {"role": last, "content": answer}]
    return json.dumps({"messages": turns}).encode() + b"\n"


GOOD = b"".join(_line(f"q{i}") for i in range(12))


def test_a_good_file_is_told_in_one_sentence() -> None:
    report = check_training_file(GOOD + _line("q1") + _line("a much longer question"))
    assert (report.examples, report.duplicates, report.longest_characters) == (14, 1, 31)
    assert "14 examples, 1 of them repeated" in report.sentence


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
