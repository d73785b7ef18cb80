"""The training files of a run, M_evol = FT(M_base, D_sel and D_lab) (paper Eq. 9; Algorithm 1 leaves D_lab out).

For models that cannot be tuned the same labels and pseudo-labels become demonstrations. Knows nothing of how the
pseudo-labels were chosen, nor of who trains.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from semievol_api.annotate.annotators import fold_role, seed_role
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import EmbeddingTool, every_question, nearest_among
from semievol_api.config.method import TrainSettings
from semievol_api.config.settings import Config
from semievol_api.data.schemas import chunked_labels
from semievol_api.errors import UserError
from semievol_api.records import Example, Message, PseudoLabel, TrainingExample
from semievol_api.store.artifacts import Folds, Neighbours, Selection, TrainingFile, TunedModel
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task
from semievol_api.training.chat_jsonl import MIN_EXAMPLES, jsonl_chunks
from semievol_api.training.fine_tuning import Trainer, fine_tune
from semievol_api.training.jobs import file_artifact

EQUAL_STEPS = "sft-equal-steps"
"""The control that learned the labels alone, in as many steps as the evolved model took."""
DEMONSTRATIONS = "demonstrations"
"""The control that learned nothing and is shown the nearest labels."""
MADE_TOGETHER = 2048
"""Examples of a part that are made at once for the training file."""


@stage("warm_up_file")
async def labeled_file(task: Task, labeled: Sequence[Example]) -> TrainingFile:
    """Labelled examples as a training file."""
    check_enough(len(labeled), "The labelled data")
    return chat_jsonl(training_line(task, e, e.answer or "") for e in labeled)


async def warm_models(
    trainer: Trainer, store: RunStore, task: Task, folds: Folds, config: Config
) -> dict[str, TunedModel]:
    """The warm models by role: one, or as many as annotators want seeds; where labels teach and calibrate, each of
    them once for every fold, which it has not seen."""
    models: dict[str, TunedModel] = {}
    for seed in range(max((annotator.seeds for annotator in config.annotators), default=1)):
        for fold in range(folds.n_models):
            role = seed_role(seed) if folds.n_models == 1 else fold_role(seed_role(seed), fold)
            examples = folds.warm if folds.n_models == 1 else folds.taught_without(fold)
            file = await store.once(file_artifact(role), TrainingFile, labeled_file, task, examples)
            settings = config.train
            if settings.seed is not None:
                settings = settings.model_copy(update={"seed": settings.seed + seed})
            models[role] = await fine_tune(replace(trainer, seed=trainer.seed + seed), store, role, file, settings)
    return models


async def final_training_files(
    store: RunStore, corpus: Corpus, chosen: Selection, gold: Mapping[str, str], config: Config
) -> dict[str, TrainingFile]:
    """The training files of the run's last models, by name; none where demonstrations take their place.

    `sft` learns every label, those that calibrated too; where none did, the warm model is that already. `gold` of
    the unlabelled makes the ceiling.
    """
    if shows_examples(corpus, config):
        return {}
    task, train = corpus.task, config.train
    files: dict[str, TrainingFile] = {}
    if calibrates(config):
        files["sft"] = await store.once("sft", TrainingFile, labeled_file, task, corpus.learned)
    if not chosen.enough:
        return files
    files["semievol"] = await store.once(file_artifact("semievol"), TrainingFile, evolve_file, corpus, chosen, train)
    if "equal-steps" in config.evaluate.controls:
        count = len(chosen.kept) + len(_taught_again(corpus, train))
        copies = tuple(itertools.islice(itertools.cycle(corpus.learned), count))
        files[EQUAL_STEPS] = await store.once(EQUAL_STEPS, TrainingFile, labeled_file, task, copies)
    if gold:
        files["ceiling"] = await store.once("ceiling", TrainingFile, ceiling_file, corpus, chosen, gold, train)
    return files


@stage("evolve_file")
async def evolve_file(corpus: Corpus, chosen: Selection, settings: TrainSettings) -> TrainingFile:
    """Labelled examples and kept pseudo-labels as a training file."""

    def lines() -> Iterator[TrainingExample]:
        for example, label in labelled_by(corpus, chosen):
            yield training_line(corpus.task, example, label.answer, label.text)

    return _with_labeled(corpus, lines, len(chosen.kept), settings)


@stage("ceiling_file")
async def ceiling_file(
    corpus: Corpus, chosen: Selection, gold: Mapping[str, str], settings: TrainSettings
) -> TrainingFile:
    """The same rows with their gold answers: what perfect pseudo-labels would have made of the model."""

    def lines() -> Iterator[TrainingExample]:
        for example, label in labelled_by(corpus, chosen):
            if label.example_id in gold:
                yield training_line(corpus.task, example, gold[label.example_id])

    return _with_labeled(corpus, lines, sum(p.example_id in gold for p in chosen.kept), settings)


async def in_context_corpora(
    store: RunStore, embedder: EmbeddingTool | None, corpus: Corpus, chosen: Selection, config: Config
) -> dict[str, Corpus]:
    """What the untuned model is shown beside each question, by name: all labels, and the pseudo-labels with them.

    Where the last models are trained, all labels alone and only as a control.
    """
    queries, shots = every_question(corpus.data, corpus.folds), config.evolve.shots
    if not shows_examples(corpus, config):
        if "demonstrations" not in config.evaluate.controls:
            return {}
        asked = (embedder, corpus.learned, queries, config.retrieve, config.retrieve.k)
        neighbours = await store.once("demonstrations/control", Neighbours, nearest_among, *asked)
        return {DEMONSTRATIONS: replace(corpus, neighbours=neighbours)}
    pseudo_labeled = (
        *corpus.pseudo_labeled,
        *(replace(e, answer=label.answer) for e, label in labelled_by(corpus, chosen)),
    )
    shown: dict[str, Sequence[Example]] = {"sft": corpus.learned}
    if chosen.enough:
        shown["semievol"] = (*corpus.learned, *pseudo_labeled)
    corpora: dict[str, Corpus] = {}
    for name, candidates in shown.items():
        neighbours = await store.once(
            f"demonstrations/{name}", Neighbours, nearest_among, embedder, candidates, queries, config.retrieve, shots
        )
        corpora[name] = replace(corpus, neighbours=neighbours, pseudo_labeled=pseudo_labeled)
    return corpora


def calibrates(config: Config) -> bool:
    """Whether labels may be held back from the warm-up, so that it is not the baseline."""
    return config.split.calibration != 0 or config.split.development != 0


def shows_examples(corpus: Corpus, config: Config) -> bool:
    """Whether the last models are the untuned one with demonstrations."""
    return config.evolve.kind == "in-context" or not corpus.folds.tunable


def labelled_by(corpus: Corpus, chosen: Selection) -> Iterator[tuple[Example, PseudoLabel]]:
    """Every kept pseudo-label beside its example, in the order of the data; both lie in the same parts.

    Only the examples that have a label are made.
    """
    unlabeled, kept = corpus.unlabeled, chunked_labels(chosen.kept)
    for place in range(unlabeled.n_parts):
        labels, table = kept.part(place), unlabeled.read(place)
        wanted, at = {label.example_id for label in labels}, 0
        for start in range(0, len(table), MADE_TOGETHER):
            some = table.slice(start, MADE_TOGETHER)
            taken = some.filter(pa.array([name in wanted for name in some["id"].to_pylist()], pa.bool_()))
            yield from zip(unlabeled.as_rows(taken), labels[at : at + len(taken)], strict=True)
            at += len(taken)


def _with_labeled(
    corpus: Corpus, chosen: Callable[[], Iterator[TrainingExample]], count: int, settings: TrainSettings
) -> TrainingFile:
    """`chosen` gives the pseudo-labels' lines, of which there are `count`, one after the other."""
    labeled = _taught_again(corpus, settings)
    check_enough(len(labeled) + count, "The final training file")
    known = (training_line(corpus.task, e, e.answer or "") for e in labeled)
    return chat_jsonl(itertools.chain(known, chosen()))


def _taught_again(corpus: Corpus, settings: TrainSettings) -> tuple[Example, ...]:
    """What the final training learns beside the kept pseudo-labels."""
    return (*corpus.learned, *corpus.pseudo_labeled) if settings.data == "selected+labeled" else ()


def check_enough(count: int, what: str) -> None:
    """Refuse a training file below the API's minimum."""
    if count < MIN_EXAMPLES:
        raise UserError(
            f"{what} has {count} examples, and a fine-tuning job needs at least {MIN_EXAMPLES}. Add labelled "
            f'examples, or set [run] propagation = "in-context" to work without a warm-up job.'
        )


def training_line(task: Task, example: Example, answer: str, text: str | None = None) -> TrainingExample:
    """The chat that teaches one answer: the zero-shot prompt and the assistant's turn."""
    reply = Message("assistant", text if text is not None else task.target(example, answer))
    prompt = task.prompt(example, (), weights=True)
    return TrainingExample(messages=(*prompt.messages, reply), tools=prompt.tools)


def chat_jsonl(lines: Iterable[TrainingExample]) -> TrainingFile:
    """A training file of these examples, which are worded when it is written, once."""
    return TrainingFile(jsonl_chunks(lines))
