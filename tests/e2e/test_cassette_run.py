"""A whole run from its recording: the demo with nobody there, and what a user meets on the way to a recording."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pytest_socket import disable_socket, enable_socket

from semievol_api.cassettes.exchange import read_manifest
from semievol_api.cassettes.scrub import find_key_shapes
from semievol_api.training.jobs import stored_job
from tests.e2e.conftest import Project, Semievol
from tests.providers.openai_loopback import LoopbackServer
from tests.record_demo import ARTIFACTS, FULL, artifact_hashes, content_hashes

DEMO = Path(__file__).resolve().parents[2] / "semievol_api" / "demo"
KEY = "sk-proj-" + "Ab1_" * 10
ORGANISATION = "org-" + "Qw3rTy" * 4
NOBODY = "http://192.0.2.1:9/v1"


@pytest.fixture
def no_network() -> Iterator[None]:
    """Not even this machine's own addresses."""
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The demo's config as a user's: another address, another key, its data where it lies."""
    text = (DEMO / "demo.toml").read_text("utf-8")
    for name in ("model", "task.toml", "data/labeled.csv", "data/unlabeled.csv", "data/test.csv"):
        assert f'"{name}"' in text
        text = text.replace(f'"{name}"', f'"{DEMO / name}"')
    text = text.replace("http://127.0.0.1:8000/v1", NOBODY).replace('api_key_env = ""', 'api_key_env = "ANOTHER_KEY"')
    config = tmp_path / "semievol.toml"
    config.write_text(text, "utf-8")
    return config


@pytest.mark.slow
def test_the_demo_is_replayed_whole_with_nobody_there_and_makes_the_same_bytes(
    demo: Path, semievol: Semievol, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOTHER_KEY", KEY)
    begun_s = time.monotonic()
    done = semievol("run", demo, "--cassette", FULL, "--json")
    seconds = time.monotonic() - begun_s
    assert done.code == 0, done.err
    made, told = demo.parent / "run", json.loads((FULL / ARTIFACTS).read_text("utf-8"))
    assert content_hashes(made) == told["content"]
    if pyarrow.__version__ == told["pyarrow"]:
        assert artifact_hashes(made) == told["bytes"]
    assert "verdict/verdict.json" in told["bytes"]
    assert seconds <= 30, f"the replay took {seconds:.0f} s"


def test_the_demos_plan_is_within_a_tenth_of_its_ledger_and_its_ranges_hold(
    demo: Path, semievol: Semievol, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOTHER_KEY", KEY)
    assert semievol("run", demo, "--cassette", FULL).code == 0
    document: dict[str, Any] = json.loads(semievol("plan", demo, "--json").out)
    spent = document["spent"]
    assert set(spent["stages"]) == {"retrieve", "collaborate", "justify", "evaluate"}
    for stage, billed in spent["stages"].items():
        rows = [row for row in document["rows"] if row["stage"].split("/")[0] == stage]
        prompt = {end: sum(row["prompt"][end] for row in rows) for end in ("low", "expected", "high")}
        if stage == "justify":
            assert 0.9 * prompt["low"] <= billed["prompt"] <= 1.1 * prompt["high"]
        else:
            assert prompt["expected"] == pytest.approx(billed["prompt"], rel=0.1), stage
        low, high = (sum(row["completion"][end] for row in rows) for end in ("low", "high"))
        assert low <= billed["completion"] <= high, stage
    planned = {row["stage"]: row["training"]["expected"] for row in document["rows"]}
    assert set(spent["trained_tokens"]) == {"warm", "semievol", "ceiling"}
    for job, tokens in spent["trained_tokens"].items():
        assert planned[f"jobs/{stored_job(job)}"] == pytest.approx(tokens, rel=0.1), job


def test_the_demos_cassette_is_small_and_says_where_it_is_from() -> None:
    manifest = read_manifest(FULL)
    assert manifest.exchanges <= 8_000
    assert sum(file.stat().st_size for file in FULL.iterdir()) <= 6_000_000
    assert "no evidence about any vendor" in manifest.recorded_against
    assert manifest.seed == 0


@pytest.fixture
def hosted(project: Project) -> Project:
    """The small project with provider `openai`; the address is filled in by `record`."""
    project.change(
        ('kind = "scripted"', 'kind = "openai"\nidentity = "somewhere"\napi_key_env = "MY_OWN_KEY"'),
        ('state = "server"', f'base_url = "{NOBODY}"\norganization_env = "MY_ORG"'),
    )
    return project


async def record(project: Project, semievol: Semievol, *more: object) -> LoopbackServer:
    """Record a run against canned answers whose headers hold secrets."""
    cookies = {"set-cookie": "session=abcdef", "openai-organization": ORGANISATION}
    async with LoopbackServer(headers=cookies) as server:
        project.change((NOBODY, server.base_url))
        done = await asyncio.to_thread(semievol, "run", project.config, "--cassette", tape(project), *more)
        assert done.code == 0, done.err
        assert KEY not in done.out + done.err
        project.change((server.base_url, NOBODY), ('folder = "out"', 'folder = "again"'))
        return server


def tape(project: Project) -> Path:
    return project.folder / "tape"


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_KEY", KEY)
    monkeypatch.setenv("MY_ORG", ORGANISATION)


async def test_a_recorded_run_is_replayed_without_key_server_or_network(
    hosted: Project, semievol: Semievol, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(hosted, semievol, "--cassette-mode", "record")
    monkeypatch.delenv("MY_OWN_KEY")
    monkeypatch.delenv("MY_ORG")
    hosted.change(("[train]", '[cassette]\npath = "tape"\n\n[train]'))
    disable_socket(allow_unix_socket=True)
    done = await asyncio.to_thread(_in_a_loop_without_sockets, semievol, hosted)
    assert done == (0, ""), done
    assert artifact_hashes(hosted.folder / "again") == artifact_hashes(hosted.folder / "out")


def _in_a_loop_without_sockets(semievol: Semievol, project: Project) -> tuple[int, str]:
    done = semievol("run", project.config)
    return done.code, done.err if done.code else ""


async def test_a_request_that_was_never_recorded_ends_the_run_with_its_difference(
    hosted: Project, semievol: Semievol, keys: None
) -> None:
    await record(hosted, semievol, "--cassette-mode", "record")
    hosted.change(("[train]", "[justify]\nmax_tokens = 99\n\n[train]"))
    done = await asyncio.to_thread(semievol, "run", hosted.config, "--cassette", tape(hosted))
    assert done.code == 1
    assert "holds no answer to this request" in done.err and "body.max_tokens:" in done.err, done.err
    assert "Traceback" not in done.err


async def test_a_run_that_asks_for_less_than_was_recorded_fails(
    hosted: Project, semievol: Semievol, keys: None
) -> None:
    await record(hosted, semievol, "--cassette-mode", "record")
    hosted.change(("ceiling = true", "ceiling = false"))
    done = await asyncio.to_thread(semievol, "run", hosted.config, "--cassette", tape(hosted))
    assert done.code == 2
    assert "were never asked for" in done.err


async def test_a_run_that_has_begun_is_neither_recorded_nor_replayed(
    hosted: Project, semievol: Semievol, keys: None
) -> None:
    await record(hosted, semievol, "--cassette-mode", "record")
    hosted.change(('folder = "again"', 'folder = "out"'))
    for mode in ("record", "replay"):
        done = await asyncio.to_thread(
            semievol, "run", hosted.config, "--cassette", tape(hosted), "--cassette-mode", mode
        )
        assert done.code == 2 and "would never be asked for" in done.err, done.err


async def test_missing_exchanges_are_added_and_known_ones_are_not_asked_again(
    hosted: Project, semievol: Semievol, keys: None
) -> None:
    hosted.change(("ceiling = true", "ceiling = false"))
    await record(hosted, semievol, "--cassette-mode", "record")
    before = read_manifest(tape(hosted)).exchanges
    hosted.change(("ceiling = false", "ceiling = true"), ('folder = "again"', 'folder = "out"'))
    (hosted.folder / "out").rename(hosted.folder / "before")
    server = await record(hosted, semievol, "--cassette-mode", "record-missing")
    assert read_manifest(tape(hosted)).exchanges > before
    assert len(server.requests) < before


def test_a_replay_without_a_cassette_says_how_to_get_one(hosted: Project, semievol: Semievol) -> None:
    done = semievol("run", hosted.config, "--cassette", tape(hosted))
    assert done.code == 2
    assert "There is no cassette at" in done.err


def test_a_mode_without_a_cassette_or_an_unknown_one_is_refused(hosted: Project, semievol: Semievol) -> None:
    assert "cassette.path" in semievol("run", hosted.config, "--cassette-mode", "record").err
    done = semievol("run", hosted.config, "--cassette", tape(hosted), "--cassette-mode", "rewind")
    assert done.code == 2 and "cassette.mode" in done.err


async def test_planted_secrets_reach_no_vendor_and_no_file_of_cassette_journal_run_folder_report_or_log(
    hosted: Project, semievol: Semievol, keys: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for name in ("labeled", "unlabeled", "test"):
        hosted.change(("the survey has cue", f"the survey of {KEY} has cue"), file=f"{name}.csv")
    said = await asyncio.to_thread(semievol, "check", hosted.config)
    assert "looks like an API key" in said.out and "labeled.csv, line 2" in " ".join(said.out.split())
    server = await record(hosted, semievol, "--cassette-mode", "record")
    assert not any(KEY in json.dumps(seen.body) for seen in server.requests), "no key of the data goes to the vendor"
    assert server.requests[-1].headers["openai-organization"] == ORGANISATION
    told = await asyncio.to_thread(semievol, "report", hosted.folder / "out")
    assert told.code == 0
    page = (hosted.folder / "out" / "report.html").read_text("utf-8")
    assert "looks like an API key" in page and "unlabeled.csv, line 2" in page
    found = [
        str(path.relative_to(hosted.folder))
        for folder in (tape(hosted), hosted.folder / "out")
        for path in folder.rglob("*")
        if path.is_file() and _secrets_in(path)
    ]
    assert found == []
    assert KEY not in caplog.text and ORGANISATION not in caplog.text


def _secrets_in(path: Path) -> bool:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if path.suffix == ".parquet":
        content = repr(pyarrow.parquet.read_table(path).to_pydict()).encode()
    planted = (KEY.encode(), ORGANISATION.encode(), b"session=abcdef")
    return bool(find_key_shapes(content)) or any(secret in content for secret in planted)
