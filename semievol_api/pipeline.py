"""The order of the stages, nothing else: the paper's story from top to bottom.

Every stage is memoised by the run store, so a rerun walks the same lines and computes only what is missing. Modes
are settings: in `paper` mode the split holds nothing back and the probe asks nothing. Knows nothing of files,
vendors or the command line.
"""

from __future__ import annotations

from semievol_api.annotate.annotators import build_annotators, conditions_of
from semievol_api.annotate.clients import Clients
from semievol_api.annotate.collaboration import collaborate, justify
from semievol_api.annotate.learned import with_learned
from semievol_api.annotate.probing import probe, resolve_estimators
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import retrieve
from semievol_api.config.settings import Config
from semievol_api.data import RawData
from semievol_api.data.prepare import prepare
from semievol_api.evaluation.answers import evaluate_models
from semievol_api.evaluation.verdict import compare
from semievol_api.selection.columns import SelectionInputs
from semievol_api.selection.holdout import split_labels
from semievol_api.selection.stage import select
from semievol_api.store.artifacts import (
    Abilities,
    EvidenceTable,
    Folds,
    Neighbours,
    Prepared,
    Selection,
    Verdict,
)
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task
from semievol_api.training.files import final_training_files, in_context_corpora, warm_models
from semievol_api.training.fine_tuning import fine_tune


async def semievol(clients: Clients, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """Labelled and unlabelled examples in, an evolved model and its proof out."""
    once, seed, train, pool = store.once, config.run.seed, config.train, config.select.pool
    sources = (raw.labeled, raw.unlabeled, raw.test, raw.development)
    data = await once("prepare", Prepared, prepare, *sources, config.data.near_duplicates, raw.notes)
    folds = await once("split", Folds, split_labels, data, *raw.aside, config.split, seed)

    # In-weight propagation: the model learns the labels. In-context: each question meets its nearest labels.
    models = {"base": clients.base}
    if config.roles.warm is not None:
        models["warm"] = clients.given(config.roles.warm)
    elif config.run.propagation != "in-context" and folds.tunable:
        models |= await warm_models(clients.checking(task, folds.warm, config), store, task, folds, config)
    annotators = build_annotators(config, conditions_of(task, data, len(models) > 1, clients.embedder is not None))
    k = max(config.retrieve.k, annotators.depth)
    neighbours = await once("retrieve", Neighbours, retrieve, clients.embedder, data, folds, config.retrieve, k)
    corpus = Corpus(task, data, folds, neighbours, raw.pseudo_labeled)
    corpus = await with_learned(clients.embedder, store, corpus, annotators, config)

    # Collaborative learning: annotators answer, the warm model weighs their answers.
    student = clients.student({**models, "judge": models.get("warm", clients.base)})
    abilities = await once("probe", Abilities, probe, student, corpus, annotators, config.annotate.max_tokens)
    annotators = resolve_estimators(annotators, abilities, task)
    asked = (student, corpus, annotators)
    annotations = await once("collaborate", EvidenceTable, collaborate, *asked, config.annotate, pool)
    final = await once("justify", EvidenceTable, justify, *asked, annotations, config.justify, pool)

    # Adaptive selection, and the final training: on a fine-tuning file, or as demonstrations.
    inputs = SelectionInputs(annotations, final, config.justify, clients.embedder, config.retrieve, raw.reviewed)
    selection = await once("select", Selection, select, corpus, annotators, inputs, config.select, seed)
    files = await final_training_files(store, corpus, selection, clients.gold if config.run.ceiling else {}, config)
    for name, file in files.items():
        trainer, settings = clients.training(name, train, models)
        models[name] = await fine_tune(trainer, store, name, file, settings)
    corpora = await in_context_corpora(store, clients.embedder, corpus, selection, config)
    models |= dict.fromkeys(corpora, clients.base)

    # Proof: every model answers the same test questions, and those of the gate where labels were held out for it.
    answers = await evaluate_models(store, clients.after(abilities).student, corpus, models, corpora, config.evaluate)
    return await once("verdict", Verdict, compare, corpus, answers, models, selection, clients.gold, config.evaluate)
