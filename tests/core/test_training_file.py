"""A training file is looked at before it is uploaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from semievol_api.errors import DataError
from semievol_api.records import Message
from semievol_api.training.chat_jsonl import TrainingFileError, check_training_file, read_examples


def _line(question: str, answer: str = "Answer: A", last: str = "assistant") -> bytes:
    turns = [{"role": "user", "content": question}, {"role": last, "content": answer}]
    return json.dumps({"messages": turns}).encode() + b"\n"


AFTER_THE_ANSWER = (
    b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, '
    b'{"role": "user", "content": "and?"}]}\n'
)
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
        (GOOD + _line("q", last="user"), "Line 13 has no assistant message"),
        (GOOD + AFTER_THE_ANSWER, "Line 13 has no answer: it should end with the assistant's turn"),
        (GOOD + _line("q", answer="  "), "Line 13, message 2: an assistant message must not be empty.*label"),
        (GOOD + b"{}\n", "Line 13 has no list of messages"),
        (GOOD + b"not json\n", "nothing was uploaded. Line 13 is not valid JSON"),
        (GOOD + b'{"messages": []}\n', "Line 13 has no list of messages"),
        (GOOD + b'{"messages": [{"role": "user", "content": 5}]}\n', "Line 13, message 1: 'content' must be a text"),
        (GOOD + b'{"prompt": "q", "completion": "a"}\n', "Line 13 has the key 'completion'"),
    ],
)
def test_what_a_vendor_would_refuse_is_refused_before_the_upload(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_training_file(content)


def test_the_run_and_the_trainers_refuse_the_same_lines_in_the_same_words(tmp_path: Path) -> None:
    """A file that the run lets through must not fail after its upload."""
    for line in (b"{}", b"[1]", b'{"messages": [{"role": "robot", "content": "a"}]}', b'{"messages": "a", "x": 1}'):
        (tmp_path / "f.jsonl").write_bytes(GOOD + line + b"\n")
        with pytest.raises(TrainingFileError) as at_the_trainer:
            list(read_examples(tmp_path / "f.jsonl"))
        with pytest.raises(DataError) as before_the_upload:
            check_training_file(GOOD + line + b"\n")
        assert str(at_the_trainer.value) in str(before_the_upload.value)


def test_reading_training_files_imports_nothing_heavy() -> None:
    code = "import sys, semievol_api.training.chat_jsonl; print({'pyarrow', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


TOLD = {"role": "user", "content": "Is this praise?"}
SAID = {"role": "assistant", "content": "praise"}


def _lines(*turns: object, times: int = 12) -> bytes:
    return (json.dumps({"messages": list(turns)}) + "\n").encode() * times


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + _lines(TOLD, SAID).replace(b"\n", b"\r\n") + b"\r\n",
        _lines(
            {"role": "user", "content": [{"type": "text", "text": "Is this "}, {"type": "text", "text": "it?"}]}, SAID
        ),
        _lines({"role": "developer", "content": "Be short."}, TOLD, SAID),
        _lines(TOLD, {**SAID, "weight": 0}, TOLD, {**SAID, "weight": 1}),
        _lines({"role": "user", "content": "word " * 5000}, SAID),
    ],
    ids=["byte order mark", "parts of text", "developer", "weights", "long row"],
)
def test_files_as_people_upload_them_are_read(content: bytes) -> None:
    examples = list(read_examples(content, at_least=10))
    assert len(examples) == 12
    assert all(isinstance(turn.content, str) and turn.content for one in examples for turn in one.turns)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps([{"messages": [TOLD, SAID]}] * 12, indent=1).encode(), "Line 1 is not valid JSON"),
        (_lines(TOLD, SAID).replace(b"\n", b",\n"), "Line 1 is not valid JSON"),
        (_lines(TOLD, SAID).decode().encode("utf-16"), "Line 1 is not valid JSON"),
        (b'{"prompt": "review ->", "completion": " praise"}\n' * 12, "Line 1 has the key 'completion'"),
        (_lines({"role": "user", "content": [{"type": "image_url"}]}, SAID), "Line 1, message 1: 'content' must be"),
        (_lines(TOLD, SAID) + _lines(TOLD, {**SAID, "content": ""}, times=1), "Line 13, message 2: an assistant"),
        (_lines(TOLD), "Line 1 has no assistant message"),
        (_lines(TOLD, SAID, times=9), "must have at least 10"),
    ],
    ids=["array", "commas", "utf-16", "prompt", "image", "empty reply", "no reply", "nine rows"],
)
def test_files_that_cannot_be_trained_on_are_refused_with_their_line(content: bytes, words: str) -> None:
    with pytest.raises(TrainingFileError, match=words):
        list(read_examples(content, at_least=10))
