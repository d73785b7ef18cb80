"""Task kind `json`: every answer is a JSON object with named fields.

    [json.fields]
    date = "text"
    people = "number"

An answer is right where all its fields are; agreement and confidence are also told field by field. Knows nothing of
files, models or other kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from semievol_api.config.method import Settings
from semievol_api.records import Example, JsonValue
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks.kind import TaskKind
from semievol_api.tasks.kind_number import NumberSettings, read_number
from semievol_api.tasks.replies import comparable

if TYPE_CHECKING:
    from semievol_api.tasks.definition import TaskDefinition

FieldRule: TypeAlias = Literal["exact", "text", "number", "set"]
"""How two values of a field are compared: as they stand; but for case, spacing and closing punctuation; as numbers
(with the task's tolerance); as lists whose order and repetitions do not count."""


@fingerprinted("fields", "pool", "partial", "style")
class JsonSettings(Settings):
    """`[json]`: the fields of the answers, and what a confidence for each of them comes to."""

    fields: Mapping[str, FieldRule] = {}
    """How each field is compared. A dot reaches into a nested object, such as `address.city`; a dot of a name is
    written with a backslash before it."""
    pool: Literal["weakest", "product"] = "weakest"
    """The confidence of an answer: that of its least certain field, or the product over its fields."""
    partial: bool = False
    """A pseudo-label may leave out fields that are not certain: only where a missing field is no fault."""
    style: Literal["spaced", "compact", "indented"] = "spaced"
    """How pseudo-labels are written: `{"a": 1}`, `{"a":1}`, or over several lines."""


class JsonObject(TaskKind):
    """The canonical answer is a JSON object in the order of the task's fields; empty fields are left out."""

    opening = "You answer with JSON."
    instruction = "Answer with one JSON object."
    answer_word = "JSON"
    placeholders = ("{}", '{"value": "other"}')

    def fault(self, task: TaskDefinition) -> str | None:
        """A task file without fields is refused."""
        if not task.json_.fields:
            return "a task of kind 'json' names its fields under [json.fields], such as date = \"text\""
        return super().fault(task)

    def listed(self, task: TaskDefinition, example: Example, order: Sequence[int] | None) -> str:
        """The fields on one line."""
        return f"Fields: {', '.join(task.json_.fields)}"

    def parse(self, task: TaskDefinition, text: str, example: Example, order: Sequence[int] | None) -> str | None:
        """The object that a response holds, behind its last `Answer:` where there is one."""
        marked = _MARKER.split(text)
        found = list(_objects(marked[-1]))
        if len(marked) > 1 and found:
            return _canonical(task, found[0])
        distinct = {_canonical(task, one) for one in found}
        return distinct.pop() if len(distinct) == 1 else None

    def read_gold(self, task: TaskDefinition, cell: str, example: Example) -> str | None:
        """The object of a cell, which holds nothing else."""
        found = read_object(cell)
        return None if found is None else _canonical(task, found)

    def why_refused(self, task: TaskDefinition, cell: str, example: Example) -> str:
        """The end of a sentence about a cell that `read_gold` could not read."""
        return 'is no JSON object. Write it with double quotes, such as {"name": "Ada"}.'

    def equal(self, task: TaskDefinition, answer: str, gold: str) -> bool:
        """Whether all fields are equal; tolerance is the gold's."""
        if answer == gold:
            return True
        ours, theirs = self.parts(task, answer), self.parts(task, gold)
        return ours.keys() == theirs.keys() and all(self.same(task, name, ours[name], theirs[name]) for name in ours)

    def reply(self, task: TaskDefinition, answer: str) -> str:
        """The object as the task's own replies are written."""
        value = json.loads(answer)
        if task.json_.style == "indented":
            return json.dumps(value, ensure_ascii=False, indent=2)
        return _dumps(value, (",", ":")) if task.json_.style == "compact" else answer

    def fields(self, task: TaskDefinition) -> tuple[str, ...]:
        """The task's fields."""
        return tuple(task.json_.fields)

    def parts(self, task: TaskDefinition, answer: str) -> Mapping[str, str]:
        """The JSON text of each field's value; fields that the task does not name are among them."""
        return {name: _dumps(value) for name, value in _flat(json.loads(answer)).items()}

    def joined(self, task: TaskDefinition, parts: Mapping[str, str]) -> str:
        """The object of such values."""
        return _dumps(_nested({name: json.loads(text) for name, text in parts.items()}))

    def same(self, task: TaskDefinition, field: str, value: str, gold: str) -> bool:
        """By the field's own rule."""
        if value == gold:
            return True
        rule = task.json_.fields.get(field, "exact")
        ours, theirs = json.loads(value), json.loads(gold)
        if rule == "set":
            return _members(ours) == _members(theirs)
        if rule == "number":
            return _same_number(ours, theirs, task.number)
        return rule == "text" and comparable(_plain(ours)) == comparable(_plain(theirs))

    def schema(self, task: TaskDefinition) -> str:
        """An object with any of the task's fields and no others."""
        tree: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
        for dotted, rule in task.json_.fields.items():
            here, names = tree, _path(dotted)
            for name in names[:-1]:
                inner = {"type": "object", "properties": {}, "additionalProperties": False}
                here = here["properties"].setdefault(name, inner)
            here["properties"][names[-1]] = {"type": list(_TYPES[rule])}
        return _dumps(tree)

    def weakest(self, task: TaskDefinition) -> bool:
        """As `[json] pool` says."""
        return task.json_.pool == "weakest"

    def spans(self, task: TaskDefinition, text: str) -> Mapping[str, tuple[int, int]]:
        """Where each field stands in a response, from the quote of its name to the end of its value."""
        start = max((found.end() for found in _MARKER.finditer(text)), default=0)
        return dict(_members_at(text, text.find("{", start)))


_TYPES: Mapping[FieldRule, tuple[str, ...]] = {
    "text": ("string",),
    "number": ("number", "string"),
    "set": ("array",),
    "exact": ("string", "number", "boolean", "array"),
}
"""What a field of each rule may hold."""
_MARKER = re.compile(r"(?<![a-z])answer[\s*_]*:", re.IGNORECASE)
_DECODER = json.JSONDecoder()
_NAME = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*')


def read_object(text: str) -> dict[str, JsonValue] | None:
    """The JSON object that a text is; None where it is anything else."""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return cast("dict[str, JsonValue]", found) if isinstance(found, dict) else None


def alike(ours: Mapping[str, JsonValue], theirs: Mapping[str, JsonValue]) -> bool:
    """Whether two objects say the same where no task tells how: texts as texts, lists as sets, all else exactly."""
    a, b = _flat(ours), _flat(theirs)
    return a.keys() == b.keys() and all(_members(a[name]) == _members(b[name]) for name in a)


def field_rules(objects: Iterable[Mapping[str, JsonValue]]) -> dict[str, FieldRule]:
    """How fields are best compared, from the values that labelled rows have; in the order of their first use.

    Lists are sets, numbers are numbers, texts are compared as texts; a field with values of several kinds, or of true
    and false, exactly.
    """
    rules: dict[str, FieldRule] = {}
    for one in objects:
        for name, value in _flat(one).items():
            rule: FieldRule = (
                "set" if isinstance(value, list)
                else "text" if isinstance(value, str)
                else "exact" if isinstance(value, bool)
                else "number"
            )  # fmt: skip
            rules[name] = rule if rules.get(name, rule) == rule else "exact"
    return rules


def _objects(text: str) -> Iterator[dict[str, JsonValue]]:
    """The JSON objects in a text that stand in no other one."""
    at = text.find("{")
    while at >= 0:
        try:
            found, end = _DECODER.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            at = text.find("{", at + 1)
            continue
        yield found
        at = text.find("{", end)


def _canonical(task: TaskDefinition, found: Mapping[str, JsonValue]) -> str:
    """The task's fields in its order, others behind them by name; empty ones left out."""
    order = {name: place for place, name in enumerate(task.json_.fields)}
    flat = _flat(found)
    return _dumps(_nested({name: flat[name] for name in sorted(flat, key=lambda n: (order.get(n, len(order)), n))}))


def _flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, JsonValue]:
    """Values by dotted name; null, empty texts, lists and objects say nothing, and are left out."""
    flat: dict[str, JsonValue] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{_escaped(name)}.")
        elif value is not None and value != "" and value != []:
            flat[f"{prefix}{_escaped(name)}"] = value
    return flat


def _nested(flat: Mapping[str, JsonValue]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = _path(name)
        here = nested
        for part in outer:
            inner = here.setdefault(part, {})
            here = inner if isinstance(inner, dict) else here
        here[last] = value
    return nested


def _escaped(name: str) -> str:
    """A name as a part of a dotted one."""
    return name.replace("\\", "\\\\").replace(".", "\\.")


def _path(dotted: str) -> list[str]:
    """The names that a dotted one stands for."""
    names, rest = [""], iter(dotted)
    for character in rest:
        if character == ".":
            names.append("")
        else:
            names[-1] += next(rest, "") if character == "\\" else character
    return names


def _dumps(value: object, separators: tuple[str, str] = (", ", ": ")) -> str:
    return json.dumps(value, ensure_ascii=False, separators=separators)


def _members(value: JsonValue) -> frozenset[str]:
    """A list's members, texts as they are compared; one value is a list of one."""
    members = value if isinstance(value, list) else [value]
    return frozenset(comparable(member) if isinstance(member, str) else _dumps(member) for member in members)


def _plain(value: JsonValue) -> str:
    return value if isinstance(value, str) else _dumps(value)


def _same_number(value: JsonValue, gold: JsonValue, settings: NumberSettings) -> bool:
    """Within the gold number's tolerance; a text may hold the number."""
    read = [read_number(_plain(one), settings) for one in (value, gold)]
    if read[0] is None or read[1] is None:
        return False
    ours, theirs = Decimal(read[0]), Decimal(read[1])
    within = max(Decimal(str(settings.tolerance)) * abs(theirs), Decimal(str(settings.absolute_tolerance)))
    return abs(ours - theirs) <= within


def _members_at(text: str, at: int, prefix: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """The places of the members of the object that begins at a place, nested ones by their dotted names."""
    at += 1
    while at > 0 and (name := _NAME.match(text, at)):
        key = f"{prefix}{_escaped(json.loads(name[1]))}"
        try:
            value, end = _DECODER.raw_decode(text, name.end())
        except (json.JSONDecodeError, RecursionError):
            return
        if isinstance(value, dict):
            yield from _members_at(text, name.end(), f"{key}.")
        else:
            yield key, (name.start(1), end)
        comma = re.compile(r"\s*,").match(text, end)
        if comma is None:
            return
        at = comma.end()
