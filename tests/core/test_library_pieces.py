"""The pieces that a notebook uses alone: selection on arrays, neighbours, frames as files, HTML and progress."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from semievol_api import Calibration, ConfigError, DataError, RuleSettings, nearest, select
from semievol_api.data.frames import rows_of, write_frame, write_task
from semievol_api.notebook import CellProgress, cell_display, html_table, run_blocking
from semievol_api.selection import pool
from semievol_api.selection import select as select_scores
from semievol_api.tasks import load_task

RNG = np.random.default_rng(3)
TRUTH = RNG.integers(3, size=500)
SURE = RNG.random((500, 1))
PROBS = (1 - SURE) / 3 + SURE * np.eye(3)[np.where(RNG.random(500) < SURE[:, 0], TRUTH, 0)]


def test_selection_on_arrays_is_the_runs_own_rule() -> None:
    chosen = select(PROBS[:400], TRUTH[400:], PROBS[400:], alpha=0.1)
    label, score = PROBS.argmax(axis=1), PROBS.max(axis=1)
    calibration = Calibration(scores=score[400:], wrong=label[400:] != TRUTH[400:])
    own = select_scores(score[:400], [str(i) for i in range(400)], calibration, RuleSettings(alpha=0.1))
    assert np.array_equal(chosen.kept, own.kept)
    assert (chosen.threshold, chosen.false_share, chosen.messages) == (own.threshold, own.estimate, own.messages)
    assert np.array_equal(chosen.labels, label[:400])
    assert 0 < chosen.count < 400
    assert chosen.coverage == chosen.count / 400
    assert np.mean(label[:400][chosen.kept] != TRUTH[:400][chosen.kept]) < 0.3
    assert "at most 10.0% of the kept labels" in (chosen.promise or "")
    again = select(score[:400], calibration)
    assert np.array_equal(again.kept, own.kept)
    assert again.labels.size == 0


def test_lists_names_and_several_annotators_will_do() -> None:
    names = ["no", "maybe", "yes"]
    gold = [names[i] for i in TRUTH[400:]]
    plain = select(PROBS[:400], TRUTH[400:], PROBS[400:])
    named = select(PROBS[:400].tolist(), gold, PROBS[400:].tolist(), classes=names)
    assert np.array_equal(named.kept, plain.kept)
    assert named.labels.tolist() == [names[i] for i in plain.labels]
    crew = np.stack([PROBS, np.roll(PROBS, 1, axis=1)], axis=1)
    pooled = pool(crew[:400], np.full(400, 3))
    several = select(crew[:400], TRUTH[400:], crew[400:], rule="percentile")
    assert np.array_equal(several.labels, pooled.label)
    assert np.array_equal(several.scores, pooled.score)


def test_an_abstention_is_never_kept_and_has_no_label() -> None:
    chosen = select([[np.nan, 0.5], [0.9, 0.1]], rule="percentile", classes=["a", "b"])
    assert chosen.kept.tolist() == [False, True]
    assert chosen.labels.tolist() == [None, "a"]
    assert np.isnan(chosen.scores[0])


def test_too_few_calibration_labels_promise_nothing_and_say_so() -> None:
    chosen = select(PROBS[:400], TRUTH[400:420], PROBS[400:420])
    assert (chosen.rule, chosen.promise) == ("percentile", None)
    assert "needs at least 30 calibration labels and there are 20" in chosen.messages[0]
    assert "nothing promised" in repr(chosen)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"probs": [[0.2, 1.8]]}, "probabilities lie in"),
        ({"probs": [[0.2], [0.1, 0.2]]}, "equally long rows"),
        ({"probs": np.zeros((2, 2, 2, 2))}, "has the shape"),
        ({"probs": PROBS, "calibration_labels": TRUTH}, "`calibration_probs` is missing"),
        ({"probs": PROBS, "calibration_labels": TRUTH, "calibration_probs": PROBS[:, :2]}, "must be the same"),
        ({"probs": PROBS, "calibration_labels": TRUTH[:9], "calibration_probs": PROBS}, "9 calibration labels and 500"),
        ({"probs": PROBS, "calibration_labels": TRUTH + 1, "calibration_probs": PROBS}, "none of the 3 labels"),
        ({"probs": PROBS, "calibration_labels": TRUTH / 2, "calibration_probs": PROBS}, "Name the columns"),
        ({"probs": PROBS, "classes": ["a"]}, "names 1 labels and `probs` has 3"),
        ({"probs": PROBS, "rule": "best"}, "There is no rule 'best'"),
        ({"probs": PROBS, "rule": RuleSettings(), "alpha": 0.1}, "given twice"),
    ],
)
def test_a_wrong_array_is_refused_in_one_sentence(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises((DataError, ConfigError), match=told):
        select(**arguments)


def test_neighbours_of_texts_leave_out_the_text_itself_and_pad() -> None:
    texts = ["the cat sat", "stocks fell again", "a cat slept"]
    found = nearest(texts, texts, k=3)
    assert found.indices.tolist() == [[2, 1, -1], [2, 0, -1], [0, 1, -1]]
    assert np.isnan(found.scores[:, 2]).all()
    assert len(found) == 3
    assert nearest(["a cat"], [], k=2).indices.tolist() == [[-1, -1]]


def test_neighbours_of_vectors_are_those_of_the_cosine() -> None:
    vectors = RNG.normal(size=(40, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = nearest(vectors[:4].tolist(), vectors, k=3)
    assert np.array_equal(found.indices, np.argsort(-(unit[:4] @ unit.T), axis=1)[:, :3])
    assert found.scores[:, 0] == pytest.approx(1.0)
    for wrong, told in (
        (([[1.0]], [[1.0, 2.0]]), "one model"),
        ((["a"], [[1.0]]), "not both"),
        (("ab", ["a"]), "lists"),
    ):
        with pytest.raises(DataError, match=told):
            nearest(*wrong)


def frames() -> list[Any]:
    """The same rows in every form."""
    rows = [{"question": "a", "answer": 1, "options": ["x", "y"]}, {"question": "b", "answer": None, "options": ["z"]}]
    return [rows, pd.DataFrame(rows), pa.Table.from_pylist(rows), iter(rows)]


@pytest.mark.parametrize("number", range(4))
def test_a_frame_of_any_kind_gives_the_same_file(number: int, tmp_path: Path) -> None:
    path = write_frame(frames()[number], tmp_path / "frames" / "labeled.jsonl")
    first, second = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert first == {"question": "a", "answer": 1, "options": ["x", "y"]}
    assert (second["answer"], second["options"]) == (None, ["z"])
    assert '"answer": 1,' in path.read_text("utf-8"), "a column with gaps keeps its integers"
    assert path.parent.stat().st_mode & 0o077 == 0
    before = path.stat()
    write_frame(frames()[number], path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    write_frame([{"question": "c"}], path)
    assert path.read_text("utf-8") == '{"question": "c"}\n'
    assert [p.name for p in path.parent.iterdir()] == ["labeled.jsonl"]


def test_cells_of_data_frames_become_plain_values() -> None:
    frame = pd.DataFrame(
        {
            "n": [np.int64(3), 4],
            "f": [0.5, np.nan],
            "when": [pd.Timestamp("2026-01-02"), pd.NaT],
            "c": pd.Categorical(["a", "b"]),
        }
    )
    assert list(rows_of(frame, "labeled")) == [
        {"n": 3, "f": 0.5, "when": "2026-01-02 00:00:00", "c": "a"},
        {"n": 4, "f": None, "when": None, "c": "b"},
    ]


@pytest.mark.parametrize("wrong", [["a", "b"], "text", {"question": "a"}, 3, [], [{"a": object()}]])
def test_what_is_no_frame_is_refused_and_leaves_no_file(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_frame(wrong, tmp_path / "labeled.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_task_given_as_a_mapping_is_read_like_a_file(tmp_path: Path) -> None:
    table = {
        "kind": "labels",
        "labels": ['say "no"', "maybe\tä"],
        "instruction": "Which?",
        "aliases": {"nö": 'say "no"'},
        "columns": {"question": "text"},
    }
    task = load_task(write_task(table, tmp_path / "task.toml"))
    assert task.definition.labels == ('say "no"', "maybe\tä")
    assert task.definition.columns.question == "text"
    assert task.parse("Answer: nö", None) == 'say "no"'  # type: ignore[arg-type]


async def test_a_coroutine_runs_inside_a_running_loop_and_its_error_comes_out() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 3

    async def fail() -> None:
        raise DataError("no")

    assert run_blocking(answer()) == 3
    with pytest.raises(DataError, match="no"):
        run_blocking(fail())


def test_html_is_escaped() -> None:
    shown = html_table("<b>", ("a&b",), [("<script>",)], ["<i>"])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a&amp;b" in shown


def test_progress_is_drawn_in_a_notebooks_cell_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cell_display() is None
    shown: list[str] = []

    class ZMQInteractiveShell:
        """Named as IPython's."""

    class Handle:
        def update(self, html: str) -> None:
            shown.append(html)

    def display(html: str, display_id: bool) -> Handle:
        shown.append(html)
        return Handle()

    terminal = types.SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str, display=display))
    assert cell_display() is None
    terminal.get_ipython = ZMQInteractiveShell
    show = cell_display()
    assert show is not None
    bars = CellProgress(show, "Run")
    bars.on_stage("collaborate", "started")
    for failed in (False, True):
        bars.on_row(types.SimpleNamespace(stage="collaborate", cached=not failed, failed=failed))
    bars.on_job("semievol", types.SimpleNamespace(message="step 3"))
    bars.finish()
    assert "<td>collaborate</td><td>done</td><td>2 (1 from the journal, 1 failed)</td>" in shown[-1]
    assert "Run" in shown[0]
