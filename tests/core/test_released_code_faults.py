"""Faults of the released 2025 code in reading, scoring and data, each a regression test of ours.

Every fault has a check that is run twice: against a few lines that behave as the released code does, where it must
fail, and against our code, where it must hold. Selection's and jobs' faults have their tests beside those rooms.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from semievol_api.data import read_examples, read_table
from semievol_api.records import Example
from semievol_api.tasks import Task, TaskDefinition, load_task, task_names

ITEM = Example(id="q", question="?", options=("Berlin", "Paris", "Rome", "Madrid"))
OPEN = Example(id="q", question="?")


def task_of(kind: str) -> Task:
    return Task(TaskDefinition.model_validate({"name": "t", "kind": kind, "instruction": "I."}))


CHOICE, NUMBER, TEXT = task_of("multiple_choice"), task_of("number"), task_of("free_text")


@dataclass(frozen=True)
class Code:
    """The four things that a scorer does. `choice` and `number` return None for no answer."""

    choice: Callable[[str], str | None]
    number_right: Callable[[str, str], bool]
    text_right: Callable[[str, str], bool]
    agree: Callable[[Sequence[str]], bool]
    gold_text: Callable[[str], str]


def old_extract(response: str) -> str:
    found = re.search(r"(?i)answer\s*:\s*(\S+)", response)
    return found.group(1) if found else ""


def old_numbers(text: str) -> list[float]:
    def value(found: str) -> float:
        """As Python source: `007` is none, and every failure is infinity."""
        expression = found.rstrip("%").replace(",", "")
        if re.match(r"[-+]?0\d", expression):
            return math.inf
        return float(expression) / math.pow(100, found.count("%"))

    return [value(found) for found in re.findall(r"[-+]?[.]?\d+(?:,\d\d\d)*[.]?\d*(?:[eE][-+]?\d+)?%*", text)]


def old_number_right(response: str, gold: str) -> bool:
    said = old_numbers(response)
    return any(math.isclose(a, b, rel_tol=0.01) for a in said or [math.inf] for b in old_numbers(gold) or [math.inf])


def old_text_right(response: str, gold: str) -> bool:
    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c not in string.punctuation)

    said = plain(old_extract(response))
    return any(plain(piece) in said or said in plain(piece) for piece in gold)


OLD = Code(
    choice=old_extract,
    number_right=old_number_right,
    text_right=old_text_right,
    agree=lambda responses: len({old_extract(r) for r in responses}) == 1,
    gold_text=lambda cell: cell.replace(".", "").strip(),
)


def ours_agree(responses: Sequence[str]) -> bool:
    answers = [CHOICE.parse(r, ITEM) for r in responses]
    return all(CHOICE.equal(answer, answers[0]) for answer in answers)


OURS = Code(
    choice=lambda response: CHOICE.parse(response, ITEM),
    number_right=lambda response, gold: NUMBER.equal(NUMBER.parse(response, OPEN), NUMBER.read_gold(gold, OPEN)),
    text_right=lambda response, gold: TEXT.equal(TEXT.parse(response, OPEN), TEXT.read_gold(gold, OPEN)),
    agree=ours_agree,
    gold_text=lambda cell: NUMBER.target(OPEN, NUMBER.read_gold(cell, OPEN) or "").removeprefix("Answer: "),
)

FAULTS: dict[str, Callable[[Code], bool]] = {
    "four empty answers are no agreement": lambda c: not c.agree(["", "", "", ""]),
    "four responses without an answer are no agreement": lambda c: not c.agree(["hm"] * 4),
    "an empty response is an abstention": lambda c: c.choice("") is None,
    "a letter with a full stop is the letter": lambda c: c.choice("Answer: B.") == "B",
    "a letter in parentheses is the letter": lambda c: c.choice("Answer: (B)") == "B",
    "a letter in bold is the letter": lambda c: c.choice("Answer: **B**") == "B",
    "a small letter is the letter": lambda c: c.choice("Answer: b") == "B",
    "a bold marker is a marker": lambda c: c.choice("**Answer:** B") == "B",
    "differently dressed letters agree": lambda c: c.agree(["Answer: B.", "Answer: (B)", "answer: b", "**Answer:** B"]),
    "the last marker wins": lambda c: c.choice("Answer: A\nNo, that is wrong.\nAnswer: B") == "B",
    "an option's own words are the option": lambda c: c.choice("Answer: Paris") == "B",
    "a letter outside the options is no answer": lambda c: c.choice("Answer: F") is None,
    "a gold number keeps its decimal point": lambda c: c.gold_text("3.14") == "3.14",
    "a wrong power of ten is wrong": lambda c: not c.text_right("Answer: 314", "3.14"),
    "two unparsable numbers are not equal": lambda c: not c.number_right("Answer: 007", "0012"),
    "numbers out of all bounds are not equal": lambda c: not c.number_right("Answer: 1e999", "2e999"),
    "one hit among several numbers is no hit": lambda c: not c.number_right("Answer: 3 or 7 or 12", "7"),
    "a hit in the reasoning is no hit": lambda c: not c.number_right("Of 7 apples 2 are left.\nAnswer: 5", "7"),
    "parentheses make a number negative": lambda c: c.number_right("Answer: (5)", "-5"),
    "a number in parentheses is not the positive one": lambda c: not c.number_right("Answer: (5)", "5"),
    "1 does not match 1812": lambda c: not c.text_right("Answer: 1", "1812"),
    "a gold text is compared as a whole": lambda c: not c.text_right("Answer: a", "Marie Curie"),
    "an empty text matches nothing": lambda c: not c.text_right("", "Marie Curie"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_released_behaviour_has_the_fault(fault: str) -> None:
    assert not FAULTS[fault](OLD)


@pytest.mark.parametrize("fault", FAULTS)
def test_ours_does_not(fault: str) -> None:
    assert FAULTS[fault](OURS)


def old_percent(text: str) -> str:
    """The released training target: full stops go, wherever they stand."""
    return text.replace(".", "")


def test_one_and_a_half_percent_is_not_fifteen_percent() -> None:
    gold = NUMBER.read_gold("1.5%", OPEN)
    assert NUMBER.read_gold(old_percent("1.5%"), OPEN) == "0.15", "the old target taught 15 %"
    assert gold == "0.015"
    assert not NUMBER.equal("0.15", gold)
    assert NUMBER.parse(NUMBER.target(OPEN, gold), OPEN) == gold


def old_rows(path: Path) -> list[str]:
    return [json.loads(line)["answer"] for line in path.read_text("utf-8").splitlines()]


def test_rows_without_an_answer_are_read_and_gold_is_never_needed(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_text(json.dumps({"question": "Is it so?"}) + "\n", encoding="utf-8")
    with pytest.raises(KeyError):
        old_rows(path)
    (example,) = read_examples(read_table(path), TEXT, "unlabeled").examples
    assert (example.answer, example.hidden_answer) == (None, None)
    assert TEXT.prompt(example).messages


def old_prompt(question: str, options: Sequence[str]) -> str:
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
    return f"Answer the question.\n\nQuestion: {question}\n\nOptions:\n{listed}"


def asks_for_the_format(prompt: str) -> bool:
    return prompt.splitlines()[-1].startswith("Reply with one line: Answer: ")


@pytest.mark.parametrize("name", task_names())
def test_every_prompt_asks_for_the_format_that_is_scored(name: str) -> None:
    task = load_task(name)
    example = Example(id="q", question="?", options=ITEM.options if task.kind == "multiple_choice" else ())
    assert not asks_for_the_format(old_prompt("?", ITEM.options))
    assert asks_for_the_format(task.prompt(example).messages[-1].content)


def test_model_output_is_never_evaluated(tmp_path: Path) -> None:
    marker = tmp_path / "evaluated"
    attack = f"Answer: __import__('pathlib').Path({str(marker)!r}).touch() or 5"

    def old_value(text: str) -> object:
        return eval(text)  # noqa: S307  (what the released code does)

    old_value(attack.removeprefix("Answer: "))
    assert marker.exists()
    marker.unlink()
    for task in (CHOICE, NUMBER, TEXT):
        task.parse(attack, ITEM)
        task.read_gold(attack, ITEM)
    assert not marker.exists()


def test_options_that_hold_code_are_refused_and_not_run(tmp_path: Path) -> None:
    from semievol_api.errors import DataError

    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": "q", "options": "[print(1), 2]", "answer": "A"}) + "\n", encoding="utf-8")
    task = Task(
        TaskDefinition.model_validate(
            {"name": "t", "kind": "multiple_choice", "instruction": "I.", "columns": {"options": "options"}}
        )
    )
    with pytest.raises(DataError, match="are not a list"):
        read_examples(read_table(path), task, "labeled")
