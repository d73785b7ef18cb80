"""One config, five crews of vendors: only `[roles]` and `[providers]` lines differ, and every one runs whole.

`make test-matrix` runs this with openai 2.x, openai 3.x and litellm installed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from pytest_socket import disable_socket, enable_socket

from tests.e2e.conftest import Project, Semievol
from tests.e2e.threaded import serving
from tests.providers.local_samples import make_tiny_model
from tests.providers.openai_loopback import LoopbackServer
from tests.providers.vendor_servers import AZURE_KEY, AzureServer, IgnorantServer
from tests.record_demo import artifact_hashes

CONFIG = """
[run]
folder = "out"
mode = "calibrated"

[data]
task = "task.toml"
labeled = "labeled.csv"
unlabeled = "unlabeled.csv"
test = "test.csv"
near_duplicates = false
max_unlabeled = 30
max_test = 4

{providers}

[roles]
student = {{ provider = "asked", model = "tiny" }}
trainer = {{ provider = "trained", model = "tiny" }}
embedder = {{ provider = "embeds", model = "tiny" }}

[[annotators]]
id = "zero"
model = "warm"

[[annotators]]
id = "three"
model = "base"
shots = 3
permute = true

[[annotators]]
id = "guest"
model = {{ provider = "second", model = "tiny" }}
n = 2
estimator = "votes"

[split]
calibration = 16
development = 0

[select]
rule = "top-n"
n = 24

[train]
poll_s = 0.01
"""


JOBS = ("warm_up", "sft", "semievol")
"""Every run buys these and each once: labels were held back to calibrate, so that the baseline is a third."""


def crew(project: Project, **tables: str) -> None:
    """Write the one config with these providers' tables; everything else stays."""
    given = "\n\n".join(f"[providers.{name}]\n{table}" for name, table in tables.items())
    project.config.write_text(CONFIG.format(providers=given), "utf-8")
    others = tomllib.loads(project.config.read_text("utf-8"))
    assert set(others.pop("providers")) == {"asked", "trained", "second", "embeds"}
    assert others == tomllib.loads(CONFIG.format(providers="")), "nothing but providers differs"


def openai_at(server: LoopbackServer, **more: str) -> str:
    lines = {"kind": "openai", "base_url": server.base_url, "api_key_env": "", **more}
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items())


def runs(project: Project, semievol: Semievol, *more: object, into: str = "out") -> None:
    done = semievol("run", project.config, "--json", *more)
    assert done.code == 0, done.err
    made = project.folder / into
    assert (made / "verdict" / "verdict.json").is_file()
    assert {path.name for path in made.glob("jobs/*-model")} == {f"{job}-model" for job in JOBS}


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(LoopbackServer()) as up:
        yield up


@pytest.fixture
def other() -> Iterator[LoopbackServer]:
    with serving(LoopbackServer()) as up:
        yield up


def test_everything_at_one_server_through_the_openai_sdk(
    project: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    table = openai_at(server)
    crew(project, asked=table, trained=table, second=table, embeds=table)
    runs(project, semievol)
    assert len(server.jobs) == len(JOBS) and server.asked("/embeddings")


@pytest.mark.parametrize("leave_out", [[], ["logprobs", "seed"]], ids=["log-probabilities", "votes"])
def test_a_student_behind_litellm_asks_models_that_another_provider_trained(
    leave_out: list[str], project: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    pytest.importorskip("litellm", reason="needs the extra litellm")
    behind = f'kind = "litellm"\napi_base = "{server.base_url}"\napi_key_env = ""\nprefix = "openai/"'
    behind += f"\nleave_out = {json.dumps(leave_out)}"
    crew(project, asked=behind, trained=openai_at(server), second=behind, embeds=behind)
    runs(project, semievol)
    asked = [seen.body for seen in server.asked("/chat/completions")]
    assert any(body["model"].startswith("ft:") for body in asked)
    assert any("logprobs" in body for body in asked) == (not leave_out)
    assert len(server.jobs) == len(JOBS) and server.asked("/embeddings")


@pytest.fixture
def network() -> Iterator[Callable[[], None]]:
    """A way to cut off even this machine's own addresses until the test ends."""
    yield partial(disable_socket, allow_unix_socket=True)
    enable_socket()


def test_azure_trains_waits_for_deployments_and_its_run_is_replayed_with_nobody_there(
    project: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch, network: Callable[[], None]
) -> None:
    """As a user does it: deploy where a run ends, go on; then record a run that finds all trainings done."""
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", AZURE_KEY)
    azure, made = AzureServer(), project.folder
    with serving(azure) as server:
        table = f'kind = "openai"\nvendor = "azure"\nbase_url = "{server.base_url}"'
        crew(project, asked=table, trained=table, second=table, embeds=table)
        azure.fail("errors/too many requests", on="/chat")
        for bought in (1, 3):
            stopped = semievol("run", project.config)
            assert stopped.code == 1 and "DeploymentNotFound" in stopped.err, stopped
            assert "Deploy the model under this name" in stopped.err
            assert len(server.jobs) == bought
            azure.deployments |= {job["fine_tuned_model"] for job in server.jobs.values()}
        runs(project, semievol)
        assert set(json.loads((made / "out/probe/abilities.json").read_text()).values()) == {"options"}
        project.change(('folder = "out"', 'folder = "recorded"'))
        azure.fail("errors/too many requests", on="/chat")
        runs(project, semievol, "--cassette", made / "tape", "--cassette-mode", "record", into="recorded")
        assert len(server.jobs) == len(JOBS), "nothing is bought twice"
        project.change(*[(server.base_url, "http://192.0.2.1:9/openai")] * 4, ('"recorded"', '"replayed"'))
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    network()
    runs(project, semievol, "--cassette", made / "tape", into="replayed")
    first, recorded, replayed = (artifact_hashes(made / name) for name in ("out", "recorded", "replayed"))
    assert {"select/kept.parquet", "evolve/train.jsonl"} <= set(first)
    assert first == recorded == replayed


def test_a_vendor_that_ignores_log_probabilities_runs_on_votes(project: Project, semievol: Semievol) -> None:
    with serving(IgnorantServer()) as server:
        table = openai_at(server)
        crew(project, asked=table, trained=table, second=table, embeds=table)
        runs(project, semievol)
        asked = [seen.body for seen in server.asked("/chat/completions")]
    assert 0 < sum("logprobs" in body for body in asked) < len(asked) / 2, "the probe found out, and asks no more"


def test_student_hosted_annotator_of_another_vendor_and_embeddings_at_home(
    project: Project, semievol: Semievol, server: LoopbackServer, other: LoopbackServer
) -> None:
    pytest.importorskip("torch", reason="needs the extra local")
    make_tiny_model(project.folder / "tiny")
    at_home = 'kind = "local"\nmodel = "tiny"\ndevice = "cpu"'
    table = openai_at(server)
    crew(project, asked=table, trained=table, second=openai_at(other, vendor="groq"), embeds=at_home)
    runs(project, semievol)
    assert len(server.jobs) == len(JOBS)
    assert not server.asked("/embeddings") and not other.asked("/embeddings")
    votes = other.asked("/chat/completions")
    assert len(votes) >= 46 and all(seen.body["model"] == "tiny" for seen in votes)
    assert "max_completion_tokens" in votes[0].body, "worded as this vendor wants it"
