"""The state folder: whose it is, what is never removed, what is rebuilt, and that delete means delete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from local_samples import training_lines
from server_running import RunningServer, environment, wait_for_job

pytest_plugins = ("server_fixtures",)
MESSAGES: Any = [{"role": "user", "content": "Item 1 x"}]
QUICK: Any = {"n_epochs": 3, "batch_size": 5}
JOB = "ftjob-" + "A" * 24
FILE = "file-" + "B" * 24


def listing(folder: Path) -> dict[str, str]:
    """Every entry below a folder with a hash of its bytes."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def refusal(model: Path, state: Path, *options: str, **env: str) -> str:
    """The paragraph with which a server refuses to start."""
    command = [sys.executable, "-m", "semievol_providers.server.command", str(model), "--name", "tiny"]
    command += ["--port", "0", "--state", str(state), *options]
    ended = subprocess.run(command, env=environment(**env), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    return " ".join(ended.stderr.split())


def train(client: openai.OpenAI, text: bytes | None = None, **settings: Any) -> Any:
    """A job that has not ended yet."""
    file = client.files.create(file=("secret-name.jsonl", text or training_lines(20).encode()), purpose="fine-tune")
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, seed=1, **{"hyperparameters": QUICK} | settings
    )


def answer(client: openai.OpenAI, model: str) -> Any:
    reply = client.chat.completions.create(model=model, messages=MESSAGES, seed=1, max_tokens=8, logprobs=True)
    return reply.choices[0].model_dump()


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, Any]:
    """A server's folder after one job, the job, its model and one answer of it."""
    folder = tmp_path_factory.mktemp("trained")
    with RunningServer(tiny_model, folder) as server:
        client = server.client()
        job = wait_for_job(client, train(client, suffix="warm", metadata={"who": "me"}).id)
        said = answer(client, job.fine_tuned_model)
    return folder, job.id, job.fine_tuned_model, said


@pytest.fixture
def copied(trained: tuple[Path, str, str, Any], tmp_path: Path) -> Path:
    """A copy of that state whose paths are its own."""
    folder = tmp_path / "copy"
    shutil.copytree(trained[0] / "state", folder / "state")
    with sqlite3.connect(folder / "state/state.sqlite") as database:
        old, new = str(trained[0] / "state"), str(folder / "state")
        database.execute("UPDATE models SET folder = replace(folder, ?, ?)", (old, new))
    database.close()
    return folder


# ------------------------------------------------------------------------------------------ whose it is
def _documents(folder: Path) -> None:
    for name in ("files", "jobs", "tmp"):
        (folder / name).mkdir(parents=True)
        (folder / name / "letter.txt").write_text("mine")


def _run_folder(folder: Path) -> None:
    (folder / "jobs").mkdir(parents=True)
    (folder / "jobs/final-events.jsonl").write_text("{}\n")
    (folder / "stamps.json").write_text("{}")


def _other_database(folder: Path) -> None:
    folder.mkdir()
    with sqlite3.connect(folder / "state.sqlite") as database:
        database.execute("CREATE TABLE files (a)")
    database.close()


def _empty_folders_of_somebody(folder: Path) -> None:
    (folder / "jobs").mkdir(parents=True)


def _foreign_marker(folder: Path) -> None:
    folder.mkdir()
    (folder / "semievol-state.json").write_text('{"made_by": "somebody", "format": 1}')


@pytest.mark.parametrize(
    "fill", [_documents, _run_folder, _other_database, _empty_folders_of_somebody, _foreign_marker]
)
def test_a_folder_of_somebody_else_is_refused_and_keeps_every_byte(
    tiny_model: Path, tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    folder = tmp_path / "state"
    fill(folder)
    before = listing(folder)
    for options in ((), ("--recover",)):
        assert (
            "another one with --state" in (said := refusal(tiny_model, folder, *options))
            or "folder with --state" in said
        )
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["files", "jobs", "batches", "tmp"])
def test_a_linked_folder_is_refused_and_what_it_leads_to_stays(copied: Path, tiny_model: Path, name: str) -> None:
    elsewhere = copied / "elsewhere"
    (copied / "state" / name).rename(elsewhere)
    (elsewhere / "letter.txt").write_text("mine")
    (copied / "state" / name).symlink_to(elsewhere)
    before = listing(copied)
    assert "is a link" in refusal(tiny_model, copied / "state")
    assert listing(copied) == before


def test_only_names_of_the_servers_own_shape_are_swept_and_no_links(copied: Path, tiny_model: Path) -> None:
    state, mine = copied / "state", copied / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    kept = [state / "files/notes.txt", state / "jobs/readme.md", state / "tmp/report.pdf", state / "other.txt"]
    for path in kept:
        path.write_text("mine")
    for link in (state / "jobs" / JOB, state / "files" / FILE):
        link.symlink_to(mine)
    for folder in (state / "jobs" / ("ftjob-" + "C" * 24), state / "batches" / ("batch_" + "C" * 24)):
        folder.mkdir()
        (folder / "training_file").symlink_to(mine / "letter.txt")
    strays = [state / "files" / ("file-" + "C" * 24), state / "files" / ("file-" + "D" * 24 + ".partial")]
    strays.append(state / "tmp/tmpabcdefg_")
    for path in strays:
        path.write_text("half an upload")
    work = state / "jobs" / ("ftjob-" + "E" * 24) / "adapter"
    work.mkdir(parents=True)
    with RunningServer(tiny_model, copied) as server:
        assert all(path.read_text() == "mine" for path in [*kept, mine / "letter.txt"])
        assert (state / "jobs" / JOB).is_symlink() and (state / "files" / FILE).is_symlink()
        assert not any(path.exists() for path in strays)
        assert not (state / "jobs" / ("ftjob-" + "C" * 24)).exists()
        assert not (state / "batches" / ("batch_" + "C" * 24)).exists()
        assert work.is_dir() and "left alone" in server.log()


def test_an_older_servers_state_is_taken_on_and_marked(
    copied: Path, tiny_model: Path, trained: tuple[Path, str, str, Any]
) -> None:
    state = copied / "state"
    (state / "semievol-state.json").unlink()
    with sqlite3.connect(state / "state.sqlite") as database:
        database.execute("PRAGMA user_version = 0")
        database.execute("PRAGMA application_id = 0")
    database.close()
    with RunningServer(tiny_model, copied) as server:
        assert answer(server.client(), trained[2]) == trained[3]
    assert json.loads((state / "semievol-state.json").read_text())["format"] == 1
    with sqlite3.connect(state / "state.sqlite") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
    database.close()


def test_a_killed_servers_state_is_read_with_its_write_ahead_log(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path) as server:
        file = server.client().files.create(file=("a", b"data"), purpose="user_data")
        server.kill()
    assert (tmp_path / "state/state.sqlite-wal").stat().st_size > 0
    with RunningServer(tiny_model, tmp_path) as server:
        assert server.client().files.content(file.id).read() == b"data"


def test_a_volume_with_nothing_but_lost_and_found_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "state/lost+found").mkdir(parents=True)
    with RunningServer(tiny_model, tmp_path) as server:
        assert server.client().models.list().data
    assert (tmp_path / "state/lost+found").is_dir()


# ---------------------------------------------------------------------------------- newer, damaged, unusable
def _newer_database(state: Path) -> None:
    with sqlite3.connect(state / "state.sqlite") as database:
        database.execute("PRAGMA user_version = 7")
    database.close()


def _newer_database_in_its_log(state: Path) -> None:
    """As a newer server that was killed leaves it: the version stands in the write-ahead log only."""
    code = "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('PRAGMA user_version = 7'); "
    subprocess.run([sys.executable, "-c", code + "os._exit(0)", str(state / "state.sqlite")], check=True)
    assert (state / "state.sqlite-wal").stat().st_size > 0
    (state / "state.sqlite-shm").unlink()


def _newer_marker(state: Path) -> None:
    (state / "semievol-state.json").write_text('{"made_by": "semievol serve", "format": 7, "more": 1}')


def _half_a_marker(state: Path) -> None:
    (state / "semievol-state.json").write_text('{"made_by": "semie')


def _half_a_database(state: Path) -> None:
    path = state / "state.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_database(state: Path) -> None:
    (state / "state.sqlite").unlink()


def _empty_database(state: Path) -> None:
    (state / "state.sqlite").write_bytes(b"")


def _noise(state: Path) -> None:
    (state / "state.sqlite").write_bytes(b"noise" * 5000)


def _a_torn_page(state: Path) -> None:
    path = state / "state.sqlite"
    data = bytearray(path.read_bytes())
    data[4096 : 3 * 4096] = b"\xff" * 8192
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_newer_database, "newer version"),
        (_newer_database_in_its_log, "newer version"),
        (_newer_marker, "newer version"),
        (_half_a_marker, "is damaged"),
        (_half_a_database, "--recover"),
        (_no_database, "--recover"),
        (_empty_database, "--recover"),
        (_noise, "--recover"),
        (_a_torn_page, "--recover"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused_in_a_sentence_and_keeps_every_byte(
    copied: Path, tiny_model: Path, damage: Callable[[Path], None], words: str
) -> None:
    state = copied / "state"
    damage(state)
    before = listing(state)
    assert words in (said := refusal(tiny_model, state)) and "Nothing was touched" in said
    assert listing(state) == before


def test_a_place_that_cannot_be_a_folder_is_refused_in_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/state", Path("/proc/semievol-state")):
        assert "cannot be used" in refusal(tiny_model, place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(copied: Path, tiny_model: Path) -> None:
    state = copied / "state"
    before = listing(state)
    state.chmod(0o500)
    try:
        assert "cannot be written" in refusal(tiny_model, state)
    finally:
        state.chmod(0o700)
    assert listing(state) == before


# ------------------------------------------------------------------------------------------------ recovery
@pytest.mark.parametrize("damage", [_no_database, _empty_database, _half_a_database])
def test_a_lost_database_is_rebuilt_with_jobs_models_and_files(
    copied: Path, tiny_model: Path, trained: tuple[Path, str, str, Any], damage: Callable[[Path], None]
) -> None:
    _, job_id, model, said = trained
    with RunningServer(tiny_model, copied) as server:
        client = server.client()
        old_job, old_models = client.fine_tuning.jobs.retrieve(job_id), {m.id for m in client.models.list()}
        checkpoints = [c.fine_tuned_model_checkpoint for c in client.fine_tuning.jobs.checkpoints.list(job_id)]
        files = {file.id: file.purpose for file in client.files.list()}
    assert len(old_models) > 2 and len(files) == 2
    damage(copied / "state")
    with RunningServer(tiny_model, copied, ("--recover",)) as server:
        client = server.client()
        assert client.fine_tuning.jobs.retrieve(job_id) == old_job
        assert {m.id for m in client.models.list()} == old_models
        assert [c.fine_tuned_model_checkpoint for c in client.fine_tuning.jobs.checkpoints.list(job_id)] == checkpoints
        assert {file.id: file.purpose for file in client.files.list()} == files
        assert answer(client, model) == said
        assert "Recovered 1 job(s)" in server.log()
    assert not list((copied / "state").glob("*recovering*"))
    with RunningServer(tiny_model, copied) as server:
        assert answer(server.client(), model) == said


def test_an_older_job_folder_is_recovered_by_what_its_training_wrote(
    copied: Path, tiny_model: Path, trained: tuple[Path, str, str, Any]
) -> None:
    state = copied / "state"
    folder = state / "jobs" / trained[1]
    (folder / "record.json").unlink()
    shutil.copytree(folder, state / "jobs" / JOB)
    (state / "semievol-state.json").unlink()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    unfinished = [json.dumps(event) for event in events if event["kind"] != "done"]
    (state / "jobs" / JOB / "events.jsonl").write_text("\n".join(unfinished) + "\n")
    _no_database(state)
    assert "do not say whose" in refusal(tiny_model, state, "--recover", "--api-key-env", "KEYS", KEYS="alpha,beta")
    with RunningServer(tiny_model, copied, ("--recover", "--api-key-env", "KEYS"), {"KEYS": "alpha"}) as server:
        client = server.client(api_key="alpha")
        done = client.fine_tuning.jobs.retrieve(trained[1])
        assert done.status == "succeeded" and done.fine_tuned_model == f"ft:tiny:local::{trained[1][6:14]}"
        assert done.fine_tuned_model and answer(client, done.fine_tuned_model) == trained[3]
        waiting = client.fine_tuning.jobs.retrieve(JOB)
        assert waiting.status == "paused" and waiting.hyperparameters.n_epochs == 3
        assert client.files.content(done.training_file).read() == training_lines(20).encode()
        assert client.files.content(waiting.training_file).read() == training_lines(20).encode()
        client.fine_tuning.jobs.resume(JOB)
        assert wait_for_job(client, JOB).fine_tuned_model == f"ft:tiny:local::{JOB[6:14]}"


def test_a_recovered_folder_gives_each_key_its_own(tiny_model: Path, tmp_path: Path) -> None:
    options, keys = ("--api-key-env", "KEYS"), {"KEYS": "alpha,beta"}
    with RunningServer(tiny_model, tmp_path, options, keys) as server:
        job = wait_for_job(alpha := server.client(api_key="alpha"), train(server.client(api_key="alpha")).id)
        loose = server.client(api_key="beta").files.create(file=("a", b"of beta"), purpose="user_data").id
        assert alpha.models.retrieve(job.fine_tuned_model)
    _no_database(tmp_path / "state")
    with RunningServer(tiny_model, tmp_path, (*options, "--recover"), keys) as server:
        alpha, beta = server.client(api_key="alpha"), server.client(api_key="beta")
        assert alpha.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
        assert {file.id for file in alpha.files.list()} == {job.training_file, *job.result_files}
        assert beta.files.list().data == [] and len(beta.models.list().data) == 1
    assert (tmp_path / "state/unrecovered" / loose).read_bytes() == b"of beta"


def test_a_job_that_ran_when_the_database_was_lost_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path) as server:
        client = server.client()
        job = train(client, hyperparameters={"n_epochs": 15, "batch_size": 2})
        wait_for_job(client, job.id, "running")
        server.kill()
    for path in (tmp_path / "state").glob("state.sqlite*"):
        path.unlink()
    with RunningServer(tiny_model, tmp_path, ("--recover",)) as server:
        assert wait_for_job(server.client(), job.id).trained_tokens


def test_a_job_that_an_older_copy_of_the_database_lacks_is_kept_and_taken_up(
    copied: Path, tiny_model: Path, trained: tuple[Path, str, str, Any]
) -> None:
    with sqlite3.connect(copied / "state/state.sqlite") as database:
        for table in ("jobs", "models", "events", "checkpoints"):
            database.execute(f"DELETE FROM {table}")
    database.close()
    with RunningServer(tiny_model, copied) as server:
        assert "--recover takes it up" in server.log()
    with RunningServer(tiny_model, copied, ("--recover",)) as server:
        assert answer(server.client(), trained[2]) == trained[3]


# ------------------------------------------------------------------------------------------------ deletion
def _holds(state: Path, text: bytes) -> list[str]:
    return [str(path) for path in state.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_a_deleted_file_leaves_no_byte_of_its_text_behind(tiny_model: Path, tmp_path: Path) -> None:
    state, secret = tmp_path / "state", b"xylophone-7431"
    text = training_lines(20).encode().replace(b"Item", secret + b" Item")
    with RunningServer(tiny_model, tmp_path) as server:
        client = server.client()
        job = train(client, text, validation_file=client.files.create(file=("v", text), purpose="fine-tune").id)
        for file_id in (job.training_file, job.validation_file):
            with pytest.raises(openai.ConflictError, match=job.id) as refused:
                client.files.delete(file_id)
            body: Any = refused.value.body
            assert body["code"] == "file_in_use" and body["type"] == "invalid_request_error"
        wait_for_job(client, job.id)
        assert len(_holds(state, secret)) == 4
        for file_id in (job.training_file, job.validation_file):
            assert client.files.delete(file_id).deleted
        assert _holds(state, secret) == []
        assert _holds(state, b"secret-name") == []


def test_a_file_that_a_batch_still_reads_is_not_deleted(tiny_model: Path, tmp_path: Path) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 200, "n": 16, "temperature": 1}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    text = "\n".join(json.dumps({**line, "custom_id": str(i)}) for i in range(400)).encode()
    with RunningServer(tiny_model, tmp_path) as server:
        client = server.client()
        file = client.files.create(file=("b.jsonl", text), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        with pytest.raises(openai.ConflictError, match=batch.id):
            client.files.delete(file.id)
        client.batches.cancel(batch.id)
        deadline = time.monotonic() + 60
        while client.batches.retrieve(batch.id).status != "cancelled":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.files.delete(file.id).deleted
        assert _holds(tmp_path / "state", b"max_tokens") == []


def test_an_expired_file_goes_with_the_copies_that_ended_jobs_kept(
    copied: Path, tiny_model: Path, trained: tuple[Path, str, str, Any]
) -> None:
    assert len(_holds(copied / "state", b'"messages"')) == 2
    with sqlite3.connect(copied / "state/state.sqlite") as database:
        database.execute("UPDATE files SET expires_at = 1 WHERE purpose = 'fine-tune'")
    database.close()
    with RunningServer(tiny_model, copied) as server:
        assert _holds(copied / "state", b'"messages"') == []
        assert answer(server.client(), trained[2]) == trained[3]


def test_what_an_older_server_kept_of_a_deleted_file_goes_at_the_next_start(copied: Path, tiny_model: Path) -> None:
    with sqlite3.connect(copied / "state/state.sqlite") as database:
        database.execute("DELETE FROM files WHERE purpose = 'fine-tune'")
    database.close()
    with RunningServer(tiny_model, copied):
        assert _holds(copied / "state", b'"messages"') == []


def test_a_deleted_model_leaves_no_weights_behind(
    copied: Path, tiny_model: Path, trained: tuple[Path, str, str, Any]
) -> None:
    folder = copied / "state/jobs" / trained[1]
    weights = [hashlib.sha256(path.read_bytes()).digest() for path in (folder / "adapter").glob("*.safetensors")]
    with RunningServer(tiny_model, copied) as server:
        client = server.client()
        assert answer(client, trained[2]) == trained[3]
        checkpoints = [m.id for m in client.models.list() if ":ckpt-step-" in m.id]
        assert checkpoints and len(list((folder / "checkpoints").iterdir())) == len(checkpoints)
        for name in (trained[2], *checkpoints):
            assert client.models.delete(name).deleted
            with pytest.raises(openai.NotFoundError):
                answer(client, name)
    left = list(folder.rglob("*.safetensors"))
    assert left == [] and weights and not (folder / "adapter").exists()


def test_a_model_that_is_needed_is_not_deleted_and_the_refusal_says_by_whom(
    copied: Path, tiny_model: Path, trained: tuple[Path, str, str, Any]
) -> None:
    name = trained[2]
    with RunningServer(tiny_model, copied, ("--alias", f"mine={name}")) as server:
        client = server.client()
        file = client.files.create(file=("t.jsonl", training_lines(20).encode()), purpose="fine-tune").id
        long: Any = {"n_epochs": 50, "batch_size": 1}
        job = client.fine_tuning.jobs.create(model="mine", training_file=file, hyperparameters=long)
        with pytest.raises(openai.ConflictError, match=job.id):
            client.models.delete(name)
        client.fine_tuning.jobs.cancel(job.id)
        stream = client.chat.completions.create(
            model=name, messages=MESSAGES, stream=True, max_tokens=400, n=32, temperature=1.5
        )
        next(iter(stream))
        with pytest.raises(openai.ConflictError, match=r"1 request\(s\) under way"):
            client.models.delete(name)
        stream.close()
        assert answer(client, name) == trained[3]
        deadline = time.monotonic() + 60
        while True:
            try:
                assert client.models.delete(name).deleted
                return
            except openai.ConflictError:  # the training saves before it ends, the stream was just left
                assert time.monotonic() < deadline
                time.sleep(0.05)
