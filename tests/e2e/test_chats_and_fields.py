"""Chat files, JSON answers and sets of labels through the whole method, on the scripted provider."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path

import pytest

from semievol_api import run
from semievol_api.records import Evidence
from semievol_api.report.labels import read_label_table
from semievol_api.report.review_server import ReviewSession
from semievol_api.store.artifacts import Abilities, EvidenceTable, Selection, Verdict
from semievol_api.store.run_store import load_artifact
from tests.e2e.conftest import Semievol

SYSTEM = "You take bookings for a restaurant. Answer with one JSON object: date, time, people."
SLOTS = {"date": ("monday", "friday", "sunday"), "time": ("noon", "seven", "nine"), "people": ("2", "4", "8")}
PROVIDER = """
[providers.main]
kind = "scripted"
state = "server"
skill = 0.8
"""
CONFIG = f"""
[run]
folder = "out"
mode = "calibrated"
[data]
task = "task.toml"
labeled = "labeled.jsonl"
unlabeled = "unlabeled.jsonl"
test = "test.jsonl"
{PROVIDER}
[roles]
student = {{ provider = "main", model = "tiny" }}
embedder = {{ provider = "main", model = "tiny" }}
[train]
poll_s = 0.01
[evaluate]
resamples = 500
"""


def booking(number: int, *, reply: bool = True) -> dict[str, object]:
    """A guest's message whose slots the scripted model can read; every third follows a question of the assistant's."""
    drawn = random.Random(number)
    slots = {name: drawn.choice(values) for name, values in SLOTS.items() if drawn.random() < 0.7} or {"date": "monday"}
    said = " ".join(f"slot {name}: {value}" for name, value in slots.items())
    turns = [
        {"role": "system", "content": SYSTEM},
        *([{"role": "assistant", "content": "Please tell me: when?", "weight": 0}] if number % 3 == 0 else []),
        {"role": "user", "content": f"Guest {number} of table {drawn.randrange(10**6)} writes. {said}"},
        {"role": "assistant", "content": json.dumps(slots)},
    ]
    return {"messages": turns if reply else turns[:-1]}


def write_chats(path: Path, numbers: range, *, reply: bool = True) -> Path:
    path.write_text("".join(json.dumps(booking(n, reply=reply)) + "\n" for n in numbers), "utf-8")
    return path


def started(folder: Path, semievol: Semievol, *arguments: object, mode: str = "calibrated") -> Path:
    """What `init` writes, with another provider in it and nothing else changed."""
    done = semievol("init", *arguments, "--folder", folder / "started")
    assert done.code == 0, done.err
    config = folder / "started" / "semievol.toml"
    text = config.read_text("utf-8")
    provider, roles = text.index("# OpenAI itself"), text.index("[roles]")
    text = f"{text[:provider]}{PROVIDER}\n{text[roles:]}".replace("n_epochs = 2", "n_epochs = 2\npoll_s = 0.01")
    config.write_text(text.replace('mode = "calibrated"', f'mode = "{mode}"').replace("max_usd", "# max_usd"), "utf-8")
    return config


def sheet(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_sixty_conversations_go_from_init_to_predictions(tmp_path: Path, semievol: Semievol) -> None:
    config = started(tmp_path, semievol, write_chats(tmp_path / "train.jsonl", range(60)))
    for command in ("check", "preview", "plan", "run"):
        done = semievol(command, config)
        assert done.code == 0, (command, done.err)
    folder = config.parent / "runs" / "first"
    assert semievol("report", folder).code == 0
    assert "F1 by field" in (folder / "report.html").read_text("utf-8")
    new = write_chats(tmp_path / "new.jsonl", range(100, 130), reply=False)
    done = semievol("predict", "sft", new, "--run", config)
    assert done.code == 0, done.err
    rows = sheet(tmp_path / "new.predicted.csv")
    assert len(rows) == 30 and {"prediction", "confidence", "accepted", "certain", "for_a_person"} <= set(rows[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated run over 480 conversations: its config."""
    folder = tmp_path_factory.mktemp("bookings")
    write_chats(folder / "labeled.jsonl", range(240))
    write_chats(folder / "unlabeled.jsonl", range(240, 400), reply=False)
    write_chats(folder / "test.jsonl", range(400, 480))
    (folder / "task.toml").write_text(
        f'name = "bookings"\nkind = "json"\ninstruction = {json.dumps(SYSTEM)}\n[columns]\nmessages = "messages"\n'
        '[json.fields]\ndate = "text"\ntime = "text"\npeople = "number"\n',
        "utf-8",
    )
    (folder / "semievol.toml").write_text(CONFIG, "utf-8")
    run(folder / "semievol.toml")
    return folder / "semievol.toml"


def training_lines(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]


def test_what_is_trained_on_are_lines_of_the_users_own_file(finished: Path) -> None:
    folder = finished.parent
    own = [json.loads(line) for line in (folder / "labeled.jsonl").read_text("utf-8").splitlines()]
    lines = training_lines(folder / "out" / "sft")
    assert len(lines) == len(own) and all(line in own for line in lines)
    asked = [json.loads(line)["messages"] for line in (folder / "unlabeled.jsonl").read_text("utf-8").splitlines()]
    evolved = [line["messages"] for line in training_lines(folder / "out" / "evolve")]
    pseudo = [turns for turns in evolved if {"messages": turns} not in own]
    assert pseudo and all(turns[:-1] in asked and json.loads(turns[-1]["content"]) is not None for turns in pseudo)


def test_a_rule_sees_whole_answers_that_are_as_certain_as_their_least_certain_field(finished: Path) -> None:
    chosen = load_artifact(finished.parent / "out", "select", Selection)
    assert chosen is not None
    summary = chosen.summary
    assert summary.guarantee and summary.fields == ("date", "time", "people")
    assert "right where all of its 3 fields are" in " ".join(summary.messages)
    for row in chosen.scores.whole().to_pylist():
        least = None if row["answer"] is None else pytest.approx(min(row["field_scores"]), abs=1e-9)
        assert row["score"] == least  # equal answers are told apart in the last bits


def test_models_are_scored_by_whole_answers_and_field_by_field(finished: Path) -> None:
    verdict = load_artifact(finished.parent / "out", "verdict", Verdict)
    assert verdict is not None
    by_name = {model.name: model for model in verdict.models}
    scores = by_name["sft"].fields
    assert scores and scores.low <= scores.micro_f1 <= scores.high and set(scores.by_field) == set(SLOTS)
    assert by_name["base"].fields.micro_f1 < scores.micro_f1 > by_name["sft"].accuracy
    assert any(note.startswith("Micro F1 over the fields") for note in verdict.notes)


def test_the_review_page_shows_each_fields_confidence_and_lets_a_person_correct_the_object(finished: Path) -> None:
    with ReviewSession.open(finished.parent / "out") as session:
        rows = session.state()["rows"]
        assert session.labels == ()
    first = next(row for row in rows if row["answer"])
    told = [field["confidence"] for field in first["fields"]]
    assert told == sorted(told) and {field["name"] for field in first["fields"]} == set(SLOTS)
    assert first["confidence"] == pytest.approx(told[0])


def test_predictions_keep_certain_fields_and_leave_the_others_to_a_person(finished: Path, semievol: Semievol) -> None:
    new = write_chats(finished.parent / "new.jsonl", range(600, 700), reply=False)
    done = semievol("predict", "semievol", new, "--run", finished, "--alpha", "0.05")
    assert done.code == 0, done.err
    rows = [row for row in sheet(finished.parent / "new.predicted.csv") if row["accepted"] == "False"]
    for row in rows:
        whole, certain = json.loads(row["prediction"]), json.loads(row["certain"] or "{}")
        left = json.loads(row["for_a_person"])
        assert whole.items() >= certain.items() and not {*certain} & {*left} and {*whole} <= {*certain, *left}
    assert any(row["certain"] and row["for_a_person"] != "[]" for row in rows)


@pytest.mark.parametrize("form", ["new.json", "wrapped.json", "new.csv", "answered.jsonl"])
def test_conversations_are_predicted_from_every_form_of_file_that_is_read(
    form: str, finished: Path, tmp_path: Path, semievol: Semievol
) -> None:
    plain = write_chats(tmp_path / "plain.jsonl", range(700, 712), reply=False)
    chats = [json.loads(line) for line in plain.read_text("utf-8").splitlines()]
    new = write_chats(tmp_path / form, range(700, 712))
    if form == "new.csv":
        with new.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["messages"], *([json.dumps(chat["messages"])] for chat in chats)])
    elif form != "answered.jsonl":
        new.write_text(json.dumps({"v": 1, "examples": chats} if form == "wrapped.json" else chats), "utf-8")
    said: list[list[str]] = []
    for data in (plain, new):
        done = semievol("predict", "semievol", data, "--run", finished)
        assert done.code == 0, done.err
        said.append([row["prediction"] for row in sheet(data.with_name(f"{data.stem}.predicted.csv"))])
    assert said[0] == said[1] and len(said[0]) == 12 and all(said[0])


def test_where_a_missing_field_is_no_fault_labels_keep_their_certain_fields(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "partial", ignore=shutil.ignore_patterns("out", "server"))
    task = tmp_path / "partial" / "task.toml"
    task.write_text(task.read_text("utf-8") + "[json]\npartial = true\n", "utf-8")
    config = tmp_path / "partial" / "semievol.toml"
    config.write_text(
        config.read_text("utf-8").replace("skill = 0.8", "skill = 0.1") + "[select]\nalpha = 0.03\n", "utf-8"
    )
    found = load_artifact(run(config).folder, "select", Selection)
    assert found is not None
    assert not found.summary.guarantee and "counted single fields" in " ".join(found.summary.messages)
    answers = dict(zip(found.scores["example_id"].to_pylist(), found.scores["answer"].to_pylist(), strict=True))
    reduced = [kept for kept in found.kept if kept.answer != answers[kept.example_id]]
    assert reduced
    for kept in reduced:
        assert json.loads(kept.answer).items() < json.loads(answers[kept.example_id]).items()


@pytest.mark.parametrize("mode", ["paper", "official-2025"])
def test_the_papers_modes_take_conversations_and_fields_too(finished: Path, tmp_path: Path, mode: str) -> None:
    shutil.copytree(finished.parent, tmp_path / mode, ignore=shutil.ignore_patterns("out", "server"))
    config = tmp_path / mode / "semievol.toml"
    config.write_text(config.read_text("utf-8").replace('mode = "calibrated"', f'mode = "{mode}"'), "utf-8")
    verdict = run(config).verdict
    assert {"base", "semievol"} <= {model.name for model in verdict.models if model.fields}


@pytest.mark.parametrize("takes", [True, False])
def test_annotators_are_held_to_the_fields_schema_where_the_probe_finds_that_possible(
    finished: Path, tmp_path: Path, takes: bool
) -> None:
    shutil.copytree(finished.parent, tmp_path / "held", ignore=shutil.ignore_patterns("out", "server"))
    config = tmp_path / "held" / "semievol.toml"
    config.write_text(config.read_text("utf-8").replace("skill = 0.8", f"skill = 0.8\nschemas = {str(takes).lower()}"))
    result = run(config)
    found = load_artifact(result.folder, "probe", Abilities)
    assert found is not None and set(found.schemas) == ({"warm", "base", "judge"} if takes else set())
    refused = [row for row in _rows(result.folder) if row.finish == "failed"]
    assert not refused


def _rows(folder: Path) -> list[Evidence]:
    table = load_artifact(folder, "collaborate", EvidenceTable)
    return [] if table is None else list(table.rows())


TAGS = ("delivery", "price", "quality", "service")


def tagged(number: int) -> tuple[str, str]:
    drawn = random.Random(number)
    tags = [tag for tag in TAGS if drawn.random() < 0.4]
    return f"Review {number} of order {drawn.randrange(10**6)}. {' '.join(f'tag {t}' for t in tags)}", "|".join(
        tags
    ) or "none"


def test_sets_of_labels_go_from_init_to_predictions(tmp_path: Path, semievol: Semievol) -> None:
    for name, numbers in (("data", range(400)), ("new", range(500, 560))):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"] if name == "data" else ["text"])
            rows.writerows(tagged(n) if name == "data" else tagged(n)[:1] for n in numbers)
    config = started(tmp_path, semievol, tmp_path / "data.csv")
    assert 'kind = "label_set"' in (config.parent / "task.toml").read_text("utf-8")
    for command in ("check", "plan", "run"):
        done = semievol(command, config)
        assert done.code == 0, (command, done.err)
    folder = config.parent / "runs" / "first"
    verdict = load_artifact(folder, "verdict", Verdict)
    assert verdict is not None
    scores = {model.name: model.fields for model in verdict.models}["sft"]
    assert scores and set(scores.by_field) == set(TAGS) and scores.micro_f1 > 0.7
    assert {*read_label_table(folder).fields} == set(TAGS)
    assert semievol("report", folder).code == 0
    done = semievol("predict", "sft", tmp_path / "new.csv", "--run", config)
    assert done.code == 0, done.err
    assert all(set(row["prediction"].split("|")) <= {*TAGS, "none"} for row in sheet(tmp_path / "new.predicted.csv"))
