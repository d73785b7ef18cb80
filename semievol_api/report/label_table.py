"""Every unlabelled row with all that was said about it: what the label browser, review and the export read.

Joins the artifacts of a run folder column by column, so that 100,000 rows take seconds; of more than fit a part it
shows a sample. Knows nothing of HTML,
of files other than a run's artifacts, or of how a label was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from semievol_api.artifacts import EvidenceTable, Prepared, Selection
from semievol_api.errors import RunFolderError
from semievol_api.parts import Parts, Rows
from semievol_api.records import Example
from semievol_api.run_store import load_artifact

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

GOLD_FILE = "oracle/gold.json"
"""Optional, in the run folder: {example id: hidden gold answer} of unlabelled rows, for this report alone."""

SHOWN = 100_000
"""Rows that a page shows at most of a pool in parts."""
_SAID = {"above the threshold": "less sure than the cut"}
"""Reasons of the selection on the scale of this table, where higher is better."""


@dataclass(frozen=True, eq=False)
class Voice:
    """What one annotator (or the justification) said of every row, in the table's order.

    `confidences` is float64, shape (rows,), exp(-mean_nll); NaN where there is none. An answer of None is an
    abstention; `texts` is "" where it was not asked.
    """

    id: str
    answers: Sequence[str | None]
    confidences: FloatArray
    texts: Sequence[str]


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The unlabelled rows of a run in the order of its data.

    `confidences` is float64, shape (rows,), higher is better: the share that the selection rule ranked, or
    exp(-mean_nll) where it ranked that; NaN for an abstention. `kept` is bool, shape (rows,). `threshold` is on
    the scale of `confidences`. `gold` holds hidden gold where the run folder has it.
    """

    examples: Sequence[Example]
    answers: Sequence[str | None]
    confidences: FloatArray
    kept: BoolArray
    reasons: Sequence[str]
    voices: Sequence[Voice]
    justification: Voice | None
    gold: Mapping[str, str]
    threshold: float | None

    def __len__(self) -> int:
        return len(self.examples)

    def correct(self) -> tuple[NDArray[np.int64], BoolArray]:
        """The places of rows with an answer and known gold, and whether the answer is right."""
        places = [i for i, e in enumerate(self.examples) if e.id in self.gold and self.answers[i] is not None]
        right = [same_answer(self.answers[i], self.gold[self.examples[i].id]) for i in places]
        return np.array(places, dtype=np.int64), np.array(right, dtype=np.bool_)

    def agreement(self) -> FloatArray:
        """float64, shape (rows,): the share of annotators that gave the row's answer; NaN without annotators."""
        if not self.voices:
            return np.full(len(self), np.nan)
        votes = np.zeros(len(self))
        for voice in self.voices:
            votes += [a is not None and a == b for a, b in zip(voice.answers, self.answers, strict=True)]
        return votes / len(self.voices)


def same_answer(answer: str | None, gold: str) -> bool:
    """Whether canonical answers agree; numbers within 1 % of the gold one (paper §4.1)."""
    if answer is None or answer == gold:
        return answer is not None
    try:
        return abs(float(answer) - float(gold)) <= 0.01 * abs(float(gold))
    except ValueError:
        return False


def read_label_table(run_folder: Path, data: Prepared | None = None) -> LabelTable:
    """The rows as far as the run has come; before selection nothing is kept and nothing has an answer.

    Of unlabelled examples in parts these are a sample, the same every time. `data` spares reading the prepared data
    again.

    Raises:
        RunFolderError: the folder holds no prepared data.
    """
    data = data or load_prepared(run_folder)
    return _label_table(run_folder, shown_of(data), None)


def label_tables(run_folder: Path) -> Iterator[LabelTable]:
    """All rows, one part after the other; see `read_label_table`."""
    unlabeled = load_prepared(run_folder).unlabeled
    if not isinstance(unlabeled, Rows):
        yield read_label_table(run_folder)
        return
    for part in range(unlabeled.parts.count):
        yield _label_table(run_folder, unlabeled.part(part), part)


def shown_of(data: Prepared) -> Sequence[Example]:
    """The unlabelled examples that a person is shown: all, or about `SHOWN` evenly spread ones."""
    unlabeled = data.unlabeled
    if not isinstance(unlabeled, Rows):
        return unlabeled
    sizes = np.array(unlabeled.parts.sizes)
    ends = np.rint(np.cumsum(sizes) * min(1.0, SHOWN / len(unlabeled))).astype(int)
    shown: list[Example] = []
    for part, (size, count) in enumerate(zip(sizes.tolist(), np.diff(ends, prepend=0).tolist(), strict=True)):
        rows = unlabeled.part(part)
        shown += [rows[place] for place in np.linspace(0, size - 1, count).astype(int).tolist()]
    return shown


def _label_table(run_folder: Path, examples: Sequence[Example], part: int | None) -> LabelTable:
    """What was said of some examples, which lie in one part or anywhere."""
    place = {e.id: i for i, e in enumerate(examples)}
    said = load_artifact(run_folder, "collaborate", EvidenceTable)
    final = load_artifact(run_folder, "justify", EvidenceTable)
    chosen = load_artifact(run_folder, "select", Selection)
    answers: Sequence[str | None] = [None] * len(examples)
    confidences, kept = np.full(len(examples), np.nan), np.zeros(len(examples), dtype=np.bool_)
    reasons: Sequence[str] = ["not selected yet"] * len(examples)
    if chosen is not None:
        scores = _about(chosen.scores if isinstance(chosen.scores, Parts) else Parts.of(chosen.scores), place, part)
        order = _order(scores, place)
        answers = _spread(scores["answer"].to_pylist(), order, len(examples))
        confidences[order[order >= 0]] = _scores(scores)[order >= 0]
        kept[order[order >= 0]] = np.array(scores["kept"].to_pylist(), dtype=np.bool_)[order >= 0]
        reasons = [_SAID.get(r or "", r or "") for r in _spread(scores["reason"].to_pylist(), order, len(examples))]
    voices = _voices(None if said is None else _about(said.parts, place, part), place)
    justified = _voices(None if final is None else _about(final.parts, place, part), place)
    return LabelTable(
        examples=examples,
        answers=answers,
        confidences=confidences,
        kept=kept,
        reasons=reasons,
        voices=voices,
        justification=justified[0] if justified else None,
        gold=_read_gold(run_folder),
        threshold=_threshold(chosen),
    )


def load_prepared(run_folder: Path) -> Prepared:
    """The clean data of a run.

    Raises:
        RunFolderError: there is none.
    """
    data = load_artifact(run_folder, "prepare", Prepared)
    if data is None:
        raise RunFolderError(
            f"The folder {str(run_folder)!r} holds no prepared data, so it is no run, or one that has not begun. "
            f"Name the folder that [run] folder names in your config, after `semievol run`."
        )
    return data


def _about(parts: Parts, place: Mapping[str, int], part: int | None) -> pa.Table:
    """The rows about some examples, which lie in one part or anywhere; all of a table in one part."""
    if parts.count == 1 or part is not None:
        return parts.read(part or 0)
    found: list[pa.Table] = []
    for table in parts.tables():
        wanted = [name in place for name in table["example_id"].to_pylist()]
        found.append(table.filter(pa.array(wanted, pa.bool_())))
    return pa.concat_tables(found, promote_options="default")


def _voices(table: pa.Table | None, place: Mapping[str, int]) -> list[Voice]:
    if table is None:
        return []
    order = _order(table, place)
    names = np.array(table["annotator_id"].to_pylist(), dtype=np.str_)
    answers = np.array(table["answer"].to_pylist(), dtype=object)
    texts = np.array(table["text"].to_pylist(), dtype=object)
    confidences = np.exp(-_floats(table["mean_nll"]))
    voices: list[Voice] = []
    for name in np.unique(names):
        own = (names == name) & (order >= 0)
        spread = np.full(len(place), np.nan)
        spread[order[own]] = confidences[own]
        voices.append(
            Voice(
                id=str(name),
                answers=_spread(list(answers[own]), order[own], len(place)),
                confidences=spread,
                texts=[t or "" for t in _spread(list(texts[own]), order[own], len(place))],
            )
        )
    return voices


def _order(table: pa.Table, place: Mapping[str, int]) -> NDArray[np.int64]:
    """The place of each row's example; -1 for one that is not in the pool."""
    return np.array([place.get(i, -1) for i in table["example_id"].to_pylist()], dtype=np.int64)


def _spread(values: Sequence[str | None], order: NDArray[np.int64], size: int) -> list[str | None]:
    spread: list[str | None] = [None] * size
    for value, where in zip(values, order.tolist(), strict=True):
        if where >= 0:
            spread[where] = value
    return spread


def _scores(table: pa.Table) -> FloatArray:
    if "mean_nll" in table.column_names:
        return np.asarray(np.exp(-_floats(table["mean_nll"])), dtype=np.float64)
    return _floats(table["score"]) if "score" in table.column_names else np.full(len(table), np.nan)


def _floats(column: pa.ChunkedArray) -> FloatArray:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _threshold(chosen: Selection | None) -> float | None:
    if chosen is None:
        return None
    nll, share = chosen.summary.get("threshold_mean_nll"), chosen.summary.get("threshold")
    if isinstance(nll, int | float):
        return float(np.exp(-nll))
    return float(share) if isinstance(share, int | float) else None


def _read_gold(run_folder: Path) -> Mapping[str, str]:
    path = run_folder / GOLD_FILE
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
