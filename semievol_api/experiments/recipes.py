"""The baselines as walks over the pipeline's own stages: ask the base model, train on the labels, train on all gold.

They make the same artifacts in the same places as the pipeline, so what one has trained or asked the other finds.
Knows nothing of grids, seeds or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from semievol_api.annotate.clients import Clients
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import retrieve
from semievol_api.config.settings import Config
from semievol_api.data import RawData
from semievol_api.data.prepare import prepare
from semievol_api.errors import DataError
from semievol_api.evaluation import accuracy
from semievol_api.evaluation.answers import Trial, examine
from semievol_api.experiments.grid import Recipe
from semievol_api.selection.holdout import split_labels
from semievol_api.session import Walk, all_rounds
from semievol_api.store.artifacts import Answers, Folds, Neighbours, Prepared, TrainingFile, TunedModel, Verdict
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task
from semievol_api.training.files import labeled_file
from semievol_api.training.fine_tuning import fine_tune

RESULT_OF: Mapping[Recipe, tuple[str, ...]] = {
    "semievol": ("semievol", "sft", "warm", "base"),
    "prompt-only": ("base",),
    "fine-tune": ("sft",),
    "gold": ("ceiling",),
}
"""The model that an arm stands for; where the first is not there (too little was kept to train on), the next."""


def walk_of(recipe: Recipe, copies: int = 1) -> Walk:
    """What a recipe does between the open tools and the verdict; `fine-tune` with so many copies of every label."""
    walks: Mapping[Recipe, Walk] = {
        "semievol": all_rounds,
        "prompt-only": prompt_only,
        "fine-tune": partial(fine_tuned, copies=copies),
        "gold": trained_on_gold,
    }
    return walks[recipe]


async def prompt_only(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """No training: the base model after `[evaluate] shots` retrieved examples, none for vanilla."""
    corpus = await _corpus(tools, store, task, raw, config)
    return await _told(tools, store, corpus, {"base": tools.base}, config)


async def fine_tuned(
    tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config, copies: int = 1
) -> Verdict:
    """Plain SFT: one training on every label, with `[train] n_epochs`; more epochs than a job may have, by copies."""
    corpus = await _corpus(tools, store, task, raw, config)
    file = await store.once("sft", TrainingFile, labeled_file, task, corpus.learned * copies)
    model = await fine_tune(tools.trainer, store, "sft", file, config.train)
    return await _told(tools, store, corpus, {"sft": model}, config)


async def trained_on_gold(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """The ceiling: the final training with the gold answers of the whole pool.

    Raises:
        DataError: the unlabelled file has no answers.
    """
    if not tools.gold:
        raise DataError(
            'The recipe "gold" needs the answers of the unlabelled rows, and their file has no answer column. Take '
            "this arm away, or add the answers; the other arms never see them."
        )
    corpus = await _corpus(tools, store, task, raw, config)
    answered = tuple(replace(e, answer=tools.gold[e.id]) for e in corpus.data.unlabeled if e.id in tools.gold)
    file = await store.once("ceiling", TrainingFile, labeled_file, task, (*corpus.learned, *answered))
    model = await fine_tune(tools.trainer, store, "ceiling", file, config.train.final)
    return await _told(tools, store, corpus, {"ceiling": model}, config)


async def _corpus(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Corpus:
    """Clean data, split as the config says, with as many neighbours as are shown in the evaluation."""
    parts = (raw.labeled, raw.unlabeled, raw.test, raw.development)
    data = await store.once("prepare", Prepared, prepare, *parts, config.data.near_duplicates)
    folds = await store.once("split", Folds, split_labels, data, *raw.aside, config.split, config.run.seed)
    shots = config.evaluate.shots
    asked = (tools.embedder, data, folds, config.retrieve, shots)
    neighbours = await store.once("retrieve", Neighbours, retrieve, *asked)
    return Corpus(task, data, folds, neighbours, raw.pseudo_labeled)


async def _told(
    tools: Clients, store: RunStore, corpus: Corpus, models: Mapping[str, TunedModel], config: Config
) -> Verdict:
    trial = await examine(store, tools.student, corpus, models, {}, config.evaluate)
    return await store.once("verdict", Verdict, tell, trial, list(models))


@stage("tell")
async def tell(trial: Trial, names: list[str]) -> Verdict:
    """The accuracies, with no comparison: that is the experiment's."""
    models = [_model(answers) for answers in trial.tests]
    mine = next(answers for answers in trial.tests if answers.label in names)
    return Verdict(
        {
            "n_test": len(mine.correct),
            "models": models,
            "differences": [],
            "selection": {},
            "oracle": None,
            "notes": [],
            "sentence": f"{mine.label}: {100 * mine.accuracy:.1f} % of {len(mine.correct)} test questions are right.",
        }
    )


def _model(answers: Answers) -> dict[str, object]:
    import numpy as np

    interval = accuracy(np.array(list(answers.correct.values()), dtype=np.bool_))
    rows = list(answers.evidence.rows())
    return {
        "name": answers.label,
        "label": answers.label,
        "accuracy": answers.accuracy,
        "interval": [interval.low, interval.high],
        "abstained": sum(row.answer is None for row in rows),
        "tokens": sum(row.usage.prompt + row.usage.completion for row in rows),
    }
