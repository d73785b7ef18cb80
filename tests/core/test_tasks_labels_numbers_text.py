"""Named labels, numbers and free text: prompts, canonical answers, equality."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol_api.records import Example
from semievol_api.tasks import Task, TaskDefinition
from semievol_api.tasks.kind_number import NumberSettings, read_number
from semievol_api.tasks.replies import exact

ITEM = Example(id="q", question="Is it so?")
EUROPEAN = NumberSettings(decimal=",")
POINTS = NumberSettings(percent="points")
UNIT_KNOWN = NumberSettings(scale_words=False)


def task_of(kind: str, **more: object) -> Task:
    return Task(TaskDefinition.model_validate({"name": "t", "kind": kind, "instruction": "I."} | more))


SENTIMENT = task_of("labels", labels=["negative", "neutral", "positive"], aliases={"pos": "positive"})
DECISION = task_of("labels", labels=["yes", "no", "maybe"])
STARS = task_of("labels", labels=["1", "2", "3", "4", "5"])
NUMBER = task_of("number")
TEXT = task_of("free_text")


def test_the_labels_stand_in_the_prompt() -> None:
    shot = Example(id="s", question="Is water wet?", answer="yes")
    system, user = DECISION.prompt(ITEM, [shot]).messages
    assert system.content == ("You assign labels. Solved examples:\n\nExample 1\nQuestion: Is water wet?\nAnswer: yes")
    assert user.content == ("I.\n\nQuestion: Is it so?\n\nLabels: yes, no, maybe\n\nReply with one line: Answer: LABEL")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Answer: positive", "positive"),
        (r"\(Answer: positive\)", "positive"),
        (r"Answer: \text{positive} \quad", "positive"),
        (r"Answer: \(positive\)", "positive"),
        ("**Answer:** Positive.", "positive"),
        ("POSITIVE", "positive"),
        ("Answer: pos", "positive"),
        ("Answer: the sentiment is positive", "positive"),
        ("Answer: positive, because sales rose", "positive"),
        ("Answer: negative\nOn reflection:\nAnswer: neutral", "neutral"),
        ("positive\n", "positive"),
        ("Answer: positive or neutral", None),
        ("Answer: not positive", None),
        ("Answer: it isn't positive", None),
        ("Answer: positively charged", None),
        ("Answer: non-negative", None),
        ("Answer:", None),
        ("", None),
        ("positive\nnegative\nneutral", None),
    ],
)
def test_one_named_label_counts_and_several_or_none_abstain(text: str, label: str | None) -> None:
    assert SENTIMENT.parse(text, ITEM) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Answer: No, because of the small sample", "no"),
        ("Answer: no", "no"),
        ("Answer: maybe not", None),
        ("Answer: yes and no", None),
        ("Answer: nothing", None),
    ],
)
def test_short_labels_are_whole_words(text: str, label: str | None) -> None:
    assert DECISION.parse(text, ITEM) == label


@pytest.mark.parametrize(
    ("text", "label"), [("Answer: 4", "4"), ("Answer: 4 stars", "4"), ("Answer: 4.5", None), ("Answer: -1", None)]
)
def test_a_label_that_is_a_digit_is_not_found_inside_a_number(text: str, label: str | None) -> None:
    assert STARS.parse(text, ITEM) == label


def test_labels_of_scripts_without_spaces_are_found() -> None:
    chinese = task_of("labels", labels=["积极", "消极"])
    assert chinese.parse("答案:积极的。", ITEM) == "积极"
    assert chinese.parse("答案:积极或消极", ITEM) is None


def test_the_longer_label_wins_where_one_holds_the_other() -> None:
    habit = task_of("labels", labels=["smoker", "former smoker"])
    assert habit.parse("Answer: a former smoker", ITEM) == "former smoker"


def test_open_kinds_have_no_closed_label_set() -> None:
    assert DECISION.labels(ITEM) == ("yes", "no", "maybe")
    assert NUMBER.labels(ITEM) is None
    assert TEXT.labels(ITEM) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Answer: 3.14", "3.14"),
        ("Answer: 1,234,567.89", "1234567.89"),
        ("Answer: $1,234.50", "1234.5"),
        ("Answer: (5)", "-5"),
        ("Answer: $(1,234.5)", "-1234.5"),
        ("Answer: ($5.2)", "-5.2"),
        ("Answer: -5", "-5"),
        ("Answer: −5", "-5"),
        ("Answer: -$5", "-5"),
        ("Answer: $-5", "-5"),
        ("Answer: minus 5", "-5"),
        ("Answer: 1.5%", "0.015"),
        ("Answer: 15 percent", "0.15"),
        ("Answer: (1.5)%", "-0.015"),
        ("Answer: (1.5%)", "-0.015"),
        ("Answer: 12.5 kg", "12.5"),
        ("Answer: 12.5kg", "12.5"),
        ("Answer: 5 m2", "5"),
        ("Answer: 1.2 million", "1200000"),
        ("Answer: EUR 3.4 bn", "3400000000"),
        ("Answer: 1e3", "1000"),
        ("Answer: 6.02e23", "602000000000000000000000"),
        ("Answer: 1.5 × 10^3", "1500"),
        ("Answer: 206588 - 181001 = 25587", "25587"),
        ("Answer: x = 4", "4"),
        ("Answer: 3/4", "0.75"),
        ("Answer: 12.5 (from 8 to 9)", "12.5"),
        ("Answer: about 7.", "7"),
        ("Answer: 1\u00a0234\u202f567", "1234567"),
        ("Answer: 1 234", None),
        ("Answer: 1.5 × 10³", "1500"),
        ("Answer: 5e-3 m", "0.005"),
        ("Answer: US$ 7", "7"),
        ("Answer: -(5)", "-5"),
        ("Answer: 1'234'567", "1234567"),
        ("Answer: 12,34,567", "1234567"),
        ("Answer: 37,7", "37.7"),
        ("Answer: .5", "0.5"),
        ("Answer: +5", "5"),
        ("Answer: 0.0", "0"),
        ("Answer: -0.0", "0"),
        ("Answer: ٣٫١٤", None),
        ("Answer: ٣١٤", "314"),
        ("**Answer:** **42**", "42"),
        (r"So \boxed{42}", "42"),
        ("42", "42"),
        ("Answer: 1\nAnswer: 2", "2"),
        ("Answer: 3 or 4", None),
        ("Answer: between 3 and 4", None),
        ("Answer: 3, 4", None),
        ("Answer: 5-7", None),
        ("Answer: inf", None),
        ("Answer: NaN", None),
        ("Answer: none", None),
        ("Answer: CO2", None),
        ("Answer: 1e999999999999", None),
        ("Answer: 007", "7"),
        ("Answer: 1.2.3", None),
        ("Answer: 1/0", None),
        ("Answer:", None),
        ("", None),
        ("There were 3 of 7.", None),
    ],
)
def test_a_number_is_read_as_people_write_it(text: str, number: str | None) -> None:
    assert NUMBER.parse(text, ITEM) == number


@pytest.mark.parametrize(
    ("text", "how", "number"),
    [
        ("Answer: 1.234,56", EUROPEAN, "1234.56"),
        ("Answer: 1.234", EUROPEAN, "1234"),
        ("Answer: 1,234", EUROPEAN, "1.234"),
        ("Answer: 15%", POINTS, "15"),
        ("Answer: 1.2 million", UNIT_KNOWN, "1.2"),
    ],
)
def test_a_task_says_what_a_comma_a_percent_and_a_million_mean(text: str, how: NumberSettings, number: str) -> None:
    assert read_number(text, how) == number


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=4, allow_nan=False))
@settings(max_examples=200, deadline=None)
def test_any_plain_or_grouped_decimal_survives(value: object) -> None:
    for text in (f"{value:f}", f"{value:,f}"):
        read = NUMBER.parse(f"Answer: {text}", ITEM)
        assert NUMBER.equal(read, f"{value:f}"), text


def test_numbers_are_equal_within_one_percent_of_the_gold() -> None:
    assert NUMBER.equal("99", "100")
    assert NUMBER.equal("101", "100")
    assert not NUMBER.equal("101.1", "100")
    assert not NUMBER.equal("98.9", "100")
    assert NUMBER.equal("-99", "-100")
    assert not NUMBER.equal("100", "-100")
    assert NUMBER.equal("0", "0")
    assert not NUMBER.equal("0.001", "0")
    assert not NUMBER.equal("inf", "inf")
    assert not NUMBER.equal("nan", "nan")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: Marie Curie", "Marie Curie"),
        ("I think so.\n\n**Answer:** Marie Curie", "Marie Curie"),
        ("Marie Curie", "Marie Curie"),
        ("Answer: ", None),
        ("", None),
    ],
)
def test_free_text_is_what_stands_after_the_last_marker(text: str, answer: str | None) -> None:
    assert TEXT.parse(text, ITEM) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: ls *.py", "ls *.py"),
        ("**Answer:** 2*x + y*z", "2*x + y*z"),
        ("Answer: *Moby Dick*", "Moby Dick"),
        ("**Answer: it is `so`**", "it is so"),
        ("Answer: **very** good", "very good"),
    ],
)
def test_signs_of_an_answers_own_stay_and_markdown_around_it_goes(response: str, answer: str) -> None:
    assert TEXT.parse(response, Example(id="1", question="q")) == answer


def test_a_label_of_a_set_that_a_reply_cannot_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\[\]' cannot be read back"):
        task_of("label_set", labels=["[]", "praise"])


def test_free_text_is_equal_but_for_case_spacing_and_closing_punctuation() -> None:
    assert TEXT.equal("marie  curie.", "Marie Curie")
    assert TEXT.equal("Paris", "Paris")
    assert not TEXT.equal("3.14", "314")
    assert not TEXT.equal("1", "1812")
    assert not TEXT.equal("", "x")


def test_the_gold_of_a_file_becomes_canonical_or_is_refused() -> None:
    assert SENTIMENT.read_gold(" Positive ", ITEM) == "positive"
    assert SENTIMENT.read_gold("great", ITEM) is None
    assert SENTIMENT.read_gold("positive, I guess", ITEM) is None
    assert NUMBER.read_gold("1,200", ITEM) == "1200"
    assert NUMBER.read_gold("many", ITEM) is None
    assert TEXT.read_gold("  Marie   Curie ", ITEM) == "Marie Curie"


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_makes_a_parser_fail(text: str) -> None:
    item = Example(id="q", question="?", options=("one", "two"))
    for task in (SENTIMENT, NUMBER, TEXT, task_of("multiple_choice")):
        for response in (text, f"Answer: {text}"):
            parsed = task.parse(response, item)
            assert parsed is None or parsed != ""


LANGUAGES = task_of("labels", labels=["C", "C#", "C++", "Java", "Java."])
PRICES = task_of("labels", labels=["$", "$$", "$$$"])


@pytest.mark.parametrize(
    ("task", "text", "label"),
    [
        (LANGUAGES, "Answer: C#", "C#"),
        (LANGUAGES, "Answer: C", "C"),
        (LANGUAGES, "**Answer:** C++", "C++"),
        (LANGUAGES, "Answer: Java.", "Java."),
        (LANGUAGES, "Answer: java", "Java"),
        (LANGUAGES, "Answer: it is C#, since it has a namespace", "C#"),
        (PRICES, "Answer: $$", "$$"),
        (PRICES, "**Answer: $**", "$"),
        (PRICES, 'Answer: "$$$".', "$$$"),
        (PRICES, "Answer: $$$$", None),
        (SENTIMENT, "Answer: not a positive one", None),
        (task_of("labels", labels=["spam", "ham"]), "Answer: no spam", None),
        (task_of("labels", labels=["spam", "no spam"]), "Answer: no spam", "no spam"),
    ],
)
def test_a_reply_is_matched_letter_by_letter_before_it_is_folded(task: Task, text: str, label: str | None) -> None:
    assert task.parse(text, ITEM) == label


@given(st.lists(st.text(string.punctuation + "aB1 ", min_size=1, max_size=3), min_size=2, max_size=5))
@settings(max_examples=300)
def test_labels_of_any_printable_signs_are_read_back_or_the_task_is_refused(drawn: list[str]) -> None:
    labels = sorted({exact(label).casefold(): label for label in drawn if exact(label)}.values())
    try:
        task = task_of("labels", labels=labels)
    except ValueError:
        return
    for label in labels:
        assert task.parse(f"Answer: {label}", ITEM) == label
        assert task.parse(f"**Answer:** {label}\n", ITEM) in (label, None)
        assert task.read_gold(label, ITEM) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("<think>Answer: negative would be hasty.</think>\npositive", "positive"),
        ("Answer: negative, I thought at first.</think>Answer: positive", "positive"),
        ("<think>a</think><think>b Answer: negative</think> Answer: neutral", "neutral"),
        ("<think>First thought: Answer: negative. But wait", None),
        ("[THINK]Answer: negative[/THINK]Answer: positive", "positive"),
        ("<|channel|>analysis<|message|>Answer: negative<|end|><|channel|>final<|message|>Answer: neutral", "neutral"),
    ],
)
def test_a_thought_is_no_answer(text: str, label: str | None) -> None:
    assert SENTIMENT.parse(text, ITEM) == label


def test_a_task_says_what_its_models_put_around_thoughts() -> None:
    own = task_of("labels", labels=["a", "b"], thoughts=[["<<", ">>"]])
    assert own.parse("<<Answer: a>> Answer: b", ITEM) == "b"
    assert own.parse("<think>Answer: b", ITEM) == "b"


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("#### 18", "18"),
        ("Each box holds 6.\n2*6=<<2*6=12>>12.\n#### 12", "12"),
        ("Some.\n#### 1,319", "1319"),
        ("x\n#### -$5.50", "-5.5"),
        ("So \\boxed{42}.", "42"),
        ("The answer is 18.", "18"),
        ("$1.2M", "1200000"),
        ("3.5k", "3500"),
        ("-3.5M", "-3500000"),
        ("1,319 apples", "1319"),
        ("45%", "0.45"),
        ("1.234,56", "1234.56"),
        ("5 m", "5"),
        ("5 m²", "5"),
        ("5m", None),
        ("300 K", None),
        ("Room 101B", None),
        ("5²", None),
        ("½", None),
        ("18 or 19", None),
        ("12.5 (from 8 to 9)", None),
        ("a = 5, b = 6", None),
        ("There are 18.\nSo much for that.", None),
        ("\\boxed{1}, then \\boxed{2}", None),
        ("2021-05-03", None),
    ],
)
def test_a_cell_with_one_number_is_read_and_one_with_several_is_refused(cell: str, number: str | None) -> None:
    assert NUMBER.read_gold(cell, ITEM) == number


def test_a_hundred_worked_answers_are_read_by_the_number_behind_their_signs() -> None:
    for i in range(100):
        worked, total = f"{i} boxes hold {i}*7=<<{i}*7={7 * i}>>{7 * i} rolls.", 7 * i * (1000 if i % 3 else 1)
        cell = (
            f"First there are {i + 3}.\n{worked}\n#### {'-' if i % 10 == 9 else ''}{'$' if i % 4 == 0 else ''}{total:,}"
        )
        assert NUMBER.read_gold(cell, ITEM) == f"{'-' if i % 10 == 9 and total else ''}{total}"
        assert NUMBER.read_gold(cell.replace("####", "##"), ITEM) is None


@pytest.mark.parametrize("labels", [string.punctuation, ("*", "**", "***"), ("①", "1", "²"), ("A*", "A", "A_")])
def test_labels_of_signs_alone_are_read_back(labels: str | tuple[str, ...]) -> None:
    task = task_of("labels", labels=list(labels))
    assert [task.parse(f"Answer: {label}", ITEM) for label in labels] == list(labels)
