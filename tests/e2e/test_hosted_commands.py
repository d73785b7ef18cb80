"""Jobs, clean-up, probe and pre-flight against a server on this machine; a job is bought once, whatever happens."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from semievol_api.capabilities import ProviderSettings
from semievol_api.errors import MissingAbilityError
from semievol_api.planning.catalogue import load_catalogue
from semievol_api.planning.limits import refuse_ended_models
from semievol_providers.openai import connect
from tests.e2e.conftest import Project, Semievol
from tests.e2e.threaded import serving
from tests.providers.openai_loopback import Cut, Fault, LoopbackServer, error_body

KEY = "sk-planted-0123456789abcdef"


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(LoopbackServer()) as up:
        yield up


@pytest.fixture
def at_server(project: Project, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project's config at the loopback server, with a planted key; few rows."""
    monkeypatch.setenv("PLANTED_KEY", KEY)
    table = f'kind = "openai"\nbase_url = "{server.base_url}"\napi_key_env = "PLANTED_KEY"\n'
    project.change(
        ('kind = "scripted"\nstate = "server"\n', table),
        ("ceiling = true", "ceiling = false"),
        ("near_duplicates = false", "near_duplicates = false\nmax_unlabeled = 12\nmax_test = 4"),
        ("[train]", "[annotate]\nn = 2\n\n[train]"),
    )
    return project


def _jobs(semievol: Semievol, *arguments: object) -> list[dict[str, object]]:
    done = semievol("jobs", *arguments, "--json")
    assert done.code == 0, done.err
    listed: list[dict[str, object]] = json.loads(done.out)
    return listed


def test_jobs_are_listed_over_all_runs_and_asked_about(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    assert _jobs(semievol, at_server.folder) == []
    assert semievol("run", at_server.config).code == 0
    at_server.change(('folder = "out"', 'folder = "again"\nseed = 1'))
    assert semievol("run", at_server.config).code == 0
    listed = _jobs(semievol, at_server.folder)
    assert sorted((Path(str(j["run"])).name, j["name"]) for j in listed) == [
        ("again", "semievol"),
        ("again", "warm"),
        ("out", "semievol"),
        ("out", "warm"),
    ]
    assert all(job["model"] and job["base"] == "tiny" and job["trained_tokens"] == 99 for job in listed)
    for job in listed:
        name = {"semievol": "evolve", "warm": "warm_up"}[str(job["name"])]
        uploaded = (Path(str(job["run"])) / str(name) / "train.jsonl").read_bytes()
        assert job["data_sha256"] == hashlib.sha256(uploaded).hexdigest()
    asked = _jobs(semievol, at_server.config, "--poll")
    assert {job["state"] for job in asked} == {"succeeded"} and len(asked) == 2
    assert "warm:" in semievol("jobs", at_server.folder).out
    assert semievol("jobs", at_server.folder, "--poll").code == 2


def test_a_lost_response_to_a_jobs_creation_buys_one_job(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    server.faults.append(Cut(on="/fine_tuning/jobs", method="POST"))
    assert semievol("run", at_server.config).code == 0
    assert len(server.jobs) == 2, "warm-up and final, each once"
    assert len(server.asked("/fine_tuning/jobs")) == 2


def test_a_job_is_cancelled_on_request_and_one_that_has_ended_is_not(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    assert semievol("run", at_server.config).code == 0
    done = semievol("jobs", at_server.config, "--cancel", "warm")
    assert done.code == 2 and "has ended already" in done.err
    assert not [seen for seen in server.requests if seen.path.endswith("/cancel")]
    shutil.rmtree(at_server.folder / "out/jobs/warm_up-model")  # as if it were still under way
    (id,) = [job["job_id"] for job in _jobs(semievol, at_server.config) if job["name"] == "warm"]
    server.jobs[str(id)]["status"] = "running"
    listed = _jobs(semievol, at_server.config, "--cancel", "warm_up")
    assert server.jobs[str(id)]["status"] == "cancelled"
    assert [job["state"] for job in listed if job["name"] == "warm"] == ["cancelled"]
    assert semievol("jobs", at_server.config, "--cancel", "another").code == 2


def test_another_machine_meets_the_jobs_that_this_one_bought(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    assert semievol("run", at_server.config).code == 0
    bought = set(server.jobs)
    shutil.rmtree(at_server.folder / "out")
    assert semievol("run", at_server.config).code == 0
    assert set(server.jobs) == bought


def test_clean_lists_first_and_deletes_when_asked(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    assert semievol("run", at_server.config).code == 0
    listed = json.loads(semievol("clean", at_server.config, "--remote", "--json").out)
    kinds = sorted(item["kind"] for item in listed["items"])
    assert kinds == ["file", "file", "model"] and not listed["deleted"]
    assert not server.asked_with("DELETE")
    done = semievol("clean", at_server.config, "--remote", "--yes")
    assert done.code == 0 and "3 of 3 were deleted" in done.out
    assert len(server.asked_with("DELETE")) == 3
    assert semievol("clean", at_server.config).code == 2


def test_a_probe_shows_what_works_and_what_is_ignored_and_is_kept_with_the_run(
    at_server: Project, semievol: Semievol
) -> None:
    done = semievol("providers", "probe", "mine", "--config", at_server.config, "--json")
    assert done.code == 0, done.err
    found = {finding["ability"]: finding["outcome"] for finding in json.loads(done.out)}
    assert found == dict.fromkeys(
        (
            "chat",
            "system role",
            "several answers (n)",
            "seed",
            "log-probabilities",
            "alternatives",
            "option reading",
            "embeddings",
            "fine-tuning",
            "batches",
        ),
        "works",
    )
    kept = json.loads((at_server.folder / "out" / "probe.json").read_text())
    assert kept["mine"]["tiny"][0]["ability"] == "chat"
    refused = semievol("providers", "probe", "yours", "--config", at_server.config)
    assert refused.code == 2 and "'yours'" in refused.err


def test_a_probe_tells_ignored_from_refused_from_absent(project: Project, semievol: Semievol) -> None:
    project.change(('state = "server"', "ignore_logprobs = true\ncan_train = false"))
    done = semievol("providers", "probe", "mine", "--config", project.config, "--json")
    found = {finding["ability"]: finding["outcome"] for finding in json.loads(done.out)}
    assert found["log-probabilities"] == "ignored" and found["alternatives"] == "ignored"
    assert found["fine-tuning"] == "absent" and found["chat"] == "works"


def test_a_probe_takes_a_refusal_for_a_finding(at_server: Project, semievol: Semievol, server: LoopbackServer) -> None:
    server.faults.append(Fault(400, error_body("no such setting", "unsupported_parameter"), on="/chat"))
    done = semievol("providers", "probe", "mine", "--config", at_server.config)
    assert done.code == 0 and "refused" in done.out and "no such setting" in " ".join(done.out.split())


def test_a_vendors_own_shutdown_date_is_asked_before_the_first_paid_call(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    server.models[0]["shutdown_date"] = "2020-01-01"
    at_server.change(('kind = "openai"\n', 'kind = "openai"\nvendor = "nebius"\n'))
    done = semievol("run", at_server.config)
    assert done.code == 2, done.err
    assert "stopped answering on 2020-01-01" in done.err
    assert not server.asked("/chat/completions") and not server.jobs


@pytest.mark.parametrize(
    ("end", "model", "words"),
    [
        ("2027-01-14", "tiny", None),
        (None, "tiny", None),
        ("2027-01-10", "tiny", "2027-01-10"),
        (None, "big", "no model"),
    ],
)
async def test_an_end_that_the_vendor_announces_counts_from_its_day_on(
    end: str | None, model: str, words: str | None
) -> None:
    async with LoopbackServer() as server:
        server.models[0]["shutdown_date"] = end
        options = {"vendor": "nebius", "base_url": server.base_url, "api_key_env": ""}
        provider = connect(ProviderSettings(name="mine", options=options, environ={}))
        server.clients.push_async_callback(provider.aclose)
        asking = refuse_ended_models(load_catalogue(), [(provider, model)], datetime.date(2027, 1, 10))
        if words is None:
            await asking
        else:
            with pytest.raises(MissingAbilityError, match=words):
                await asking
        server.faults.append(Fault(500, b"away"))
        await refuse_ended_models(load_catalogue(), [(provider, model)], datetime.date(2027, 1, 10))


def test_providers_alone_lists_kinds_and_the_catalogue(semievol: Semievol) -> None:
    done = semievol("providers")
    assert done.code == 0
    assert "openai" in done.out and "2027-01-14" in done.out
    assert "H100 5.50" in done.out and "closed since" in done.out and "per GPU hour" in " ".join(done.out.split())
    listed = json.loads(semievol("providers", "--json").out)
    assert {"openai", "scripted"} <= set(listed["kinds"])
    told = listed["vendors"]
    assert told["crusoe"]["gpu_hour_usd"] == {"H100": 5.5, "H200": 6.0} and told["coreweave"]["serving"] == "per token"
    assert all(told[name]["jobs"] and told[name]["serving"] and told[name]["logprobs"] for name in told)


def test_providers_says_what_is_stale_and_puts_the_users_own_facts_on_top(project: Project, semievol: Semievol) -> None:
    own = '[[models]]\nvendor = "openai"\nmodel = "gpt-4o-mini"\nchecked = 2026-11-01\ninput_usd = 7.25\noutput_usd = 9'
    (project.folder / "own.toml").write_text(own)
    project.change(("[train]", '[catalogue]\nfile = "own.toml"\n\n[train]'))
    shown = semievol("providers", "--config", project.config, "--on", "2026-11-30")
    assert "7.25" in shown.out and "gpt-4o-mini at openai: 2026-11-01" not in shown.out
    late = json.loads(semievol("providers", "--config", project.config, "--on", "2027-06-01", "--json").out)
    stale = [remark for remark in late["remarks"] if "days ago" in remark]
    assert len(stale) == 1 and "providers --refresh FILE" in stale[0], "one line, whatever its number of rows"


def test_no_file_and_no_output_of_a_run_holds_the_key(
    at_server: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    said = [semievol("plan", at_server.config), semievol("run", at_server.config)]
    server.faults.append(Fault(401, error_body(f"Incorrect API key provided: {KEY}", "invalid_api_key"), on="/chat"))
    said.append(semievol("providers", "probe", "mine", "--config", at_server.config))
    said += [semievol("jobs", at_server.config, "--poll"), semievol("clean", at_server.config, "--remote", "--yes")]
    assert all(KEY not in done.out + done.err for done in said)
    holders = [path for path in at_server.folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holders == []
