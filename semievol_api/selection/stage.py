"""Adaptive selection: keep the pseudo-labels that the model is least unsure of (paper §3.4).

Joins evidence to candidates and hands arrays to `selection/`. Knows nothing of prompts or providers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import UNSET, structs

from semievol_api.annotate.annotators import Crew
from semievol_api.annotate.pooled import factors_of_crew
from semievol_api.annotate.requests import Corpus
from semievol_api.config.method import JustifySettings, SelectSettings
from semievol_api.data.schemas import as_labels
from semievol_api.data.table import ChunkedTable
from semievol_api.errors import StageError
from semievol_api.records import Evidence, Example
from semievol_api.selection.columns import SelectionInputs, cross_corrections, labels_table, pooled_answers
from semievol_api.selection.rule_percentile import percentile
from semievol_api.selection.rule_ranking import at_random
from semievol_api.selection.stage_official import official
from semievol_api.selection.stage_pooled import by_pool
from semievol_api.selection.values import BoolArray, FloatArray, Selected
from semievol_api.selection.warnings import cut_answers, few_alternatives
from semievol_api.store.artifacts import Selection
from semievol_api.store.fingerprints import stage
from semievol_api.store.verdict import PaperSummary
from semievol_api.tasks import Task

MAX_MISSING_SHARE = 0.05
"""Above this share of answers without log-probabilities the percentile rule would rank noise (method §3)."""


@dataclass(frozen=True)
class Candidate:
    """The answer that an example would be given, and its score; None where there is none."""

    example: Example
    answer: str | None
    mean_nll: float | None
    reason: str


@stage("select")
async def select(corpus: Corpus, crew: Crew, inputs: SelectionInputs, settings: SelectSettings, seed: int) -> Selection:
    """Keep the pseudo-labels that the rule chooses: by the crew's pooled probability, or as the paper does.

    Raises:
        StageError: more than 5 % of the answered examples have no log-probabilities.
    """
    chosen = await _chosen(corpus, crew, inputs, settings, seed)
    shortened = 0
    for part in inputs.annotations.parts.tables(["dropped_shots"]):
        shortened += int(np.count_nonzero(part["dropped_shots"].to_numpy()))
    lost = (
        *cut_answers("answers of the annotators", "[annotate] max_tokens", inputs.annotations),
        *cut_answers("answers of the judge", "[justify] max_tokens", inputs.final),
        *few_alternatives(crew),
    )
    summary = structs.replace(chosen.summary, shortened_prompts=shortened, lost=lost or UNSET)
    return replace(chosen, summary=summary)


async def _chosen(
    corpus: Corpus, crew: Crew, inputs: SelectionInputs, settings: SelectSettings, seed: int
) -> Selection:
    if settings.rule == "official-2025":
        return official(corpus, crew, inputs.annotations, inputs.final, settings)
    if settings.score == "mean_nll":
        return by_mean_nll(corpus, inputs, settings, seed)
    shares = settings.label_shares == "labeled"
    if corpus.folds.cross:
        fitted = settings.weights == "fitted"
        by_fold = cross_corrections(corpus, crew, inputs, label_shares=shares, weights=fitted)
        pool = pooled_answers(corpus, crew, inputs, by_fold=by_fold)
    else:
        factors = factors_of_crew(corpus, crew, inputs.annotations, inputs.reviewed) if shares else None
        pool = pooled_answers(corpus, crew, inputs, factors)
    return await by_pool(corpus, crew, pool, inputs, settings, seed)


def by_mean_nll(corpus: Corpus, inputs: SelectionInputs, settings: SelectSettings, seed: int = 0) -> Selection:
    """Keep the examples whose `mean_nll` is at most the percentile of the pool (paper §3.4), or as many at random."""
    unlabeled = corpus.unlabeled
    tables = [
        _columns(_candidates(corpus.task, inputs, unlabeled.part(place), place)) for place in range(unlabeled.n_parts)
    ]
    found = ChunkedTable.of(*tables)
    _refuse_missing_logprobs(found)
    scores = _floats(found["mean_nll"])
    if settings.rule == "random":
        chosen = at_random(scores, found.values("example_id"), settings.share, seed)
    else:
        pool = scores
        if settings.pool == "labeled":
            last = corpus.pool("labeled").n_parts - 1
            pool = _floats(_columns(_candidates(corpus.task, inputs, corpus.data.labeled, last))["mean_nll"])
        chosen = _rule(scores, pool, settings)
    masks = [chosen.kept[rows] for _, rows in found.places()]
    kept = [_kept(corpus.task, table, mask) for table, mask in zip(tables, masks, strict=True)]
    summary = PaperSummary(
        rule=settings.rule,
        share=settings.share,
        threshold_mean_nll=chosen.threshold,
        unlabeled=len(found),
        answered=len(found) - found["answer"].null_count,
        kept=sum(map(len, kept)),
        messages=chosen.messages,
    )
    marked = [_marked(table, mask) for table, mask in zip(tables, masks, strict=True)]
    return Selection(kept=ChunkedTable.of(*kept).typed(as_labels), scores=ChunkedTable.of(*marked), summary=summary)


def _candidates(task: Task, inputs: SelectionInputs, examples: Sequence[Example], place: int) -> list[Candidate]:
    annotated, final = inputs.annotations.answers(place), inputs.final.answers(place)
    return [_candidate(task, e, annotated.get(e.id, []), final.get(e.id, []), inputs.justify) for e in examples]


def _rule(scores: FloatArray, pool: FloatArray, settings: SelectSettings) -> Selected:
    """The paper's percentile over the unlabelled pool, or its variants (ambiguities 4 and 7)."""
    reference = None if pool is scores else pool
    return percentile(scores, settings.share, reference=reference, interpolation=settings.interpolation)


def _columns(candidates: Sequence[Candidate]) -> pa.Table:
    """`mean_nll` is null where there is no answer or no score."""
    return pa.table(
        {
            "example_id": pa.array([c.example.id for c in candidates], pa.string()),
            "answer": pa.array([c.answer for c in candidates], pa.string()),
            "mean_nll": pa.array([None if c.answer is None else c.mean_nll for c in candidates], pa.float64()),
            "reason": pa.array([c.reason for c in candidates], pa.string()),
        }
    )


def _floats(column: pa.ChunkedArray) -> FloatArray:
    """float64, NaN for null."""
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _kept(task: Task, table: pa.Table, mask: BoolArray) -> pa.Table:
    """The pseudo-labels among one part's candidates."""
    kept = table.filter(pa.array(mask))
    return labels_table(task, *(kept[name].to_pylist() for name in ("example_id", "answer", "mean_nll")))


def _marked(table: pa.Table, mask: BoolArray) -> pa.Table:
    reasons = ["kept" if keep else why for keep, why in zip(mask, table["reason"].to_pylist(), strict=True)]
    return pa.table(
        {
            **{name: table[name] for name in ("example_id", "answer", "mean_nll")},
            "kept": pa.array(mask, pa.bool_()),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _candidate(
    task: Task, example: Example, rows: list[Evidence], final: list[Evidence], settings: JustifySettings
) -> Candidate:
    """The justified answer, else the first annotator's or the majority's; its own log-probabilities score it."""
    if not final and settings.unjustified == "majority":
        return _majority(task, example, rows)
    first = next((row for row in rows if row.answer is not None), None)
    chosen = final[0] if final else first
    if chosen is None or chosen.answer is None:
        reason = "no annotator answered" if first is None else "the justification gave no answer"
        return Candidate(example, None, None, reason)
    scored = first if settings.score == "first-annotator" and first is not None else chosen
    if scored.mean_nll is None:
        return Candidate(example, chosen.answer, None, "no log-probabilities")
    return Candidate(example, chosen.answer, scored.mean_nll, "above the threshold")


def _majority(task: Task, example: Example, rows: list[Evidence]) -> Candidate:
    """The answer that most annotators gave, the surest of equally frequent ones."""
    groups: list[list[Evidence]] = []
    for row in (row for row in rows if row.answer is not None):
        same = next((group for group in groups if task.equal(group[0].answer or "", row.answer or "")), None)
        if same is None:
            groups.append([row])
        else:
            same.append(row)
    if not groups:
        return Candidate(example, None, None, "no annotator answered")
    scored = [(group, [row.mean_nll for row in group if row.mean_nll is not None]) for group in groups]
    means = [(group, float(np.mean(nlls)) if nlls else None) for group, nlls in scored]
    voters, mean = min(means, key=lambda pair: (-len(pair[0]), np.inf if pair[1] is None else pair[1]))
    reason = "no log-probabilities" if mean is None else "above the threshold"
    return Candidate(example, voters[0].answer, mean, reason)


def _refuse_missing_logprobs(candidates: ChunkedTable[Any]) -> None:
    answered = len(candidates) - candidates["answer"].null_count
    missing = candidates["mean_nll"].null_count - candidates["answer"].null_count
    if missing > MAX_MISSING_SHARE * answered:
        raise StageError(
            f"select: {missing} of {answered} answers came without log-probabilities, and the percentile "
            f"rule ranks by them. The server ignores `logprobs` for this model; choose another student in [roles]."
        )
