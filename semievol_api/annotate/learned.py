"""Annotators that the labels teach on the run's embeddings: their answers to every question, as evidence.

Cross-fitted where the run's labels calibrate too: whoever answers a labelled question has not seen its label, and
unlabelled questions are answered by learners drawn in the same way. Knows nothing of servers' models or of selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from semievol_api.annotate.annotators import LEARNED, Annotator, Crew
from semievol_api.annotate.learners import classifier, label_propagation, neighbour_graph
from semievol_api.annotate.pooled import meant_by
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import EmbeddingTool, embedded
from semievol_api.config.settings import Config, RetrieveSettings
from semievol_api.data.schemas import evidence_table
from semievol_api.data.table import ChunkedTable
from semievol_api.records import Evidence, Example, FloatMatrix
from semievol_api.selection.values import FloatArray, IntArray
from semievol_api.store.artifacts import Answers, EvidenceTable, Folds
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore

LEARNERS_FOLDS = 5
"""Learners that share the labels where these calibrate too: they cost nothing."""


async def with_learned(
    embedder: EmbeddingTool | None, store: RunStore, corpus: Corpus, crew: Crew, config: Config
) -> Corpus:
    """The corpus with the answers of the annotators that labels teach, and those of a classifier as a control.

    Unchanged where nobody wants them, or where there are no vectors or no closed labels to learn.
    """
    if embedder is None or not corpus.task.closed:
        return corpus
    learners = tuple(a for a in crew.annotators if a.reading in LEARNED)
    if learners:
        answered = await store.once("learn", EvidenceTable, learn, embedder, corpus, learners, config.retrieve)
        corpus = replace(corpus, by_labels=answered)
    if "classifier" in config.evaluate.controls and corpus.data.test:
        control = await store.once(
            "evaluate/classifier", Answers, control_answers, embedder, replace(corpus, by_labels=None), config.retrieve
        )
        corpus = replace(corpus, control=control)
    return corpus


@stage("control_classifier")
async def control_answers(embedder: EmbeddingTool, corpus: Corpus, settings: RetrieveSettings) -> Answers:
    """What a logistic regression on the embeddings of all labels answers to the test questions."""
    folds = Folds(corpus.learned, (), (), tunable=False, note="")
    here = replace(corpus, folds=folds)
    nodes = tuple({e.id: e for e in (*corpus.learned, *corpus.data.test)}.values())
    school = _School.of(here, nodes, await embedded(embedder, nodes, settings))
    probs = school.probabilities("classifier")
    rows = [school.row("classifier", example, probs) for example in corpus.data.test]
    gold = {e.id: e.answer or "" for e in corpus.data.test}
    return Answers(
        label="classifier",
        evidence=EvidenceTable.of(rows),
        correct={r.example_id: r.answer is not None and corpus.task.equal(r.answer, gold[r.example_id]) for r in rows},
    )


@stage("learn")
async def learn(
    embedder: EmbeddingTool, corpus: Corpus, learners: Sequence[Annotator], settings: RetrieveSettings
) -> EvidenceTable:
    """One evidence row per question of the pool and learner. All vectors are in memory at once, and nothing else."""
    pool = corpus.pool("unlabeled")
    nodes = {e.id: e for e in (*corpus.folds.warm, *pool)}
    vectors = await embedded(embedder, tuple(nodes.values()), settings)
    school = _School.of(corpus, tuple(nodes.values()), vectors)
    probs = {learner.id: school.probabilities(learner.reading) for learner in learners}
    parts = [
        evidence_table(
            school.row(learner.id, example, probs[learner.id]) for example in pool.part(part) for learner in learners
        )
        for part in range(pool.n_parts)
    ]
    return EvidenceTable(ChunkedTable.of(*parts))


@dataclass(frozen=True, eq=False)
class _School:
    """Vectors float32 (n, d) of labelled and unlabelled questions, and what each label means in words.

    `labels` int64 (n,) are places in `words`, -1 = none; `fold` int64 (n,), -1 = always taught, all 0 without folds.
    """

    corpus: Corpus
    place: Mapping[str, int]
    vectors: FloatMatrix
    words: Mapping[str, int]
    labels: IntArray
    fold: IntArray
    n_folds: int

    @classmethod
    def of(cls, corpus: Corpus, nodes: Sequence[Example], vectors: FloatMatrix) -> _School:
        """What is taught is D_warm."""
        meanings = {e.id: meant_by(corpus.task, e, e.answer or "") for e in corpus.folds.warm}
        words = {word: place for place, word in enumerate(sorted(set(meanings.values())))}
        return cls(
            corpus=corpus,
            place={e.id: place for place, e in enumerate(nodes)},
            vectors=vectors,
            words=words,
            labels=np.array([words[meanings[e.id]] if e.id in meanings else -1 for e in nodes], dtype=np.int64),
            fold=np.array([corpus.folds.fold_of(e.id, LEARNERS_FOLDS) for e in nodes], dtype=np.int64),
            n_folds=LEARNERS_FOLDS if corpus.folds.cross else 1,
        )

    def probabilities(self, reading: str) -> FloatArray:
        """float64 (n, words): each question by a learner that has not seen its fold; NaN where nobody can say."""
        probs = np.full((self.labels.size, len(self.words)), np.nan)
        graph = neighbour_graph(self.vectors) if reading == "label_propagation" else None
        for fold in range(self.n_folds):
            asked = self.fold == fold
            seen = (self.labels >= 0) & (~asked if self.n_folds > 1 else True)
            if not seen.any() or not asked.any():
                continue
            if graph is not None:
                hidden = np.where(seen, self.labels, -1)
                probs[asked] = label_propagation(graph, hidden, len(self.words))[asked]
            else:
                vectors, labels = self.vectors[seen], self.labels[seen]
                probs[asked] = classifier(vectors, labels, self.vectors[asked], len(self.words))
        return probs

    def row(self, learner: str, example: Example, probs: FloatArray) -> Evidence:
        """What a learner says of an example, over the example's own options."""
        task, found = self.corpus.task, probs[self.place[example.id]]
        options = task.labels(example) or ()
        places = [self.words.get(meant_by(task, example, label), -1) for label in options]
        mass = np.array([found[at] if at >= 0 else 0.0 for at in places])
        total = float(mass.sum())
        known = bool(total > 0)
        answer = options[int(mass.argmax())] if known else None
        return Evidence(
            example_id=example.id,
            annotator_id=learner,
            prompt_hash="",
            text=task.target(example, answer) if answer else "",
            answer=answer,
            finish="stop",
            option_probs=tuple((mass / total).tolist()) if known else None,
        )
