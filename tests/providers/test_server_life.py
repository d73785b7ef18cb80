"""The server as a process: kills and restarts, keys, limits, start and stop."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from typing import Any

import openai
import pytest
from local_samples import training_lines
from server_running import RunningServer, environment, wait_for_job

pytest_plugins = ("server_fixtures",)
MESSAGES: Any = [{"role": "user", "content": "Item 1 x"}]


def _health(server: RunningServer) -> dict[str, Any]:
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/healthz") as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while not _gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _create(client: openai.OpenAI, **settings: Any) -> Any:
    file = client.files.create(file=("t.jsonl", training_lines(20).encode()), purpose="fine-tune")
    return client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=1, **settings)


def _answer(client: openai.OpenAI, model: str) -> Any:
    reply = client.chat.completions.create(model=model, messages=MESSAGES, seed=1, max_tokens=8, logprobs=True)
    return reply.choices[0].model_dump()


def test_a_killed_server_loses_no_job_and_resumes_the_running_one(tiny_model: Path, tmp_path: Path) -> None:
    settings: Any = {"hyperparameters": {"n_epochs": 15, "batch_size": 2}, "metadata": {"semievol_run_key": "k"}}
    with RunningServer(tiny_model, tmp_path) as server:
        client = server.client()
        job = _create(client, **settings)
        waiting = _create(client, hyperparameters={"n_epochs": 1})
        wait_for_job(client, job.id, "running")
        _answer(client, "tiny")
        while len(client.fine_tuning.jobs.list_events(job.id, limit=100).data) < 30:
            time.sleep(0.02)
        before = _health(server)
        server.kill()
        for pid in (before["engine_pid"], before["training"]["pid"]):
            _wait_gone(pid)
    with RunningServer(tiny_model, tmp_path) as server:
        client = server.client(max_retries=5)
        assert _create(client, **settings).id == job.id
        again = _create(client, hyperparameters=settings["hyperparameters"])
        assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
        done = wait_for_job(client, job.id)
        assert {j.id for j in client.fine_tuning.jobs.list()} == {job.id, waiting.id, again.id}
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
        steps = [e.data["step"] for e in events if e.type == "metrics"]  # type: ignore[index]
        assert steps == list(range(150, 0, -1))
        undisturbed = wait_for_job(client, again.id)
        assert _answer(client, done.fine_tuned_model) == _answer(client, undisturbed.fine_tuned_model)


def test_a_dead_engine_is_replaced_and_its_requests_are_answered(server: RunningServer, client: openai.OpenAI) -> None:
    before, restarts = _answer(client, "tiny"), _health(server)["engine_restarts"]
    os.kill(_health(server)["engine_pid"], signal.SIGKILL)
    assert _answer(client, "tiny") == before
    assert _health(server)["engine_restarts"] == restarts + 1


def test_a_stopped_engine_is_replaced_and_a_living_one_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("engine_silence_s = 4")
    with RunningServer(tiny_model, tmp_path, ("--limits", str(tmp_path / "limits.toml"))) as server:
        client = server.client()
        before = _answer(client, "tiny")
        time.sleep(5)
        assert _health(server)["engine_restarts"] == 0 and _health(server)["status"] == "ok"
        os.kill(_health(server)["engine_pid"], signal.SIGSTOP)
        with pytest.raises(openai.InternalServerError, match=r"no sign of life for 4 s.*ask again"):
            _answer(client, "tiny")
        assert _answer(client, "tiny") == before
        assert _health(server)["engine_restarts"] == 1


def test_the_server_is_up_before_its_engine_and_without_torch(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path) as server:
        assert server.process is not None
        assert server.client().models.list().data[0].id == "tiny"
        maps = Path(f"/proc/{server.process.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()


def test_a_stop_that_was_asked_for_ends_well_and_leaves_nobody_behind(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path) as server:
        _answer(server.client(), "tiny")
        job = _create(server.client(), hyperparameters={"n_epochs": 50, "batch_size": 1})
        wait_for_job(server.client(), job.id, "running")
        health = _health(server)
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0, server.log()
    for pid in (health["engine_pid"], health["training"]["pid"]):
        _wait_gone(pid)
    assert "Serving tiny on http://127.0.0.1:" in server.log()


def test_the_engine_starts_with_the_first_question(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path) as server:
        assert server.client().models.list().data
        assert _health(server)["engine_pid"] is None
        _answer(server.client(), "tiny")
        assert _health(server)["engine_pid"] > 0


@pytest.mark.parametrize("how", ["SIGTERM", "end of input"])
def test_a_stop_while_the_engine_loads_is_quick_and_refuses_who_waits(
    tiny_model: Path, tmp_path: Path, how: str
) -> None:
    with RunningServer(tiny_model, tmp_path, ("--stop-with-stdin",)) as server, ThreadPoolExecutor() as pool:
        asked = pool.submit(_answer, server.client(), "tiny")
        while _health(server)["engine_pid"] is None:
            time.sleep(0.01)
        assert server.process is not None and server.process.stdin is not None
        since = time.monotonic()
        if how == "SIGTERM":
            server.process.terminate()
        else:
            server.process.stdin.close()
        assert server.process.wait(timeout=30) == 0, server.log()
        assert time.monotonic() - since < 2.5  # an idle machine needs 0.4 s; the engine's loading takes 4 s
        with pytest.raises(openai.InternalServerError, match="stopping"):
            asked.result()


def test_an_engine_that_still_loads_ends_with_a_killed_server(tiny_model: Path, tmp_path: Path) -> None:
    slow = {"SEMIEVOL_PRELOADED": "off"}  # the engine's process imports everything itself, which takes seconds
    with RunningServer(tiny_model, tmp_path, env=slow) as server, ThreadPoolExecutor() as pool:
        asked = pool.submit(_answer, server.client(), "tiny")
        while (pid := _health(server)["engine_pid"]) is None:
            time.sleep(0.01)
        time.sleep(0.6)
        server.kill()
        since = time.monotonic()
        _wait_gone(pid)
        assert time.monotonic() - since < 2.5  # loading takes longer
        with pytest.raises(openai.APIConnectionError):
            asked.result()


def test_keys_are_asked_for_and_owners_see_their_own_only(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path, ("--api-key-env", "KEYS"), {"KEYS": "alpha,beta"}) as server:
        alpha, beta, wrong = (server.client(api_key=key) for key in ("alpha", "beta", "gamma"))
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        job = _create(alpha, hyperparameters={"n_epochs": 1}, metadata={"semievol_run_key": "k"})
        assert len(alpha.files.list().data) == 1 and beta.files.list().data == []
        assert beta.fine_tuning.jobs.list().data == []
        with pytest.raises(openai.NotFoundError):
            beta.fine_tuning.jobs.retrieve(job.id)
        with pytest.raises(openai.BadRequestError):
            beta.fine_tuning.jobs.create(model="tiny", training_file=job.training_file)
        done = wait_for_job(alpha, job.id)
        with pytest.raises(openai.NotFoundError):
            beta.models.retrieve(done.fine_tuned_model)
        assert _create(beta, metadata={"semievol_run_key": "k"}).id != job.id


def _refusal(*arguments: str) -> str:
    command = [sys.executable, "-m", "semievol_providers.server.command", *arguments]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    return " ".join(ended.stderr.split())


def test_what_cannot_be_served_is_refused_in_one_paragraph(tiny_model: Path, tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state"))
    assert "no config.json" in _refusal(str(tmp_path), *state)
    assert "an API key is needed" in _refusal(str(tiny_model), "--host", "0.0.0.0", *state)
    assert "NO_SUCH_KEY" in _refusal(str(tiny_model), "--api-key-env", "NO_SUCH_KEY", *state)
    assert "NAME=MODEL" in _refusal(str(tiny_model), "--alias", "x", *state)
    (tmp_path / "train.toml").write_text("learning_rat = 1")
    assert "learning_rat" in _refusal(str(tiny_model), "--train-config", str(tmp_path / "train.toml"), *state)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot be used" in _refusal(str(tiny_model), "--port", str(taken.getsockname()[1]), *state)


def test_two_servers_cannot_share_a_state_folder(server: RunningServer, tiny_model: Path) -> None:
    assert "in use by another server" in _refusal(str(tiny_model), "--state", str(server.folder / "state"))


def test_a_server_that_is_stopping_is_waited_for(tiny_model: Path, tmp_path: Path) -> None:
    server = RunningServer(tiny_model, tmp_path)
    with server:
        pass
    with (tmp_path / "state" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / "state" / "lock").write_text("stopping")
        Timer(4.0, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        with server:
            assert server.client().models.list().data
            assert not (tmp_path / "state" / "lock").read_text(), "nobody is stopping any more"


def test_a_body_larger_than_the_limit_is_refused(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {2**30}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    chunked = urllib.request.Request(server.url + "/chat/completions", data=iter([b" " * 2**20] * 20), method="POST")  # type: ignore[arg-type]
    with pytest.raises((urllib.error.URLError, ConnectionError)) as raised:  # or the server hangs up first
        urllib.request.urlopen(chunked)
    if isinstance(raised.value, urllib.error.HTTPError):
        assert raised.value.code == 413
        raised.value.close()
