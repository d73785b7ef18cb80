"""A verdict and a selection's summary keep every stored key and value while code reads them as typed values."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from semievol_api.evaluation.verdict import _sentence
from semievol_api.store.run_store import Packed
from semievol_api.store.verdict import Difference, ModelScore, PaperSummary, PooledSummary, Verdict, summary_of
from semievol_api.training.files import EQUAL_STEPS

RUNS = Path(__file__).parents[1] / "data" / "runs"
ORDER = (
    *("n_test", "models", "differences", "selection", "oracle", "hygiene"),
    *("notes", "sentence", "promoted", "gate", "warnings"),
)


def _stored(name: str) -> Iterator[dict[str, Any]]:
    """The documents of that name in runs that an older version made."""
    for path in sorted(RUNS.glob("*.tar.xz")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if member.name.endswith(name):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield json.loads(file.read())


def _bytes(document: object) -> str:
    """As the run store writes it."""
    return json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True)


def test_stored_verdicts_keep_their_bytes_and_have_one_order_of_keys() -> None:
    found = list(_stored("verdict/verdict.json"))
    assert len(found) >= 12 and {"gate" in document for document in found} == {True, False}
    for document in found:
        verdict = Verdict.of(document)
        assert _bytes(verdict.pack().documents["verdict"]) == _bytes(document)
        assert list(verdict.document) == [name for name in ORDER if name in document]
        assert Verdict.unpack(Packed(documents={"verdict": document})) == verdict


def test_stored_summaries_keep_their_bytes() -> None:
    found = list(_stored("select/summary.json"))
    assert {type(summary_of(document)) for document in found} == {PaperSummary, PooledSummary}
    for document in found:
        assert _bytes(to_builtins(summary_of(document))) == _bytes(document)


def test_a_verdict_without_a_selection_stores_none_of_its_keys() -> None:
    score = ModelScore(name="base", label="base", accuracy=0.5, interval=(0.4, 0.6), abstained=0, tokens=9)
    told = Verdict(n_test=2, models=(score,), differences=(), selection=None, oracle=None, notes=(), sentence="Half.")
    assert list(told.document) == ["n_test", "models", "differences", "selection", "oracle", "notes", "sentence"]
    assert told.document["selection"] == {} and "trained_tokens" not in told.document["models"][0]
    assert Verdict.of(told.document) == told


def test_keys_of_a_newer_version_are_left_alone() -> None:
    document = next(_stored("verdict/verdict.json"))
    assert Verdict.of(document | {"unknown": {"anything": 1}}) == Verdict.of(document)


@pytest.mark.parametrize("enough", [True, False])
def test_a_selection_trains_unless_its_rule_says_there_is_too_little(enough: bool) -> None:
    paper, pooled = (
        next(document for document in _stored("select/summary.json") if ("enough" in document) is beyond)
        for beyond in (False, True)
    )
    assert summary_of(paper).enough_to_train
    assert summary_of(pooled | {"enough": enough}).enough_to_train is enough


def _difference(against: str, low: float) -> Difference:
    return Difference(
        of="semievol",
        against=against,
        of_label="SemiEvol",
        against_label=against,
        points=low + 2.0,
        interval=(low, low + 4.0),
        mcnemar_p=0.01,
        smallest_detectable=1.0,
    )


def test_helped_is_said_only_where_equal_steps_on_the_labels_alone_do_less() -> None:
    sft, equal = _difference("sft", 1.0), _difference(EQUAL_STEPS, 0.5)
    assert _sentence([sft]).startswith("SemiEvol helped")
    assert _sentence([sft, equal]).startswith("SemiEvol helped")
    doubtful = _sentence([sft, _difference(EQUAL_STEPS, -0.5)])
    assert "helped" not in doubtful
    assert "more steps on the labels alone may do as much" in doubtful
    assert _sentence([_difference("sft", -0.5), equal]).startswith("No effect")
