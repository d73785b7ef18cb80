"""Conversations in the rows of a file: OpenAI's `messages`, ShareGPT's `conversations`, or prompt and completion.

    chat = read_chat(table, row, columns)          # its turns, tools, and the assistant's last turn as `reply`

What cannot be shown to a model as it stands (an image, an unknown role) or scored (a tool call as the answer) is
refused with its row. Knows nothing of tasks, or of how a conversation is shown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from semievol_api.data.read_files import Table
from semievol_api.errors import DataError
from semievol_api.records import Message
from semievol_api.tasks import Columns
from semievol_api.tasks.chat import Chat, as_message

_LISTS = ("messages", "conversations", "conversation")
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatgpt", "bard", "bing"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response"), "tool"),
    "function_call": "assistant",
}
_CALLS = ("tool_calls", "function_call")


def chat_columns(table: Table) -> Columns | None:
    """Where a table keeps conversations; None where it has none."""
    names = {name.strip().casefold(): name for name in table.columns}
    for name in _LISTS:
        if name in names and any(_turns(row.get(names[name])) for row in table.rows[:50]):
            return Columns(messages=names[name])
    if "prompt" in names and "completion" in names:
        return Columns(messages=names["prompt"], answer=names["completion"])
    return None


def read_chat(table: Table, row: int, columns: Columns) -> Chat:
    """A row's conversation; its `reply` is the last turn where that is the assistant's, else the answer column's text.

    Raises:
        DataError: the cell holds no conversation, a turn cannot be shown as it is, or a tool call ends it.
    """
    assert columns.messages is not None
    where, cell = table.where(row), table.cell(row, columns.messages)
    found = [{"role": "user", "content": cell}] if _is_text(cell) else _turns(cell)
    if not found:
        raise DataError(
            f"{where}: the conversation (column {columns.messages!r}) is no list of turns. Each turn is an object with "
            f'a role and its words, such as {{"role": "user", "content": "..."}}.'
        )
    turns = [_message(turn, f"{where}, turn {place}") for place, turn in enumerate(found, 1)]
    system = table.rows[row].get("system")
    if isinstance(system, str) and system.strip() and turns[0].role not in ("system", "developer"):
        turns.insert(0, Message("system", system))
    reply = _reply(table.cell(row, columns.answer) if columns.answer else None, where)
    if turns[-1].role == "assistant":
        _refuse_call(turns[-1].more, where)
        reply = turns.pop().content
    if not any(turn.role == "user" for turn in turns):
        raise DataError(f"{where}: the conversation has no turn of the user's, so nothing is asked.")
    return Chat(tuple(turns), reply or None, _tools(table.rows[row].get("tools"), where))


def ends_with_calls(table: Table, columns: Columns) -> tuple[int, ...]:
    """The lines of the rows whose last turn calls a tool."""
    assert columns.messages is not None
    found = (_turns(table.cell(row, columns.messages)) for row in range(len(table.rows)))
    return tuple(
        table.lines[row] for row, turns in enumerate(found) if turns and any(turns[-1].get(name) for name in _CALLS)
    )


def without_instruction(chat: Chat, instruction: str) -> Chat:
    """The conversation without its system turn, where that is the task's instruction."""
    if chat.turns[0] == Message("system", instruction):
        return replace(chat, turns=chat.turns[1:])
    return chat


def shared_instruction(chats: Iterable[Chat]) -> tuple[str, int]:
    """The system turn that all conversations begin with, empty for none, and how many beginnings there are."""
    first = Counter(chat.turns[0] if chat.turns[0].role in ("system", "developer") else None for chat in chats)
    (turn, *_) = first or (None,)
    plain = turn is not None and turn == Message("system", turn.content.strip())
    return (turn.content if len(first) == 1 and turn is not None and plain else ""), len(first)


def _turns(cell: object) -> list[dict[str, Any]]:
    """The turns of a cell that is a list of objects, or such a list as JSON; none of any other."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError:
            return []
    if not isinstance(cell, list | tuple) or not all(isinstance(turn, Mapping) for turn in cell):
        return []
    turns = [dict(cast("Mapping[str, Any]", turn)) for turn in cell]
    return turns if all("role" in turn or "from" in turn for turn in turns) else []


def _is_text(cell: object) -> bool:
    return isinstance(cell, str) and bool(cell.strip()) and not _turns(cell)


def _message(turn: Mapping[str, Any], where: str) -> Message:
    """A turn in OpenAI's words."""
    named = str(turn.get("role", turn.get("from")))
    role = _ROLES.get(named.casefold())
    if role is None:
        raise DataError(f"{where}: there is no role {named!r}. Known are {', '.join(_ROLES)}.")
    content = _content(turn.get("content", turn.get("value")), where)
    if named.casefold() == "function_call":
        raise DataError(
            f"{where}: a call in ShareGPT's form has no id. Write it as `tool_calls`, as OpenAI's files do."
        )
    if not content and not any(turn.get(name) for name in _CALLS):
        raise DataError(f"{where}: the turn of role {named!r} is empty.")
    more = {name: value for name, value in turn.items() if name not in ("role", "from", "content", "value")}
    return as_message({"role": role, "content": content, **more})


def _content(content: object, where: str) -> str:
    """The words of a turn; parts of text are one text."""
    if isinstance(content, list | tuple):
        parts = [dict(cast("Mapping[str, Any]", part)) for part in content if isinstance(part, Mapping)]
        other = next((part for part in parts if part.get("type") != "text"), None)
        if other is not None or len(parts) < len(content):
            kind = "something that is no text" if other is None else repr(str(other.get("type")))
            raise DataError(f"{where} holds {kind}; only text can be shown to a model here. Remove these rows.")
        return "".join(str(part.get("text") or "") for part in parts)
    return content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)


def _reply(cell: object, where: str) -> str:
    """The text of an answer column: a text, or a list of one turn."""
    turns = _turns(cell)
    if turns:
        last = _message(turns[-1], where)
        _refuse_call(last.more, where)
        return last.content
    return cell.strip() if isinstance(cell, str) else ""


def _refuse_call(more: str, where: str) -> None:
    found = json.loads(more) if more else {}
    if any(found.get(name) for name in _CALLS):
        raise DataError(
            f"{where}: the conversation ends with a tool call. An answer is a text here; calls in earlier turns and "
            f"the tools' results are kept as they are. Take rows that end with a call out of the file."
        )


def _tools(cell: object, where: str) -> str:
    """The tools as the row has them, as JSON."""
    if cell is None or cell == "":
        return ""
    try:
        found = json.loads(cell) if isinstance(cell, str) else cell
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list | tuple):
        raise DataError(f"{where}: `tools` is no list of tools. Write it as OpenAI's files do, or leave it out.")
    if not found:
        return ""
    return cell if isinstance(cell, str) else json.dumps(found, ensure_ascii=False)
