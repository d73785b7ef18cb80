"""The verdict: every model beside every other on the same questions, with paired intervals (method §6).

Knows nothing of how the models came to be; asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol_api.artifacts import Answers, Selection, TunedModel, Verdict
from semievol_api.config import EvaluateSettings
from semievol_api.evaluation import BootstrapSettings, accuracy, mcnemar, paired_bootstrap, smallest_detectable_effect
from semievol_api.stages.asking import Corpus

LABELS = {
    "majority": "majority class",
    "base": "vanilla",
    "warm": "SFT",
    "semievol": "SemiEvol",
    "ceiling": "gold-label ceiling",
}
PAIRS = (
    ("semievol", "warm"),
    ("semievol", "base"),
    ("warm", "base"),
    ("warm", "majority"),
    ("ceiling", "semievol"),
)


async def compare(
    corpus: Corpus,
    answers: Sequence[Answers],
    models: Mapping[str, TunedModel],
    selection: Selection,
    gold: Mapping[str, str],
    settings: EvaluateSettings,
) -> Verdict:
    """Accuracies with intervals, paired differences, what the pseudo-labels were worth, and one sentence."""
    ids = [e.id for e in corpus.data.test]
    correct = {a.label: np.array([a.correct[i] for i in ids], dtype=np.bool_) for a in answers}
    differences = [
        _difference(of, against, correct, settings) for of, against in PAIRS if ids and {of, against} <= set(correct)
    ]
    document: dict[str, object] = {
        "n_test": len(ids),
        "models": [_model(a, correct[a.label], models.get(a.label)) for a in answers] if ids else [],
        "differences": differences,
        "selection": dict(selection.summary),
        "oracle": _oracle(corpus, selection, gold),
        "hygiene": dict(corpus.data.report),
    }
    document["notes"] = _notes(corpus, document)
    document["sentence"] = _sentence(differences)
    return Verdict(document)


def _model(answers: Answers, correct: NDArray[np.bool_], model: TunedModel | None) -> dict[str, object]:
    interval = accuracy(correct)
    rows = list(answers.evidence.rows())
    return {
        "name": answers.label,
        "label": LABELS[answers.label],
        "accuracy": answers.accuracy,
        "interval": [interval.low, interval.high],
        "abstained": sum(row.answer is None for row in rows),
        "tokens": sum(row.usage.prompt + row.usage.completion for row in rows),
        "trained_tokens": model.trained_tokens if model else None,
    }


def _difference(
    of: str, against: str, correct: Mapping[str, NDArray[np.bool_]], settings: EvaluateSettings
) -> dict[str, object]:
    a, b = correct[of], correct[against]
    estimate = paired_bootstrap(a, b, BootstrapSettings(resamples=settings.resamples))
    return {
        "of": of,
        "against": against,
        "of_label": LABELS[of],
        "against_label": LABELS[against],
        "points": 100 * estimate.estimate,
        "interval": [100 * estimate.low, 100 * estimate.high],
        "mcnemar_p": mcnemar(a, b).p_value,
        "smallest_detectable": 100
        * smallest_detectable_effect(len(a), discordant=max(1.0, float(np.sum(a != b))) / len(a)),
    }


def _oracle(corpus: Corpus, selection: Selection, gold: Mapping[str, str]) -> dict[str, object] | None:
    """What hidden gold says of the pseudo-labels; None where there is none."""
    known = [p for p in selection.kept if p.example_id in gold]
    if not known:
        return None
    right = sum(corpus.task.equal(p.answer, gold[p.example_id]) for p in known)
    return {"kept_with_gold": len(known), "right": right, "false_share": 1 - right / len(known)}


def _notes(corpus: Corpus, document: Mapping[str, Any]) -> list[str]:
    notes = [_selection_note(document["selection"])]
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


def _sentence(differences: Sequence[Mapping[str, Any]]) -> str:
    """One honest sentence, whatever the sign."""
    chosen = next((d for d in differences if d["of"] == "semievol" and d["against"] in ("warm", "base")), None)
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
