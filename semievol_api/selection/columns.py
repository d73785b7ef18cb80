"""What the crew makes of a whole pool, as columns: the only thing that selection holds of every unlabelled example.

Evidence is read part by part and let go; a hundred bytes an example stay. Knows nothing of selection rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.estimators import EvidenceKind, estimator_of
from semievol_api.annotate.pooled import AnnotatorProbs, Factors, Measures, annotator_probs
from semievol_api.annotate.replies import UNSEEN, asker_of
from semievol_api.annotate.requests import Corpus
from semievol_api.data.parts import free_memory
from semievol_api.records import Example
from semievol_api.scale.executor import Shard
from semievol_api.selection.rules import Abstentions, check_missing_logprobs, count_abstentions
from semievol_api.selection.values import FloatArray, IntArray, LabelArray
from semievol_api.store.artifacts import EvidenceTable


def _scored_by(annotator: Annotator) -> EvidenceKind | None:
    """The column without which the answer has no score; None for exact option reads, which fail as a whole."""
    found = estimator_of(annotator.reading)
    return found.needs if found and found.always_scored and annotator.reading == found.name else None


class Column(Sequence[str]):
    """A text column as a sequence that stays in Arrow."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return list(self._column[place].to_pylist())
        return str(self._column[int(place)].as_py())

    def at(self, places: IntArray) -> Column:
        """Some of them."""
        return self if len(places) == len(self) else Column(self._column.take(pa.array(places)))


@dataclass(frozen=True, eq=False)
class PoolColumns:
    """The unlabelled examples in the order of their data; `parts` are those of the data.

    Columns: `example_id`, `answer` (null = abstain), `label` int16 (-1 = abstain), `score` and `margin` float64 (null =
    abstain), `voices` int16, `agreed` bool; see `selection.Pooled`. `calibrating` are the crew's opinions on the
    examples that calibrate, whole. `filled_in` counts for each asker the rows in which the server did not show every
    label. `factors` are those that the annotators were brought to the labels' shares by.
    """

    parts: tuple[pa.Table, ...]
    calibrating: AnnotatorProbs
    filled_in: Mapping[str, int]
    factors: Factors

    @property
    def size(self) -> int:
        """How many unlabelled examples there are."""
        return sum(len(part) for part in self.parts)

    @property
    def score(self) -> FloatArray:
        """float64 (m,), NaN = abstain."""
        return self._whole("score", np.float64)

    @property
    def label(self) -> LabelArray:
        """int16 (m,), an index into an example's own labels."""
        return self._whole("label", np.int16)

    @property
    def answered(self) -> int:
        """How many examples any annotator had an answer to."""
        return sum(int(np.count_nonzero(part["label"].to_numpy() >= 0)) for part in self.parts)

    @property
    def agreed(self) -> int:
        """To how many of them all annotators that spoke had the same first choice."""
        return sum(
            int(np.count_nonzero(part["agreed"].to_numpy(zero_copy_only=False) & (part["label"].to_numpy() >= 0)))
            for part in self.parts
        )

    @property
    def ids(self) -> Column:
        """The examples' ids."""
        return Column(pa.chunked_array([ids for part in self.parts for ids in part["example_id"].chunks], pa.string()))

    def answer(self, place: int) -> str | None:
        """The pooled answer to an example."""
        for part in self.parts:
            if place < len(part):
                answer: str | None = part["answer"][place].as_py()
                return answer
            place -= len(part)
        raise IndexError(place)

    def with_places(self) -> Iterator[tuple[pa.Table, slice]]:
        """Every part, and where its rows are in the whole columns."""
        at = 0
        for part in self.parts:
            yield part, slice(at, at + len(part))
            at += len(part)

    def _whole(self, name: str, kind: type[np.generic]) -> np.ndarray:
        whole = np.empty(self.size, dtype=kind)
        for part, at in self.with_places():
            whole[at] = part[name].to_numpy(zero_copy_only=False)
        return whole


def pool_columns(
    corpus: Corpus, crew: Crew, said: EvidenceTable, final: EvidenceTable, factors: Factors | None = None
) -> PoolColumns:
    """Read the evidence part by part and pool it; `factors` bring annotators to the labels' shares.

    Raises:
        StageError: more than 5 % of an annotator's answers came without the log-probabilities that it is read by.
    """
    tally = _Tally(crew)
    parts: list[pa.Table] = []
    last = len(corpus.sizes("unlabeled")) - 1
    calibrating: AnnotatorProbs | None = None
    for place in range(last + 1):
        examples, heard = corpus.outlines(place), Measures.of((said, final), place)
        found = annotator_probs(corpus, crew.everybody, examples, heard, factors)
        tally.count(heard)
        free_memory()
        here = len(examples) if place < last else len(examples) - len(corpus.folds.calibration)
        if here or not parts:
            parts.append(_table(found.only(slice(0, here))))
        if place == last:
            calibrating = found.only(slice(here, len(examples)))
    assert calibrating is not None
    tally.refuse_missing()
    return PoolColumns(tuple(parts), calibrating, dict(sorted(tally.filled_in.items())), factors or {})


def unlabeled_of(corpus: Corpus, place: int) -> Sequence[Example]:
    """The unlabelled examples of one part."""
    examples = corpus.pool("unlabeled", Shard(place))
    last = len(corpus.sizes("unlabeled")) - 1
    return examples if place < last else examples[: len(examples) - len(corpus.folds.calibration)]


def _table(found: AnnotatorProbs) -> pa.Table:
    pooled, places = found.pooled, range(len(found.examples))
    return pa.table(
        {
            "example_id": pa.array([e.id for e in found.examples], pa.string()),
            "answer": pa.array([found.answer(i) for i in places], pa.string()),
            "label": pa.array(pooled.label.astype(np.int16)),
            "score": pa.array(pooled.score, pa.float64(), from_pandas=True),
            "margin": pa.array(pooled.margin, pa.float64(), from_pandas=True),
            "voices": pa.array(pooled.n_annotators.astype(np.int16)),
            "agreed": pa.array(pooled.agreed, pa.bool_()),
        }
    )


class _Tally:
    """Counts over all parts what each annotator's rows lack."""

    def __init__(self, crew: Crew) -> None:
        needed = {annotator.id: _scored_by(annotator) for annotator in crew.annotators}
        self._needed: Mapping[str, str] = {name: column for name, column in needed.items() if column}
        self._lacking: dict[str, list[Abstentions]] = {name: [] for name in self._needed}
        self.filled_in: dict[str, int] = {}

    def count(self, heard: Measures) -> None:
        """One part's rows."""
        for name, needed in self._needed.items():
            own = heard.of_asker(name)
            scored = own[needed].is_valid().to_numpy() if needed in own.column_names else np.zeros(len(own), np.bool_)
            self._lacking[name].append(
                count_abstentions(own["finish"].to_pylist(), own["answer"].is_valid().to_numpy(), scored)
            )
        failed = heard.table.filter(heard.table["failure"].is_valid())
        for name, reason in zip(failed["annotator_id"].to_pylist(), failed["failure"].to_pylist(), strict=True):
            if reason.startswith(UNSEEN):
                asker = asker_of(name)
                self.filled_in[asker] = self.filled_in.get(asker, 0) + 1

    def refuse_missing(self) -> None:
        """Too many answers without what the annotator's estimator needs would distort the selection."""
        for counted in self._lacking.values():
            check_missing_logprobs(sum(counted[1:], start=counted[0]))
