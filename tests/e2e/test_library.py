"""A run from Python: mappings and data frames in, short results out; mass requests with a journal and caps."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

import semievol_api
from semievol_api.config.settings import load_config
from semievol_api.session import config_key
from tests.e2e.conftest import Project, tree

CONFIG: dict[str, Any] = {
    "data": {
        "task": {
            "name": "colours",
            "kind": "multiple_choice",
            "instruction": "Which colour?",
            "columns": {"id": "id", "options": "options"},
        },
        "near_duplicates": False,
    },
    "run": {"mode": "paper", "ceiling": True},
    "providers": {"mine": {"kind": "scripted", "state": "server"}},
    "roles": {"student": {"provider": "mine", "model": "tiny"}, "embedder": {"provider": "mine", "model": "tiny"}},
    "train": {"poll_s": 0.01},
}


def frames_of(project: Project) -> dict[str, pd.DataFrame]:
    return {part: pd.read_csv(project.folder / f"{part}.csv") for part in ("labeled", "unlabeled", "test")}


def requests_of(result: semievol_api.RunResult) -> int:
    return sum(bill.requests for bill in result.ledger.stages.values())


def test_frames_give_the_run_that_their_files_give(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from_files = semievol_api.run(project.config)
    data = frames_of(project)
    result = semievol_api.run(CONFIG, **data, run_dir="frames_run")
    assert result.folder == tmp_path / "frames_run"
    stages = ("collaborate", "justify", "select", "evaluate", "warm_up", "evolve")
    for stage in stages:
        assert tree(result.folder / stage) == tree(from_files.folder / stage), stage
    assert repr(result).endswith("30 of 60 pseudo-labels kept)")
    assert "SemiEvol" in result._repr_html_()


def test_the_same_frames_go_on_and_other_frames_compute_what_they_change(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = frames_of(project)
    first = semievol_api.run(CONFIG, **data, run_dir="run")
    assert requests_of(first) > 0
    arrow = {part: pa.Table.from_pandas(frame) for part, frame in data.items()}
    for again in (
        semievol_api.run(CONFIG, **data, run_dir="run"),
        semievol_api.run(CONFIG, **arrow, run_dir="run"),
        semievol_api.run(CONFIG, run_dir="run"),
    ):
        assert (again.computed, requests_of(again)) == ((), 0)
    fewer = semievol_api.run(CONFIG, **{**data, "test": data["test"].head(20)}, run_dir="run")
    assert fewer.verdict.document["n_test"] == 20
    assert "jobs/warm_up-ticket" not in fewer.computed
    assert requests_of(fewer) == 0, "all answers were there"


async def test_all_of_it_works_inside_a_running_loop(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = frames_of(project)
    planned = semievol_api.plan(CONFIG, **data, run_dir="run")
    assert repr(planned).startswith("Estimate(")
    assert "collaborate" in planned._repr_html_()
    assert semievol_api.check(CONFIG, run_dir="run").facts["test"] == 40
    result = semievol_api.run(CONFIG, run_dir="run")
    found = semievol_api.predict(CONFIG, data["test"].drop(columns="answer").head(3), run_dir="run")
    assert repr(found).startswith("Predictions(3 rows by 'semievol'")
    assert list(found.frame["prediction"]) == [row.answer for row in found.rows]
    contest = semievol_api.evaluate(result, f"{result.folder}:base")
    asked = semievol_api.evaluate("semievol", "base", config=CONFIG, run_dir="run")
    assert asked.gain == contest.gain
    assert "40 questions" in repr(contest)
    assert semievol_api.report(result) == result.folder / "report.html"
    assert semievol_api.nearest(["a b"], ["b c", "d"], k=1).indices.tolist() == [[0]]


def test_a_config_as_a_value_is_the_config_as_a_file(project: Project) -> None:
    from semievol_api.library import configured

    config = load_config(project.config)
    for other in (config, project.config, str(project.config)):
        assert config_key(configured(other)) == config_key(config)
        assert configured(other) == config
    moved = configured(config, project.folder / "elsewhere")
    assert moved.run.folder == project.folder / "elsewhere"
    assert config_key(moved) == config_key(config)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": {**CONFIG, "run": {}}}, "does not say where the run is kept. Pass run_dir"),
        ({"config": CONFIG, "run_dir": "r"}, "names no labeled data. Pass labeled="),
        ({"config": {**CONFIG, "selct": {}}, "run_dir": "r", "labeled": "a.csv", "unlabeled": "b.csv"}, "'select'"),
        ({"config": CONFIG, "run_dir": "r", "labeled": ["a"], "unlabeled": []}, "'labeled' is str, 'a'"),
        ({"config": CONFIG, "labeld": []}, "Did you mean 'labeled'?"),
        ({"config": 3}, "and not int"),
    ],
)
def test_a_fault_of_the_caller_is_one_paragraph(
    change: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(semievol_api.UserError) as refused:
        semievol_api.run(**change)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_mass_requests_are_paid_once_and_stop_at_their_cap(tmp_path: Path) -> None:
    provider = semievol_api.connect("scripted")
    prompts = [f"Item {i} has cue: red" for i in range(100)]
    journal = tmp_path / "answers.sqlite"
    with pytest.raises(semievol_api.BudgetError, match="max_tokens = 500"):
        semievol_api.ask(provider, prompts, "tiny", max_tokens=500, journal=journal, answer_tokens=8)
    rest = semievol_api.ask(provider, prompts, "tiny", max_tokens=100_000, journal=journal, answer_tokens=8)
    assert 0 < rest.requests < 100
    assert sum(answer.cached for answer in rest) == 100 - rest.requests
    assert len(rest) == len(rest.texts) == 100
    assert rest.failed == ()
    more = semievol_api.ask(provider, [*prompts, "Item 100 has cue: red"], "tiny", journal=journal, answer_tokens=8)
    assert more.requests == 1
    assert more[:100] == rest[:100] or more.texts[:100] == rest.texts
    assert "100 from the journal" in repr(more)


def test_prompts_come_as_texts_messages_and_prompts_and_options_reach_the_server(tmp_path: Path) -> None:
    provider = semievol_api.connect("scripted")
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "cue: red"}]
    texts = semievol_api.ask(provider, ["cue: red"], "tiny", system="Be short.", journal=tmp_path / "a.sqlite")
    turns = semievol_api.ask(provider, [messages], "tiny", journal=tmp_path / "a.sqlite")
    assert (texts.requests, turns.requests) == (1, 0), "they are the same request"
    scored = semievol_api.ask(provider, ["cue: red"], "tiny", logprobs=True, n=2, journal=None)
    assert scored.mean_nll.shape == (1,)
    assert scored.mean_nll[0] > 0
    reply = scored[0].reply
    assert reply is not None
    assert len(reply.completions) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompts": "one text"}, "pass a list"),
        ({"prompts": [{"role": "user"}]}, "Prompt 0 is"),
        ({"prompts": [[{"role": "nobody", "content": "x"}]]}, "Prompt 0 is"),
        ({"tempature": 1.0}, "Did you mean 'temperature'?"),
        ({"answer_tokens": 0}, "'answer_tokens' is wrong"),
        ({"max_usd": -1}, "'max_usd' is wrong"),
        ({"max_usd": 1.0}, "the price of the model 'tiny' is not known"),
        ({"journal": "nowhere/at/all.sqlite"}, "There is no folder"),
    ],
)
def test_a_wrong_mass_request_is_refused_before_anything_is_sent(
    change: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"prompts": ["x"], "model": "tiny", **change}
    with pytest.raises(semievol_api.UserError, match=told):
        semievol_api.ask(semievol_api.connect("scripted"), **given)


def test_a_training_is_bought_once_and_another_one_lies_beside_it(tmp_path: Path) -> None:
    provider = semievol_api.connect("scripted", state=str(tmp_path / "server"))
    pairs = [(f"Item {i} has cue: red", "Answer: red") for i in range(20)]
    first = semievol_api.tune(provider, pairs, "tiny", folder=tmp_path / "tuned", poll_s=0.01)
    tickets = sorted(p.name for p in (tmp_path / "tuned/jobs").glob("*-ticket"))
    assert semievol_api.tune(provider, pairs, "tiny", folder=tmp_path / "tuned", poll_s=0.01) == first
    assert sorted(p.name for p in (tmp_path / "tuned/jobs").glob("*-ticket")) == tickets
    other = semievol_api.tune(provider, pairs[:15], "tiny", folder=tmp_path / "tuned", poll_s=0.01)
    assert other.model != first.model
    assert len(list((tmp_path / "tuned/jobs").glob("*-ticket"))) == 2
    with pytest.raises(semievol_api.ConfigError, match="n_epoch"):
        semievol_api.tune(provider, pairs, "tiny", folder=tmp_path / "tuned", n_epoch=3)


def test_a_provider_serves_several_event_loops(tmp_path: Path) -> None:
    provider = semievol_api.connect("scripted")

    async def both() -> list[str | None]:
        first, second = await asyncio.gather(
            semievol_api.aask(provider, ["cue: red"], "tiny", journal=tmp_path / "a.sqlite"),
            semievol_api.aask(provider, ["cue: blue"], "tiny", journal=tmp_path / "b.sqlite"),
        )
        return [*first.texts, *second.texts]

    assert asyncio.run(both()) == ["Answer: red", "Answer: blue"]
    assert semievol_api.ask(provider, ["cue: red"], "tiny", journal=None).texts == ["Answer: red"]


@pytest.mark.skipif(find_spec("torch") is None, reason="a model of this machine needs torch")
def test_a_model_of_this_machine_is_asked_again_after_it_was_unloaded() -> None:
    model = Path(semievol_api.__file__).parent / "demo/model"
    provider = semievol_api.connect("local", model=str(model), name="demo-llama")
    first = semievol_api.ask(provider, ["What is gravity?"], "demo-llama", journal=None, answer_tokens=4)
    again = semievol_api.ask(provider, ["What is gravity?"], "demo-llama", journal=None, answer_tokens=4)
    assert first.texts == again.texts
    asyncio.run(provider.aclose())
