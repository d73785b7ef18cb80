"""The verdict: every model against every other on the same questions, with paired intervals (method §6).

Knows nothing of how the models came to be; asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from msgspec import UNSET, UnsetType, structs
from numpy.typing import NDArray

from semievol_api.annotate.estimators import ESTIMATORS, estimator_of
from semievol_api.annotate.requests import Corpus
from semievol_api.config.settings import EvaluateSettings
from semievol_api.evaluation.answers import EvaluatedModels
from semievol_api.evaluation.fields import field_scores
from semievol_api.evaluation.statistics import (
    BootstrapSettings,
    Promotion,
    accuracy,
    mcnemar,
    paired_bootstrap,
    promotion_gate,
    smallest_detectable_effect,
)
from semievol_api.selection.warnings import cut_answers
from semievol_api.store.artifacts import Answers, Selection, TunedModel
from semievol_api.store.fingerprints import stage
from semievol_api.store.verdict import Difference, Gate, ModelScore, Oracle, PaperSummary, PooledSummary, Verdict
from semievol_api.tasks import Task
from semievol_api.tasks.task import ABSENT
from semievol_api.training.files import DEMONSTRATIONS, EQUAL_STEPS

_LABELS = {
    "majority": "majority class",
    "base": "vanilla",
    "warm": "SFT",
    "sft": "SFT",
    "semievol": "SemiEvol",
    "ceiling": "gold-label ceiling",
    EQUAL_STEPS: "SFT, equal steps",
    DEMONSTRATIONS: "vanilla with demonstrations",
    "classifier": "classifier on embeddings",
}
_SHOWN_LABELS = {"sft": "few-shot", "semievol": "SemiEvol, in context"}
_PAIRS = (
    ("semievol", "sft"),
    ("semievol", "warm"),
    ("semievol", "base"),
    ("warm", "base"),
    ("sft", "base"),
    ("warm", "majority"),
    ("sft", "majority"),
    ("ceiling", "semievol"),
    ("semievol", EQUAL_STEPS),
    ("semievol", DEMONSTRATIONS),
    ("semievol", "classifier"),
)

_UNCHECKED = Promotion(
    promoted=True,
    gain=None,
    message="The evolved model is untested: nothing is promised of the labels that it learned, and there is no "
    "development set to check it on. Compare it with the SFT model before you use it: name a file in [data] dev, or "
    "label 500 examples.",
)


@stage("compare")
async def compare(
    corpus: Corpus,
    evaluated: EvaluatedModels,
    models: Mapping[str, TunedModel],
    selection: Selection,
    gold: Mapping[str, str],
    settings: EvaluateSettings,
) -> Verdict:
    """Accuracies with intervals, paired differences, the quality of the pseudo-labels, and one sentence."""
    answers = evaluated.tests
    ids = [e.id for e in corpus.data.test]
    labels = _labels(models)
    correct = {a.label: np.array([a.correct[i] for i in ids], dtype=np.bool_) for a in answers}
    differences = tuple(
        _difference((of, against), correct, labels, settings)
        for of, against in _PAIRS
        if ids and {of, against} <= set(correct)
    )
    oracle = _oracle(corpus, selection, gold)
    scored = tuple(_scored(corpus, a, labels[a.label], models) for a in answers) if ids else ()
    verdict = Verdict(
        n_test=len(ids),
        models=scored,
        differences=differences,
        selection=selection.summary,
        oracle=oracle,
        hygiene=dict(corpus.data.report),
        notes=(*_cut(answers, labels), *_notes(corpus, selection.summary, oracle), *_field_notes(scored)),
        sentence=_sentence(differences),
    )
    if not isinstance(selection.summary, PooledSummary):
        return verdict
    best_half = selection.summary.best_half is True
    promotion = _promotion(corpus, evaluated, models, settings, best_half=best_half)
    gate = _gate(promotion, len(corpus.folds.development), "semievol" in models)
    return replace(
        verdict,
        sentence=f"{_skipped(selection.summary) or verdict.sentence} {promotion.message}",
        promoted=gate.promoted,
        gate=gate,
        warnings=selection.summary.warnings,
    )


def _gate(promotion: Promotion, items: int, evolved: bool) -> Gate:
    gain = promotion.gain
    return Gate(
        promoted=promotion.promoted and evolved,
        items=items,
        points=100 * gain.estimate if gain else None,
        interval=(100 * gain.low, 100 * gain.high) if gain else None,
        message=promotion.message,
    )


def _promotion(
    corpus: Corpus,
    evaluated: EvaluatedModels,
    models: Mapping[str, TunedModel],
    settings: EvaluateSettings,
    *,
    best_half: bool = False,
) -> Promotion:
    """The evolved model against its baseline on D_dev (method §3.9)."""
    by_name = {a.label: a for a in evaluated.gate}
    evolved, baseline = by_name.get("semievol"), by_name.get("sft", by_name.get("warm"))
    if "semievol" not in models:
        return Promotion(promoted=False, gain=None, message="There is no evolved model to promote; use the SFT model.")
    if evolved is None or baseline is None:
        return _UNCHECKED if best_half else promotion_gate(None, None)
    ids = [e.id for e in corpus.folds.development]
    sides = [np.array([a.correct[i] for i in ids], dtype=np.bool_) for a in (evolved, baseline)]
    return promotion_gate(sides[0], sides[1], BootstrapSettings(resamples=settings.resamples))


def _skipped(summary: PooledSummary) -> str | None:
    """The sentence where too little was kept to train on."""
    if summary.enough:
        return None
    return (
        f"SemiEvol kept {summary.kept} of {summary.unlabeled} pseudo-labels, too few to train on: the final "
        f"stage was skipped and the result is the SFT model."
    )


def _labels(models: Mapping[str, TunedModel]) -> dict[str, str]:
    """What each model is called; an untuned one that is shown examples is no fine-tune."""
    shown = {name for name in ("sft", "semievol") if name in models and models[name] == models["base"]}
    return _LABELS | {name: label for name, label in _SHOWN_LABELS.items() if name in shown}


def _scored(corpus: Corpus, answers: Answers, label: str, models: Mapping[str, TunedModel]) -> ModelScore:
    model, task = models.get(answers.label), corpus.task
    scored = model_score(answers, label, model.trained_tokens if model else None)
    if not task.fields:
        return scored
    given = {row.example_id: row.answer for row in answers.evidence.rows()}
    test = corpus.data.test
    return structs.replace(
        scored, fields=field_scores(task, [given.get(e.id) for e in test], [e.answer or "" for e in test])
    )


def model_score(answers: Answers, label: str, trained_tokens: int | UnsetType | None = UNSET) -> ModelScore:
    """One model's accuracy on the test questions, with what it abstained from and used."""
    interval = accuracy(np.array(list(answers.correct.values()), dtype=np.bool_))
    rows = list(answers.evidence.rows())
    return ModelScore(
        name=answers.label,
        label=label,
        accuracy=answers.accuracy,
        interval=(interval.low, interval.high),
        abstained=sum(row.answer is None for row in rows),
        tokens=sum(row.usage.prompt + row.usage.completion for row in rows),
        trained_tokens=trained_tokens,
    )


def _difference(
    pair: tuple[str, str],
    correct: Mapping[str, NDArray[np.bool_]],
    labels: Mapping[str, str],
    settings: EvaluateSettings,
) -> Difference:
    of, against = pair
    a, b = correct[of], correct[against]
    estimate = paired_bootstrap(a, b, BootstrapSettings(resamples=settings.resamples))
    discordant = max(1.0, float(np.sum(a != b))) / len(a)
    return Difference(
        of=of,
        against=against,
        of_label=labels[of],
        against_label=labels[against],
        points=100 * estimate.estimate,
        interval=(100 * estimate.low, 100 * estimate.high),
        mcnemar_p=mcnemar(a, b).p_value,
        smallest_detectable=100 * smallest_detectable_effect(len(a), discordant=discordant),
    )


def _oracle(corpus: Corpus, selection: Selection, gold: Mapping[str, str]) -> Oracle | None:
    """What hidden gold says of the pseudo-labels; None where there is none."""
    if not gold:
        return None
    right = [_right(corpus.task, p.answer, gold[p.example_id]) for p in selection.kept if p.example_id in gold]
    if not right:
        return None
    return Oracle(kept_with_gold=len(right), right=sum(right), false_share=1 - sum(right) / len(right))


def _cut(answers: Sequence[Answers], labels: Mapping[str, str]) -> list[str]:
    """What is said of test answers that ended at `max_tokens`, by model."""
    told = [cut_answers(f"test answers of {labels[a.label]}", "[evaluate] max_tokens", a.evidence) for a in answers]
    return [sentence for sentences in told for sentence in sentences]


def _right(task: Task, answer: str, gold: str) -> bool:
    """Where the task lets a label lack fields, those that it has count."""
    if not task.partial:
        return task.equal(answer, gold)
    theirs = task.parts(gold)
    return all(task.same(name, value, theirs.get(name, ABSENT)) for name, value in task.parts(answer).items())


def _field_notes(models: Sequence[ModelScore]) -> list[str]:
    told = [
        f"{m.label} {m.fields.micro_f1:.1%} ({m.fields.low:.1%} to {m.fields.high:.1%}, macro {m.fields.macro_f1:.1%})"
        for m in models
        if m.fields is not UNSET
    ]
    return [f"Micro F1 over the fields of all answers, with its 95 % interval: {', '.join(told)}."] if told else []


def _notes(corpus: Corpus, summary: PaperSummary | PooledSummary, oracle: Oracle | None) -> list[str]:
    notes = [
        *(summary.lost or ()),
        f"Selection kept {summary.kept} of {summary.unlabeled} unlabelled examples.",
        *_method_notes(corpus, summary),
    ]
    if corpus.neighbours.note:
        notes.append(corpus.neighbours.note)
    if summary.shortened_prompts:
        notes.append(
            f"{summary.shortened_prompts} few-shot prompts did not fit the model's context; their farthest "
            f"examples were left out."
        )
    if oracle is not None:
        notes.append(
            f"Of the kept pseudo-labels {oracle.right} of {oracle.kept_with_gold} are right (hidden gold, never "
            f"seen by the method)."
        )
    if not corpus.data.test:
        notes.append("There is no test split: evaluation was skipped. Name one in [data] test to measure the models.")
    return notes


def _method_notes(corpus: Corpus, summary: PaperSummary | PooledSummary) -> list[str]:
    """Notes of the split, the estimators, the rule and the alerts; none in paper mode."""
    if isinstance(summary, PaperSummary):
        return list(summary.messages) if summary.rule == "official-2025" else []
    notes = [corpus.folds.note, *summary.messages]
    read_by = {name: estimator_of(use.read_by) for name, use in summary.annotators.items()}
    for estimator in ESTIMATORS:
        named = [name for name, found in read_by.items() if found is estimator]
        if named and estimator.note:
            notes.append(estimator.note.format(", ".join(named)))
    for name, count in summary.labels_filled_in.items():
        notes.append(f"{name}: in {count} answers the server did not show every label; the rest was shared out.")
    return [*notes, *(f"Warning: {alert.message}" for alert in summary.warnings)]


def _sentence(differences: Sequence[Difference]) -> str:
    """The result in one sentence, whatever its sign."""
    chosen = next((d for d in differences if d.of == "semievol" and d.against in ("sft", "warm", "base")), None)
    if chosen is None:
        return "Nothing was measured: without a test split nobody can say whether SemiEvol helped."
    interval = f"95 % interval {chosen.low:+.1f} to {chosen.high:+.1f}"
    figures = f"{chosen.points:+.1f} points over {chosen.against_label}, {interval}"
    steps = next((d for d in differences if d.of == "semievol" and d.against == EQUAL_STEPS), None)
    if chosen.low > 0 and steps is not None and steps.low <= 0:
        return (
            f"SemiEvol gained {figures}, but not clearly over {steps.against_label} ({steps.points:+.1f}, "
            f"{steps.low:+.1f} to {steps.high:+.1f}): more steps on the labels alone may do as much."
        )
    if chosen.low > 0:
        return f"SemiEvol helped: {figures}."
    if chosen.high < 0:
        return f"SemiEvol hurt: {figures}. Keep the {chosen.against_label} model."
    return (
        f"No effect of SemiEvol could be shown: {figures}; the smallest effect that a test of this size shows is "
        f"{chosen.smallest_detectable:.1f} points."
    )
