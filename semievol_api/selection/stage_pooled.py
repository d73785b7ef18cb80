"""Selection by the crew's pooled probability, with what it promises and what should worry the user (method §3-4).

Joins evidence to arrays, hands them to `selection/`, and writes down what came of it. Knows nothing of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import UNSET, structs

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.pooled import AnnotatorProbs, wrong_answers
from semievol_api.annotate.requests import Corpus
from semievol_api.config.method import SelectSettings
from semievol_api.data.schemas import as_labels
from semievol_api.data.table import ChunkedTable
from semievol_api.selection.columns import (
    COUNT_COLUMN,
    FIELDS_COLUMN,
    PooledAnswers,
    SelectionInputs,
    labels_table,
    ranking,
)
from semievol_api.selection.promises import RealisedRange, error_above_cut, feasibility, realised_range
from semievol_api.selection.ranking import Ranking
from semievol_api.selection.rule_fdr import SmallestBudget, smallest_budget
from semievol_api.selection.rule_percentile import percentile_of_score
from semievol_api.selection.rule_ranking import human_budget, with_class_quota
from semievol_api.selection.rules import select as apply_rule
from semievol_api.selection.rules import too_few
from semievol_api.selection.stage_fields import choose_fields, reduced, what_is_right
from semievol_api.selection.teaching import kept_by_name, teaching, teaching_message
from semievol_api.selection.values import (
    ENOUGH_CALIBRATION,
    ENOUGH_KEPT,
    BoolArray,
    Calibration,
    FloatArray,
    IntArray,
    RuleSettings,
    Selected,
)
from semievol_api.selection.warnings import class_names, drift_alerts, label_alerts
from semievol_api.store.artifacts import Selection
from semievol_api.store.verdict import AnnotatorUse, PooledSummary
from semievol_api.tasks import Task

SIMULATED_RUNS = 500
_HALF = 0.5
PERSON = 1.0
"""The score of a label that a person gave."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A rule's result over the unlabelled items: what it kept, on which calibration, and what a person is asked.

    `selected` and `calibration` are about `ranking`, whose ranks stand for scores. `promised`: whether the rule's
    promise covers all that was kept. `by_person` bool (m,): items whose label a person gave.
    `budget` is the least alpha that keeps enough, where the rule kept too few. `fields` bool (m, fields): those that
    were kept, where the rule chose single fields.
    """

    ranking: Ranking
    selected: Selected
    promised: bool
    calibration: Calibration | None
    asked: BoolArray
    by_person: BoolArray
    budget: SmallestBudget | None = None
    fields: BoolArray | None = None


async def by_pool(
    corpus: Corpus, crew: Crew, pool: PooledAnswers, inputs: SelectionInputs, settings: SelectSettings, seed: int
) -> Selection:
    """Keep the pseudo-labels that the rule chooses by the pooled probability."""
    choice = _chosen(corpus, pool, inputs.reviewed, settings, seed)
    places = [at for _, at in pool.table.places()]

    def kept(part: int) -> pa.Table:
        return _kept_table(corpus.task, pool.table.read(part), choice, places[part], inputs.reviewed)

    def scored(part: int) -> pa.Table:
        return _table(pool.table.read(part), choice, places[part])

    taken = (choice.selected.kept & ~np.isnan(pool.score)) | choice.by_person
    counts = [int(np.count_nonzero(taken[at])) for at in places]
    count = sum(counts)
    simulated = _simulated(corpus, pool, choice, settings)
    alerts = [
        *label_alerts(corpus, pool.label, pool.calibrating, choice.selected.kept),
        *await drift_alerts(corpus, inputs.embedder, inputs.retrieve, seed),
    ]
    summary = PooledSummary(
        rule=settings.rule,
        score=settings.score,
        **_figures(pool, choice, settings, bool(corpus.folds.cross)),
        kept=count,
        enough=count >= ENOUGH_KEPT,
        annotators={a.id: _use(a, pool) for a in crew.everybody},
        labels_filled_in=pool.filled_in,
        label_factors=_factors(pool) or UNSET,
        fields=corpus.task.fields or UNSET,
        false_share_range=None if simulated is None or np.isnan(simulated.low) else (simulated.low, simulated.high),
        messages=(*_messages(corpus, choice, simulated, settings, count), *_messages_of_crew(crew, pool)),
        warnings=tuple(alerts),
        **_way_out_taken(choice, settings),
    )
    summary = _with_teaching(summary, corpus, pool, taken)
    return Selection(
        kept=ChunkedTable.made(counts, kept).typed(as_labels),
        scores=ChunkedTable.made(pool.table.sizes, scored),
        summary=summary,
        calibration=_calibration_table(pool.calibrating, choice.ranking.scores[len(pool.table) :]),
        queue=_queue(corpus, pool, choice),
    )


def _chosen(
    corpus: Corpus, pool: PooledAnswers, reviewed: Mapping[str, str], settings: SelectSettings, seed: int
) -> Choice:
    """Apply the rule; what a person audited moves from the pool to the calibration items."""
    order = ranking(corpus, pool)
    scores, ids = order.pool, pool.ids
    nobody: BoolArray = np.zeros(scores.size, dtype=np.bool_)
    asked, audit = nobody, nobody
    if settings.rule == "human-budget":
        queue = human_budget(scores, ids, settings.budget, settings.audit_share, seed)
        asked, audit = queue.asked, queue.audit
    by_person = nobody.copy()
    for place in np.flatnonzero(asked).tolist():
        by_person[place] = ids[place] in reviewed
    audited = audit & by_person
    calibration = _calibration(corpus, pool, order, np.flatnonzero(audited).tolist(), reviewed)
    numbers = _numbers(corpus, settings, seed)
    if corpus.task.partial and settings.rule != "human-budget":
        single = choose_fields(corpus.task, pool, numbers)
        return Choice(
            ranking=order,
            selected=single.selected,
            promised=False,
            calibration=single.calibration,
            asked=asked,
            by_person=by_person,
            fields=single.kept,
        )
    rest = ~audited
    selected, budget = apply_rule(scores[rest], ids.where(rest), calibration, numbers), None
    kept = nobody.copy()
    kept[rest] = selected.kept
    selected = replace(selected, kept=kept)
    if selected.rule == settings.rule and calibration is not None and not corpus.pseudo_labeled:
        selected, budget = _way_out(selected, scores, calibration, settings)
    by_rule, selected = selected, _with_floors(selected, corpus, pool, order, settings, seed)
    promised = selected is by_rule and (
        selected.rule == "fdr" or (selected.rule == "high-probability" and not corpus.pseudo_labeled)
    )
    return Choice(
        ranking=order,
        selected=selected,
        promised=promised,
        calibration=calibration,
        asked=asked,
        by_person=by_person,
        budget=budget,
    )


def _numbers(corpus: Corpus, settings: SelectSettings, seed: int) -> RuleSettings:
    """What the rule is given; with a person's budget it is `fdr`."""
    return RuleSettings(
        rule="fdr" if settings.rule == "human-budget" else settings.rule,
        alpha=settings.alpha,
        delta=settings.delta,
        share=settings.share,
        n=settings.n,
        seed=seed,
        gone=len(corpus.pseudo_labeled),
    )


def _with_floors(
    selected: Selected, corpus: Corpus, pool: PooledAnswers, order: Ranking, settings: SelectSettings, seed: int
) -> Selected:
    """The selection with the least share of every class and of every category."""
    if settings.class_quota and corpus.task.labels(corpus.data.unlabeled[0]) is not None:
        selected = with_class_quota(selected, order.pool, pool.label, pool.ids, settings.class_quota, seed)
    if settings.category_floor:
        codes = _categories(pool)[0]
        selected = with_class_quota(selected, order.pool, codes, pool.ids, settings.category_floor, seed)
    return selected


def _way_out(
    selected: Selected, scores: FloatArray, calibration: Calibration, settings: SelectSettings
) -> tuple[Selected, SmallestBudget | None]:
    """What can be kept where a rule that promises something keeps too few: the budget that would do, or half."""
    if settings.rule not in ("fdr", "high-probability") or selected.enough:
        return selected, None
    budget = smallest_budget(scores, calibration)
    told = (
        f"No alpha below 1 keeps {ENOUGH_KEPT} rows by the rule 'fdr'."
        if budget is None
        else f"By the rule 'fdr' alpha = {budget.alpha:g} is the smallest that keeps {ENOUGH_KEPT} rows or more; it "
        f"keeps {budget.kept:,}."
    )
    half = percentile_of_score(scores, _HALF)
    if settings.on_empty == "stop" or not half.enough:
        return selected.with_messages(told), budget
    half = half.with_messages(
        *selected.messages,
        told,
        f"The best half, {half.count:,} rows, was kept instead, and nothing is promised of it: whether it helps is for "
        f'the gate to say. [select] on_empty = "stop" keeps nothing.',
    )
    return half, budget


def _way_out_taken(choice: Choice, settings: SelectSettings) -> dict[str, Any]:
    """The summary's words on `_way_out`; none where it was not needed."""
    calibrated = choice.calibration is not None and choice.calibration.size >= ENOUGH_CALIBRATION
    promising = settings.rule in ("fdr", "high-probability")
    found: dict[str, Any] = {}
    if calibrated and promising and choice.selected.rule == "percentile":
        found["best_half"] = True
    if choice.budget is not None:
        found |= {"smallest_alpha": choice.budget.alpha, "kept_at_smallest_alpha": choice.budget.kept}
    return found


def _with_teaching(summary: PooledSummary, corpus: Corpus, pool: PooledAnswers, taken: BoolArray) -> PooledSummary:
    """What was kept, by name, and what of it the student does not say itself."""
    own = np.asarray(pool.table["own"].to_numpy(), dtype=np.int16)
    sure = np.asarray(pool.table["own_confidence"].to_numpy(), dtype=np.float64)
    found = None if pool.student is None else teaching(pool.student, taken, pool.label, own, sure)
    return structs.replace(
        summary,
        messages=(*summary.messages, *([teaching_message(found)] if found else [])),
        teaching=found or UNSET,
        kept_by_category=kept_by_name(*_categories(pool), taken),
        kept_by_label=kept_by_name(pool.label, class_names(corpus), taken),
    )


def _categories(pool: PooledAnswers) -> tuple[IntArray, list[str]]:
    """The place of each unlabelled question's category among all, int64 (m,), -1 = none; and their names."""
    encoded = pool.table["category"].combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.fill_null(-1).to_numpy(), dtype=np.int64), encoded.dictionary.to_pylist()


def _calibration(
    corpus: Corpus, pool: PooledAnswers, order: Ranking, audited: list[int], reviewed: Mapping[str, str]
) -> Calibration | None:
    scores, wrong = order.calibration, wrong_answers(corpus.task, pool.calibrating)
    if audited:
        verdicts = [not corpus.task.equal(pool.answer(i), reviewed[pool.ids[i]]) for i in audited]
        scores = np.concatenate([scores, order.pool[audited]])
        wrong = np.concatenate([wrong, np.array(verdicts, dtype=np.bool_)])
    return Calibration(scores=scores, wrong=wrong) if scores.size else None


def _kept_table(task: Task, part: pa.Table, choice: Choice, at: slice, reviewed: Mapping[str, str]) -> pa.Table:
    """The pseudo-labels of one part; a person's words count more than the crew's."""
    taken = choice.selected.kept[at] | choice.by_person[at]
    part, by_person = part.filter(pa.array(taken)), choice.by_person[at][taken]
    ids, answers = (part[name].to_pylist() for name in ("example_id", "answer"))
    scores: list[float] = choice.ranking.scores[at][taken].tolist()
    if choice.fields is not None:
        kept = choice.fields[at][taken]
        answers = [answer and reduced(task, answer, kept[place]) for place, answer in enumerate(answers)]
    for place in np.flatnonzero(by_person).tolist():
        answers[place], scores[place] = reviewed[ids[place]], PERSON
    known = [place for place, answer in enumerate(answers) if answer is not None]
    return labels_table(task, [ids[i] for i in known], [answers[i] for i in known], [scores[i] for i in known])


def _figures(pool: PooledAnswers, choice: Choice, settings: SelectSettings, crossed: bool) -> dict[str, Any]:
    """The numbers of the summary; None for what cannot be known."""
    selected, calibration = choice.selected, choice.calibration
    return {
        "alpha": settings.alpha if selected.rule in ("fdr", "high-probability") else None,
        "applied_rule": selected.rule,
        "guarantee": choice.promised and not crossed,
        "threshold": _lowest(choice.ranking.scores, selected),
        "estimated_false_share": selected.estimate,
        "unlabeled": len(pool.table),
        "answered": int(np.count_nonzero(pool.label >= 0)),
        "coverage": selected.coverage,
        "calibration": 0 if calibration is None else calibration.size,
        "calibration_error": None if calibration is None else _number(calibration.error),
        "agreed": int(np.count_nonzero(pool.agreed)),
        "asked_of_a_person": int(np.count_nonzero(choice.asked)),
        "answered_by_a_person": int(np.count_nonzero(choice.by_person)),
    }


def _use(annotator: Annotator, pool: PooledAnswers) -> AnnotatorUse:
    weight = pool.weights.get(annotator.id, UNSET)
    return AnnotatorUse(role=annotator.role, read_by=annotator.reading, weight=weight)


def _lowest(scores: FloatArray, selected: Selected) -> float | None:
    """The lowest kept score; None where the rule has no cut."""
    return None if selected.threshold is None else float(np.min(scores[: selected.kept.size][selected.kept]))


def _factors(pool: PooledAnswers) -> dict[str, dict[str, list[float]]]:
    """What each annotator's labels were weighted by, by the number of options."""
    return {
        annotator: {str(options): weights.tolist() for options, weights in by_options.items()}
        for annotator, by_options in pool.factors.items()
    }


def _message_of_factors(pool: PooledAnswers) -> list[str]:
    if not pool.factors:
        return []
    return [
        f"Some labels are said more often than they stand among the labelled rows, beyond chance, by "
        f"{', '.join(pool.factors)}: those probabilities were weighted towards the labels' shares. If the labelled "
        f'rows were not drawn like the unlabelled ones, set [select] label_shares = "as-read".'
    ]


def _messages_of_crew(crew: Crew, pool: PooledAnswers) -> list[str]:
    """Why these annotators, and what was done to their probabilities."""
    chosen = [crew.note] if crew.note else []
    return [*chosen, *_message_of_factors(pool), *_message_of_weights(crew, pool)]


def _message_of_weights(crew: Crew, pool: PooledAnswers) -> list[str]:
    if not pool.weights:
        return []
    weights = sorted(((a.id, pool.weights[a.id]) for a in crew.annotators), key=itemgetter(1), reverse=True)
    counts = ", ".join(f"{name} {weight:.2f}" if weight else f"{name} nothing" for name, weight in weights)
    return [f"Annotators count by how right they are on labels of other folds (1 is the mean): {counts}."]


def _simulated(corpus: Corpus, pool: PooledAnswers, choice: Choice, settings: SelectSettings) -> RealisedRange | None:
    """The simulated share of false labels of runs like this one; None where nothing is promised.

    Nor in later rounds: what is left of the pool is no sample of what calibrates.
    """
    if choice.calibration is None or choice.selected.rule != "fdr" or not choice.promised or corpus.pseudo_labeled:
        return None
    return realised_range(choice.ranking.pool, choice.calibration, settings.alpha, runs=SIMULATED_RUNS)


def _messages(
    corpus: Corpus, choice: Choice, simulated: RealisedRange | None, settings: SelectSettings, kept: int
) -> list[str]:
    selected, calibration = choice.selected, choice.calibration
    told = [*what_is_right(corpus.task, choice.fields), *selected.messages, *too_few(kept, choice.asked.size)]
    if choice.ranking.message:
        told.append(choice.ranking.message)
    waiting = int(np.count_nonzero(choice.asked & ~choice.by_person))
    if waiting:
        told.append(
            f"{waiting} questions wait for a person in review_queue.jsonl. Fill in the answers, name the file in "
            f"[data] reviewed, and run again."
        )
    if calibration is None or selected.rule not in ("fdr", "high-probability"):
        return told
    if corpus.folds.cross:
        told.append(_MEASURED.format(settings.alpha))
    if corpus.pseudo_labeled:
        told.append(_about_earlier_rounds(len(corpus.pseudo_labeled), choice))
    if selected.rule == "high-probability":
        told.append(feasibility(calibration.size, calibration.error, settings.alpha).message)
    if simulated is not None:
        told.append(simulated.message)
    if selected.threshold is not None:
        share = error_above_cut(selected, calibration)
        told.append(
            f"Above the cut {share.estimate:.1%} of the calibration items are wrong (interval {share.low:.1%} to "
            f"{share.high:.1%}); the cut was chosen on the same items, so this describes and does not bound."
        )
    return told


_MEASURED = (
    "All labels teach and calibrate (cross-fitting). That the share of false labels stays within alpha = {:g} on "
    "average is measured on simulated crews (python -m benchmarks.selection --check), not proved. For a proof, set "
    '[split] calibration = "holdout".'
)


def _about_earlier_rounds(earlier: int, choice: Choice) -> str:
    """What is left of a pool is harder than what calibrates it."""
    if choice.selected.rule == "fdr":
        return (
            f"The {earlier:,} questions that earlier rounds kept count in the pool still: calibration items are like "
            f"the whole pool, and what is left of it is harder."
        )
    return (
        f"Nothing is promised in this round: calibration items are like the whole pool, and what is left of it after "
        f"{earlier:,} were kept is harder. The rule 'fdr' takes that into account."
    )


def _table(part: pa.Table, choice: Choice, at: slice) -> pa.Table:
    kept, by_person, silent = choice.selected.kept[at], choice.by_person[at], part["label"].to_numpy() < 0
    reasons = np.select(
        [by_person, kept, silent], ["answered by a person", "kept", "no annotator answered"], "below the cut"
    )
    taken = {"kept": pa.array(kept | by_person, pa.bool_()), "reason": pa.array(reasons.tolist(), pa.string())}
    names = ("example_id", "answer", "score", "margin", COUNT_COLUMN, "agreed", FIELDS_COLUMN)
    columns = {name: part[name] for name in names if name in part.column_names}
    scores = pa.array(choice.ranking.scores[at], pa.float64(), from_pandas=True)
    return pa.table({**columns, "score": scores, COUNT_COLUMN: part[COUNT_COLUMN].cast(pa.int64()), **taken})


def _calibration_table(found: AnnotatorProbs, scores: FloatArray) -> pa.Table:
    return pa.table(
        {
            "example_id": pa.array([e.id for e in found.examples], pa.string()),
            "gold": pa.array([e.answer for e in found.examples], pa.string()),
            "answer": pa.array([found.answer(i) for i in range(len(found.examples))], pa.string()),
            "score": pa.array(scores, pa.float64(), from_pandas=True),
        }
    )


def _queue(corpus: Corpus, pool: PooledAnswers, choice: Choice) -> bytes:
    """The questions that still wait for a person, one JSON object a line."""
    lines: list[str] = []
    for place in np.flatnonzero(choice.asked & ~choice.by_person).tolist():
        example = corpus.data.unlabeled[place]
        row = {
            "id": example.id,
            "question": example.question,
            "options": list(example.options) or list(corpus.task.labels(example) or ()),
            "suggested": pool.answer(place),
            "answer": "",
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
