"""What is promised about labels holds or is taken back: later rounds, quotas, warnings, labels that are not shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from semievol_api import session
from semievol_api.capabilities import OptionReader, OptionReply, OptionRequest, Provider
from semievol_api.config.settings import ProviderTable
from semievol_api.registry import connect
from semievol_api.session import run
from tests.e2e.conftest import Project, write_rows
from tests.e2e.test_modes import add, document, ids, labels, words_as_answers

__all__ = ["labels"]

WEAK_CREW = """
[[annotators]]
id = "one"
model = "base"
[[annotators]]
id = "other"
model = "base"
shots = 1
"""


@dataclass(frozen=True)
class Shortsighted:
    """A reader that does not show the last label."""

    inner: OptionReader

    async def read(self, request: OptionRequest) -> OptionReply:
        """All but the last."""
        reply = await self.inner.read(request)
        return replace(reply, logprobs=(*reply.logprobs[:-1], None))


@pytest.mark.parametrize(("kind", "reading"), [("multiple_choice", "option_read"), ("labels", "option_prob")])
def test_a_missing_word_may_be_two_tokens_and_is_read_otherwise_a_missing_letter_is_reported(
    labels: Project, monkeypatch: pytest.MonkeyPatch, kind: str, reading: str
) -> None:
    if kind == "labels":
        named = 'name = "c"\nkind = "labels"\ninstruction = "Which?"\nlabels = ["red", "green", "blue", "gold"]\n'
        (labels.folder / "task.toml").write_text(f'{named}[columns]\nid = "id"\n', "utf-8")
        for name, count, start in (("labeled", 140, 0), ("unlabeled", 240, 1000), ("test", 40, 2000)):
            words_as_answers(labels.folder / f"{name}.csv", count, start)

    def connect_to(name: str, table: ProviderTable, *rest: object, **more: object) -> Provider:
        provider = connect(name, table, {}, str(labels.folder))
        assert provider.option_reader is not None
        return replace(provider, option_reader=Shortsighted(provider.option_reader))

    monkeypatch.setattr(session, "connect", connect_to)
    add(labels, WEAK_CREW)
    told = document(run(labels.config))
    assert told["selection"]["annotators"]["one"]["read_by"] == reading
    lacking = [note for note in told["notes"] if "did not show every label" in note]
    assert bool(lacking) is (kind == "multiple_choice")


def test_an_untuned_model_is_shown_the_kept_pseudo_labels_and_never_what_gates(labels: Project) -> None:
    write_rows(labels.folder / "labeled.csv", 520)
    labels.change(
        ('state = "server"', "can_train = false"), ('folder = "out"', 'folder = "out"\npropagation = "in-context"')
    )
    add(labels, '[evolve]\nkind = "in-context"')
    folder = run(labels.config).folder
    gating, kept = ids(folder, "development"), pq.read_table(folder / "select/kept.parquet")["example_id"].to_pylist()
    assert len(gating) == 52 and len(ids(folder, "calibration")) == 104
    shown = {}
    for name in ("sft", "semievol"):
        near = pq.read_table(folder / f"demonstrations/{name}/neighbours.parquet")["neighbour_ids"].to_pylist()
        shown[name] = {neighbour for row in near for neighbour in row}
        assert not shown[name] & gating
    assert shown["semievol"] & set(kept), "pseudo-labels are demonstrations"
    assert not shown["sft"] & set(kept)
    assert shown["sft"] & ids(folder, "calibration"), "after selection every label may be shown"


def _one_class(project: Project) -> None:
    rows = (project.folder / "labeled.csv").read_text("utf-8").splitlines()
    red = [row for row in rows[1:] if row.endswith(",A")]
    more = [row.replace("Item number ", f"Item number {n}") for n in range(1, 5) for row in red]
    named = [f"r{i},{row.partition(',')[2]}" for i, row in enumerate([*red, *more])]
    (project.folder / "labeled.csv").write_text("\n".join([rows[0], *named]) + "\n", "utf-8")


def _other_questions(project: Project) -> None:
    path = project.folder / "unlabeled.csv"
    words = "the patient was given a placebo and then"
    path.write_text(path.read_text("utf-8").replace("of the survey has", words), "utf-8")


def _random_answers(project: Project) -> None:
    project.change(('state = "server"', 'state = "server"\nskill = 0.0'))
    add(project, '[justify]\non = "never"')


@pytest.mark.parametrize(
    ("plant", "kind"), [(_one_class, "one-class"), (_other_questions, "drift"), (_random_answers, "uninformative")]
)
def test_a_planted_failure_stands_in_the_verdict_and_a_clean_run_has_none(
    labels: Project, plant: Callable[[Project], None], kind: str
) -> None:
    add(labels, WEAK_CREW)
    assert document(run(labels.config))["warnings"] == []
    plant(labels)
    labels.change(('folder = "out"', 'folder = "planted"'))
    told = document(run(labels.config))
    assert kind in {warning["kind"] for warning in told["warnings"]}
    assert any(note.startswith("Warning: ") for note in told["notes"])


def test_a_later_round_counts_what_the_first_one_kept_and_simulates_no_range(labels: Project) -> None:
    labels.change(
        ("ceiling = true", "ceiling = false\nrounds = 2"), ('state = "server"', 'state = "server"\nskill = 0.4')
    )
    add(labels, WEAK_CREW)
    result = run(labels.config)
    first, second = (_summary(result.folder / name) for name in (".", "round-2"))
    assert first["false_share_range"] is not None and second["false_share_range"] is None
    assert first["guarantee"] is second["guarantee"] is True
    assert any(f"The {first['kept']} questions that earlier rounds kept count" in said for said in second["messages"])
    assert not any("earlier rounds" in said for said in first["messages"])


def test_high_probability_promises_nothing_about_what_the_first_round_left(labels: Project) -> None:
    labels.change(
        ("ceiling = true", "ceiling = false\nrounds = 2"), ('state = "server"', 'state = "server"\nskill = 0.5')
    )
    add(labels, f'{WEAK_CREW}\n[select]\nrule = "high-probability"\nalpha = 0.2\ndelta = 0.4')
    result = run(labels.config)
    first, second = (_summary(result.folder / name) for name in (".", "round-2"))
    assert first["guarantee"] is True and second["guarantee"] is False
    assert any("Nothing is promised in this round" in said for said in second["messages"])


def test_a_round_that_keeps_too_little_leaves_the_verdict_before_it(labels: Project) -> None:
    labels.change(("ceiling = true", "ceiling = false\nrounds = 3"))
    add(labels, '[select]\nrule = "top-n"\nn = 235')
    result = run(labels.config)
    told = document(result)
    assert "SemiEvol" in {m["label"] for m in told["models"]}
    assert told["selection"]["kept"] == 235
    assert "Round 2 kept 5 pseudo-labels more" in told["notes"][-1]
    assert not (result.folder / "round-3").exists()
    assert document(run(labels.config)) == told


def _summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "select/summary.json").read_text("utf-8")))


def test_a_class_quota_keeps_every_class_and_takes_the_promise_back(labels: Project) -> None:
    labels.change(('state = "server"', 'state = "server"\nskill = 0.3'))
    add(labels, f"{WEAK_CREW}\n[select]\nalpha = 0.01\nclass_quota = 0.3\non_empty = 'stop'")
    result = run(labels.config)
    told = document(result)["selection"]
    kept = pq.read_table(result.folder / "select/kept.parquet")["answer"].to_pylist()
    scores = pq.read_table(result.folder / "select/scores.parquet")["answer"].to_pylist()
    for letter in "ABCD":
        assert kept.count(letter) >= int(0.3 * scores.count(letter))
    assert any("A minimum share by class or category added" in said for said in told["messages"])
    assert told["guarantee"] is False and told["false_share_range"] is None
    assert told["estimated_false_share"] is None
    assert told["enough"] is True
    assert not any("final stage is skipped" in said for said in told["messages"]), "the quota made it enough"


def test_what_gates_stays_the_same_and_held_out_in_every_round(labels: Project) -> None:
    write_rows(labels.folder / "labeled.csv", 520)
    labels.change(("ceiling = true", "ceiling = false\nrounds = 2"))
    add(labels, f'{WEAK_CREW}\n[select]\nrule = "top-n"\nn = 60')
    first = run(labels.config).folder
    second = first / "round-2"
    gating = ids(first, "development")
    assert len(gating) == 52 and ids(second, "development") == gating
    assert not gating & (ids(second, "warm") | ids(second, "calibration"))
