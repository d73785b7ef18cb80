"""The baselines, made of the pipeline's own stages: ask the base model, train on the labels, train on all gold.

They make the same artifacts in the same places as the pipeline, so what one has trained or asked the other finds.
Knows nothing of grids, seeds or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.clients import Clients
from semievol_api.annotate.probing import probe, resolve_estimators
from semievol_api.annotate.requests import Corpus, SamplingParams, Student, ask, questions_of
from semievol_api.annotate.retrieval import retrieve
from semievol_api.config.settings import Config, EvaluateSettings
from semievol_api.data import RawData
from semievol_api.data.prepare import prepare
from semievol_api.errors import DataError
from semievol_api.evaluation.answers import EvaluatedModels, evaluate_models
from semievol_api.evaluation.verdict import model_score
from semievol_api.experiments.grid import Recipe
from semievol_api.records import Evidence
from semievol_api.selection.holdout import split_labels
from semievol_api.session import Pipeline, all_rounds
from semievol_api.store.artifacts import (
    Abilities,
    Answers,
    EvidenceTable,
    Folds,
    Neighbours,
    Prepared,
    TrainingFile,
    TunedModel,
    Verdict,
)
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task
from semievol_api.training.files import labeled_file
from semievol_api.training.fine_tuning import fine_tune

RESULT_OF: Mapping[Recipe, tuple[str, ...]] = {
    "semievol": ("semievol", "sft", "warm", "base"),
    "prompt-only": ("base",),
    "prompt-read": ("base",),
    "fine-tune": ("sft",),
    "gold": ("ceiling",),
}
"""The model that an arm stands for; where the first is not there (too little was kept to train on), the next."""


def pipeline_of(recipe: Recipe, copies: int = 1) -> Pipeline:
    """What a recipe does between the open tools and the verdict; `fine-tune` with so many copies of every label."""
    pipelines: Mapping[Recipe, Pipeline] = {
        "semievol": all_rounds,
        "prompt-only": _prompt_only,
        "prompt-read": _prompt_read,
        "fine-tune": partial(_fine_tuned, copies=copies),
        "gold": _trained_on_gold,
    }
    return pipelines[recipe]


async def _prompt_only(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """No training: the base model after `[evaluate] shots` retrieved examples, none for vanilla."""
    corpus = await _corpus(tools, store, task, raw, config)
    return await _verdict(tools, store, corpus, {"base": tools.base}, config)


async def _prompt_read(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """No training, and no text: the base model's likeliest label, read as annotators are read (`option_prob`).

    A model that does not keep the answer's format is measured all the same. Where its server cannot read the labels
    (one of several tokens, say), its greedy text is read.
    """
    corpus = await _corpus(tools, store, task, raw, config)
    reader = Annotator("base", "subject", config.evaluate.shots, reading="auto")
    student = tools.student({"subject": tools.base})
    crew = Crew((reader,), reader)
    abilities = await store.once("probe", Abilities, probe, student, corpus, crew, config.evaluate.max_tokens)
    reader = resolve_estimators(crew, abilities, task).annotators[0]
    answers = await store.once("evaluate/base", Answers, read_labels, student, corpus, reader, config.evaluate)
    return await store.once("verdict", Verdict, baseline_verdict, EvaluatedModels([answers], []), ["base"])


@stage("read_labels")
async def read_labels(student: Student, corpus: Corpus, reader: Annotator, settings: EvaluateSettings) -> Answers:
    """The labels that an annotator gives the test questions; an abstention is wrong."""
    sampling = SamplingParams(settings.max_tokens, 0.0)
    test = corpus.data.test
    asked = await ask(student, corpus.task, questions_of(student, corpus, reader, test, sampling), stage="evaluate")
    about = {e.id: e for e in test}
    rows = [_likeliest(row, corpus.task.labels(about[row.example_id])) for row in asked]
    gold = {e.id: e.answer or "" for e in test}
    correct = {r.example_id: r.answer is not None and corpus.task.equal(r.answer, gold[r.example_id]) for r in rows}
    return Answers(label=reader.id, evidence=EvidenceTable.of(rows), correct=correct)


def _likeliest(row: Evidence, labels: tuple[str, ...] | None) -> Evidence:
    """The row with the label of the greatest probability, where there are any, as its answer."""
    if labels is None or row.option_probs is None:
        return row
    return replace(row, answer=max(zip(row.option_probs, labels, strict=True), key=lambda pair: pair[0])[1])


async def _fine_tuned(
    tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config, copies: int = 1
) -> Verdict:
    """Plain SFT: one training on every label, with `[train] n_epochs`; more epochs than a job may have, by copies."""
    corpus = await _corpus(tools, store, task, raw, config)
    file = await store.once("sft", TrainingFile, labeled_file, task, corpus.learned * copies)
    model = await fine_tune(tools.trainer, store, "sft", file, config.train)
    return await _verdict(tools, store, corpus, {"sft": model}, config)


async def _trained_on_gold(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
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
    return await _verdict(tools, store, corpus, {"ceiling": model}, config)


async def _corpus(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Corpus:
    """Clean data, split as the config says, with as many neighbours as are shown in the evaluation."""
    parts = (raw.labeled, raw.unlabeled, raw.test, raw.development)
    data = await store.once("prepare", Prepared, prepare, *parts, config.data.near_duplicates)
    folds = await store.once("split", Folds, split_labels, data, *raw.aside, config.split, config.run.seed)
    shots = config.evaluate.shots
    asked = (tools.embedder, data, folds, config.retrieve, shots)
    neighbours = await store.once("retrieve", Neighbours, retrieve, *asked)
    return Corpus(task, data, folds, neighbours, raw.pseudo_labeled)


async def _verdict(
    tools: Clients, store: RunStore, corpus: Corpus, models: Mapping[str, TunedModel], config: Config
) -> Verdict:
    evaluated = await evaluate_models(store, tools.student, corpus, models, {}, config.evaluate)
    return await store.once("verdict", Verdict, baseline_verdict, evaluated, list(models))


@stage("tell")
async def baseline_verdict(evaluated: EvaluatedModels, names: list[str]) -> Verdict:
    """The accuracies, with no comparison: that is the experiment's."""
    mine = next(answers for answers in evaluated.tests if answers.label in names)
    return Verdict(
        n_test=len(mine.correct),
        models=tuple(model_score(answers, answers.label) for answers in evaluated.tests),
        differences=(),
        selection=None,
        oracle=None,
        notes=(),
        sentence=f"{mine.label}: {100 * mine.accuracy:.1f} % of {len(mine.correct)} test questions are right.",
    )
