"""Decisions of a review: on disk at once, undone by a line, whole after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from semievol_api.errors import RunFolderError
from semievol_api.report.labels import Decision, DecisionLog, read_decisions


def _answers(path: Path) -> dict[str, str | None]:
    return {k: d.answer for k, d in read_decisions(path).items()}


def test_a_decision_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    with DecisionLog.open(path) as log:
        log.append(Decision(example_id="q1", action="correct", answer="C", proposed="A"))
        assert json.loads(path.read_text("utf-8"))["answer"] == "C"


def test_an_undo_brings_back_the_decision_before_it(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    with DecisionLog.open(path) as log:
        for answer in "AB":
            log.append(Decision(example_id="q1", action="correct", answer=answer))
        log.append(Decision(example_id="q2", action="skip"))
        assert [log.undo(), log.undo()] != [None, None]
        assert _answers(path) == {"q1": "A"}
        log.undo()
        assert log.undo() is None
    assert _answers(path) == {}
    assert len(path.read_text("utf-8").splitlines()) == 6


def test_an_undo_reaches_back_into_an_earlier_sitting(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    with DecisionLog.open(path) as log:
        log.append(Decision(example_id="q1", action="accept", answer="A"))
    with DecisionLog.open(path) as log:
        undone = log.undo()
    assert undone is not None
    assert undone.example_id == "q1"


@pytest.mark.parametrize("cut", [b'{"example_id": "q2", "act', b'{"example_id"', b"\xc3"])
def test_a_line_that_a_kill_cut_off_neither_hides_nor_spoils_its_neighbours(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "review.jsonl"
    with DecisionLog.open(path) as log:
        log.append(Decision(example_id="q1", action="accept", answer="é"))
    path.write_bytes(path.read_bytes() + cut)
    assert _answers(path) == {"q1": "é"}
    with DecisionLog.open(path) as log:
        log.append(Decision(example_id="q3", action="accept", answer="B"))
    assert _answers(path) == {"q1": "é", "q3": "B"}


def test_a_spoilt_line_in_the_middle_is_named_and_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    path.write_text('{"example_id": "q1", "action": "skip"}\nspoilt\n{"example_id": "q2", "action": "skip"}\n', "utf-8")
    with pytest.raises(RunFolderError, match="Line 2"):
        read_decisions(path)


def test_a_second_review_of_one_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    with DecisionLog.open(path), pytest.raises(RunFolderError, match="Another review"), DecisionLog.open(path):
        pass


def test_no_file_means_no_decisions(tmp_path: Path) -> None:
    assert read_decisions(tmp_path / "review.jsonl") == {}


def test_a_process_killed_while_writing_loses_nothing_that_it_confirmed(
    tmp_path: Path, child_env: dict[str, str]
) -> None:
    path = tmp_path / "review.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from semievol_api.report.labels import Decision, DecisionLog\n"
        "with DecisionLog.open(Path(sys.argv[1])) as log:\n"
        "    for i in range(100000):\n"
        "        log.append(Decision(example_id=f'q{i}', action='accept', answer='A'))\n"
        "        print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], env=child_env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(50):
        child.stdout.readline()
    child.kill()
    confirmed = 50 + sum(1 for line in child.stdout if line.endswith("\n"))
    child.stdout.close()
    child.wait()
    assert len(read_decisions(path)) >= confirmed
