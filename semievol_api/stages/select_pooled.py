"""Selection by the crew's pooled probability, with what it promises and what should worry the user (method §3-4).

Joins evidence to arrays, hands them to `selection/`, and writes down what came of it. Knows nothing of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from semievol_api.artifacts import Selection
from semievol_api.config import RetrieveSettings, SelectSettings
from semievol_api.records import PseudoLabel
from semievol_api.selection import (
    Calibration,
    RealisedRange,
    RuleSettings,
    Selected,
    check_missing_logprobs,
    count_abstentions,
    error_above_cut,
    feasibility,
    human_budget,
    realised_range,
    with_class_quota,
)
from semievol_api.selection import select as apply_rule
from semievol_api.selection.choice import RuleName
from semievol_api.selection.values import ENOUGH_KEPT, BoolArray, FloatArray
from semievol_api.stages.annotators import Annotator, Crew
from semievol_api.stages.asking import Corpus
from semievol_api.stages.pooling import Opinions, Rows, opinions, wrong_answers
from semievol_api.stages.reading import UNSEEN, asker_of
from semievol_api.stages.retrieve import EmbeddingTool
from semievol_api.stages.warnings import drift_alerts, label_alerts

SIMULATED_RUNS = 500
PERSON = 1.0
"""The score of a label that a person gave."""


@dataclass(frozen=True)
class Beside:
    """What else selection looks at: a person's answers by id, the embedder of the drift test, the run's seed."""

    reviewed: Mapping[str, str]
    embedder: EmbeddingTool | None
    retrieve: RetrieveSettings
    seed: int


@dataclass(frozen=True, eq=False)
class Choice:
    """A rule's result over the unlabelled items: what it kept, on which calibration, and what a person is asked.

    `by_person` bool (m,): items whose label a person gave.
    """

    selected: Selected
    calibration: Calibration | None
    asked: BoolArray
    by_person: BoolArray


async def by_pool(corpus: Corpus, crew: Crew, rows: Rows, settings: SelectSettings, beside: Beside) -> Selection:
    """Keep the pseudo-labels that the rule chooses by the pooled probability.

    Raises:
        StageError: more than 5 % of an annotator's answers came without the log-probabilities that it is read by.
    """
    for annotator in crew.annotators:
        _refuse_missing(annotator, rows)
    unlabeled = corpus.data.unlabeled
    found = opinions(corpus, crew.everybody, (*unlabeled, *corpus.folds.calibration), rows)
    choice = _chosen(corpus, found, settings, beside)
    kept = _labels(corpus, found, choice, beside.reviewed)
    spread = _spread(found, choice, len(unlabeled), settings)
    alerts = [*label_alerts(corpus, found, choice.selected.kept), *await drift_alerts(corpus, beside)]
    summary = {
        "rule": settings.rule,
        "score": settings.score,
        **_figures(found, choice, len(unlabeled), settings),
        "kept": len(kept),
        "enough": len(kept) >= ENOUGH_KEPT,
        "annotators": {a.id: {"role": a.role, "read_by": a.reading} for a in crew.everybody},
        "labels_filled_in": _filled_in(rows),
        "false_share_range": None if spread is None or np.isnan(spread.low) else [spread.low, spread.high],
        "messages": _messages(choice, spread, settings),
        "warnings": [{"kind": alert.kind, "message": alert.message} for alert in alerts],
    }
    return Selection(
        kept=kept,
        scores=_table(found, choice, len(unlabeled)),
        summary=summary,
        calibration=_calibration_table(found, len(unlabeled)),
        queue=_queue(corpus, found, choice),
    )


def _chosen(corpus: Corpus, found: Opinions, settings: SelectSettings, beside: Beside) -> Choice:
    """Apply the rule; what a person audited moves from the pool to the calibration items."""
    m = len(corpus.data.unlabeled)
    scores, ids = found.pooled.score[:m], [e.id for e in corpus.data.unlabeled]
    nobody: BoolArray = np.zeros(m, dtype=np.bool_)
    asked, audit = nobody, nobody
    if settings.rule == "human-budget":
        queue = human_budget(scores, ids, settings.budget, settings.audit_share, beside.seed)
        asked, audit = queue.asked, queue.audit
    by_person = asked & np.array([name in beside.reviewed for name in ids], dtype=np.bool_)
    audited = audit & by_person
    calibration = _calibration(corpus, found, np.flatnonzero(audited).tolist(), beside.reviewed)
    rule: RuleName = "fdr" if settings.rule in ("human-budget", "official-2025") else settings.rule  # type: ignore[assignment]
    numbers = RuleSettings(
        rule=rule, alpha=settings.alpha, delta=settings.delta, share=settings.share, n=settings.n, seed=beside.seed
    )
    rest = ~audited
    selected = apply_rule(scores[rest], [ids[i] for i in np.flatnonzero(rest).tolist()], calibration, numbers)
    kept = nobody.copy()
    kept[rest] = selected.kept
    selected = replace(selected, kept=kept)
    if settings.class_quota and corpus.task.labels(corpus.data.unlabeled[0]) is not None:
        selected = with_class_quota(selected, scores, found.pooled.label[:m], ids, settings.class_quota, beside.seed)
    return Choice(selected=selected, calibration=calibration, asked=asked, by_person=by_person)


def _calibration(
    corpus: Corpus, found: Opinions, audited: list[int], reviewed: Mapping[str, str]
) -> Calibration | None:
    m = len(corpus.data.unlabeled)
    scores, wrong = found.pooled.score[m:], wrong_answers(corpus.task, found)[m:]
    if audited:
        verdicts = [not corpus.task.equal(found.answer(i), reviewed[found.examples[i].id]) for i in audited]
        scores = np.concatenate([scores, found.pooled.score[audited]])
        wrong = np.concatenate([wrong, np.array(verdicts, dtype=np.bool_)])
    return Calibration(scores=scores, wrong=wrong) if scores.size else None


def _labels(corpus: Corpus, found: Opinions, choice: Choice, reviewed: Mapping[str, str]) -> tuple[PseudoLabel, ...]:
    labels: list[PseudoLabel] = []
    for place, example in enumerate(corpus.data.unlabeled):
        said = reviewed[example.id] if choice.by_person[place] else found.answer(place)
        if said is None or not (choice.by_person[place] or choice.selected.kept[place]):
            continue
        score = PERSON if choice.by_person[place] else float(found.pooled.score[place])
        text = corpus.task.target(example, said)
        labels.append(PseudoLabel(example_id=example.id, answer=said, text=text, score=score))
    return tuple(labels)


def _figures(found: Opinions, choice: Choice, m: int, settings: SelectSettings) -> dict[str, object]:
    """The numbers of the summary; None for what cannot be known."""
    selected, calibration = choice.selected, choice.calibration
    guaranteed = selected.rule in ("fdr", "high-probability")
    return {
        "alpha": settings.alpha if guaranteed else None,
        "applied_rule": selected.rule,
        "guarantee": guaranteed,
        "threshold": selected.threshold,
        "estimated_false_share": selected.estimate,
        "unlabeled": m,
        "answered": int(np.count_nonzero(found.pooled.label[:m] >= 0)),
        "coverage": selected.coverage,
        "calibration": 0 if calibration is None else calibration.size,
        "calibration_error": None if calibration is None else _number(calibration.error),
        "agreed": int(np.count_nonzero(found.pooled.agreed[:m] & (found.pooled.label[:m] >= 0))),
        "asked_of_a_person": int(np.count_nonzero(choice.asked)),
        "answered_by_a_person": int(np.count_nonzero(choice.by_person)),
    }


def _spread(found: Opinions, choice: Choice, m: int, settings: SelectSettings) -> RealisedRange | None:
    """The simulated share of false labels of runs like this one; None where the rule promises nothing."""
    if choice.calibration is None or choice.selected.rule != "fdr":
        return None
    return realised_range(found.pooled.score[:m], choice.calibration, settings.alpha, runs=SIMULATED_RUNS)


def _messages(choice: Choice, spread: RealisedRange | None, settings: SelectSettings) -> list[str]:
    selected, calibration = choice.selected, choice.calibration
    told = list(selected.messages)
    waiting = int(np.count_nonzero(choice.asked & ~choice.by_person))
    if waiting:
        told.append(
            f"{waiting} questions wait for a person in review_queue.jsonl. Fill in the answers, name the file in "
            f"[data] reviewed, and run again."
        )
    if calibration is None or selected.rule not in ("fdr", "high-probability"):
        return told
    if selected.rule == "high-probability":
        told.append(feasibility(calibration.size, calibration.error, settings.alpha).message)
    if spread is not None:
        told.append(spread.message)
    if selected.threshold is not None:
        share = error_above_cut(selected, calibration)
        told.append(
            f"Above the cut {share.estimate:.1%} of the calibration items are wrong (interval {share.low:.1%} to "
            f"{share.high:.1%}); the cut was chosen on the same items, so this describes and does not bound."
        )
    return told


def _refuse_missing(annotator: Annotator, rows: Rows) -> None:
    """Too many answers without what the annotator's estimator needs would distort the selection."""
    if annotator.reading not in ("option_prob", "answer_logprob", "p_true"):
        return
    own = [row for said in rows.values() for row in said if asker_of(row.annotator_id) == annotator.id]
    needed = [
        {"option_prob": row.option_probs, "answer_logprob": row.answer_logprob, "p_true": row.p_true} for row in own
    ]
    scored = [evidence[annotator.reading] is not None for evidence in needed]
    check_missing_logprobs(
        count_abstentions(
            [row.finish for row in own],
            np.array([row.answer is not None for row in own], dtype=np.bool_),
            np.array(scored, dtype=np.bool_),
        )
    )


def _filled_in(rows: Rows) -> dict[str, int]:
    """For each annotator the rows in which the server did not show every label."""
    counts: dict[str, int] = {}
    for said in rows.values():
        for row in said:
            if row.failure is not None and row.failure.startswith(UNSEEN):
                counts[asker_of(row.annotator_id)] = counts.get(asker_of(row.annotator_id), 0) + 1
    return dict(sorted(counts.items()))


def _table(found: Opinions, choice: Choice, m: int) -> pa.Table:
    reasons = [_reason(found, choice, place) for place in range(m)]
    return pa.table(
        {
            "example_id": pa.array([e.id for e in found.examples[:m]], pa.string()),
            "answer": pa.array([found.answer(i) for i in range(m)], pa.string()),
            "score": pa.array(found.pooled.score[:m], pa.float64(), from_pandas=True),
            "margin": pa.array(found.pooled.margin[:m], pa.float64(), from_pandas=True),
            "voices": pa.array(found.pooled.voices[:m], pa.int64()),
            "agreed": pa.array(found.pooled.agreed[:m], pa.bool_()),
            "kept": pa.array(choice.selected.kept | choice.by_person, pa.bool_()),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _reason(found: Opinions, choice: Choice, place: int) -> str:
    if choice.by_person[place]:
        return "answered by a person"
    if choice.selected.kept[place]:
        return "kept"
    return "no annotator answered" if found.pooled.label[place] < 0 else "below the cut"


def _calibration_table(found: Opinions, m: int) -> pa.Table:
    examples, places = found.examples[m:], range(m, len(found.examples))
    scores: FloatArray = found.pooled.score[m:]
    return pa.table(
        {
            "example_id": pa.array([e.id for e in examples], pa.string()),
            "gold": pa.array([e.answer for e in examples], pa.string()),
            "answer": pa.array([found.answer(i) for i in places], pa.string()),
            "score": pa.array(scores, pa.float64(), from_pandas=True),
        }
    )


def _queue(corpus: Corpus, found: Opinions, choice: Choice) -> bytes:
    """The questions that still wait for a person, one JSON object a line."""
    lines: list[str] = []
    for place in np.flatnonzero(choice.asked & ~choice.by_person).tolist():
        example = found.examples[place]
        row = {
            "id": example.id,
            "question": example.question,
            "options": list(example.options) or list(corpus.task.labels(example) or ()),
            "suggested": found.answer(place),
            "answer": "",
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
