"""The calibrated and the official mode on the scripted provider: what is promised, kept, gated and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from semievol_api.errors import UserError
from semievol_api.session import RunResult, run
from semievol_api.store.artifacts import Answers
from semievol_api.store.run_store import load_artifact
from tests.e2e.conftest import CONFIG, TASK, Project, tree, write_rows

NOT_ARTIFACTS = ("journal", "stamps", "config_key", ".lock", "jobs", "oracle", "spend")


@pytest.fixture
def labels(tmp_path: Path) -> Project:
    """140 labelled, 240 unlabelled, 40 test and 50 development questions; no mode is named."""
    write_rows(tmp_path / "labeled.csv", 140)
    write_rows(tmp_path / "unlabeled.csv", 240, start=1000)
    write_rows(tmp_path / "test.csv", 40, start=2000)
    write_rows(tmp_path / "dev.csv", 50, start=3000)
    (tmp_path / "semievol.toml").write_text(CONFIG.replace('mode = "paper"\n', ""), "utf-8")
    (tmp_path / "task.toml").write_text(TASK, "utf-8")
    return Project(tmp_path)


def add(project: Project, text: str) -> None:
    with project.config.open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")


def document(result: RunResult) -> dict[str, Any]:
    return dict(result.verdict.document)


def evidence(result: RunResult, stage: str = "collaborate") -> list[dict[str, Any]]:
    return pq.read_table(result.folder / stage / "evidence.parquet").to_pylist()


def ids(folder: Path, part: str) -> set[str]:
    return set(pq.read_table(folder / "split" / f"{part}.parquet")["id"].to_pylist())


def trained_on(folder: Path, name: str) -> str:
    return (folder / name / "train.jsonl").read_text("utf-8")


def test_the_default_mode_calibrates_promises_and_gates(labels: Project) -> None:
    labels.change(('test = "test.csv"', 'test = "test.csv"\ndev = "dev.csv"'))
    told = document(run(labels.config))
    selection = told["selection"]
    assert selection["rule"] == selection["applied_rule"] == "fdr"
    assert selection["guarantee"] is True
    assert selection["calibration"] == 50
    assert selection["kept"] >= 20
    assert {m["label"] for m in told["models"]} >= {"vanilla", "SFT", "SemiEvol", "gold-label ceiling"}
    assert told["gate"]["items"] == 50
    assert told["promoted"] == told["gate"]["promoted"] == (told["gate"]["points"] > 0)
    assert told["gate"]["points"] == pytest.approx(
        2 * (_right_at_the_gate(labels, "semievol") - _right_at_the_gate(labels, "sft"))
    )
    words = "\n".join(told["notes"])
    for said in ("50 calibrate", "In simulated runs", "must leave out at least", "does not bound"):
        assert said in words


def _right_at_the_gate(project: Project, name: str) -> int:
    found = load_artifact(project.folder / "out", f"gate/{name}", Answers)
    assert found is not None and len(found.correct) == 50
    return sum(found.correct.values())


def test_the_default_crew_asks_each_question_once_and_reads_the_whole_distribution(labels: Project) -> None:
    result = run(labels.config)
    rows = evidence(result)
    names = {row["annotator_id"] for row in rows}
    assert names == {"warm-0shot", "warm-3shot", "base-3shot"}, "the fourth is the neighbours' vote"
    assert "neighbours" in document(result)["selection"]["annotators"]
    assert len(rows) == 3 * (240 + 50)
    for row in rows:
        assert sum(row["option_probs"]) == pytest.approx(1, abs=1e-5)
        assert row["answer"] == "ABCD"[max(range(4), key=row["option_probs"].__getitem__)]
    assert result.ledger.stages["probe"].requests <= 3
    assert result.ledger.stages["collaborate"].requests <= len(rows)


def test_what_calibrates_or_gates_is_never_trained_on_before_selection_nor_shown(labels: Project) -> None:
    labels.change(('test = "test.csv"', 'test = "test.csv"\ndev = "dev.csv"'))
    folder = run(labels.config).folder
    calibrating, gating, warm = (ids(folder, part) for part in ("calibration", "development", "warm"))
    assert (len(warm), len(calibrating), len(gating)) == (90, 50, 50)
    questions = {r["id"]: r["question"] for r in pq.read_table(folder / "split/calibration.parquet").to_pylist()}
    assert not any(json.dumps(q)[1:-1] in trained_on(folder, "warm_up") for q in questions.values())
    assert all(json.dumps(q)[1:-1] in trained_on(folder, "sft") for q in questions.values())
    assert all(json.dumps(q)[1:-1] in trained_on(folder, "evolve") for q in questions.values())
    gate = [r["question"] for r in pq.read_table(folder / "split/development.parquet").to_pylist()]
    for file in ("warm_up", "sft", "evolve", "ceiling"):
        assert not any(question in trained_on(folder, file) for question in gate)
    shown = pq.read_table(folder / "retrieve/neighbours.parquet")["neighbour_ids"].to_pylist()
    assert {name for near in shown for name in near} <= warm


def test_a_second_calibrated_run_asks_nothing_and_makes_the_same_bytes(labels: Project) -> None:
    first = run(labels.config)
    before = tree(first.folder, without=NOT_ARTIFACTS)
    again = run(labels.config)
    assert again.computed == ()
    assert sum(bill.requests for bill in again.ledger.stages.values()) == 0
    (first.folder / "stamps.json").write_text("{}")
    anew = run(labels.config)
    assert len(anew.computed) > 10
    assert sum(bill.requests for bill in anew.ledger.stages.values()) == 0
    assert tree(first.folder, without=NOT_ARTIFACTS) == before


def test_hidden_gold_changes_no_byte_of_the_calibrated_selection(labels: Project) -> None:
    labels.change(("ceiling = true", "ceiling = false"))
    seen = tree(run(labels.config).folder, without=NOT_ARTIFACTS)
    write_rows(labels.folder / "unlabeled.csv", 240, start=1000, gold=False)
    labels.change(('folder = "out"', 'folder = "blind"'))
    blind = tree(run(labels.config).folder, without=NOT_ARTIFACTS)
    assert {k: v for k, v in seen.items() if "verdict" not in k} == {
        k: v for k, v in blind.items() if "verdict" not in k
    }


@pytest.mark.parametrize("way", ["ignore_logprobs = true", "refuse_logprobs = true"])
def test_a_vendor_without_logprobs_runs_the_same_config_with_votes(labels: Project, way: str) -> None:
    labels.change(('state = "server"', f'state = "server"\nskill = 0.9\n{way}'))
    result = run(labels.config)
    told = document(result)
    read = {how["read_by"] for how in told["selection"]["annotators"].values()}
    assert read == {"votes", "neighbour_vote"}
    assert any("their confidence is by votes" in note for note in told["notes"])
    assert told["selection"]["kept"] > 0
    assert all(row["option_probs"] is None for row in evidence(result))


@pytest.mark.parametrize(
    ("way", "reading"), [("can_read_options = false", "option_prob"), ("alternatives = false", "answer_logprob")]
)
def test_each_step_of_ability_has_its_estimator(labels: Project, way: str, reading: str) -> None:
    labels.change(('state = "server"', f'state = "server"\ncan_read_options = false\n{way}'))
    if way.startswith("can_read"):
        labels.change(("can_read_options = false\ncan_read", "can_read"))
    told = document(run(labels.config))
    assert told["selection"]["annotators"]["warm-0shot"]["read_by"] == reading
    assert told["selection"]["kept"] > 0


def test_a_mixed_crew_of_two_providers_pools(labels: Project) -> None:
    labels.change(
        ("[roles]", '[providers.other]\nkind = "scripted"\nidentity = "other"\nignore_logprobs = true\n\n[roles]')
    )
    add(
        labels,
        """
[[annotators]]
id = "mine"
model = "warm"
permute = true
[[annotators]]
id = "theirs"
model = { provider = "other", model = "big" }
paraphrase = "Say which colour is meant."
n = 3
[[annotators]]
id = "near"
model = "neighbour_vote"
neighbours = 3
""",
    )
    result = run(labels.config)
    read = {name: how["read_by"] for name, how in document(result)["selection"]["annotators"].items()}
    assert read == {"mine": "option_read", "theirs": "votes", "near": "neighbour_vote", "justify": "option_read"}
    rows = evidence(result)
    assert {row["annotator_id"] for row in rows} == {"mine", "theirs", "theirs#2", "theirs#3"}
    assert any(row["permutation"] not in (None, [0, 1, 2, 3]) for row in rows if row["annotator_id"] == "mine")


@pytest.mark.parametrize("rule", ["high-probability", "percentile", "top-n", "human-budget"])
def test_every_rule_can_be_chosen_in_the_config(labels: Project, rule: str) -> None:
    add(labels, f'[select]\nrule = "{rule}"\nn = 60\nbudget = 40\nalpha = 0.2')
    told = document(run(labels.config))
    assert told["selection"]["rule"] == rule
    if rule == "top-n":
        assert told["selection"]["kept"] == 60
    if rule == "percentile":
        assert told["selection"]["guarantee"] is False


def test_a_persons_answers_come_back_as_labels_and_as_an_audit(labels: Project) -> None:
    add(labels, '[select]\nrule = "human-budget"\nbudget = 40')
    first = run(labels.config)
    queue = [json.loads(line) for line in (first.folder / "select/review_queue.jsonl").read_text().splitlines()]
    assert len(queue) == 40
    assert any("40 questions wait for a person" in note for note in document(first)["notes"])
    for row in queue:
        word = row["question"].rpartition("cue: ")[2]
        row["answer"] = "ABCD"[row["options"].index(word)]
    lines = "".join(json.dumps(row) + "\n" for row in queue)
    (labels.folder / "reviewed.jsonl").write_text(lines, "utf-8")
    labels.change(('test = "test.csv"', 'test = "test.csv"\nreviewed = "reviewed.jsonl"'))
    second = _rerun(labels)
    selection = document(second)["selection"]
    assert selection["answered_by_a_person"] == 40
    assert selection["calibration"] > 50, "the audit sample joins the calibration"
    assert not (second.folder / "select/review_queue.jsonl").exists()
    kept = pq.read_table(second.folder / "select/kept.parquet").to_pylist()
    assert {row["id"] for row in queue} <= {row["example_id"] for row in kept if row["score"] == 1.0}


def _rerun(project: Project) -> RunResult:
    return run(project.config, accept_change=True)


def test_too_little_kept_skips_the_final_stage_and_says_so(labels: Project) -> None:
    labels.change(('state = "server"', 'state = "server"\nskill = 0.05'))
    add(labels, '[select]\nalpha = 0.01\non_empty = "stop"')
    result = run(labels.config)
    told = document(result)
    assert told["selection"]["kept"] == 0
    assert "the final stage was skipped" in told["sentence"]
    assert told["promoted"] is False
    assert not (result.folder / "evolve").exists()
    assert "SemiEvol" not in {m["label"] for m in told["models"]}


def test_where_no_cut_meets_alpha_the_best_half_trains_and_the_verdict_says_that_nothing_is_checked(
    labels: Project,
) -> None:
    labels.change(('state = "server"', 'state = "server"\nskill = 0.05'))
    add(labels, "[select]\nalpha = 0.01")
    result = run(labels.config)
    told = document(result)
    chosen = told["selection"]
    assert chosen["best_half"] is True and chosen["guarantee"] is False and chosen["alpha"] is None
    assert 20 <= chosen["kept"] <= 0.55 * chosen["unlabeled"]
    assert 0.01 < chosen.get("smallest_alpha", 1.0) <= 1.0
    assert "SemiEvol" in {m["label"] for m in told["models"]}
    assert told["gate"]["points"] is None
    assert "nothing is promised of the labels" in told["sentence"] and "no development set" in told["sentence"]


@pytest.mark.parametrize(("count", "warm", "calibrating"), [(10, 10, 0), (25, 25, 0), (59, 59, 0), (60, 30, 30)])
def test_few_labels_are_not_split_and_nothing_is_promised(
    labels: Project, count: int, warm: int, calibrating: int
) -> None:
    write_rows(labels.folder / "labeled.csv", count)
    result = run(labels.config)
    assert (len(ids(result.folder, "warm")), len(ids(result.folder, "calibration"))) == (warm, calibrating)
    selection = document(result)["selection"]
    assert selection["guarantee"] is (calibrating > 0)
    if not calibrating:
        assert selection["applied_rule"] == "percentile"
        assert any("No guarantee" in note for note in document(result)["notes"])


def test_fewer_than_ten_labels_buy_no_training_but_show_examples(labels: Project) -> None:
    write_rows(labels.folder / "labeled.csv", 8)
    result = run(labels.config)
    assert not any(name.startswith("jobs/") for name in result.computed)
    assert any(name.startswith("demonstrations/") for name in result.computed)
    assert {m["name"] for m in document(result)["models"]} >= {"base", "sft", "semievol"}


def test_a_provider_that_cannot_train_gets_demonstrations_and_a_gate(labels: Project) -> None:
    labels.change(
        ('state = "server"', "can_train = false"),
        ('folder = "out"', 'folder = "out"\npropagation = "in-context"'),
        ('test = "test.csv"', 'test = "test.csv"\ndev = "dev.csv"'),
    )
    add(labels, '[evolve]\nkind = "in-context"')
    result = run(labels.config)
    told = document(result)
    assert told["gate"]["items"] == 50
    assert {m["label"] for m in told["models"]} >= {"few-shot", "SemiEvol, in context"}
    assert any(d["of"] == "semievol" and d["against"] == "sft" for d in told["differences"])


def test_a_second_round_learns_what_the_first_kept_and_calibrates_on_other_labels(labels: Project) -> None:
    labels.change(
        ("ceiling = true", "ceiling = false\nrounds = 2"), ('state = "server"', 'state = "server"\nskill = 0.5')
    )
    add(labels, '[select]\nalpha = 0.1\nrule = "top-n"\nn = 100')
    result = run(labels.config)
    first, second = result.folder, result.folder / "round-2"
    kept = set(pq.read_table(first / "select/kept.parquet")["example_id"].to_pylist())
    assert len(kept) == 100
    assert kept <= ids(second, "warm")
    assert not kept & set(pq.read_table(second / "select/scores.parquet")["example_id"].to_pylist())
    people = {f"q{i}" for i in range(140)}
    assert ids(second, "calibration") <= people, "only labels that people gave calibrate"
    assert ids(second, "calibration") != ids(first, "calibration")
    assert len(trained_on(second, "sft").splitlines()) == 140, "the baseline learns people's labels alone"
    assert len(trained_on(second, "evolve").splitlines()) == 140 + 100 + 100
    assert "round-2/verdict" in result.computed
    again = run(labels.config)
    assert again.computed == ()
    assert again.verdict.document == result.verdict.document


def test_the_official_mode_keeps_the_unanimous_and_says_what_it_is(labels: Project) -> None:
    labels.change(('folder = "out"', 'folder = "out"\nmode = "official-2025"'))
    result = run(labels.config)
    told = document(result)
    assert told["selection"]["rule"] == "official-2025"
    assert told["selection"]["unanimous"] <= told["selection"]["kept"]
    assert any("for comparison only" in note for note in told["notes"])
    assert {row["annotator_id"] for row in evidence(result)} == {f"warm-0shot{s}" for s in ("", "-2", "-3", "-4")}
    lines = trained_on(result.folder, "evolve").splitlines()
    assert len(lines) == told["selection"]["kept"], "the labels are left out"


@pytest.mark.parametrize(
    ("kind", "extra"), [("labels", 'labels = ["red", "green", "blue", "gold"]'), ("free_text", "")]
)
def test_label_and_free_text_tasks_go_through_the_same_records(labels: Project, kind: str, extra: str) -> None:
    (labels.folder / "task.toml").write_text(
        f'name = "c"\nkind = "{kind}"\ninstruction = "Which colour?"\n{extra}\n[columns]\nid = "id"\n', "utf-8"
    )
    for name, count, start in (("labeled", 140, 0), ("unlabeled", 240, 1000), ("test", 40, 2000)):
        words_as_answers(labels.folder / f"{name}.csv", count, start)
    told = document(run(labels.config))
    assert told["selection"]["kept"] >= 20
    assert told["selection"]["answered"] >= 0.9 * 240
    if kind == "free_text":
        assert told["selection"]["annotators"]["warm-0shot"]["read_by"] == "answer_logprob"


def words_as_answers(path: Path, count: int, start: int) -> None:
    lines = ["id,question,answer"]
    for i in range(start, start + count):
        word = ("red", "green", "blue", "gold")[i * 7 % 4]
        lines.append(f"q{i},Item number {i} of the survey has cue: {word},{word}")
    path.write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[select]\nscore = "mean_nll"', ("fdr", "pooled")),
        ('[[annotators]]\nid = "a"\nmodel = "warmer"', ("annotators", "model")),
        ('[[annotators]]\nid = "a"\nmodel = "base"\n[[annotators]]\nid = "a"\nmodel = "warm"', ("same id",)),
        ('[[annotators]]\nid = "a"\nmodel = { provider = "nobody", model = "m" }', ("'nobody'",)),
        ("[select]\nalpha = 1.5", ("alpha", "less than 1")),
    ],
)
def test_wrong_settings_get_one_clear_paragraph(labels: Project, text: str, words: tuple[str, ...]) -> None:
    add(labels, text)
    with pytest.raises(UserError) as caught:
        run(labels.config)
    for word in words:
        assert word in str(caught.value)
    assert "\n\n" not in str(caught.value)


def test_a_reviewed_file_with_an_unknown_id_is_refused(labels: Project) -> None:
    (labels.folder / "reviewed.jsonl").write_text('{"id": "nobody", "answer": "A"}\n', "utf-8")
    labels.change(('test = "test.csv"', 'test = "test.csv"\nreviewed = "reviewed.jsonl"'))
    with pytest.raises(UserError, match=r"line 1.*'nobody'"):
        run(labels.config)
