"""Selection where answers consist of fields: what the rule counts, and, where a task allows it, single fields.

Without `[json] partial` a rule sees whole answers, which are right where all their fields are. With it a rule sees
every field that some answer has by itself, and an answer keeps those that pass. Knows nothing of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from semievol_api.annotate.pooled import AnnotatorProbs
from semievol_api.selection.columns import FIELDS_COLUMN, PooledAnswers
from semievol_api.selection.rules import select as apply_rule
from semievol_api.selection.values import BoolArray, Calibration, FloatArray, RuleSettings, Selected
from semievol_api.tasks import Task


@dataclass(frozen=True, eq=False)
class FieldChoice:
    """The answers of which some field was kept, the fields' calibration, and bool (m, fields): which were kept."""

    selected: Selected
    calibration: Calibration
    kept: BoolArray


def choose_fields(task: Task, pool: PooledAnswers, settings: RuleSettings) -> FieldChoice:
    """Apply a rule to every field that an answer has; fields that it does not have are neither kept nor counted."""
    scores = np.array(pool.table[FIELDS_COLUMN].to_pylist(), dtype=np.float64).reshape(-1, len(task.fields))
    has, names = _has(task, pool.table["answer"].to_pylist()), list(pool.ids)
    ids = [f"{names[row]}\x1f{column}" for row, column in np.argwhere(has).tolist()]
    calibration = _calibration(task, pool.calibrating)
    chosen = apply_rule(scores[has], ids, calibration, settings)
    kept: BoolArray = np.zeros_like(has)
    kept[has] = chosen.kept
    answers: BoolArray = np.asarray(kept.any(axis=1), dtype=np.bool_)
    return FieldChoice(replace(chosen, kept=answers), calibration, kept)


def reduced(task: Task, answer: str, kept: BoolArray) -> str:
    """An answer with the kept fields only; `kept` bool (fields,)."""
    parts = task.parts(answer)
    return task.joined({name: parts[name] for name, keep in zip(task.fields, kept.tolist(), strict=True) if keep})


def what_is_right(task: Task, kept: BoolArray | None) -> tuple[str, ...]:
    """What a rule's share of false labels counts, as a sentence; none where answers are one thing."""
    if not task.fields:
        return ()
    if kept is None:
        how = "its least certain field" if task.weakest else "the product over its fields says"
        return (f"A label counts as right where all of its {len(task.fields)} fields are, and is as certain as {how}.",)
    return (
        f"The rule counted single fields and kept {np.count_nonzero(kept)}; a label lacks those that did not pass "
        f"([json] partial). The fields of one answer err together, so nothing is promised.",
    )


def field_verdicts(task: Task, answer: str | None, gold: str) -> Mapping[str, bool]:
    """Of each field of the task whether the answer has it right; a field that neither has is right."""
    ours, theirs = ({} if text is None else task.parts(text) for text in (answer, gold))
    return {name: task.same(name, ours.get(name, ""), theirs.get(name, "")) for name in task.fields}


def _has(task: Task, answers: list[str | None]) -> BoolArray:
    """bool (m, fields): which fields each answer has."""
    parts = [{} if answer is None else task.parts(answer) for answer in answers]
    return np.array([[name in some for name in task.fields] for some in parts], dtype=np.bool_).reshape(
        len(answers), len(task.fields)
    )


def _calibration(task: Task, found: AnnotatorProbs) -> Calibration:
    answers = [found.answer(place) for place in range(len(found.examples))]
    has = _has(task, answers)
    verdicts = [field_verdicts(task, a, e.answer or "{}") for a, e in zip(answers, found.examples, strict=True)]
    wrong = ~np.array([list(one.values()) for one in verdicts], dtype=np.bool_).reshape(has.shape)
    assert found.field_scores is not None
    scores: FloatArray = found.field_scores
    return Calibration(scores=scores[has], wrong=wrong[has])
