"""The order of the stages, nothing else: the paper's story from top to bottom.

Every stage is memoised by the run store, so a rerun walks the same lines and computes only what is missing. Modes
are settings: in `paper` mode the split holds nothing back and the probe asks nothing. Knows nothing of files,
vendors or the command line.
"""

from __future__ import annotations

from semievol_api.annotate.annotators import build_annotators, circumstances
from semievol_api.annotate.clients import Clients
from semievol_api.annotate.collaboration import collaborate, justify
from semievol_api.annotate.probing import probe, resolve_estimators
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import retrieve
from semievol_api.config.settings import Config
from semievol_api.data import RawData
from semievol_api.data.prepare import prepare
from semievol_api.evaluation.answers import evaluate_models
from semievol_api.evaluation.verdict import compare
from semievol_api.selection.holdout import split_labels
from semievol_api.selection.stage import SelectionInputs, select
from semievol_api.store.artifacts import (
    Abilities,
    EvidenceTable,
    Folds,
    Neighbours,
    Prepared,
    Selection,
    TrainingFile,
    Verdict,
)
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task
from semievol_api.training.files import final_training_files, in_context_corpora, warm_up_file
from semievol_api.training.fine_tuning import fine_tune


async def semievol(tools: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """Labelled and unlabelled examples in, an evolved model and its proof out."""
    once, seed, train = store.once, config.run.seed, config.train
    parts = (raw.labeled, raw.unlabeled, raw.test, raw.development)
    data = await once("prepare", Prepared, prepare, *parts, config.data.near_duplicates, raw.notes)
    folds = await once("split", Folds, split_labels, data, *raw.aside, config.split, seed)

    # In-weight propagation: the model learns the labels. In-context: each question meets its nearest labels.
    models = {"base": tools.base}
    if config.roles.warm is not None:
        models["warm"] = tools.given(config.roles.warm)
    elif config.run.propagation != "in-context" and folds.tunable:
        file = await once("warm_up", TrainingFile, warm_up_file, task, folds.warm)
        models["warm"] = await fine_tune(tools.trainer, store, "warm", file, train)
    crew = build_annotators(config, circumstances(task, data, "warm" in models, tools.embedder is not None))
    depth = max(config.retrieve.k, crew.depth)
    neighbours = await once("retrieve", Neighbours, retrieve, tools.embedder, data, folds, config.retrieve, depth)
    corpus = Corpus(task, data, folds, neighbours, raw.pseudo_labeled)

    # Collaborative learning: annotators answer, the warm model weighs their answers.
    student = tools.student({**models, "judge": models.get("warm", tools.base)})
    abilities = await once("probe", Abilities, probe, student, corpus, crew, config.annotate.max_tokens)
    crew, pool = resolve_estimators(crew, abilities, task), config.select.pool
    said = await once("collaborate", EvidenceTable, collaborate, student, corpus, crew, config.annotate, pool)
    final = await once("justify", EvidenceTable, justify, student, corpus, crew, said, config.justify, pool)

    # Adaptive selection, and the final training: on a fine-tuning file, or as demonstrations.
    heard = SelectionInputs(said, final, config.justify, tools.embedder, config.retrieve, raw.reviewed)
    chosen = await once("select", Selection, select, corpus, crew, heard, config.select, seed)
    files = await final_training_files(store, corpus, chosen, tools.gold if config.run.ceiling else {}, config)
    for name, file in files.items():
        trainer, settings = tools.training(name, train, models)
        models[name] = await fine_tune(trainer, store, name, file, settings)
    views = await in_context_corpora(store, tools.embedder, corpus, chosen, config)
    models |= dict.fromkeys(views, tools.base)

    # Proof: every model answers the same test questions, and those of the gate where labels were held out for it.
    evaluated = await evaluate_models(store, tools.after(abilities).student, corpus, models, views, config.evaluate)
    return await once("verdict", Verdict, compare, corpus, evaluated, models, chosen, tools.gold, config.evaluate)
