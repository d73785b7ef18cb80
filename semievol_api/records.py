"""The values that pass between rooms: frozen, typed, vendor-free.

An `Example` becomes a `Prompt`, a prompt a `Completion`, a completion an `Evidence` row; pooled and selected
evidence becomes a `PseudoLabel`; examples and pseudo-labels become `TrainingExample`s.
Knows nothing of files, providers, prompts' wording or how a value is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semievol_api.store.fingerprints import fingerprinted

FloatArray: TypeAlias = NDArray[np.float32]
"""A one-dimensional float32 array."""
FloatMatrix: TypeAlias = NDArray[np.float32]
"""A two-dimensional float32 array, one row per text."""

UNSEEN_LOGPROB = -9998.0
"""Servers write -9999 for a token that they did not rank; anything down here, and NaN, counts as unseen."""

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
Finish: TypeAlias = Literal["stop", "length", "refused", "failed"]
"""Why a completion ended. `failed` stands for a request that gave no completion at all."""


@fingerprinted("id", "question", "options", "answer", "group", "category")
@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One item of the user's data.

    `answer` is the gold answer in the task's canonical form (a letter, a label, a number as text), or None.
    `hidden_answer` is gold found in the unlabelled file: no stage but the oracle report may read it, and no
    fingerprint contains it. `chat` is a conversation as its file has it, in JSON (`semievol_api.tasks.chat.Chat`),
    where that is what a model is shown; `question` is then its text.
    """

    id: str
    question: str
    options: tuple[str, ...] = ()
    answer: str | None = None
    group: str | None = None
    category: str | None = None
    chat: str | None = None
    hidden_answer: str | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn; `more` is a JSON object of its other keys, such as `tool_calls`, empty where it has none."""

    role: Role
    content: str
    more: str = ""

    @property
    def body(self) -> dict[str, object]:
        """The turn as a chat API takes it."""
        if not self.more:
            return {"role": self.role, "content": self.content}
        more = json.loads(self.more)
        return {
            "role": self.role,
            "content": None if "tool_calls" in more and not self.content else self.content,
            **more,
        }


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is shown: chat turns, and optionally the first words of its own answer (`prefill`).

    `tools` is the JSON list of the tools that the model may call, empty where there are none.
    """

    messages: tuple[Message, ...]
    prefill: str | None = None
    tools: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, as the server counted them; `cached` is the part of `prompt` read from a cache."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached)


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled answer.

    `token_logprobs` is float32, shape (tokens,), natural log, of the chosen tokens without the end-of-turn
    token; None where the server gave none, NaN for a token that it left out. `tokens` are their texts, wherever there
    are log-probabilities, and `top` their alternatives (text, log-probability), where they were asked for.
    """

    text: str
    finish: Finish
    token_logprobs: FloatArray | None = None
    tokens: tuple[str, ...] | None = None
    top: tuple[tuple[tuple[str, float], ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one annotator said about one example: one row of an evidence table.

    `permutation[i]` is the canonical index of the option shown at position i; `answer` is canonical already.
    `option_probs` are probabilities over the canonical options, `answer_logprob` and `mean_nll` are natural-log
    quantities, `verbal` and `p_true` probabilities that the answer is right, in the model's words and by its own check;
    None means that the annotator or its server gave none. An `answer` of None is an abstention.
    `dropped_shots` counts the demonstrations that were left out because the prompt did not fit the context.
    `field_probs` are the probabilities of the answer's fields, in the task's order, where answers consist of fields.
    """

    example_id: str
    annotator_id: str
    prompt_hash: str
    text: str
    answer: str | None
    finish: Finish
    permutation: tuple[int, ...] | None = None
    option_probs: tuple[float, ...] | None = None
    answer_logprob: float | None = None
    mean_nll: float | None = None
    verbal: float | None = None
    p_true: float | None = None
    field_probs: tuple[float, ...] | None = None
    usage: Usage = Usage()
    failure: str | None = None
    dropped_shots: int = 0

    @property
    def confidence(self) -> float:
        """The model's probability of its answer, in [0, 1]: of the answer's own tokens, or the geometric mean over all.

        NaN for an abstention or without log-probabilities.
        """
        if self.answer is None or (self.answer_logprob is None and self.mean_nll is None):
            return math.nan
        return math.exp(self.answer_logprob if self.answer_logprob is not None else -(self.mean_nll or 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoLabel:
    """A label that the method made for an unlabelled example.

    `score` is the confidence that the selection rule ranked (higher is better); `text` is the response to
    train on.
    """

    example_id: str
    answer: str
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExample:
    """One line of a fine-tuning file: chat turns that end with the assistant's, and a weight in (0, 1].

    `tools` is the JSON list of the tools that stand in the line.
    """

    messages: tuple[Message, ...]
    weight: float = 1.0
    tools: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Accuracy of one model on one test set; `correct[i]` belongs to `example_ids[i]`."""

    model: str
    example_ids: tuple[str, ...]
    answers: tuple[str | None, ...]
    correct: tuple[bool, ...]
    usage: Usage = Usage()

    @property
    def accuracy(self) -> float:
        """Share of correct answers in [0, 1]; abstentions count as wrong. NaN for an empty set."""
        return float(np.mean(self.correct)) if self.correct else float("nan")


AlertKind: TypeAlias = Literal[
    "one-class", "missing-class", "drift", "uninformative", "ambiguous", "vanished-class", "shifted-classes"
]
"""What is wrong: with the labels, the pool, the answers, the task itself, or the selection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One finding about labels, pool or selection: what was seen, in which numbers, and what to try."""

    kind: AlertKind
    message: str


JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""Anything that JSON can say."""
StringMap: TypeAlias = Mapping[str, str]
