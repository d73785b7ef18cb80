"""Many and large things: uploads that cost no memory, long lists, long queues, repeated kills."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from local_samples import training_lines
from server_running import RunningServer, wait_for_job

pytest_plugins = ("server_fixtures",)
KEYS = {"KEYS": "alpha,beta"}


@pytest.fixture(scope="module")
def shop(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two keys."""
    folder = tmp_path_factory.mktemp("scale")
    with RunningServer(tiny_model, folder, ("--api-key-env", "KEYS"), KEYS) as server:
        yield server


def _peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def test_a_large_upload_costs_little_memory_and_arrives_whole(shop: RunningServer, tmp_path: Path) -> None:
    client, path = shop.client(api_key="alpha"), tmp_path / "large.jsonl"
    size = 64 * 2**20
    with path.open("wb") as out:
        out.write(b"head")
        out.truncate(size)
    assert shop.process is not None
    before = _peak_mib(shop.process.pid)
    with path.open("rb") as data:
        file = client.files.create(file=data, purpose="user_data")
    assert file.bytes == size
    assert _peak_mib(shop.process.pid) - before < 40
    kept = shop.folder / "state" / "files" / file.id
    with kept.open("rb") as data:
        assert kept.stat().st_size == size and data.read(4) == b"head"
    client.files.delete(file.id)
    assert not kept.exists()


def test_many_files_are_listed_page_by_page(shop: RunningServer) -> None:
    client = shop.client(api_key="beta")
    made = [client.files.create(file=(f"{i}", b"x"), purpose="user_data").id for i in range(150)]
    page = client.files.list(limit=40)
    assert len(page.data) == 40 and page.has_more
    assert [file.id for file in client.files.list(limit=40)] == made[::-1]
    assert [file.id for file in client.files.list(limit=40, order="asc")] == made


def test_a_long_queue_serves_keys_in_turns_and_can_be_cancelled(shop: RunningServer) -> None:
    clients = [shop.client(api_key=key) for key in ("alpha", "beta")]
    files = [c.files.create(file=("t", training_lines(10).encode()), purpose="fine-tune").id for c in clients]
    settings: Any = {"n_epochs": 1}

    def create(who: int) -> str:
        jobs = clients[who].fine_tuning.jobs
        return jobs.create(model="tiny", training_file=files[who], hyperparameters=settings).id

    queue = [create(0) for _ in range(98)]
    late = [create(1) for _ in range(2)]
    wait_for_job(clients[1], late[0])  # before the other key's hundred
    states = [clients[0].fine_tuning.jobs.retrieve(job).status for job in queue]
    assert states.count("queued") + states.count("validating_files") > 90
    assert clients[1].fine_tuning.jobs.cancel(late[1]).status == "cancelled"
    for job in queue:
        try:
            assert clients[0].fine_tuning.jobs.cancel(job).status == "cancelled"
        except openai.BadRequestError:
            assert clients[0].fine_tuning.jobs.retrieve(job).status == "succeeded"


def test_after_kills_nothing_is_lost_doubled_or_torn(tiny_model: Path, tmp_path: Path) -> None:
    port = _free_port()
    settings: Any = {"n_epochs": 12, "batch_size": 2}
    text = training_lines(20).encode()
    with RunningServer(tiny_model, tmp_path, ("--port", port)) as server:
        client = server.client(max_retries=10)
        train = client.files.create(file=("t", text), purpose="fine-tune").id
        job = client.fine_tuning.jobs.create(model="tiny", training_file=train, hyperparameters=settings)
        uploaded: list[str] = []
        stop = threading.Event()

        def upload() -> None:
            while not stop.is_set():
                uploaded.append(client.files.create(file=("u", text * 50), purpose="user_data").id)

        sender = threading.Thread(target=upload)
        sender.start()
        try:
            for pause_s in (0.5, 3.0):
                time.sleep(pause_s)
                server.kill()
                server.__enter__()
        finally:
            time.sleep(1)
            stop.set()
            sender.join()
        done = wait_for_job(client, job.id)
        assert [j.id for j in client.fine_tuning.jobs.list()] == [job.id]
        steps = [e.data["step"] for e in client.fine_tuning.jobs.list_events(job.id, limit=100) if e.type == "metrics"]  # type: ignore[index]
        assert steps == list(range(120, 0, -1))
        assert client.models.retrieve(done.fine_tuned_model).id == done.fine_tuned_model
        listed = {file.id: file for file in client.files.list(purpose="user_data")}
        assert uploaded and set(uploaded) <= set(listed)
        assert {file.bytes for file in listed.values()} == {len(text) * 50}
        for file_id in listed:
            assert client.files.content(file_id).read() == text * 50
        on_disk = {path.name for path in (tmp_path / "state" / "files").iterdir()}
        assert on_disk == {file.id for file in client.files.list()}


def _free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
