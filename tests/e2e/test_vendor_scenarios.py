"""Whole runs at vendors that are odd in one way: each ends well, or is refused before a training is bought."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from semievol_api.capabilities import ProviderSettings
from semievol_api.cassettes.clock import VirtualClock
from semievol_api.config.method import TrainSettings
from semievol_api.store.artifacts import TrainingFile
from semievol_api.store.run_store import RunStore
from semievol_api.training.fine_tuning import Trainer, fine_tune
from semievol_providers.openai import connect
from tests.e2e.conftest import Done, Project, Semievol
from tests.e2e.threaded import serving
from tests.pinned_keys import LINE
from tests.providers.odd_vendor import LABELS, SCENARIOS, OddVendor, review

CONFIG = """
[run]
folder = "out"
mode = "paper"

[data]
task = "task.toml"
labeled = "labeled.csv"
unlabeled = "unlabeled.csv"
test = "test.csv"
near_duplicates = false

[providers.odd]
kind = "openai"
base_url = "{base_url}"
api_key_env = ""

[roles]
student = {{ provider = "odd", model = "small" }}

[retrieve]
method = "bm25"

[annotate]
n = 2

[limits]
max_attempts = 2

[train]
poll_s = 0.01
"""
TASK = """
name = "reviews"
kind = "labels"
instruction = "Is this shop review praise or complaint?"
labels = ["complaint", "praise"]

[columns]
question = "text"
answer = "label"
"""
At = Callable[..., tuple[Project, OddVendor]]


def _write(path: Path, start: int, count: int, labels: tuple[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *(review(i, labels) for i in range(start, start + count))])


@pytest.fixture
def at(tmp_path: Path) -> Iterator[At]:
    """A project at a vendor that is odd as named."""
    with ExitStack() as open_servers:

        def start(scenario: str, labels: tuple[str, str] = LABELS) -> tuple[Project, OddVendor]:
            vendor = OddVendor(scenario, labels)
            open_servers.enter_context(serving(vendor))
            for name, first, count in (("labeled", 0, 12), ("unlabeled", 100, 10), ("test", 200, 8)):
                _write(tmp_path / f"{name}.csv", first, count, labels)
            (tmp_path / "task.toml").write_text(TASK.replace(str(json.dumps(LABELS)), json.dumps(labels)), "utf-8")
            (tmp_path / "semievol.toml").write_text(CONFIG.format(base_url=vendor.base_url), "utf-8")
            return Project(tmp_path), vendor

        yield start


CALIBRATED = ('mode = "paper"', 'mode = "calibrated"')
IN_BATCHES = ("max_attempts = 2", 'max_attempts = 2\nmode = "batch"\nbatch_poll_s = 0.01')
SEVERAL = '[[annotators]]\nid = "votes"\nmodel = "warm"\nn = 3\nestimator = "votes"\n\n[train]'
KEY = 'api_key_env = ""'


def _accuracy(done: Done, model: str) -> float:
    """What the screen says of a model, in per cent."""
    return float(next(line for line in done.out.splitlines() if line.startswith(f"│ {model} ")).split("│")[2])


def _ends_well(done: Done, right: float = 100.0) -> None:
    assert done.code == 0, done.err
    assert [_accuracy(done, model) for model in ("vanilla", "SFT")] == [right, right]


def _plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    "scenario", ["events-404", "events-500", "events-shuffled", "late-model-name", "tuned-404", "html-502"]
)
def test_what_concerns_no_answer_stops_no_run(scenario: str, at: At, semievol: Semievol) -> None:
    project, vendor = at(scenario)
    done = semievol("run", project.config)
    _ends_well(done)
    assert _accuracy(done, "SemiEvol") == 100.0
    assert len(vendor.jobs) == 2 and "not reachable" not in done.err


def test_the_answer_behind_a_thought_is_read(at: At, semievol: Semievol) -> None:
    project, _ = at("think")
    project.change(CALIBRATED)
    _ends_well(semievol("run", project.config))


@pytest.mark.parametrize("scenario", ["think-open", "reasoning-budget"])
def test_answers_that_were_all_cut_are_told_with_the_key_to_raise(scenario: str, at: At, semievol: Semievol) -> None:
    project, _ = at(scenario)
    done = semievol("run", project.config)
    _ends_well(done, right=0.0)
    told = _plain(done.out)
    assert "8 of 8 test answers of SFT were cut at max_tokens" in told and "raise [evaluate] max_tokens" in told
    assert told.index("were cut at max_tokens") < told.index("epochs")


@dataclass(frozen=True)
class Refusal:
    """What a vendor refuses, the key that a user should read, and what to change so that the run ends well."""

    scenario: str
    key: str
    mended: tuple[tuple[str, str], ...]
    before: tuple[tuple[str, str], ...] = ()


REFUSALS = (
    Refusal("no-max-tokens", 'max_tokens_field = "max_completion_tokens"', ((KEY, f"{KEY}\n{{key}}"),)),
    Refusal("reasoning", "extra_body = { temperature = 1 }", ((KEY, f"{KEY}\n{{key}}"), CALIBRATED)),
    Refusal("no-system", "fold_system = true", ((KEY, f"{KEY}\n{{key}}"),)),
    Refusal("logprobs-null", 'mode = "calibrated"', (CALIBRATED,)),
    Refusal("no-n", "n = 1 at the [[annotators]]", (("n = 3", "n = 1"),), (("[train]", SEVERAL), CALIBRATED)),
)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.scenario)
def test_a_refused_setting_is_found_before_a_training_is_bought(case: Refusal, at: At, semievol: Semievol) -> None:
    project, vendor = at(case.scenario)
    project.change(*case.before)
    done = semievol("run", project.config)
    assert done.code == 1 and case.key in done.err and "nothing was bought" in done.err, done.err
    assert not vendor.jobs and len(vendor.asked("/chat/completions")) <= 8
    project.change(*((old, new.replace("{key}", case.key)) for old, new in case.mended))
    _ends_well(semievol("run", project.config, "--accept-config-change"))
    assert vendor.jobs


def test_log_probabilities_that_an_annotator_needs_are_asked_for_before_a_training_is_bought(
    at: At, semievol: Semievol
) -> None:
    project, vendor = at("logprobs-null")
    project.change(CALIBRATED, ("[train]", SEVERAL.replace("n = 3\n", "").replace("votes", "p_true")))
    done = semievol("run", project.config)
    assert done.code == 1 and "[[annotators]] 'p_true' (p_true) needs them, so nothing was bought" in done.err
    assert not vendor.jobs


def test_a_setting_refused_twice_in_a_row_stops_a_stage(at: At, semievol: Semievol) -> None:
    project, vendor = at("no-system")
    vendor.only_tuned = True
    project.change(("max_attempts = 2", "max_attempts = 2\nconcurrency = 1"))
    done = semievol("run", project.config)
    assert done.code == 1 and "fold_system = true" in done.err
    assert vendor.refused == 2


def test_a_folded_system_text_stands_before_the_question(at: At, semievol: Semievol) -> None:
    project, vendor = at("no-system")
    project.change((KEY, f"{KEY}\nfold_system = true"))
    _ends_well(semievol("run", project.config))
    turns = vendor.asked("/chat/completions")[0].body["messages"]
    assert [turn["role"] for turn in turns] == ["user"]
    assert turns[0]["content"].index("praise or complaint?") < turns[0]["content"].index("week 0")


def test_fewer_alternatives_are_asked_for_where_twenty_are_refused_and_that_is_said(at: At, semievol: Semievol) -> None:
    project, vendor = at("logprobs-5")
    project.change(CALIBRATED, (KEY, f'{KEY}\noption_read = "off"'))
    done = semievol("run", project.config)
    _ends_well(done)
    asked = [seen.body["top_logprobs"] for seen in vendor.asked("/chat/completions") if "top_logprobs" in seen.body]
    assert asked[:2] == [20, 5] and set(asked[4:]) == {5}
    assert "shows few alternatives of a token (5 for 'warm'" in _plain(done.out)


@pytest.mark.parametrize(
    ("scenario", "said"),
    [("moderation-failed", "take them out of the data files"), ("cancelled-outside", "ended as 'cancelled'")],
)
def test_a_job_that_ends_without_a_model_says_what_to_do_and_is_bought_anew_when_asked(
    scenario: str, said: str, at: At, semievol: Semievol
) -> None:
    project, vendor = at(scenario)
    done = semievol("run", project.config)
    assert done.code == 1 and said in done.err and ".." not in done.err.splitlines()[-1]
    vendor.scenario = "events-404"
    _ends_well(semievol("run", project.config))
    assert len(vendor.jobs) == 3


def test_answers_without_choices_stop_the_run_and_are_named(at: At, semievol: Semievol) -> None:
    project, vendor = at("empty-choices")
    done = semievol("run", project.config)
    assert done.code == 1 and "answered 200 with an empty list of choices" in done.err
    assert len(vendor.jobs) == 1, "one row that fails does not keep a run from beginning"
    vendor.scenario = "events-404"
    _ends_well(semievol("run", project.config))


def test_answers_without_text_count_as_none(at: At, semievol: Semievol) -> None:
    project, _ = at("null-content")
    _ends_well(semievol("run", project.config), right=87.5)


def test_a_batch_whose_lines_all_fail_says_why_and_buys_nothing_twice(at: At, semievol: Semievol) -> None:
    project, vendor = at("batch-all-errors")
    project.change(IN_BATCHES)
    done = semievol("run", project.config)
    assert done.code == 1 and "extra_body = { temperature = 1 }" in done.err
    assert len(vendor.asked("/chat/completions")) == 2, "what is asked before a training goes directly"
    vendor.scenario = "events-404"
    _ends_well(semievol("run", project.config))
    assert len(vendor.jobs) == 2


async def test_a_state_that_does_not_move_is_told_in_the_vendors_word(tmp_path: Path) -> None:
    told: list[str] = []
    async with OddVendor("stuck-validating") as server:
        options = {"base_url": server.base_url, "api_key_env": ""}
        provider = connect(ProviderSettings(name="odd", options=options, environ={}))
        server.clients.push_async_callback(provider.aclose)
        trainer = Trainer(provider, "small", VirtualClock(), 3, lambda _, event: told.append(event.message))
        with RunStore.open(tmp_path / "run", "key") as store:
            await fine_tune(trainer, store, "sft", TrainingFile(LINE * 12), TrainSettings(poll_s=10.0))
    assert [line for line in told if "validating_files" in line] == [
        f"The vendor has said 'validating_files' for {minutes} min." for minutes in (1, 2, 4)
    ]


def test_labels_that_differ_by_one_sign_stay_two_through_a_whole_run(at: At, semievol: Semievol) -> None:
    project, _ = at("events-404", ("C", "C#"))
    _ends_well(semievol("run", project.config))
    lines = [json.loads(line) for line in (project.folder / "out/warm_up/train.jsonl").read_text("utf-8").splitlines()]
    assert Counter(line["messages"][-1]["content"] for line in lines) == {"Answer: C": 6, "Answer: C#": 6}


def test_every_scenario_has_a_test() -> None:
    written = Path(__file__).read_text("utf-8")
    assert not [scenario for scenario in SCENARIOS if f'"{scenario}"' not in written]
