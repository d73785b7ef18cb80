"""What a day forbids is refused before anything is sent; what was bought before that day is still used, and cleaned."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from semievol_api.capabilities import ProviderSettings
from semievol_api.config.settings import load_config
from semievol_api.errors import MissingAbilityError
from semievol_api.planning.catalogue import load_catalogue
from semievol_api.planning.limits import refuse_ended_models
from semievol_api.session import RunResult, run_async, run_blocking
from semievol_providers.openai import connect
from tests.e2e.conftest import Project, Semievol, write_rows
from tests.e2e.threaded import serving
from tests.providers.openai_loopback import LoopbackServer

ENDS = """
[[models]]
vendor = "openai"
model = "tiny"
checked = 2026-11-30
input_usd = 0
output_usd = 0
training_usd = 0
fine_tunable = true
last_training_date = {last}
shutdown_date = {end}
"""


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(LoopbackServer()) as up:
        yield up


@pytest.fixture
def hosted(project: Project, server: LoopbackServer) -> Project:
    """The project at a server that a vendor of the catalogue could be, with OpenAI's days for its model."""
    table = f'kind = "openai"\nvendor = "openai"\nbase_url = "{server.base_url}"\napi_key_env = ""\n'
    project.change(
        ('kind = "scripted"\nstate = "server"\n', table),
        ("ceiling = true", "ceiling = false"),
        ("near_duplicates = false", "near_duplicates = false\nmax_unlabeled = 12\nmax_test = 4"),
        ("[train]", '[annotate]\nn = 2\n\n[catalogue]\nfile = "own.toml"\n\n[train]'),
    )
    ends(project, "2027-01-06", "2027-01-14")
    return project


def ends(project: Project, last: str, end: str) -> None:
    (project.folder / "own.toml").write_text(ENDS.format(last=last, end=end))


def run_at(project: Project, now: str) -> RunResult:
    return run_blocking(run_async(load_config(project.config), now=datetime.datetime.fromisoformat(now)))


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("2027-01-06T16:00:00-08:00", "since 2027-01-06"),
        ("2027-01-07T00:00:00+00:00", "since 2027-01-06"),
        ("2027-01-13T23:59:59+00:00", "until 2027-01-14"),
        ("2027-01-14T00:00:00+00:00", "stopped answering on 2027-01-14"),
        ("2027-01-15T12:00:00+09:00", "stopped answering on 2027-01-14"),
    ],
)
def test_a_run_whose_training_could_not_be_used_is_refused_before_anything_is_sent(
    now: str, words: str, hosted: Project, server: LoopbackServer
) -> None:
    with pytest.raises(MissingAbilityError, match=words) as refused:
        run_at(hosted, now)
    assert "Nothing was sent" in str(refused.value) and 'vendor = "semievol"' in str(refused.value)
    assert server.requests == [] and not (hosted.folder / "out").exists()


@pytest.mark.parametrize("now", ["2027-01-05T12:00:00+00:00", "2027-01-06T15:59:59-08:00", "2027-01-07T08:59:59+09:00"])
def test_a_run_on_the_last_days_is_accepted_to_the_last_second_of_utcs_day(
    now: str, hosted: Project, server: LoopbackServer
) -> None:
    assert run_at(hosted, now).verdict.document["n_test"] == 4
    assert len(server.jobs) == 2


def test_a_run_whose_trainings_are_bought_goes_on_after_the_last_day_and_is_read_after_the_end(
    hosted: Project, server: LoopbackServer
) -> None:
    first = run_at(hosted, "2027-01-06T12:00:00+00:00")
    stamps = json.loads((first.folder / "stamps.json").read_text())
    for name in [name for name in stamps if name.startswith(("evaluate/", "verdict"))]:
        shutil.rmtree(first.folder / name, ignore_errors=True)
        del stamps[name]
    (first.folder / "stamps.json").write_text(json.dumps(stamps))
    again = run_at(hosted, "2027-01-12T12:00:00+00:00")
    assert "verdict" in again.computed and len(server.jobs) == 2
    asked = len(server.requests)
    late = run_at(hosted, "2027-02-01T12:00:00+00:00")
    assert late.verdict.document == again.verdict.document
    assert not [seen for seen in server.requests[asked:] if seen.method == "POST"]


def test_a_run_that_has_bought_its_warm_up_alone_is_refused_after_the_last_day(
    hosted: Project, server: LoopbackServer
) -> None:
    folder = run_at(hosted, "2027-01-06T12:00:00+00:00").folder
    stamps = json.loads((folder / "stamps.json").read_text())
    for name in ("jobs/semievol-ticket", "jobs/semievol-model", "verdict"):
        shutil.rmtree(folder / name)
        del stamps[name]
    (folder / "stamps.json").write_text(json.dumps(stamps))
    asked = len(server.requests)
    with pytest.raises(MissingAbilityError, match="no new fine-tuning job"):
        run_at(hosted, "2027-01-07T12:00:00+00:00")
    assert len(server.requests) == asked


def test_models_are_asked_and_listed_and_cleaned_after_the_days_that_end_their_training(
    hosted: Project, semievol: Semievol
) -> None:
    assert semievol("run", hosted.config).code == 0
    write_rows(hosted.folder / "new.csv", 3, start=5000)
    ends(hosted, "2020-01-01", "2099-01-01")
    labelled = semievol("predict", "semievol", hosted.folder / "new.csv", "--run", hosted.config)
    assert labelled.code == 0, labelled.err
    ends(hosted, "2020-01-01", "2020-01-02")
    assert semievol("predict", "semievol", hosted.folder / "new.csv", "--run", hosted.config).code == 2
    stamps = json.loads((hosted.folder / "out/stamps.json").read_text())
    del stamps["verdict"]  # as if it had been stopped before its end
    (hosted.folder / "out/stamps.json").write_text(json.dumps(stamps))
    assert semievol("jobs", hosted.config, "--poll").code == 0
    cleaned = semievol("clean", hosted.config, "--remote", "--yes")
    assert cleaned.code == 0 and "3 of 3 were deleted" in cleaned.out


def test_in_batches_the_last_job_may_come_two_days_later_and_is_held_against_that_day(
    hosted: Project, semievol: Semievol
) -> None:
    hosted.change(("[annotate]", '[limits]\nmode = "batch"\n\n[annotate]'))
    assert semievol("check", hosted.config, "--on", "2027-01-04").code == 0
    late = semievol("check", hosted.config, "--on", "2027-01-05")
    assert late.code == 2 and 'mode = "direct"' in late.err and "2027-01-07" in late.err
    hosted.change(('mode = "batch"', 'mode = "direct"'))
    assert semievol("check", hosted.config, "--on", "2027-01-05").code == 0


async def test_a_training_is_refused_where_the_vendor_itself_names_an_end_within_days() -> None:
    async with LoopbackServer() as server:
        server.models[0]["shutdown_date"] = "2027-01-10"
        options = {"vendor": "nebius", "base_url": server.base_url, "api_key_env": ""}
        provider = connect(ProviderSettings(name="mine", options=options, environ={}))
        server.clients.push_async_callback(provider.aclose)
        asked = [(provider, "tiny")]
        for day, refused in ((3, False), (4, True), (9, True)):
            asking = refuse_ended_models(load_catalogue(), asked, datetime.date(2027, 1, day), to_train=asked)
            if refused:
                with pytest.raises(MissingAbilityError, match="could hardly be used"):
                    await asking
            else:
                await asking
        await refuse_ended_models(load_catalogue(), asked, datetime.date(2027, 1, 9))


def test_a_plan_tells_both_days_and_what_is_stale_in_one_line(project: Project, semievol: Semievol) -> None:
    project.change(('kind = "scripted"\nstate = "server"', 'kind = "openai"\napi_key_env = "A_KEY_THAT_IS_NOT_SET"'))
    project.change(
        ('student = { provider = "mine", model = "tiny"', 'student = { provider = "mine", model = "gpt-4o-mini"')
    )
    project.change(('model = "tiny" }', 'model = "text-embedding-3-small" }'))

    def notices(day: str) -> list[str]:
        found: list[str] = json.loads(semievol("plan", project.config, "--json", "--on", day).out)["notices"]
        return found

    today = notices("2026-11-30")
    assert "2027-01-06" in today[0] and "2027-01-14" in today[0]
    assert not any("days ago" in notice for notice in today)
    late = [notice for notice in notices("2027-02-15") if "days ago" in notice]
    assert len(late) == 1 and "and 1 more" in late[0] and late[0].endswith("semievol providers --refresh FILE.")


def test_a_newer_table_is_taken_from_the_command_line_priced_with_and_dropped_again(
    project: Project, semievol: Semievol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMIEVOL_DATA_DIR", str(tmp_path / "data"))
    entry = (
        '[[models]]\nvendor = ""\nmodel = "*"\nchecked = 2026-11-29\ninput_usd = 1\noutput_usd = 1\ntraining_usd = 1'
    )
    (tmp_path / "newer.toml").write_text(entry)
    done = semievol("providers", "--refresh", tmp_path / "newer.toml", "--on", "2026-11-30")
    assert done.code == 0 and "1 entries have changed" in done.out and "providers --reset" in done.out
    assert json.loads(semievol("plan", project.config, "--json").out)["usd"]["expected"] > 0
    told = json.loads(semievol("providers", "--reset", "--json").out)
    assert told["installed"] is None and Path(told["kept"]).read_text() == entry
    assert [change["kind"] for change in told["changes"]] == ["removed"]
    assert json.loads(semievol("plan", project.config, "--json").out)["usd"] is None
    assert semievol("providers", "--refresh", tmp_path / "newer.toml", "--reset").code == 2
    (tmp_path / "newer.toml").write_text(entry.replace("output_usd = 1", "output_usd = -1"))
    wrong = semievol("providers", "--refresh", tmp_path / "newer.toml")
    assert wrong.code == 2 and "[[models]] row 1" in wrong.err and "output_usd" in wrong.err
    assert semievol("providers", "--refresh", tmp_path / "nowhere.toml").code == 2
