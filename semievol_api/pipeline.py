"""The order of the stages, nothing else: the paper's story from top to bottom.

Every stage is memoised by the run store, so a rerun walks the same lines and computes only what is missing.
Knows nothing of files, vendors or the command line.
"""

from __future__ import annotations

from semievol_api.artifacts import Answers, EvidenceTable, Neighbours, Prepared, Selection, TrainingFile, Verdict
from semievol_api.config import Config
from semievol_api.data import RawData
from semievol_api.run_store import RunStore
from semievol_api.stages.annotators import draw_annotators
from semievol_api.stages.asking import Corpus
from semievol_api.stages.collaborate import collaborate
from semievol_api.stages.compare import compare
from semievol_api.stages.evaluate import evaluate, majority
from semievol_api.stages.evolve import ceiling_file, evolve_file
from semievol_api.stages.fine_tune import fine_tune
from semievol_api.stages.justify import justify
from semievol_api.stages.prepare import prepare
from semievol_api.stages.retrieve import retrieve
from semievol_api.stages.select import select
from semievol_api.stages.warm_up import warm_up_file
from semievol_api.tasks import Task
from semievol_api.tools import Tools


async def semievol(tools: Tools, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """Labelled and unlabelled examples in, an evolved model and its proof out."""
    once, seed, train = store.once, config.run.seed, config.train
    data = await once("prepare", Prepared, prepare, raw.labeled, raw.unlabeled, raw.test, config.data.near_duplicates)

    # In-weight propagation: the model learns the labels. In-context: each question meets its nearest labels.
    models = {"base": tools.base}
    if config.roles.warm is not None:
        models["warm"] = tools.given(config.roles.warm)
    elif config.run.propagation != "in-context":
        file = await once("warm_up", TrainingFile, warm_up_file, task, data)
        models["warm"] = await fine_tune(tools.trainer, store, "warm_up", file, train, train.n_epochs)
    neighbours = await once("retrieve", Neighbours, retrieve, tools.embedder, data, config.retrieve)

    corpus = Corpus(task, data, neighbours)

    # Collaborative learning: annotators answer, the warm model weighs their answers.
    crew = draw_annotators(config.annotate, config.run.propagation, seed)
    student = tools.student({**models, "judge": models.get("warm", tools.base)})
    pool = config.select.pool
    said = await once("collaborate", EvidenceTable, collaborate, student, corpus, crew, config.annotate, pool)
    final = await once("justify", EvidenceTable, justify, student, corpus, said, config.justify, pool)

    # Adaptive selection, and the final training.
    chosen = await once("select", Selection, select, corpus, said, final, config.select, config.justify)
    files = {"semievol": await once("evolve", TrainingFile, evolve_file, task, data, chosen, train)}
    if tools.gold and config.run.ceiling:
        files["ceiling"] = await once("ceiling", TrainingFile, ceiling_file, task, data, chosen, tools.gold, train)
    for name, file in files.items():
        models[name] = await fine_tune(tools.trainer, store, name, file, train, train.final_epochs or train.n_epochs)

    # Proof: every model answers the same test questions.
    answers = [await once("evaluate/majority", Answers, majority, task, data)]
    for name, model in models.items():
        subject = tools.student({"subject": model})
        answers.append(await once(f"evaluate/{name}", Answers, evaluate, subject, corpus, name, config.evaluate))
    return await once("verdict", Verdict, compare, corpus, answers, models, chosen, tools.gold, config.evaluate)
