"""A task as the user writes it in TOML: frozen, unknown keys refused.

Knows nothing of how prompts are worded or answers read; it only holds what the file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from semievol_api.cassettes.scrub import find_key_shapes
from semievol_api.config.method import Settings
from semievol_api.store.fingerprints import fingerprinted

Kind: TypeAlias = Literal["multiple_choice", "labels", "number", "free_text"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The names of a multiple-choice question's options, in order."""

ANSWER_FORMATS: dict[Kind, str] = {
    "multiple_choice": "LETTER",
    "labels": "LABEL",
    "number": "VALUE",
    "free_text": "VALUE",
}


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


@fingerprinted("tolerance", "absolute_tolerance", "decimal", "percent", "scale_words")
class NumberSettings(Settings):
    """`[number]`: how a number is read and compared."""

    tolerance: float = Field(default=0.01, ge=0)
    """Relative to the gold number (paper §4.1: within 1 %)."""
    absolute_tolerance: float = Field(default=0.0, ge=0)
    """Matters for a gold number of 0."""
    decimal: Literal[".", ","] = "."
    percent: Literal["fraction", "points"] = "fraction"
    """Is `15%` the number 0.15 or the number 15?"""
    scale_words: bool = True
    """Is `1.2 million` the number 1200000, or 1.2 in the unit that everybody knows?"""


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
    kind: Kind
    instruction: Annotated[str, Field(min_length=1)]
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

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> TaskDefinition:
        if self.kind == "labels" and len(self.labels) < 2:
            raise ValueError("a task of kind 'labels' needs at least two labels")
        if self.kind in ("number", "free_text") and self.labels:
            raise ValueError(f"a task of kind {self.kind!r} has no labels; remove them or change the kind")
        if len(set(map(str.casefold, self.labels))) < len(self.labels):
            raise ValueError("two labels are the same")
        unknown = sorted(set(self.aliases.values()) - set(self.labels))
        if unknown:
            raise ValueError(f"the alias of {unknown[0]!r} points to no label")
        return self
