"""Calls of tools in a model's own form: which one its chat template writes, the grammar for it, the calls in a text.

    form = call_form(tokens)                                # raises ToolsError where the template has none
    grammar = form.grammar(ToolOffer((Function("now", '{"type": "object"}'),), choice="required"))
    pieces = CallReader(form).feed(text, last=True)         # or piece by piece, as the text comes

Knows nothing of HTTP, sampling or what a tool does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from semievol_api.errors import UserError
from semievol_providers.local.constrained import ANY_OBJECT, LAYOUT

if TYPE_CHECKING:
    from semievol_providers.local.chat_tokens import ChatTokens


class ToolsError(UserError):
    """This model's chat template has no place for tools, or writes calls in an unknown form."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may call; `parameters` is the JSON schema of its arguments, an object."""

    name: str
    parameters: str = ANY_OBJECT
    description: str | None = None

    def shown(self) -> dict[str, object]:
        """As chat templates take it."""
        told = {"name": self.name, "description": self.description or ""}  # some templates cannot do without
        return {"type": "function", "function": {**told, "parameters": json.loads(self.parameters)}}


@dataclass(frozen=True, slots=True)
class ToolOffer:
    """The functions that one request offers; "required" asks for a call, of `named` where that is set."""

    functions: tuple[Function, ...]
    choice: Literal["none", "auto", "required"] = "auto"
    named: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class CallForm:
    """A call is `before`, {"name": ..., `key`: ...}, `after`; with `several`, text and further calls may be around.

    `tokens` are those parts of it that are one token each, added to the vocabulary.
    """

    before: str
    key: str
    after: str
    several: bool
    tokens: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """What every call begins with, up to its function's name."""
        return self.before + '{"name": "'

    def written(self, name: str, arguments: Mapping[str, object]) -> str:
        """One call."""
        return f'{self.head}{name}", "{self.key}": {json.dumps(arguments)}}}{self.after}'

    def told(self, prompt: str) -> bool:
        """Whether a prompt tells the model to write calls so, between markers that no other form has."""
        fields = rf'\{{"name": [^"{{}}]+, "{self.key}": [^"{{}}]+\}}'
        return bool(self.before and re.search(re.escape(self.before) + fields + re.escape(self.after), prompt))

    def grammar(self, offer: ToolOffer) -> str:
        """llguidance's Lark grammar of the answers: a call or several, and with "auto" also a text that has none."""
        called = [f for f in offer.functions if offer.named in (None, f.name)]
        before = self._terminals(self.before)
        rules = [f"call: {before} body", "body: " + " | ".join(f"body_{i}" for i in range(len(called)))]
        for i, function in enumerate(called):
            opening = json.dumps(f'{{"name": "{function.name}", "{self.key}": ')
            schema = {**json.loads(function.parameters), "x-guidance": LAYOUT}
            rules.append(f"body_{i}: {opening} args_{i} {self._terminals('}' + self.after)}")
            rules.append(f"args_{i}: %json {json.dumps(schema)}")
        more = ' ("\\n" call)*' if self.several and offer.parallel and offer.named is None else ""
        if offer.choice == "required":
            return "\n".join([f"start: call{more}", *rules])
        if not self.several:
            rules.append(rf"PLAIN: /(?s:.+)/ & ~/(?s:{_pattern(self.head)}.*)/")
            return "\n".join([f"start: PLAIN? | call{more}", *rules])
        rules.append(rf"PLAIN: /(?s:.+)/ & ~/(?s:.*{_pattern(self.before)}.*)/")
        if self.tokens:
            return "\n".join([f"start: PLAIN? | PLAIN? call{more}", *rules])
        rules.append(
            rf"lead[lazy]: /(?s:.*){_pattern(self.before)}/"
        )  # as soon as a text has the marker, a call follows
        return "\n".join([f"start: PLAIN? | lead body{more}", *rules])

    def _terminals(self, text: str) -> str:
        """A text in a rule of the grammar, its tokens by their name: a grammar takes no text for them."""
        parts = re.split("(" + "|".join(map(re.escape, self.tokens)) + ")", text) if self.tokens else [text]
        return " ".join(part if part in self.tokens else json.dumps(part) for part in parts if part)


HERMES = CallForm("<tool_call>\n", "arguments", "\n</tool_call>", several=True)
"""Of the templates of Qwen 2.5 and 3, Hermes and others that learned from them."""
LLAMA = CallForm("", "parameters", "", several=False)
"""Of Llama 3.1 and later, whose template takes one call in a turn, and no text beside it."""


def call_form(tokens: ChatTokens) -> CallForm:
    """The form of this model's calls, read from what its chat template makes of one or tells the model to write.

    Raises:
        ToolsError: the template shows no tools, or writes calls in another form.
    """
    from semievol_providers.local.chat_tokens import PromptError

    name, key, text = "probe_of_tools", "probe_key", "probe_of_text"
    schema = {"type": "object", "properties": {key: {"type": "string", "description": "?"}}}
    tools = [Function(name, json.dumps(schema), "?").shown()]
    question: dict[str, object] = {"role": "user", "content": "?"}
    call = {"id": "call_probe0", "type": "function", "function": {"name": name, "arguments": {key: text}}}
    answer: dict[str, object] = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        shown = tokens.render([question], tools=tools)
        texted = tokens.render([question, {"role": "assistant", "content": text}], tools=tools, reply_follows=False)
        written = tokens.render([question, answer], tools=tools, reply_follows=False)
    except PromptError as error:
        raise ToolsError(f"The model's chat template takes no tools: {error}") from error
    if name not in shown:
        raise ToolsError("The model's chat template shows no tools to the model, so it cannot call any.")
    tokenizer: Any = tokens.tokenizer
    for form in (HERMES, LLAMA):
        markers = [part.strip() for part in (form.before, form.after) if part]
        begun = texted.partition(text)[0] + form.written(name, {key: text})  # a call stands where a text would
        if _spaceless(written).startswith(_spaceless(begun)) or form.told(shown):
            if set(markers) & set(tokenizer.all_special_tokens):
                continue
            added = tokenizer.get_added_vocab()
            return replace(form, tokens=tuple(marker for marker in markers if marker in added))
    raise ToolsError(
        "The model's chat template writes calls of tools in a form that this server does not know. It knows those of "
        "Llama 3.1 and of Qwen and Hermes."
    )


def _spaceless(text: str) -> str:
    return "".join(text.split())


def _pattern(text: str) -> str:
    """A text inside a regular expression of a grammar."""
    escaped = "".join(char if char.isalnum() or char in ' _<>"' else f"\\{char}" for char in text)
    return escaped.replace("\\\n", "\\n")


# ---------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of the call number `index`: its name, in its first piece, or more of its arguments' JSON."""

    index: int
    arguments: str = ""
    name: str | None = None


@dataclass(slots=True)
class Pieces:
    """What became certain of an answer: text, and pieces of calls."""

    text: str = ""
    calls: list[CallPiece] = field(default_factory=list[CallPiece])


_State: TypeAlias = Literal["text", "name", "arguments", "between"]


class CallReader:
    """`feed` an answer's text as it comes; what may still become a call is held back until that is certain."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._held = ""
        self._state: _State = "text"
        self._calls = 0
        self._spoken = False
        self._depth = 0
        self._quoted = False
        self._escaped = False

    @property
    def called(self) -> bool:
        """Whether it had a call, and the last one is whole."""
        return self._calls > 0 and self._state == "between"

    def feed(self, text: str, *, last: bool = False) -> Pieces:
        """What this text adds; with `last` nothing is held back."""
        self._held += text
        found = Pieces()
        steps = {"text": self._text, "name": self._name, "arguments": self._arguments, "between": self._between}
        while steps[self._state](found, last):
            continue
        return found

    def _text(self, found: Pieces, last: bool) -> bool:
        form, held = self._form, self._held
        at = held.find(form.head) if form.several else 0 if held.startswith(form.head) and not self._spoken else -1
        if at >= 0:
            found.text += held[:at].rstrip()
            self._held, self._state = held[at + len(form.head) :], "name"
            return True
        kept = 0 if last else self._possible()
        found.text += held[: len(held) - kept]
        self._held = held[len(held) - kept :]
        self._spoken = self._spoken or bool(found.text)
        return False

    def _possible(self) -> int:
        """How many characters at the end may be the beginning of a call, with the white space before it."""
        head, held = self._form.head, self._held
        if not self._form.several:
            return len(held) if head.startswith(held) and not self._spoken else 0
        begun = next((k for k in range(min(len(head), len(held)), 0, -1) if head.startswith(held[-k:])), 0)
        return len(held) - len(held[: len(held) - begun].rstrip())

    def _name(self, found: Pieces, _last: bool) -> bool:
        name, between, rest = self._held.partition(f'", "{self._form.key}": ')
        if not between:
            return False
        found.calls.append(CallPiece(self._calls, name=name))
        self._calls += 1
        self._held, self._state = rest, "arguments"
        return True

    def _arguments(self, found: Pieces, _last: bool) -> bool:
        end = next((i + 1 for i, char in enumerate(self._held) if self._closes(char)), len(self._held))
        piece, self._held = self._held[:end], self._held[end:]
        if piece:
            found.calls.append(CallPiece(self._calls - 1, piece))
        if not piece or self._depth:
            return False
        self._state = "between"
        return True

    def _closes(self, char: str) -> bool:
        """Whether this character of a JSON text closes its outermost object."""
        if self._quoted:
            self._quoted = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
            return False
        self._quoted = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        return char in "}]" and not self._depth

    def _between(self, _found: Pieces, _last: bool) -> bool:
        at = self._held.find(self._form.head) if self._form.several else -1
        if at < 0:
            return False
        self._held, self._state = self._held[at + len(self._form.head) :], "name"
        return True


def calls_in(pieces: Pieces) -> list[tuple[str, str]]:
    """Name and arguments of every call, in their order."""
    calls: dict[int, list[Any]] = {}
    for piece in pieces.calls:
        if piece.name is not None:
            calls[piece.index] = [piece.name, ""]
        calls[piece.index][1] += piece.arguments
    return [(name, arguments) for name, arguments in calls.values()]
