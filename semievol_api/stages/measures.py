"""What was said of one part's examples, as columns: selection's way to read evidence without a value for every row.

Gives what `readings_of` makes of the same rows, many times quicker. Knows nothing of estimators, pools or rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from semievol_api.artifacts import EvidenceTable
from semievol_api.records import Evidence
from semievol_api.selection import Readings
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.stages.reading import asker_of
from semievol_api.tables import MEASURES, as_evidence, grouped


@dataclass(frozen=True, eq=False)
class Measures:
    """The evidence rows of one part, annotators' and judge's; columns of `tables.MEASURES`."""

    table: pa.Table

    @classmethod
    def of(cls, tables: Sequence[EvidenceTable], part: int) -> Measures:
        """Those of a part, of several evidence tables together."""
        read = []
        for evidence in tables:
            names = evidence.parts.names(part)
            read.append(evidence.parts.read(part, [name for name in MEASURES if name in names]))
        return cls(pa.concat_tables(read, promote_options="default").combine_chunks())

    @cached_property
    def single(self) -> bool:
        """Whether no annotator answered a question more than once."""
        return all(asker_of(name) == name and len(self._places[name]) == len(own) for name, own in self._own.items())

    def rows(self) -> dict[str, list[Evidence]]:
        """The rows of each example as values."""
        return grouped(as_evidence(self.table, measures_only=True))

    def of_asker(self, asker: str) -> pa.Table:
        """The rows of an asker, all its samples."""
        own = [rows for name, rows in self._own.items() if asker_of(name) == asker]
        return pa.concat_tables(own) if own else self.table.slice(0, 0)

    def readings(self, asker: str, ids: Sequence[str], labels: Sequence[tuple[str, ...]]) -> Readings:
        """One asker's answers to the examples `ids`, in that order; see `selection.readings_of`.

        Only where `single` holds.
        """
        rows, places = self._own.get(asker, self.table.slice(0, 0)), self._places.get(asker, {})
        finish = rows["finish"].to_pylist()
        found: IntArray = np.array([places.get(name, -1) for name in ids], dtype=np.int64)
        sound: BoolArray = np.array([at >= 0 and finish[at] == "stop" for at in found.tolist()], dtype=np.bool_)
        at = found[sound]
        width = max((len(options) for options in labels), default=0)

        def numbers(name: str) -> FloatArray:
            values = np.full(len(ids), np.nan)
            if name in rows.column_names:
                values[sound] = rows[name].to_numpy(zero_copy_only=False).astype(np.float64)[at]
            return values

        answers = np.full((len(ids), 1), -1, dtype=np.int64)
        answers[sound, 0] = _answers(rows["answer"], at, [labels[i] for i in np.flatnonzero(sound).tolist()])
        probs = np.full((len(ids), width), np.nan)
        probs[sound] = _probabilities(rows["option_probs"], width)[at]
        return Readings(
            answers=answers,
            n_options=np.array([len(options) for options in labels], dtype=np.int64),
            width=width,
            option_probs=probs,
            answer_logprob=numbers("answer_logprob"),
            p_true=numbers("p_true"),
            verbal=numbers("verbal"),
        )

    @cached_property
    def _own(self) -> dict[str, pa.Table]:
        """The rows of each annotator id."""
        encoded = self.table["annotator_id"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        names: list[str] = encoded.dictionary.to_pylist()
        return {name: self.table.filter(pa.array(codes == code)) for code, name in enumerate(names)}

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        """For each annotator id the place of each example's row."""
        return {
            name: {example: at for at, example in enumerate(own["example_id"].to_pylist())}
            for name, own in self._own.items()
        }


def _answers(column: pa.ChunkedArray, at: IntArray, labels: Sequence[tuple[str, ...]]) -> IntArray:
    """The place of each answer among its own labels, -1 where it is none of them."""
    encoded = column.combine_chunks().dictionary_encode()
    texts: list[str] = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(len(texts)).to_numpy()[at]
    sets: dict[tuple[str, ...], int] = {}
    which = np.array([sets.setdefault(options, len(sets)) for options in labels], dtype=np.int64)
    places = [[options.index(text) if text in options else -1 for text in texts] + [-1] for options in sets]
    table: IntArray = np.array(places, dtype=np.int64).reshape(len(sets), len(texts) + 1)
    return np.asarray(table[which, codes], dtype=np.int64)


def _probabilities(column: pa.ChunkedArray, width: int) -> FloatArray:
    """float64 (rows, width), 0 beyond a row's own options and NaN where there are none."""
    probs = np.full((len(column), width), np.nan)
    lists = column.combine_chunks()
    if not len(lists):
        return probs
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    known = lists.is_valid().to_numpy(zero_copy_only=False)
    for length in np.unique(lengths[known]).tolist():
        same = known & (lengths == length)
        probs[same] = 0.0
        probs[same, :length] = values[offsets[:-1][same][:, None] + np.arange(length)]
    return probs
