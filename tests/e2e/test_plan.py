"""`semievol plan`: right beside the ledger, honest about what it cannot know, and never in need of a key."""

from __future__ import annotations

import base64
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from semievol_api import run
from semievol_api.capabilities import TrainSpec
from semievol_api.config.settings import load_config
from semievol_api.planning.bill import spent_by
from semievol_api.planning.dry_run import EXPECTED, AnswerKey
from semievol_api.planning.tokens import WORDS_OF_O200K
from semievol_api.tasks import load_task
from semievol_providers.local.training_job import TrainDefaults
from tests.e2e.conftest import Project, Semievol, write_rows

HOSTED = """kind = "openai"
base_url = "https://api.openai.com/v1"
api_key_env = "A_KEY_THAT_IS_NOT_SET"
"""


def hosted(project: Project, *more: tuple[str, str]) -> Path:
    """The project's config on OpenAI's GPT-4o-mini."""
    return project.change(
        ('kind = "scripted"\nstate = "server"\n', HOSTED),
        ('student = { provider = "mine", model = "tiny" }', 'student = { provider = "mine", model = "gpt-4o-mini" }'),
        ('model = "tiny" }', 'model = "text-embedding-3-small" }'),
        ("near_duplicates = false", "near_duplicates = false\nmax_unlabeled = 20\nmax_test = 8"),
        *more,
    )


def plan(semievol: Semievol, *arguments: object) -> dict[str, Any]:
    done = semievol("plan", *arguments, "--json")
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


def summed(rows: list[dict[str, Any]], stage: str, what: str, which: str = "expected") -> int:
    return sum(row[what][which] for row in rows if row["stage"].split("/")[0] == stage)


@pytest.mark.parametrize("mode", ["paper", "calibrated"])
def test_the_plan_asks_as_often_as_the_run(project: Project, semievol: Semievol, mode: str) -> None:
    project.change(('mode = "paper"', f'mode = "{mode}"'))
    rows = plan(semievol, project.config)["rows"]
    result = run(project.config)
    for stage in ("evaluate", "collaborate"):
        asked = result.ledger.stages[stage]
        assert summed(rows, stage, "requests", "low") <= asked.asks, "identical asks are sent once"
        assert asked.requests <= summed(rows, stage, "requests", "high")
    spent = spent_by(load_config(project.config))
    assert spent is not None
    assert spent.requests == sum(bill.requests for bill in result.ledger.stages.values())
    assert set(spent.stages) == set(result.ledger.stages)


def test_a_plan_stands_beside_what_was_billed_after_the_run(project: Project, semievol: Semievol) -> None:
    project.change(("near_duplicates = false", "near_duplicates = false\nmax_unlabeled = 20\nmax_test = 8"))
    assert plan(semievol, project.config)["spent"] is None
    assert semievol("run", project.config).code == 0
    spent = plan(semievol, project.config)["spent"]
    assert spent["requests"] > 50 and spent["stages"]["evaluate"]["completion"] > 0
    shown = semievol("plan", project.config).out
    assert "Billed so far" in shown


def test_a_plan_needs_no_key_and_names_prices_files_and_ends(project: Project, semievol: Semievol) -> None:
    config = hosted(project)
    document = plan(semievol, config, "--on", "2026-11-21")
    assert semievol("run", config).code == 2, "a run does need the key"
    usd = document["usd"]
    assert 0 < usd["low"] <= usd["expected"] <= usd["high"]
    assert 0 < document["batch_usd"]["expected"] < usd["expected"]
    assert [file["name"] for file in document["training_files"]] == ["warm", "semievol", "ceiling"]
    assert document["training_files"][0]["examples"] == 40
    assert document["tokens_by"].startswith("estimate")
    assert any("training_usd" in notice for notice in document["notices"])
    tuned = next(row for row in document["rows"] if row["stage"] == "evaluate/semievol")
    base = next(row for row in document["rows"] if row["stage"] == "evaluate/base")
    assert tuned["prompt"] == base["prompt"]
    assert tuned["usd"]["expected"] == pytest.approx(2 * base["usd"]["expected"], abs=1e-5)


def test_the_price_is_tokens_times_the_catalogue(project: Project, semievol: Semievol) -> None:
    document = plan(semievol, hosted(project), "--on", "2026-11-21")
    for row in document["rows"]:
        input_usd, output_usd = (0.3, 1.2) if row["model"].startswith("tuned") else (0.15, 0.6)
        if row["kind"] == "embed":
            input_usd, output_usd = 0.02, 0.0
        by_hand = row["prompt"]["expected"] * input_usd + row["completion"]["expected"] * output_usd
        by_hand += row["training"]["expected"] * 3.0
        assert row["usd"]["expected"] == pytest.approx(by_hand / 1e6, rel=0.01, abs=2e-6), row["stage"]


def test_vendors_are_compared_side_by_side(project: Project, semievol: Semievol) -> None:
    offers = plan(semievol, hosted(project), "--compare", "openai", "azure", "nebius", "local")["compare"]
    by_vendor = {offer["vendor"]: offer for offer in reversed(offers)}
    assert set(by_vendor) == {"openai", "azure", "nebius", "semievol"}
    assert by_vendor["semievol"]["usd"]["high"] < by_vendor["nebius"]["usd"]["low"]
    assert "Existing customers only. New jobs until 2027-04-01 at least" in " ".join(by_vendor["azure"]["remarks"])
    assert "Without a source, and so a guess: training_usd." in by_vendor["nebius"]["remarks"]
    refused = semievol("plan", project.config, "--compare", "opnai")
    assert refused.code == 2 and "'openai'" in refused.err


@pytest.mark.parametrize(
    ("day", "checked", "words"),
    [
        ("2027-01-02", 0, "in 12 days"),
        ("2027-01-07", 2, "no new fine-tuning job"),
        ("2027-01-15", 2, "stopped answering"),
    ],
)
def test_three_days_say_what_still_works_and_what_to_change(
    day: str, checked: int, words: str, project: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hosted(project)
    notices = " ".join(plan(semievol, config, "--on", day)["notices"])
    assert words in notices
    monkeypatch.setenv("A_KEY_THAT_IS_NOT_SET", "sk-planted-0123456789")
    done = semievol("check", config, "--on", day)
    assert done.code == checked
    assert words in " ".join((done.out + done.err).split())
    assert ('vendor = "semievol"' in notices) == (checked == 2)
    if checked == 2:
        project.change(
            ('base_url = "https://api.openai.com/v1"', 'vendor = "semievol"\nbase_url = "http://127.0.0.1:9/v1"')
        )
        assert semievol("check", config, "--on", day).code == 0, "the suggested change, applied by hand, is accepted"


def test_the_epochs_of_auto_are_planned_as_their_trainer_takes_them(project: Project, semievol: Semievol) -> None:
    config = hosted(project, ("[train]", '[train]\nn_epochs = "auto"'))
    files = plan(semievol, config)["training_files"]
    assert {(file["epochs"], file["epochs_by"]) for file in files} == {(3, "usual")}
    assert "3 epochs (auto, as is usual; the vendor decides)" in " ".join(semievol("plan", config).out.split())
    project.change(
        ('base_url = "https://api.openai.com/v1"', 'vendor = "semievol"\nbase_url = "http://127.0.0.1:9/v1"')
    )
    document = plan(semievol, config)
    (warm,) = [file for file in document["training_files"] if file["name"] == "warm"]
    taken = TrainDefaults(target_steps="auto").resolve(TrainSpec(), warm["examples"]).n_epochs
    assert (warm["epochs"], warm["epochs_by"]) == (taken, "trainer") and taken != 3
    (row,) = [row for row in document["rows"] if row["stage"] == "jobs/warm_up"]
    assert row["training"]["expected"] == taken * warm["tokens"]


def test_a_budget_below_the_plan_stops_before_the_first_paid_call(
    project: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hosted(project, ("[train]", "[limits]\nmax_usd = 0.001\n\n[train]"))
    assert any("exceeds the budget" in notice for notice in plan(semievol, config)["notices"])
    monkeypatch.setenv("A_KEY_THAT_IS_NOT_SET", "sk-planted-0123456789")
    done = semievol("run", config)
    assert done.code == 1
    assert "exceeds the budget" in done.err and "Nothing was sent" in done.err
    assert not (project.folder / "out").exists()


def test_a_dear_plan_needs_a_yes(project: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch) -> None:
    config = hosted(project, ("[train]", "[limits]\nask_above_usd = 0.001\nmax_attempts = 1\n\n[train]"))
    monkeypatch.setenv("A_KEY_THAT_IS_NOT_SET", "sk-planted-0123456789")
    done = semievol("run", config)
    assert done.code == 2 and "--yes" in done.err
    assert not (project.folder / "out").exists()


def test_quotas_say_how_long_it_takes(project: Project, semievol: Semievol) -> None:
    config = hosted(project, ("[train]", "[limits]\nrpm = 60\n\n[train]"))
    document = plan(semievol, config)
    requests = sum(row["requests"]["expected"] for row in document["rows"] if row["kind"] != "train")
    assert document["minutes"]["expected"] == pytest.approx(requests / 60, rel=0.02)
    assert document["minutes_by"] == ["the quotas of [limits]"]
    config = project.change(("rpm = 60", "max_attempts = 6"))
    document = plan(semievol, config)
    assert any("smallest paying customers" in by for by in document["minutes_by"])
    assert document["minutes"]["expected"] > 0
    assert "Trainings are not included" in " ".join(semievol("plan", config).out.split())


def test_questions_on_one_long_passage_are_partly_cached(project: Project, semievol: Semievol) -> None:
    passage = "The survey was taken in a long and wordy year. " * 120
    for name in ("labeled", "unlabeled", "test"):
        text = (project.folder / f"{name}.csv").read_text().replace("Item number", f"{passage}Item number")
        (project.folder / f"{name}.csv").write_text(text)
    document = plan(semievol, hosted(project))
    (row,) = [row for row in document["rows"] if row["stage"] == "evaluate/base"]
    assert 0.5 * row["prompt"]["expected"] < row["cached"]["high"] < row["prompt"]["expected"]
    assert row["cached"]["low"] == 0 < row["cached"]["expected"] < row["cached"]["high"]
    assert row["usd"]["low"] < row["usd"]["expected"] < row["usd"]["high"]


def test_a_price_that_nobody_knows_is_no_zero(project: Project, semievol: Semievol) -> None:
    document = plan(semievol, project.config)
    assert document["usd"] is None
    assert any("No price is known" in notice for notice in document["notices"])
    prices = (
        '[[models]]\nvendor = ""\nmodel = "tiny"\nchecked = 2026-11-01\ninput_usd = 1\noutput_usd = 1\ntraining_usd = 1'
    )
    (project.folder / "own.toml").write_text(prices)
    project.change(("[train]", '[catalogue]\nfile = "own.toml"\n\n[train]'))
    assert plan(semievol, project.config)["usd"]["expected"] > 0


def test_tokens_of_prompts_and_training_files_are_tiktokens_own(project: Project, semievol: Semievol) -> None:
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {
        word: 256 + i for i, word in enumerate((b"th", b"the", b" the", b"It", b"em", b"Item", b"er", b" s", b"ur"))
    }
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    (project.folder / "small.tiktoken").write_text("\n".join(lines) + "\n")
    encoding = tiktoken.Encoding("small", pat_str=WORDS_OF_O200K, mergeable_ranks=ranks, special_tokens={})
    document = plan(
        semievol,
        project.change(("[train]", "[train]\nn_epochs = 2"), ("[roles]", '[roles]\ntokenizer = "small.tiktoken"')),
    )
    assert document["tokens_by"] == "tiktoken small"
    run(project.config)

    def counted(messages: list[dict[str, str]]) -> int:
        """As OpenAI's cookbook counts: three tokens a turn, its role, its words; three more for the whole."""
        return 3 + sum(4 + len(encoding.encode(turn["content"])) for turn in messages)

    taught = [
        json.loads(line)["messages"] for line in (project.folder / "out/warm_up/train.jsonl").read_text().splitlines()
    ]
    (file,) = [file for file in document["training_files"] if file["name"] == "warm"]
    assert file["tokens"] == sum(map(counted, taught)) and file["longest"] == max(map(counted, taught))
    assert [row["training"]["expected"] for row in document["rows"] if row["stage"] == "jobs/warm_up"] == [
        2 * file["tokens"]
    ]
    shown = json.loads(semievol("preview", project.config, "--rows", "1", "--json").out)["prompts"][0]
    assert shown["tokens"] == counted(shown["messages"])


def test_planning_a_hundred_thousand_examples_is_quick(project: Project, semievol: Semievol) -> None:
    write_rows(project.folder / "unlabeled.csv", 100_000, start=200, gold=False)
    project.change(("ceiling = true", "ceiling = false"))
    begun = time.process_time()
    rows = plan(semievol, project.config)["rows"]
    assert time.process_time() - begun < 30, "CPU seconds: other work on the machine does not count"
    assert summed(rows, "collaborate", "requests") == pytest.approx(400_000, rel=0.01)
    assert rows[[row["stage"] for row in rows].index("jobs/semievol")]["training"]["expected"] > 1_000_000


def test_made_up_answers_are_right_on_easy_questions_and_read_off_shuffled_options() -> None:
    task = load_task("mmlu")
    from semievol_api.records import Example

    examples = [
        Example(id=str(i), question=f"Question number {i}?", options=("red", "green", "blue"), answer="ABC"[i % 3])
        for i in range(300)
    ]
    key = AnswerKey(task, examples, EXPECTED)
    right = 0
    for example in examples:
        turn = task.prompt(example, (), (2, 0, 1)).messages[-1].content
        letter, surety = key.choose(turn, "base")
        assert 0 < surety < 1
        shown = ("blue", "red", "green")
        right += shown["ABC".index(letter)] == example.options["ABC".index(example.answer or "A")]
    assert 0.65 < right / 300 < 0.85


def test_the_plan_shows_what_a_month_of_serving_costs(semievol: Semievol) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "gpt-4o-mini.toml"
    done = semievol(
        "plan", example, "--requests-per-month", 1_000_000, "--awake-hours", 2, "--on", "2026-11-30", "--json"
    )
    month = json.loads(done.out)["month"]
    rows = {row["name"]: row for row in month["servings"]}
    for row in rows.values():
        assert row["usd"] == pytest.approx(row["usd_per_month"] + 1e6 * row["usd_per_request"])
    own = rows["tuned gpt-4o-mini-2024-07-18 at openai"]
    warm = rows["a rented H100 at crusoe, kept warm"]
    assert own["beside_yours"] == "as much"  # it is the config's own
    assert warm["beside_yours"] == f"less from {math.ceil(730 * 5.50 / own['usd_per_request']):,}"
    assert rows["tuned Qwen/Qwen3-8B at tinker"]["beside_yours"] == "less"
    shown = semievol("plan", example, "--requests-per-month", 1_000_000, "--on", "2026-11-30").out
    assert "Serving 1,000,000 requests a month" in shown and "Cheapest without a GPU of your own: " in shown
    assert "month" not in json.loads(semievol("plan", example, "--on", "2026-11-30", "--json").out)
