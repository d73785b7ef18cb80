"""A conversation as a chat file has it: its turns, the tools that it may call, and the reply that ends it.

    chat = Chat.read(example.chat)
    prompt = chat_prompt("You sort reviews.", chat)      # the turns as they stand, behind the task's system turn

What a model is shown of it is what the file holds, and what it is trained on is a line of that file again. Knows
nothing of files, of kinds of task or of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from semievol_api.records import Message, Prompt

_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Chat:
    """The turns before the reply, and the reply, None where it is not known. `tools` is a JSON list, or empty."""

    turns: tuple[Message, ...]
    reply: str | None = None
    tools: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """From the JSON that `text` gives."""
        found = json.loads(text)
        return cls(tuple(map(as_message, found["turns"])), found.get("reply"), found.get("tools", ""))

    @property
    def text(self) -> str:
        """The conversation as JSON, as `Example.chat` holds it."""
        kept = {"turns": [turn.body for turn in self.turns], "reply": self.reply, "tools": self.tools}
        return json.dumps({name: value for name, value in kept.items() if value}, ensure_ascii=False)

    @property
    def without_weights(self) -> Self:
        """The conversation as a model is shown it: a turn's weight is for its training, and no chat API takes it."""
        return replace(self, turns=tuple(_without_weight(turn) for turn in self.turns))

    @property
    def question(self) -> str:
        """What is asked, as a person reads it: the user's turn alone where there is no other."""
        if len(self.turns) == 1 and self.turns[0].role == "user":
            return self.turns[0].content
        return self.transcript

    @property
    def transcript(self) -> str:
        """All turns, each behind its role."""
        return "\n\n".join(f"{turn.role.capitalize()}: {_words(turn)}" for turn in self.turns)


def as_message(turn: dict[str, Any]) -> Message:
    """A turn of a chat file: its other keys are kept as they are."""
    more = {name: value for name, value in turn.items() if name not in ("role", "content") and value is not None}
    return Message(turn["role"], turn.get("content") or "", json.dumps(more, ensure_ascii=False) if more else "")


def chat_prompt(instruction: str, chat: Chat, shots: Sequence[tuple[Chat, str]] = (), closing: str = "") -> Prompt:
    """The conversation as a prompt.

    Args:
        instruction: the system turn of a conversation that has none of its own; empty for none.
        chat: the conversation.
        shots: solved conversations with their replies, nearest first; they stand in the system turn, nearest last.
        closing: what is asked in addition, behind the user's last words.
    """
    turns = list(chat.turns)
    if instruction and turns[0].role not in _SYSTEM:
        turns.insert(0, Message("system", instruction))
    if shots:
        solved = [
            f"Example {i}\n{shown.transcript}\n\nAssistant: {reply}"
            for i, (shown, reply) in enumerate(reversed(shots), 1)
        ]
        text = "\n\n".join(("Solved examples:", *solved))
        if turns[0].role in _SYSTEM:
            turns[0] = replace(turns[0], content=f"{turns[0].content}\n\n{text}")
        else:
            turns.insert(0, Message("system", text))
    if closing and turns[-1].role == "user":
        turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\n{closing}")
    elif closing:
        turns.append(Message("user", closing))
    return Prompt(tuple(turns), tools=chat.tools)


def _without_weight(turn: Message) -> Message:
    if '"weight"' not in turn.more:
        return turn
    more = {name: value for name, value in json.loads(turn.more).items() if name != "weight"}
    return replace(turn, more=json.dumps(more, ensure_ascii=False) if more else "")


def _words(turn: Message) -> str:
    """A turn's words; those of a turn that only calls tools are the calls."""
    return turn.content or turn.more
