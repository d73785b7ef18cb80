"""What the annotators make of a whole pool, as columns: all that selection holds of every unlabelled example.

Evidence is read part by part and let go; a hundred bytes an example stay. Knows nothing of selection rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.crossfit import Corrections, corrected, label_share_corrections, with_weights
from semievol_api.annotate.estimator import EvidenceKind
from semievol_api.annotate.estimators import estimator_of
from semievol_api.annotate.pooled import AnnotatorProbs, Factors, annotator_probs, by_annotator, evidence_columns
from semievol_api.annotate.replies import UNSEEN, asker_of
from semievol_api.annotate.requests import Corpus
from semievol_api.annotate.retrieval import EmbeddingTool
from semievol_api.config.method import JustifySettings
from semievol_api.config.settings import RetrieveSettings
from semievol_api.data.schemas import OUTLINE, as_examples
from semievol_api.data.table import ChunkedTable, free_memory
from semievol_api.selection.ranking import Ranking, in_order, largest_tie, local_confidence, ranks
from semievol_api.selection.rules import Abstentions, check_missing_logprobs, count_abstentions
from semievol_api.selection.values import BoolArray, FloatArray, IntArray, LabelArray
from semievol_api.store.artifacts import EvidenceTable
from semievol_api.store.fingerprints import fingerprinted
from semievol_api.tasks import Task

FIELDS_COLUMN = "field_scores"
"""The column of the fields' probabilities, in the task's order; only where answers consist of fields."""
COUNT_COLUMN = "voices"
"""The column, stored under its first name, that counts the annotators that answered."""

_NEAREST = 3
"""Labelled questions by which others are near each other."""


@fingerprinted("said", "final", "justify", "embedder", "retrieve", "reviewed", renamed={"annotations": "said"})
@dataclass(frozen=True)
class SelectionInputs:
    """The annotators' and the judge's answers to every example, and what else selection may look at.

    `reviewed` are a person's answers by example id; `embedder` and `retrieve` serve the drift test.
    """

    annotations: EvidenceTable
    final: EvidenceTable
    justify: JustifySettings
    embedder: EmbeddingTool | None
    retrieve: RetrieveSettings
    reviewed: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class PooledAnswers:
    """The annotators' pooled answers to the unlabelled examples, in the order of their data and in its parts.

    Columns of `table`: `example_id`, `answer` (null = abstain), `label` int16 (-1 = abstain), `score` and `margin`
    float64 (null = abstain), `voices` int16 (how many annotators answered), `agreed` bool, `log_odds` float64; see
    `selection.Pooled`; `answer_logprob` float64; `category`, the question's own; `own` int16 and `own_confidence`
    float64, what the student says by itself and how surely.
    `calibrating` are the annotators' probabilities on the examples that calibrate, whole. `filled_in` counts for each
    asker the rows in which the server did not show every label. `factors` are those that the annotators were brought to
    the labels' shares by, `weights` what they count by annotator, both means over folds; empty where all count alike.
    """

    table: ChunkedTable[Mapping[str, Any]]
    calibrating: AnnotatorProbs
    filled_in: Mapping[str, int]
    factors: Factors
    student: str | None = None
    """The annotator that is the student by itself; None where it is not among them."""
    weights: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def score(self) -> FloatArray:
        """float64 (m,), NaN = abstain."""
        return np.asarray(self.table["score"].to_numpy(), dtype=np.float64)

    @property
    def label(self) -> LabelArray:
        """int16 (m,), an index into an example's own labels; -1 = nobody answered."""
        return np.asarray(self.table["label"].to_numpy(), dtype=np.int16)

    @property
    def agreed(self) -> BoolArray:
        """bool (m,), whether all annotators that answered had the same first choice."""
        return np.asarray(self.table["agreed"].to_numpy(), dtype=np.bool_) & (self.label >= 0)

    @property
    def ids(self) -> ChunkedTable[str]:
        """The examples' ids."""
        return self.table.values("example_id")

    def answer(self, place: int) -> str | None:
        """The pooled answer to an example."""
        answer: str | None = self.table.values("answer")[place]
        return answer


def cross_corrections(
    corpus: Corpus, crew: Crew, inputs: SelectionInputs, *, label_shares: bool, weights: bool
) -> Corrections:
    """What is done to each fold's probabilities, learned from the labels of the others."""
    found = Corrections(askers=[a.id for a in crew.everybody])
    if label_shares:
        found = label_share_corrections(corpus, crew, inputs.annotations, inputs.reviewed)
    if weights:
        last = corpus.pool("unlabeled").n_parts - 1
        evidence = evidence_columns((inputs.annotations, inputs.final), last)
        calibrating = annotator_probs(corpus, crew.everybody, corpus.folds.calibration, evidence)
        found = with_weights(corpus, calibrating, found)
    return found


def ranking(corpus: Corpus, pool: PooledAnswers) -> Ranking:
    """One order of the pool and of what calibrates: by the pooled probability, and where answers are equal by their
    unfloored log-odds, their mean log-probability, and the mean confidence of their category or of their nearest
    questions."""
    calibrating, m = pool.calibrating, len(pool.table)
    names = ("score", "log_odds", "answer_logprob")
    columns = [np.asarray(pool.table[name].to_numpy(), dtype=np.float64) for name in names]
    held = (calibrating.pooled.score, calibrating.pooled.log_odds, calibrating.answer_logprob)
    keys = [np.concatenate(pair) for pair in zip(columns, held, strict=True)]
    groups, by = _groups(corpus, pool)
    found = ranks(*keys, local_confidence(keys[0], groups))
    scores = in_order(keys[0], found)
    return Ranking(pool=found[:m], calibration=found[m:], scores=scores, equal=largest_tie(found[:m]), by=by)


def _groups(corpus: Corpus, pool: PooledAnswers) -> tuple[IntArray, str]:
    """What each question of pool and calibration belongs to, int64 (m + n, k), and what that is.

    Its category where every one has one and there are several; else its nearest labelled questions: those that share
    them are near each other.
    """
    own = pa.array([e.category for e in pool.calibrating.examples], pa.string())
    categories = pa.chunked_array([*pool.table["category"].chunks, own]).combine_chunks().dictionary_encode()
    if not categories.null_count and len(categories.dictionary) > 1:
        return np.asarray(categories.indices.to_numpy(), dtype=np.int64)[:, None], "category"
    near = corpus.neighbours.ids
    numbers: dict[str, int] = {}
    found: IntArray = np.full((len(categories), _NEAREST), -1, dtype=np.int64)
    ids = itertools.chain(pool.ids, (e.id for e in pool.calibrating.examples))
    for place, name in enumerate(ids if near else ()):
        row = [numbers.setdefault(other, len(numbers)) for other in near[name][:_NEAREST]]
        found[place, : len(row)] = row
    return found, "nearest" if numbers else ""


def pooled_answers(
    corpus: Corpus,
    crew: Crew,
    inputs: SelectionInputs,
    factors: Factors | None = None,
    by_fold: Corrections | None = None,
) -> PooledAnswers:
    """Read the evidence part by part and pool it; `factors` bring annotators to the labels' shares.

    `by_fold` does that, and weighs annotators, where labels teach and calibrate.

    Raises:
        StageError: more than 5 % of an annotator's answers came without the log-probabilities that it is read by.
    """
    counted, student = _Lacking(crew), _student(crew)
    parts: list[pa.Table] = []
    pool, sizes = corpus.pool("unlabeled"), corpus.unlabeled.sizes
    found: AnnotatorProbs | None = None
    for place in range(pool.n_parts):
        examples = tuple(as_examples(pool.read(place, OUTLINE)))
        evidence = evidence_columns((inputs.annotations, inputs.final), place)
        found = annotator_probs(corpus, crew.everybody, examples, evidence, factors)
        if by_fold is not None:
            found = corrected(corpus, found, by_fold)
        counted.add(evidence)
        free_memory()
        if place < len(sizes):
            parts.append(_columns(found.only(slice(0, sizes[place])), student))
    assert found is not None
    calibrating = found.only(slice(len(found.examples) - len(corpus.folds.calibration), None))
    counted.refuse_missing()
    return PooledAnswers(
        ChunkedTable.of(*parts),
        calibrating,
        dict(sorted(counted.filled_in.items())),
        (factors or {}) if by_fold is None else by_fold.mean_factors,
        None if student is None else crew.everybody[student].id,
        {} if by_fold is None else by_fold.mean_weights,
    )


def _student(crew: Crew) -> int | None:
    """The place of the annotator that is nearest to the student by itself: with the fewest demonstrations."""
    own = [(a.shots, a.role != "warm", place) for place, a in enumerate(crew.annotators) if a.role in ("warm", "base")]
    return min(own)[-1] if own else None


def labels_table(task: Task, ids: Sequence[str], answers: Sequence[str], scores: Sequence[float]) -> pa.Table:
    """Kept pseudo-labels as the artifact has them, each with the line that teaches it."""
    return pa.table(
        {
            "example_id": pa.array(ids, pa.string()),
            "answer": pa.array(answers, pa.string()),
            "text": pa.array([task.reply(answer) for answer in answers], pa.string()),
            "score": pa.array(scores, pa.float64()),
        }
    )


def _columns(found: AnnotatorProbs, student: int | None) -> pa.Table:
    pooled, places = found.pooled, range(len(found.examples))
    nobody = np.full((len(places), found.probs.shape[2]), np.nan)
    given = nobody if student is None else found.probs[:, student]
    given = np.where(np.arange(given.shape[1]) < found.n_options[:, None], given, -1.0)
    silent = np.asarray(np.any(np.isnan(given), axis=1), dtype=np.bool_)
    own = np.where(silent, -1, np.where(silent[:, None], 0.0, given).argmax(axis=1))
    fields = {} if found.field_scores is None else {FIELDS_COLUMN: list_column(found.field_scores)}
    return pa.table(
        {
            "example_id": pa.array([e.id for e in found.examples], pa.string()),
            "answer": pa.array([found.answer(i) for i in places], pa.string()),
            "label": pa.array(pooled.label.astype(np.int16)),
            "score": pa.array(pooled.score, pa.float64(), from_pandas=True),
            "margin": pa.array(pooled.margin, pa.float64(), from_pandas=True),
            COUNT_COLUMN: pa.array(pooled.n_annotators.astype(np.int16)),
            "agreed": pa.array(pooled.agreed, pa.bool_()),
            "log_odds": pa.array(pooled.log_odds, pa.float64(), from_pandas=True),
            "answer_logprob": pa.array(found.answer_logprob, pa.float64(), from_pandas=True),
            "own": pa.array(own.astype(np.int16)),
            "own_confidence": pa.array(np.where(silent, np.nan, given.max(axis=1)), pa.float64(), from_pandas=True),
            "category": pa.array([e.category for e in found.examples], pa.string()),
            **fields,
        }
    )


def list_column(values: FloatArray) -> pa.Array:
    """float64 (m, fields) as a column of lists."""
    return pa.array(values.tolist(), pa.list_(pa.float64()))


def _scored_by(annotator: Annotator) -> EvidenceKind | None:
    """The column without which the answer has no score; None for exact option reads, which fail as a whole."""
    found = estimator_of(annotator.reading)
    return found.needs if found and found.always_scored and annotator.reading == found.name else None


class _Lacking:
    """Counts over all parts what each annotator's rows lack."""

    def __init__(self, crew: Crew) -> None:
        needed = {annotator.id: _scored_by(annotator) for annotator in crew.annotators}
        self._needed: Mapping[str, str] = {name: column for name, column in needed.items() if column}
        self._lacking: dict[str, list[Abstentions]] = {name: [] for name in self._needed}
        self.filled_in: dict[str, int] = {}

    def add(self, evidence: pa.Table) -> None:
        """One part's rows."""
        for name, rows in by_annotator(evidence).items():
            needed = self._needed.get(asker_of(name))
            if needed is None:
                continue
            scored = rows[needed].is_valid().to_numpy() if needed in rows.column_names else np.zeros(len(rows), bool)
            self._lacking[asker_of(name)].append(
                count_abstentions(rows["finish"].to_pylist(), rows["answer"].is_valid().to_numpy(), scored)
            )
        failed = evidence.filter(evidence["failure"].is_valid())
        for name, reason in zip(failed["annotator_id"].to_pylist(), failed["failure"].to_pylist(), strict=True):
            if reason.startswith(UNSEEN):
                asker = asker_of(name)
                self.filled_in[asker] = self.filled_in.get(asker, 0) + 1

    def refuse_missing(self) -> None:
        """Too many answers without what the annotator's estimator needs would distort the selection."""
        for counted in self._lacking.values():
            if counted:
                check_missing_logprobs(sum(counted[1:], start=counted[0]))
