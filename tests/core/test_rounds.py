"""What one round hands to the next: the gate's labels stay out, what was kept teaches, the rest is asked about."""

from __future__ import annotations

import pyarrow as pa

from semievol_api.data import RawData
from semievol_api.data.table import ChunkedTable
from semievol_api.records import Example, PseudoLabel
from semievol_api.session import data_of_next_round
from semievol_api.store.artifacts import Folds, Prepared, Selection
from semievol_api.store.verdict import PaperSummary


def _labelled(*names: str) -> tuple[Example, ...]:
    return tuple(Example(id=name, question=f"What is {name}?", answer="A") for name in names)


def _next_round() -> RawData:
    """After a round with four labels, of which two gate, and four questions, of which two were kept."""
    labeled, test = _labelled("l0", "l1", "l2", "l3"), _labelled("t0")
    unlabeled = tuple(Example(id=f"u{i}", question=f"What is u{i}?") for i in range(4))
    chosen = Selection(
        kept=tuple(PseudoLabel(example_id=name, answer="B", text="Answer: B", score=0.9) for name in ("u1", "u3")),
        scores=ChunkedTable.of(pa.table({"example_id": [f"u{i}" for i in range(4)]})),
        summary=PaperSummary(
            rule="percentile", share=0.5, threshold_mean_nll=None, unlabeled=4, answered=4, kept=2, messages=()
        ),
    )
    folds = Folds(warm=labeled[:2], calibration=(), development=labeled[2:], tunable=True, note="")
    data = Prepared(labeled=labeled, unlabeled=unlabeled, test=test, report={})
    raw = RawData(labeled=labeled, unlabeled=unlabeled, test=test, pseudo_labeled=_labelled("earlier"))
    return data_of_next_round(raw, data, folds, chosen)


def test_labels_that_gate_are_no_labelled_data_of_the_next_round() -> None:
    following = _next_round()
    assert [e.id for e in following.labeled] == ["l0", "l1"]
    assert [e.id for e in following.development] == ["l2", "l3"]


def test_what_a_round_kept_teaches_with_its_pseudo_label_and_is_not_asked_again() -> None:
    following = _next_round()
    assert [(e.id, e.answer) for e in following.pseudo_labeled] == [("earlier", "A"), ("u1", "B"), ("u3", "B")]
    assert [e.id for e in following.unlabeled] == ["u0", "u2"]
    assert [e.id for e in following.test] == ["t0"]
