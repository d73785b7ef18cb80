"""Multiple choice: the fixed wording, and letters in every dress that models give them."""

from __future__ import annotations

import pytest

from semievol_api.records import Example, Message
from semievol_api.tasks import Task, TaskDefinition, load_task

CAPITALS = Example(id="q", question="What is the capital of France?", options=("Berlin", "Paris", "Rome", "Madrid"))
SHOT = Example(id="s", question="2 + 2?", options=("3", "4"), answer="B")
FAR_SHOT = Example(id="f", question="1 + 1?", options=("2", "5"), answer="A")


@pytest.fixture
def task() -> Task:
    return Task(TaskDefinition(name="t", kind="multiple_choice", instruction="Answer the question."))


def test_the_user_turn_has_the_fixed_wording(task: Task) -> None:
    assert task.prompt(CAPITALS).messages == (
        Message(
            "user",
            "Answer the question.\n\nQuestion: What is the capital of France?\n\n"
            "Options:\nA. Berlin\nB. Paris\nC. Rome\nD. Madrid\n\nReply with one line: Answer: LETTER",
        ),
    )


def test_solved_examples_stand_in_the_system_turn_nearest_last(task: Task) -> None:
    system, user = task.prompt(CAPITALS, [SHOT, FAR_SHOT]).messages
    assert system == Message(
        "system",
        "You answer multiple-choice questions. Solved examples:\n\n"
        "Example 1\nQuestion: 1 + 1?\nOptions:\nA. 2\nB. 5\nAnswer: A\n\n"
        "Example 2\nQuestion: 2 + 2?\nOptions:\nA. 3\nB. 4\nAnswer: B",
    )
    assert user == task.prompt(CAPITALS).messages[0]


def test_a_task_may_hide_the_options_of_its_demonstrations() -> None:
    task = Task(
        TaskDefinition(name="t", kind="multiple_choice", instruction="I", shots_show_options=False),
    )
    assert task.prompt(CAPITALS, [SHOT]).messages[0].content.endswith("Example 1\nQuestion: 2 + 2?\nAnswer: B")


def test_a_system_text_of_the_users_own_stands_also_without_shots() -> None:
    task = Task(TaskDefinition(name="t", kind="multiple_choice", instruction="I", system="You are a geographer."))
    assert task.prompt(CAPITALS).messages[0] == Message("system", "You are a geographer.")
    assert (
        task.prompt(CAPITALS, [SHOT])
        .messages[0]
        .content.startswith("You are a geographer. Solved examples:\n\nExample 1\n")
    )


def test_justification_replaces_the_last_line_by_the_proposals(task: Task) -> None:
    asked = task.prompt(CAPITALS, [SHOT]).messages
    justified = task.justify_prompt(CAPITALS, [SHOT], ["Answer: C", "A"]).messages
    assert justified[0] == asked[0]
    assert justified[1].content == asked[1].content.replace(
        "Reply with one line: Answer: LETTER",
        "Proposed answers:\n1. Answer: C\n2. Answer: A\n\n"
        "Weigh the proposals, decide, and reply with one line: Answer: LETTER",
    )


def test_a_permutation_reorders_the_options_and_is_undone_by_parsing(task: Task) -> None:
    shown = (2, 0, 3, 1)
    assert "A. Rome\nB. Berlin\nC. Madrid\nD. Paris" in task.prompt(CAPITALS, (), shown).messages[0].content
    assert task.parse("Answer: D", CAPITALS, shown) == "B"
    assert task.parse("Answer: Paris", CAPITALS, shown) == "B"
    assert "1. Answer: D" in task.justify_prompt(CAPITALS, (), ["B"], shown).messages[0].content


@pytest.mark.parametrize(
    "text",
    [
        "Answer: B",
        "answer: b",
        "B",
        "b",
        "B.",
        "(B)",
        "[B]",
        "B)",
        "**B**",
        "*B*",
        "`B`",
        "**Answer:** B",
        "**Answer: B**",
        r"\(Answer: B\)",
        r"\[Answer: B\]",
        r"**\(Answer: B\)**",
        r"\(\text{Answer: } B\)",
        r"\begin{equation}Answer: B\end{equation}",
        r"Answer: B \quad",
        r"Answer: \text{B}\quad \blacksquare",
        r"Answer: B\\",
        r"Answer: \( B \).",
        r"Answer: \(B\) Paris",
        r"Answer: B \(\checkmark\)",
        "**Answer**: **B**",
        "Answer: (B)",
        "Answer: B. Paris",
        "Answer: B) Paris is the capital",
        "Answer: B - Paris",
        "Answer: B Paris",
        "Answer: Paris",
        "answer: PARIS.",
        "Answer:\nB",
        "Answer:\n\n**B**",
        "Answer: B, because Berlin is German",
        "Answer: B because of reasons",
        "Answer: option B",
        "Answer: The correct option is B.",
        "Answer: it is Paris",
        "The answer is (B).",
        "The answer is: B",
        "Final Answer\nB",
        r"So \boxed{B}",
        r"Answer: $\boxed{\text{B}}$",
        "Answer: A\nNo, wait.\nAnswer: B",
        "1. Answer: C\n2. Answer: A\n\nAnswer: B",
        "Berlin is in Germany.\nB. Paris",
        "Answer: B\n\nExample 2\nQuestion: 1 + 1?\nAnswer: C",
        "Answer: B\r\n\r\nQuestion: next\r\nAnswer: D",
        "Antwort: B",
        "Ans: B",
        "Answer = B",
        "Answer - B",
        "Answer: B (the capital)",
        "Answer: B Explanation: it lies on the Seine",
        "Answer: letter B is correct",
        "Answer: B, a city",
        "Answer: B → Paris",
        "<think>A? C?</think>\nAnswer: B",
        "答案:B",
        "最终答案:B",
        "Answer:B",
        "Réponse : B",
        "Ответ: B",
        "정답: B",
        "Paris",
        '"Answer: B"',
        "> Answer: B",
    ],
)
def test_a_letter_counts_in_any_dress(task: Task, text: str) -> None:
    assert task.parse(text, CAPITALS) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "Answer:",
        "Answer: ",
        "**Answer:**",
        "Answer: LETTER",
        "Answer: E",
        "Answer: Z.",
        "Answer: A or B",
        "Answer: A, B",
        "Answer: A and C",
        "Answer: A/B",
        "A, C",
        "Answer: A, B, C",
        "Answer: (A) or option (B)",
        "Answer: A et B",
        "Answer: A or B, I am not sure",
        "Answer: A, B are both right",
        "Answer: it is a city",
        "Answer: 2",
        "Answer: not B",
        "Answer: neither Paris nor Rome",
        "Answer: it is not Paris",
        "Answer: Paris or Rome",
        "Answer: Lisbon",
        "Answer: A city in France",
        "A city in France is what we look for.",
        "I don't know.",
        "Answer: B\nAnswer:",
        "A. Berlin\nB. Paris\nC. Rome\nD. Madrid",
        "Because it rains",
        "\ufffd\ufffd",
        "Answer: 🤷",
    ],
)
def test_no_choice_or_several_are_an_abstention(task: Task, text: str) -> None:
    assert task.parse(text, CAPITALS) is None


def test_letters_reach_j_and_beyond(task: Task) -> None:
    ten = Example(id="q", question="?", options=tuple(f"option number {i}" for i in range(10)))
    assert task.parse("Answer: J", ten) == "J"
    assert task.parse("Answer: K", ten) is None
    assert task.labels(ten) == tuple("ABCDEFGHIJ")
    assert "\nJ. option number 9\n" in task.prompt(ten).messages[0].content


def test_a_letter_is_a_letter_even_where_an_option_is_one(task: Task) -> None:
    bases = Example(id="q", question="?", options=("C", "A", "T", "G"))
    assert task.parse("Answer: A", bases) == "A"


def test_option_text_that_two_options_share_is_an_abstention(task: Task) -> None:
    twins = Example(id="q", question="?", options=("687", "687", "1,493"))
    assert task.parse("Answer: 687", twins) is None
    assert task.parse("Answer: B. 687", twins) == "B"


def test_other_scripts_pass_through_prompts_and_parsing(task: Task) -> None:
    chinese = Example(id="q", question="法国的首都是哪里?", options=("柏林", "巴黎"))
    assert "B. 巴黎" in task.prompt(chinese).messages[0].content
    assert task.parse("答案:巴黎。", chinese) == "B"
    assert task.parse("Answer: (B)巴黎", chinese) == "B"


def test_the_turn_to_train_on_is_one_line(task: Task) -> None:
    assert task.target(CAPITALS, "C") == "Answer: C"
    with pytest.raises(ValueError, match="'E' is no answer"):
        task.target(CAPITALS, "E")


def test_the_fingerprint_follows_the_wording_and_not_the_columns() -> None:
    def fingerprint(**changes: object) -> str:
        tree = {"name": "t", "kind": "multiple_choice", "instruction": "I"} | changes
        return Task(TaskDefinition.model_validate(tree)).fingerprint

    assert fingerprint() == fingerprint(columns={"question": "q"})
    assert fingerprint() != fingerprint(instruction="J")
    assert fingerprint() != fingerprint(shots_show_options=False)


def test_equal_never_counts_an_abstention(task: Task) -> None:
    assert task.equal("A", "A")
    assert not task.equal("A", "B")
    assert not task.equal(None, None)
    assert not task.equal("", "")


def test_a_built_in_task_loads_by_name() -> None:
    assert load_task("mmlu").kind == "multiple_choice"
