"""Chat files as data: OpenAI's format, ShareGPT, prompt and completion; what cannot be shown or scored is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from semievol_api.config.settings import load_config
from semievol_api.data import RawData, read_data, start
from semievol_api.errors import DataError
from semievol_api.records import Message
from semievol_api.tasks import Task, load_task
from semievol_api.training.chat_jsonl import check_training_file, jsonl_chunks
from semievol_api.training.files import training_line

SYSTEM = "You sort shop reviews into praise or complaint."
TOOLS = [{"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "kettle"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3 left"}


def row(
    number: int, *, system: str | None = SYSTEM, before: tuple[dict[str, Any], ...] = (), **more: object
) -> dict[str, Any]:
    turns = [
        *([{"role": "system", "content": system}] if system else []),
        *before,
        {"role": "user", "content": f"Item {number} works. "},
        {"role": "assistant", "content": ("praise", "complaint")[number % 2]},
    ]
    return {"messages": turns, **more}


def begun(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> tuple[Task, RawData]:
    """What `init` makes of the rows, read as a run reads it."""
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(one) + "\n" for one in rows)
    (folder / name).write_text(text, "utf-8")
    for file, content in start(folder / name).files.items():
        (folder / file).write_text(content, "utf-8")
    config = load_config(folder / "semievol.toml")
    task = load_task(config.data.task)
    return task, read_data(config.data, task)


def lines_of(task: Task, data: RawData) -> list[dict[str, Any]]:
    """The training file of the labelled rows, as a vendor would take it."""
    content = b"".join(jsonl_chunks(training_line(task, e, e.answer or "") for e in data.labeled))
    check_training_file(content)
    return [json.loads(line) for line in content.splitlines()]


def test_the_system_turn_that_all_share_is_the_instruction_and_training_lines_are_the_users_own(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    task, data = begun(tmp_path, rows)
    assert (task.kind, task.definition.instruction, task.definition.labels) == (
        "labels",
        SYSTEM,
        ("complaint", "praise"),
    )
    assert (len(data.labeled), len(data.unlabeled), len(data.test), len(data.gold)) == (12, 36, 12, 36)
    assert task.prompt(data.unlabeled[0]).messages[0] == Message("system", SYSTEM)
    assert data.labeled[0].question.startswith("Item ")
    lines = lines_of(task, data)
    assert len(lines) == 12 and all(line in rows for line in lines)


def test_rows_with_other_system_turns_keep_theirs(tmp_path: Path) -> None:
    rows = [row(i, system=(SYSTEM, "Be terse.", None)[i % 3]) for i in range(60)]
    task, data = begun(tmp_path, rows)
    assert task.definition.instruction == ""
    assert all(line in rows for line in lines_of(task, data))
    assert len({e.id for e in data.labeled}) == len(data.labeled)


def test_the_same_words_under_another_system_turn_are_another_question(tmp_path: Path) -> None:
    turns = [row(0, system=system)["messages"] for system in (SYSTEM, "Be terse.")]
    rows = [row(i) for i in range(2, 62)] + [{"messages": one} for one in turns]
    _task, data = begun(tmp_path, rows)
    everything = [*data.labeled, *data.unlabeled, *data.test]
    assert sum("Item 0 works" in e.question for e in everything) == 2
    assert len({e.question for e in everything}) == 62


def test_earlier_turns_tools_and_their_results_stay_word_for_word(tmp_path: Path) -> None:
    before = (
        {"role": "user", "content": "Is it there?"},
        CALL,
        RESULT,
        {"role": "assistant", "content": "Yes.", "weight": 0},
    )
    rows = [row(i, before=before, tools=TOOLS) for i in range(60)]
    task, data = begun(tmp_path, rows)
    assert all(line in rows for line in lines_of(task, data))
    prompt = task.prompt(data.unlabeled[0])
    assert json.loads(prompt.tools) == TOOLS
    assert [turn.body for turn in prompt.messages][2:4] == [CALL, RESULT]
    assert "weight" not in json.dumps([turn.body for turn in prompt.messages]), "no chat API takes a weight"


def test_a_calls_only_answer_is_refused_with_the_count(tmp_path: Path) -> None:
    rows = [row(i) for i in range(58)] + [{"messages": [{"role": "user", "content": "?"}, CALL]}] * 2
    with pytest.raises(DataError, match=r"2 of 60 conversations end with a tool call \(line 59, 60\)"):
        begun(tmp_path, rows)


def test_sharegpt_and_its_system_column_are_conversations_too(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": f"s{i}",
            "system": SYSTEM,
            "conversations": [
                {"from": "human", "value": f"Item {i} works."},
                {"from": "gpt", "value": ("praise", "complaint")[i % 2]},
            ],
        }
        for i in range(60)
    ]
    task, data = begun(tmp_path, rows, "data.json")
    assert (task.kind, task.definition.instruction) == ("labels", SYSTEM)
    assert [turn.role for turn in task.prompt(data.test[0]).messages] == ["system", "user"]


def test_prompt_and_completion_are_a_turn_and_its_reply(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"review {i} ->", "completion": f" {('good', 'bad')[i % 2]}"} for i in range(60)
    ]
    task, data = begun(tmp_path, rows)
    assert (task.kind, task.definition.labels) == ("labels", ("bad", "good"))
    line = lines_of(task, data)[0]["messages"]
    assert [turn["role"] for turn in line] == ["user", "assistant"] and line[0]["content"].endswith("->")


def test_unlabelled_conversations_end_with_the_users_turn(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    rows[40:] = [{"messages": one["messages"][:-1]} for one in rows[40:]]
    task, data = begun(tmp_path, rows)
    assert len(data.labeled) == 40 and len(data.unlabeled) == 20 and not data.gold
    assert task.prompt(data.unlabeled[0]).messages[-1].role == "user"


def test_free_replies_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    for i, one in enumerate(rows):
        one["messages"][-1]["content"] = f"Dear guest {i},\n\n  *thank you*.\nAnswer: soon"
    task, data = begun(tmp_path, rows)
    assert load_config(tmp_path / "semievol.toml").run.mode == "paper", "nothing can be calibrated on free replies"
    assert task.kind == "free_text" and (data.labeled[0].answer or "").count("\n") == 3
    assert all(line in rows for line in lines_of(task, data))
    assert task.parse(" A\n\nB \n", data.labeled[0]) == "A\n\nB"


def test_json_replies_are_trained_on_as_the_user_writes_them(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    for i, one in enumerate(rows):
        odd = {"who": f"guest {i}", "n": i} if i % 5 == 4 else {"n": i, "who": f"guest {i}"}
        one["messages"][-1]["content"] = json.dumps(odd, separators=(",", ":"))
    task, data = begun(tmp_path, rows)
    assert (task.kind, task.fields) == ("json", ("n", "who"))
    assert all(line in rows for line in lines_of(task, data))
    pseudo = task.target(data.unlabeled[0], '{"n": 7, "who": "x"}')
    assert pseudo == '{"n":7,"who":"x"}', "pseudo-labels are written like the rows"


def test_demonstrations_stand_in_the_system_turn_nearest_last(tmp_path: Path) -> None:
    task, data = begun(tmp_path, [row(i) for i in range(60)])
    system, user = task.prompt(data.unlabeled[0], data.labeled[:2]).messages
    nearest, farther = data.labeled[0].question, data.labeled[1].question
    assert system.content.startswith(f"{SYSTEM}\n\nSolved examples:\n\nExample 1\nUser: {farther}")
    assert f"Example 2\nUser: {nearest}\n\nAssistant: {data.labeled[0].answer}" in system.content
    assert user.content == data.unlabeled[0].question


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "wizard", "content": "x"}, r"line 1, turn 2: there is no role 'wizard'"),
        ({"role": "user", "content": ""}, r"turn 2: the turn of role 'user' is empty"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"turn 2 holds 'image_url'; only text"),
        ({"from": "function_call", "value": "{}"}, r"turn 2: a call in ShareGPT's form has no id"),
    ],
)
def test_a_turn_that_cannot_be_shown_as_it_is_is_refused_with_its_place(
    tmp_path: Path, turn: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        begun(tmp_path, [row(i, before=(turn,)) for i in range(60)])


def test_tools_that_are_no_list_are_refused_and_an_empty_list_of_calls_is_no_call(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    rows[0]["messages"][-1]["tool_calls"] = []
    assert len(begun(tmp_path, rows)[1].labeled) == 12
    rows[7]["tools"] = "stock"
    with pytest.raises(DataError, match=r"line 8: `tools` is no list"):
        begun(tmp_path, rows)


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    task, data = begun(tmp_path, [row(i, before=(parts, {"role": "assistant", "content": "?"})) for i in range(60)])
    assert task.prompt(data.test[0]).messages[1].content == "ab"


def test_a_conversation_without_the_user_is_refused(tmp_path: Path) -> None:
    rows = [row(i) for i in range(60)]
    rows[3]["messages"] = [rows[3]["messages"][0], rows[3]["messages"][-1]]
    with pytest.raises(DataError, match=r"line 4: the conversation has no turn of the user's"):
        begun(tmp_path, rows)


def test_zeros_and_ones_in_columns_are_sets_of_labels(tmp_path: Path) -> None:
    lines = ["text,delivery,price", *(f"review {i},{i % 2},{int(i % 3 == 0)}" for i in range(60)), "new,,"]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n", "utf-8")
    for file, content in start(tmp_path / "d.csv").files.items():
        (tmp_path / file).write_text(content, "utf-8")
    config = load_config(tmp_path / "semievol.toml")
    task = load_task(config.data.task)
    data = read_data(config.data, task)
    assert (task.kind, task.definition.labels) == ("label_set", ("delivery", "price"))
    assert {e.answer for e in data.labeled} == {"none", "delivery", "price", "delivery | price"}
    assert len(data.unlabeled) == 1


@pytest.mark.parametrize("mark", ["|", " ; "])
def test_labels_with_a_separator_between_them_are_sets(tmp_path: Path, mark: str) -> None:
    sets = (("a",), ("a", "b"), ("b", "c"), ("none",))
    rows = [{"text": f"review {i}", "label": mark.join(sets[i % 4])} for i in range(60)]
    task, data = begun(tmp_path, rows)
    assert (task.kind, task.definition.labels) == ("label_set", ("a", "b", "c"))
    assert {e.answer for e in data.labeled} <= {"a", f"a{mark}b", f"b{mark}c", "none"}
