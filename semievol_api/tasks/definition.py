"""A task as the user writes it in TOML: frozen, unknown keys refused.

Holds the table of task kinds. Knows nothing of how prompts are worded or answers read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from semievol_api.cassettes.scrub import find_key_shapes
from semievol_api.config.method import Settings
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks.kind import TaskKind
from semievol_api.tasks.kind_choice import MultipleChoice
from semievol_api.tasks.kind_json import JsonObject, JsonSettings
from semievol_api.tasks.kind_label_set import LabelSet, LabelSetSettings
from semievol_api.tasks.kind_labels import Labels
from semievol_api.tasks.kind_number import Number, NumberSettings

KINDS: Mapping[str, TaskKind] = {
    "multiple_choice": MultipleChoice(),
    "labels": Labels(),
    "label_set": LabelSet(),
    "number": Number(),
    "json": JsonObject(),
    "free_text": TaskKind(),
}
"""Every kind of task by its name in a task file."""


class Columns(Settings):
    """`[columns]`: where a row keeps what. A dot reaches into a nested column, such as `choices.text`."""

    question: str = "question"
    options: str | tuple[str, ...] | None = None
    """One column that holds a list (or a JSON list), or one column per option, in order."""
    answer: str | None = "answer"
    context: str | None = None
    """A passage that stands before the question; rows that share it stay in one split."""
    id: str | None = None
    group: str | None = None
    """Rows of one group (an article, a conversation) stay in one split. Default: the context."""
    category: str | None = None
    messages: str | None = None
    """A conversation: a list of turns as in chat files, or a text that is the user's only turn. Where its last turn is
    the assistant's, that is the answer. The model is shown the turns before it and nothing around them."""
    indicators: tuple[str, ...] = ()
    """For `label_set`: one column per label, named like it, that holds 1 where the label fits and 0 where not."""


class Archive(Settings):
    """`[hub.archive]`: a text file inside a zip of the dataset's repository, one row a line."""

    path: str
    member: str
    separator: str
    """Split at its last occurrences, so that it may occur in the first column."""
    encoding: str = "utf-8"
    names: tuple[str, ...]


class Hub(Settings):
    """`[hub]`: where a public dataset lies, pinned, and how it is split."""

    dataset: str
    revision: str
    config: str | None = None
    splits: Annotated[tuple[str, ...], Field(min_length=1)]
    """The dataset's own splits, concatenated in this order before ours are drawn."""
    columns: Columns
    seed: int = 0
    ratio: tuple[float, float, float] = (2, 6, 2)
    """labelled : unlabelled : test."""
    archive: Archive | None = None
    """Where the repository's data is no table that the `datasets` library reads by itself."""


@fingerprinted(
    "name",
    "kind",
    "instruction",
    "system",
    "answer_format",
    "shots_show_options",
    "labels",
    "aliases",
    "first_option_digit",
    "number",
    outside=("columns", "hub"),
)
class TaskDefinition(Settings):
    """A whole task file."""

    name: Annotated[str, Field(min_length=1)]
    kind: str
    """A name of `KINDS`."""
    instruction: str
    """Of conversations it is the system turn of those that have none of their own, and may be empty."""
    system: str | None = None
    """A system turn of the user's own, with or without shots; solved examples follow it."""
    answer_format: Annotated[str | None, Field(min_length=1)] = None
    """The word that stands after `Answer:` in the request; default: LETTER, LABEL or VALUE, by kind."""
    shots_show_options: bool = True
    labels: tuple[str, ...] = ()
    """`labels`: the closed set. `multiple_choice`: the options of every row, where a file has no column of them."""
    aliases: Mapping[str, str] = {}
    """Other spellings of a label, such as `pos = "positive"`."""
    first_option_digit: Literal[0, 1] = 1
    """Where a file names answers by position: is the first option 0 or 1?"""
    number: NumberSettings = NumberSettings()
    json_: JsonSettings = Field(default=JsonSettings(), alias="json")
    label_set: LabelSetSettings = LabelSetSettings()
    columns: Columns = Columns()
    hub: Hub | None = None

    @field_validator("instruction", "system")
    @classmethod
    def _no_outer_space(cls, text: str | None) -> str | None:
        return text.strip() if text else text

    @field_validator("instruction", "system")
    @classmethod
    def _no_keys(cls, text: str | None) -> str | None:
        if text and find_key_shapes(text.encode()):
            raise ValueError(
                "it holds what looks like an API key, and every prompt would carry it to the vendor; take it out, and "
                "revoke it if it is one"
            )
        return text

    @field_validator("kind")
    @classmethod
    def _a_known_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"there is no kind of task {kind!r}; the kinds are {', '.join(KINDS)}")
        return kind

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> TaskDefinition:
        fault = KINDS[self.kind].fault(self) or self._fault_of_turns()
        if fault is not None:
            raise ValueError(fault)
        if len(set(map(str.casefold, self.labels))) < len(self.labels):
            raise ValueError("two labels are the same")
        unknown = sorted(set(self.aliases.values()) - set(self.labels))
        if unknown:
            raise ValueError(f"the alias of {unknown[0]!r} points to no label")
        return self

    def _fault_of_turns(self) -> str | None:
        """What is wrong between the instruction and the turns that a model is shown."""
        if self.columns.messages is None:
            return None if self.instruction else "the instruction is empty; say what is asked of a model"
        if KINDS[self.kind].lettered:
            return "conversations have no lettered options; make it a task of kind 'labels'"
        return "the instruction is the system turn of conversations; remove the key 'system'" if self.system else None
