"""The verdict: every model beside every other on the same questions, with paired intervals (method §6).

Knows nothing of how the models came to be; asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semievol_api.annotate.estimators import ESTIMATORS, estimator_of
from semievol_api.annotate.requests import Corpus
from semievol_api.config.settings import EvaluateSettings
from semievol_api.evaluation.answers import Trial
from semievol_api.evaluation.statistics import (
    BootstrapSettings,
    Promotion,
    accuracy,
    mcnemar,
    paired_bootstrap,
    promotion_gate,
    smallest_detectable_effect,
)
from semievol_api.store.artifacts import Answers, Selection, TunedModel, Verdict
from semievol_api.store.fingerprints import stage

LABELS = {
    "majority": "majority class",
    "base": "vanilla",
    "warm": "SFT",
    "sft": "SFT",
    "semievol": "SemiEvol",
    "ceiling": "gold-label ceiling",
}
SHOWN_LABELS = {"sft": "few-shot", "semievol": "SemiEvol, in context"}
PAIRS = (
    ("semievol", "sft"),
    ("semievol", "warm"),
    ("semievol", "base"),
    ("warm", "base"),
    ("sft", "base"),
    ("warm", "majority"),
    ("sft", "majority"),
    ("ceiling", "semievol"),
)


@stage("compare")
async def compare(
    corpus: Corpus,
    trial: Trial,
    models: Mapping[str, TunedModel],
    selection: Selection,
    gold: Mapping[str, str],
    settings: EvaluateSettings,
) -> Verdict:
    """Accuracies with intervals, paired differences, what the pseudo-labels were worth, and one sentence."""
    answers = trial.tests
    ids = [e.id for e in corpus.data.test]
    labels = _labels(models)
    correct = {a.label: np.array([a.correct[i] for i in ids], dtype=np.bool_) for a in answers}
    differences = [
        _difference((of, against), correct, labels, settings)
        for of, against in PAIRS
        if ids and {of, against} <= set(correct)
    ]
    document: dict[str, object] = {
        "n_test": len(ids),
        "models": [_model(a, labels[a.label], correct[a.label], models.get(a.label)) for a in answers] if ids else [],
        "differences": differences,
        "selection": dict(selection.summary),
        "oracle": _oracle(corpus, selection, gold),
        "hygiene": dict(corpus.data.report),
    }
    document["notes"] = _notes(corpus, document)
    document["sentence"] = _sentence(differences)
    if "enough" in selection.summary:
        promotion = _promotion(corpus, trial, models, settings)
        document |= _beyond_the_paper(corpus, promotion, models, selection)
        document["sentence"] = f"{_skipped(selection) or document['sentence']} {promotion.message}"
    return Verdict(document)


def _beyond_the_paper(
    corpus: Corpus, promotion: Promotion, models: Mapping[str, TunedModel], selection: Selection
) -> dict[str, object]:
    """The gate's decision and the warnings."""
    promoted = promotion.promoted and "semievol" in models
    return {
        "promoted": promoted,
        "gate": {
            "promoted": promoted,
            "items": len(corpus.folds.development),
            "points": 100 * promotion.gain.estimate if promotion.gain else None,
            "interval": [100 * promotion.gain.low, 100 * promotion.gain.high] if promotion.gain else None,
            "message": promotion.message,
        },
        "warnings": list(cast("Sequence[object]", selection.summary["warnings"])),
    }


def _promotion(corpus: Corpus, trial: Trial, models: Mapping[str, TunedModel], settings: EvaluateSettings) -> Promotion:
    """The evolved model against its baseline on D_dev (method §3.9)."""
    by_name = {a.label: a for a in trial.gate}
    evolved, baseline = by_name.get("semievol"), by_name.get("sft", by_name.get("warm"))
    if "semievol" not in models:
        return Promotion(promoted=False, gain=None, message="There is no evolved model to promote; use the SFT model.")
    if evolved is None or baseline is None:
        return promotion_gate(None, None)
    ids = [e.id for e in corpus.folds.development]
    sides = [np.array([a.correct[i] for i in ids], dtype=np.bool_) for a in (evolved, baseline)]
    return promotion_gate(sides[0], sides[1], BootstrapSettings(resamples=settings.resamples))


def _skipped(selection: Selection) -> str | None:
    """What is said where too little was kept to train on."""
    if selection.enough:
        return None
    summary = selection.summary
    return (
        f"SemiEvol kept {summary['kept']} of {summary['unlabeled']} pseudo-labels, too few to train on: the final "
        f"stage was skipped and the result is the SFT model."
    )


def _labels(models: Mapping[str, TunedModel]) -> dict[str, str]:
    """What each model is called; an untuned one that is shown examples is no fine-tune."""
    shown = {name for name in ("sft", "semievol") if name in models and models[name] == models["base"]}
    return LABELS | {name: label for name, label in SHOWN_LABELS.items() if name in shown}


def _model(answers: Answers, label: str, correct: NDArray[np.bool_], model: TunedModel | None) -> dict[str, object]:
    interval = accuracy(correct)
    rows = list(answers.evidence.rows())
    return {
        "name": answers.label,
        "label": label,
        "accuracy": answers.accuracy,
        "interval": [interval.low, interval.high],
        "abstained": sum(row.answer is None for row in rows),
        "tokens": sum(row.usage.prompt + row.usage.completion for row in rows),
        "trained_tokens": model.trained_tokens if model else None,
    }


def _difference(
    pair: tuple[str, str],
    correct: Mapping[str, NDArray[np.bool_]],
    labels: Mapping[str, str],
    settings: EvaluateSettings,
) -> dict[str, object]:
    of, against = pair
    a, b = correct[of], correct[against]
    estimate = paired_bootstrap(a, b, BootstrapSettings(resamples=settings.resamples))
    return {
        "of": of,
        "against": against,
        "of_label": labels[of],
        "against_label": labels[against],
        "points": 100 * estimate.estimate,
        "interval": [100 * estimate.low, 100 * estimate.high],
        "mcnemar_p": mcnemar(a, b).p_value,
        "smallest_detectable": 100
        * smallest_detectable_effect(len(a), discordant=max(1.0, float(np.sum(a != b))) / len(a)),
    }


def _oracle(corpus: Corpus, selection: Selection, gold: Mapping[str, str]) -> dict[str, object] | None:
    """What hidden gold says of the pseudo-labels; None where there is none."""
    if not gold:
        return None
    verdicts = [corpus.task.equal(p.answer, gold[p.example_id]) for p in selection.kept if p.example_id in gold]
    if not verdicts:
        return None
    return {"kept_with_gold": len(verdicts), "right": sum(verdicts), "false_share": 1 - sum(verdicts) / len(verdicts)}


def _notes(corpus: Corpus, document: Mapping[str, Any]) -> list[str]:
    selection = document["selection"]
    notes = [_selection_note(selection), *_method_notes(corpus, selection)]
    if corpus.neighbours.note:
        notes.append(corpus.neighbours.note)
    if selection["shortened_prompts"]:
        notes.append(
            f"{selection['shortened_prompts']} few-shot prompts did not fit the model's context; their farthest "
            f"examples were left out."
        )
    oracle = document["oracle"]
    if isinstance(oracle, dict):
        notes.append(
            f"Of the kept pseudo-labels {oracle['right']} of {oracle['kept_with_gold']} are right (hidden gold, never "
            f"seen by the method)."
        )
    if not corpus.data.test:
        notes.append("There is no test split: evaluation was skipped. Name one in [data] test to measure the models.")
    return notes


def _selection_note(summary: Mapping[str, Any]) -> str:
    return f"Selection kept {summary['kept']} of {summary['unlabeled']} unlabelled examples."


def _method_notes(corpus: Corpus, summary: Mapping[str, Any]) -> list[str]:
    """What the split, the reading of answers, the rule and the alerts have to say; nothing in paper mode."""
    if "enough" not in summary:
        return list(summary["messages"]) if summary["rule"] == "official-2025" else []
    notes = [corpus.folds.note, *summary["messages"]]
    read_by = {name: estimator_of(how["read_by"]) for name, how in summary["annotators"].items()}
    for estimator in ESTIMATORS:
        named = [name for name, found in read_by.items() if found is estimator]
        if named and estimator.note:
            notes.append(estimator.note.format(", ".join(named)))
    for name, count in summary["labels_filled_in"].items():
        notes.append(f"{name}: in {count} answers the server did not show every label; the rest was shared out.")
    return [*notes, *(f"Warning: {alert['message']}" for alert in summary["warnings"])]


def _sentence(differences: Sequence[Mapping[str, Any]]) -> str:
    """One honest sentence, whatever the sign."""
    chosen = next((d for d in differences if d["of"] == "semievol" and d["against"] in ("sft", "warm", "base")), None)
    if chosen is None:
        return "Nothing was measured: without a test split nobody can say whether SemiEvol helped."
    low, high = chosen["interval"]
    figures = f"{chosen['points']:+.1f} points over {chosen['against_label']}, 95 % interval {low:+.1f} to {high:+.1f}"
    if low > 0:
        return f"SemiEvol helped: {figures}."
    if high < 0:
        return f"SemiEvol hurt: {figures}. Keep the {chosen['against_label']} model."
    return (
        f"No effect of SemiEvol could be shown: {figures}; the smallest effect that a test of this size shows is "
        f"{chosen['smallest_detectable']:.1f} points."
    )
