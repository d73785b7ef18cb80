"""A failing disk, a vanished base and a hung engine, at every step: one owner's trouble stays that owner's."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faulty_disk import FaultyDisk, no_quota, no_space, not_allowed, server_here, until
from local_samples import training_lines
from starlette.testclient import TestClient

from semievol_api.errors import ConfigError
from semievol_providers.local.children import ChildProcesses
from semievol_providers.local.disk import append_whole, write_whole
from semievol_providers.local.training_job import EventLog, TrainDefaults, TrainingEvent, TrainingJob, read_events
from semievol_providers.server.background import BackgroundTasks
from semievol_providers.server.disk import Disk
from semievol_providers.server.gate import KeyRing
from semievol_providers.server.job_events import JobBody, new_job, spec_of, with_hyperparameters, with_spec
from semievol_providers.server.job_runner import JobRunner
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import ModelTable, State

Fault = Callable[[str], None]
TUNED = "ft:tiny:local::base"


def _head(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _upload(client: TestClient, key: str, purpose: str, data: bytes) -> Any:
    return client.post("/v1/files", headers=_head(key), data={"purpose": purpose}, files={"file": ("f.jsonl", data)})


def _file(client: TestClient, key: str, purpose: str, data: bytes) -> str:
    return str(_again(lambda: _upload(client, key, purpose, data))["id"])


def _again(ask: Callable[[], Any]) -> Any:
    """What is asked until it is answered; each refusal is one of the disk's, in the API's shape."""
    while (answer := ask()).status_code >= 500:
        error = answer.json()["error"]
        if answer.status_code == 507:
            assert answer.headers["x-should-retry"] == "false" and error["code"] == "disk_full"
            assert "disk is full" in error["message"]
        else:
            assert error["code"] == "storage_failed"
    return answer.json()


def _train_file(client: TestClient, key: str) -> str:
    return _file(client, key, "fine-tune", training_lines(12).encode())


def _batch_file(client: TestClient, key: str, model: str = "tiny") -> str:
    lines = [
        {
            "custom_id": f"{key}-{i}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": f"{key} {i}"}]},
        }
        for i in range(4)
    ]  # fmt: skip
    return _file(client, key, "batch", "".join(json.dumps(line) + "\n" for line in lines).encode())


def _create_job(client: TestClient, key: str, file: str, model: str = "tiny") -> Any:
    body = {"model": model, "training_file": file, "seed": 1}
    return _again(lambda: client.post("/v1/fine_tuning/jobs", headers=_head(key), json=body))


def _create_batch(client: TestClient, key: str, file: str) -> Any:
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return _again(lambda: client.post("/v1/batches", headers=_head(key), json=body))


def _get(client: TestClient, key: str, path: str) -> Any:
    return client.get(path, headers=_head(key)).json()


def _ended(client: TestClient, key: str, path: str) -> Any:
    finals = ("succeeded", "failed", "completed", "cancelled")
    return until(lambda: (found := _get(client, key, path))["status"] in finals and found, f"the end of {path}")


def _health(client: TestClient) -> Any:
    return _get(client, "alpha", "/healthz")


def _lines(client: TestClient, key: str, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    text = client.get(f"/v1/files/{file_id}/content", headers=_head(key)).text
    return [json.loads(line) for line in text.splitlines()]


def _nothing_left_over(client: TestClient, state: Path) -> None:
    """The folders hold what the lists of both keys name, and nothing torn."""
    named = {file["id"] for key in ("alpha", "beta") for file in _get(client, key, "/v1/files")["data"]}
    assert {path.name for path in (state / "files").iterdir()} == named
    jobs = {job["id"] for key in ("alpha", "beta") for job in _get(client, key, "/v1/fine_tuning/jobs")["data"]}
    assert {path.name for path in (state / "jobs").iterdir()} == jobs
    assert not list(state.rglob("*.partial")) and not list((state / "batches").iterdir())


def _every_step(scenario: Callable[[int], int]) -> None:
    """Once undisturbed to count the steps, then once with each of them failing."""
    count = scenario(0)
    assert count > 2
    for step in range(1, count + 1):
        scenario(step)


@pytest.mark.parametrize("fault", [no_space, no_quota, not_allowed])
def test_an_upload_is_kept_whole_or_refused_and_leaves_nothing(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultyDisk()
    with server_here(tmp_path, monkeypatch, disk) as client:
        kept = _file(client, "beta", "user_data", b"theirs")
        data = os.urandom(3 * 2**20)
        made: list[str] = []

        def scenario(step: int) -> int:
            disk.arm(step, fault)
            answer = _upload(client, "alpha", "user_data", data)
            steps: int = disk.steps
            assert answer.status_code == (200 if step == 0 else 500 if fault is not no_space else 507) or (
                fault is no_quota and answer.status_code == 507
            )
            if answer.status_code == 200:
                made.append(answer.json()["id"])
            _nothing_left_over(client, tmp_path / "state")
            return steps

        _every_step(scenario)
        assert client.get(f"/v1/files/{made[0]}/content", headers=_head("alpha")).content == data
        assert client.get(f"/v1/files/{kept}/content", headers=_head("beta")).content == b"theirs"


@pytest.mark.parametrize("fault", [no_space, no_quota, not_allowed])
def test_a_job_survives_a_fault_at_every_step_or_fails_alone(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scenario(step: int) -> int:
        disk, folder = FaultyDisk(), tmp_path / str(step)
        with server_here(folder, monkeypatch, disk) as client:
            files = {key: _train_file(client, key) for key in ("alpha", "beta")}
            disk.arm(step, fault, times=1 if fault is not_allowed else 2)
            jobs = {key: _create_job(client, key, file)["id"] for key, file in files.items()}
            ends = {key: _ended(client, key, f"/v1/fine_tuning/jobs/{jobs[key]}") for key in jobs}
            steps: int = disk.steps
            failed = [job for job in ends.values() if job["status"] == "failed"]
            assert len(failed) <= (fault is not_allowed)
            assert all("Permission denied" in job["error"]["message"] for job in failed)
            for key, job in ends.items():
                listed = _get(client, key, "/v1/fine_tuning/jobs")["data"]
                assert [found["id"] for found in listed] == [jobs[key]]
                models = [m["id"] for m in _get(client, key, "/v1/models")["data"] if m["id"].startswith("ft:")]
                assert models == ([job["fine_tuned_model"]] if job not in failed else [])
                assert len(_get(client, key, "/v1/files")["data"]) == 1 + len(job["result_files"])
                said = _get(client, key, f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100")["data"]
                assert max(Counter(event["message"] for event in said).values()) == 1
            until(lambda: _health(client)["status"] == "ok", "all is well")
            _nothing_left_over(client, folder / "state")
        return steps

    _every_step(scenario)


@pytest.mark.parametrize("fault", [no_space, no_quota, not_allowed])
def test_a_batch_survives_a_fault_at_every_step_or_fails_alone(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scenario(step: int) -> int:
        disk, folder = FaultyDisk(), tmp_path / str(step)
        with server_here(folder, monkeypatch, disk) as client:
            files = {key: _batch_file(client, key) for key in ("alpha", "beta")}
            disk.arm(step, fault, times=1 if fault is not_allowed else 2)
            made = {key: _create_batch(client, key, file)["id"] for key, file in files.items()}
            ends = {key: _ended(client, key, f"/v1/batches/{made[key]}") for key in made}
            steps: int = disk.steps
            failed = [batch for batch in ends.values() if batch["status"] == "failed"]
            assert len(failed) <= (fault is not_allowed)
            assert all("Permission denied" in batch["errors"]["data"][0]["message"] for batch in failed)
            for key, batch in ends.items():
                ids = [line["custom_id"] for line in _lines(client, key, batch.get("output_file_id"))]
                whole = sorted(f"{key}-{i}" for i in range(4))
                assert sorted(ids) == whole or (batch in failed and set(ids) < set(whole) and len(set(ids)) == len(ids))
                assert "error_file_id" not in batch
            asked = Counter((folder / "asked").read_text().splitlines())
            assert max(asked.values()) == 1, "a line is computed once, however long its answer waits for room"
            until(lambda: _health(client)["status"] == "ok", "all is well")
            _nothing_left_over(client, folder / "state")
        return steps

    _every_step(scenario)


def test_a_base_that_vanishes_at_any_step_fails_its_own_job_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: Counter[str] = Counter()

    def scenario(step: int) -> int:
        disk, folder = FaultyDisk(), tmp_path / str(step)

        def vanish(_what: str) -> None:
            assert disk.database is not None
            disk.arm(0, None)
            disk.database.execute("DELETE FROM models WHERE id = ?", (TUNED,))

        with server_here(folder, monkeypatch, disk) as client:
            _owned_model(client, disk, folder)
            files = {key: _train_file(client, key) for key in ("alpha", "beta")}
            batch_file = _batch_file(client, "alpha", TUNED)
            disk.arm(step, vanish)
            mine = _create_job(client, "alpha", files["alpha"], TUNED)
            batch = _create_batch(client, "alpha", batch_file)
            theirs = _create_job(client, "beta", files["beta"])
            assert _ended(client, "beta", f"/v1/fine_tuning/jobs/{theirs['id']}")["status"] == "succeeded"
            lines = _ended(client, "alpha", f"/v1/batches/{batch['id']}")
            steps: int = disk.steps
            answers = _lines(client, "alpha", lines.get("output_file_id"))
            answers += _lines(client, "alpha", lines.get("error_file_id"))
            assert sorted(line["custom_id"] for line in answers) == sorted(f"alpha-{i}" for i in range(4))
            if "id" in mine:
                ended = _ended(client, "alpha", f"/v1/fine_tuning/jobs/{mine['id']}")
                ends[ended["status"]] += 1
                if ended["status"] == "failed":
                    assert ended["error"]["code"] == "model_not_available" and TUNED in ended["error"]["message"]
            assert _health(client)["status"] == "ok"
        return steps

    _every_step(scenario)
    assert ends["failed"] and ends["succeeded"]


def _owned_model(client: TestClient, disk: FaultyDisk, folder: Path) -> None:
    """A tuned model of alpha's, as a job leaves it."""
    file = _train_file(client, "alpha")
    job = _create_job(client, "alpha", file)
    assert _ended(client, "alpha", f"/v1/fine_tuning/jobs/{job['id']}")["status"] == "succeeded"
    assert disk.database is not None
    disk.database.execute("UPDATE models SET id = ?", (TUNED,))


def test_a_server_under_another_name_fails_the_waiting_job_and_trains_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with server_here(tmp_path, monkeypatch) as client:
        files = {key: _train_file(client, key) for key in ("alpha", "beta")}
    job = with_hyperparameters(new_job(JobBody(model="tiny", training_file=files["alpha"])), _NUMBERS)
    state = State(tmp_path / "state")
    state.add_job({**job, "status": "queued"}, KeyRing(("alpha",)).owner("Bearer alpha"), None)
    (tmp_path / "state" / "jobs" / str(job["id"])).mkdir()
    state.close()
    with server_here(tmp_path, monkeypatch, name="other") as client:
        ended = _ended(client, "alpha", f"/v1/fine_tuning/jobs/{job['id']}")
        assert ended["status"] == "failed" and "'other'" in ended["error"]["message"]
        theirs = _create_job(client, "beta", files["beta"], "other")
        assert _ended(client, "beta", f"/v1/fine_tuning/jobs/{theirs['id']}")["status"] == "succeeded"
    assert "cannot be trained" in caplog.text


_NUMBERS: Any = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 1.0}


def test_what_waits_for_the_disk_is_told_by_health_and_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FaultyDisk()
    with server_here(tmp_path, monkeypatch, disk) as client:
        train, lines = _train_file(client, "alpha"), _batch_file(client, "beta")
        made: dict[str, Any] = {}
        disk.arm(0, None)
        made["job"], made["batch"] = _create_job(client, "alpha", train), _create_batch(client, "beta", lines)
        disk.full = True
        answer = _upload(client, "alpha", "user_data", b"x")
        assert answer.status_code == 507 and answer.headers["x-should-retry"] == "false"
        until(lambda: _health(client)["status"] == "degraded", "degraded")
        assert "disk of the state folder is full" in _health(client)["reasons"][0]["reason"]
        assert client.get("/healthz").json() == {"status": "degraded"}, "without a key, no reasons"
        disk.full = False
        assert _ended(client, "alpha", f"/v1/fine_tuning/jobs/{made['job']['id']}")["status"] == "succeeded"
        assert _ended(client, "beta", f"/v1/batches/{made['batch']['id']}")["status"] == "completed"
        until(lambda: _health(client)["reasons"] == [], "all is well")
    assert "is not running: The disk" in caplog.text and "is running again" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the mount command")
    if done.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_full_disk_refuses_uploads_and_delays_what_waits(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = small_disk / "state"
    with server_here(tmp_path / "work", monkeypatch, state=state) as client:
        train, lines = _train_file(client, "alpha"), _batch_file(client, "beta")
        jobs = [_create_job(client, "alpha", train)["id"] for _ in range(3)]
        batch = _create_batch(client, "beta", lines)["id"]
        ballast = small_disk / "ballast"
        _fill(ballast)
        for _ in range(3):
            answer = _upload(client, "alpha", "user_data", b"y" * 2**19)
            assert answer.status_code == 507 and answer.json()["error"]["code"] == "disk_full"
            assert not list(state.rglob("*.partial"))
        ballast.unlink()
        ends = [_ended(client, "alpha", f"/v1/fine_tuning/jobs/{job}")["status"] for job in jobs]
        assert ends == ["succeeded"] * 3
        assert _ended(client, "beta", f"/v1/batches/{batch}")["request_counts"]["completed"] == 4
        assert _upload(client, "alpha", "user_data", b"y" * 2**16).status_code == 200
        until(lambda: _health(client)["status"] == "ok", "all is well")
        _nothing_left_over(client, state)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as out:
        for size in (2**16, 2**12, 1):
            try:
                while out.write(b"x" * size):
                    continue
            except OSError as error:
                assert error.errno == errno.ENOSPC


def test_a_file_and_a_model_are_deleted_on_a_full_disk(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_here(tmp_path / "work", monkeypatch, state=small_disk / "state") as client:
        files = [_file(client, "alpha", "user_data", b"") for _ in range(3)]  # deleting them frees nothing
        kept = _file(client, "beta", "user_data", b"theirs")
        train = _train_file(client, "alpha")
        job = _create_job(client, "alpha", train)["id"]
        model = _ended(client, "alpha", f"/v1/fine_tuning/jobs/{job}")["fine_tuned_model"]
        _get(client, "alpha", "/v1/models")
        for file in files:
            _fill(small_disk / "ballast")
            with pytest.raises(OSError, match="No space"):
                (small_disk / "probe").write_bytes(b"x" * 2**13)
            gone = client.delete(f"/v1/files/{file}", headers=_head("alpha"))
            assert gone.status_code == 200, gone.text
            (small_disk / "probe").unlink()
        assert client.delete(f"/v1/models/{model}", headers=_head("alpha")).status_code == 200
        assert client.get(f"/v1/files/{kept}/content", headers=_head("beta")).content == b"theirs"
        left = {file["id"] for file in _get(client, "alpha", "/v1/files")["data"]}
        assert train in left and not left & set(files)


# ------------------------------------------------------------------------------------------------------- the engine
def _ask(client: TestClient, text: str) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", headers=_head("alpha"), json=body)


def test_a_hung_engine_is_told_by_health_and_replaced_and_its_requests_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        server_here(tmp_path, monkeypatch, limits={"engine_silence_s": 2.0}) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert _ask(client, "hello").status_code == 200
        os.kill(_health(client)["engine_pid"], signal.SIGSTOP)
        hung = pool.submit(_ask, client, "hello?")
        until(lambda: _health(client)["status"] == "degraded", "degraded")
        assert any(r["part"] == "engine" and "sign of life" in r["reason"] for r in _health(client)["reasons"])
        answer = hung.result(timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_hung")
        assert answer.headers["retry-after"] == "5" and "ask again" in answer.json()["error"]["message"]
        assert _ask(client, "hello again").status_code == 200
        assert _health(client)["engine_restarts"] == 1
        until(lambda: _health(client)["status"] == "ok", "all is well")


def test_an_engine_that_computes_for_long_is_not_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_here(tmp_path, monkeypatch, limits={"engine_silence_s": 1.5}) as client:
        assert _ask(client, "BUSY 4").status_code == 200
        health = _health(client)
        assert (health["engine_restarts"], health["status"]) == (0, "ok")


# ------------------------------------------------------------------------------------------------------ whole writes
class _Cramped:
    """Room for a few bytes more; a write that does not fit is short first, as on a real disk."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, descriptor: int, data: memoryview) -> int:
        taken = data[: self.room]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(taken)
        return os.write(descriptor, taken)


@pytest.mark.parametrize("room", range(6))
def test_an_append_without_room_leaves_the_file_as_it_was(room: int, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_whole(path, b"one\n")
    with pytest.raises(OSError, match="No space"):
        append_whole(path, b"second\n", _Cramped(room).write)
    assert path.read_bytes() == b"one\n"
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"second\n", _Cramped(room).write)
    assert path.read_bytes() == b"one\n" and list(tmp_path.iterdir()) == [path]


def test_an_event_after_a_torn_one_is_not_lost(tmp_path: Path) -> None:
    EventLog(tmp_path).write(TrainingEvent(kind="start"))
    with (tmp_path / "events.jsonl").open("a") as torn:
        torn.write('{"kind":"st')
    EventLog(tmp_path).write(TrainingEvent(kind="done"))
    assert [event.kind for event in read_events(tmp_path, 0)[0]] == ["start", "done"]


# --------------------------------------------------------------------------------------------------- training settings
OTHER: dict[str, Any] = {
    "learning_rate": 1e-3, "rank": 3, "alpha": 5, "dropout": 0.25, "batch_size": 7, "n_epochs": 9, "target_steps": 900,
    "min_epochs": 20, "max_epochs": 2, "use_dora": True, "use_rslora": True, "target_modules": "q_proj",
    "train_embeddings": True, "warmup_share": 0.5, "weight_decay": 0.5, "tokens_per_pass": 99, "threads": 2,
    "processes": 2, "packing": False, "qlora": True, "validation_share": 0.3, "patience": 4, "max_grad_norm": 0.5,
    "dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize("name", TrainDefaults.__struct_fields__)
async def test_every_training_setting_reaches_the_trainer(name: str, tmp_path: Path) -> None:
    usual = _spec(tmp_path / "usual", TrainDefaults())
    changed = TrainDefaults(**{name: OTHER[name]})
    if name == "processes":
        with pytest.raises(ConfigError, match="processes = 2"):
            ServerSettings(model_folder="m", name="tiny", state=tmp_path, train=changed)
        return
    spec = _spec(tmp_path / "changed", changed)
    assert msgspec.structs.replace(spec, folder="", training_file="") != msgspec.structs.replace(
        usual, folder="", training_file=""
    )


def _spec(folder: Path, train: TrainDefaults) -> TrainingJob:
    settings = ServerSettings(model_folder="m", name="tiny", state=folder, train=train)
    state = State(folder, Disk())
    record = new_job(JobBody(model="tiny", training_file="file-1", seed=1))
    state.add_job(record, "", None)
    runner = JobRunner(settings, state, ModelTable(settings, state), BackgroundTasks(1.0), ChildProcesses(forks=False))
    spec = runner.training_job(with_spec(record, train.resolve(spec_of(record), 100)), folder)
    state.close()
    return spec
