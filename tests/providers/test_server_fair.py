"""Nobody waits for another key's trouble, nobody works for a client that left, and small answers leave at once."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from server_running import RunningServer

from semievol_providers.local.engine import Engine
from semievol_providers.local.requests import EngineSettings
from semievol_providers.server.command import _bind
from semievol_providers.server.engine_process import EngineService
from semievol_providers.server.engine_wire import (
    LENGTH,
    ChoicesTell,
    DropAsk,
    EmbedAsk,
    RefusalTell,
    Sampling,
    Tell,
    TextAsk,
    VectorsTell,
)
from semievol_providers.server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)
MESSAGES: Any = [{"role": "user", "content": "Go on."}]
BRIEF = Sampling(seed=1, max_tokens=1)


class Pipe(io.BytesIO):
    """What the engine process tells; `wait` for a number of messages."""

    def tells(self) -> list[Tell]:
        """All messages so far."""
        data, found, at = self.getvalue(), list[Tell](), 0
        while at < len(data):
            size = LENGTH.unpack_from(data, at)[0]
            found.append(msgspec.msgpack.decode(data[at + LENGTH.size : at + LENGTH.size + size], type=Tell))
            at += LENGTH.size + size
        return found

    def wait(self, count: int) -> list[Tell]:
        """The first messages, as soon as there are so many."""
        deadline = time.monotonic() + 100
        while len(found := self.tells()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found


def _service(folder: Path) -> tuple[EngineService, Engine, Pipe]:
    engine, pipe = Engine(str(folder), EngineSettings()), Pipe()
    engine.start()
    return EngineService(engine, pipe), engine, pipe


# ------------------------------------------------------------------------------------- beside the reading
def test_a_text_that_cannot_fit_is_refused_by_its_bytes_and_holds_nobody_up(demo_model: Path) -> None:
    service, engine, pipe = _service(demo_model)
    since_s = time.monotonic()
    service.take(TextAsk(id=1, prompt="word and " * 1_700_000, sampling=BRIEF, owner="long"))
    service.take(TextAsk(id=2, prompt="Hello", sampling=BRIEF, owner="short"))
    assert time.monotonic() - since_s < 1
    found = {tell.id: tell for tell in pipe.wait(2) if isinstance(tell, ChoicesTell | RefusalTell)}
    assert time.monotonic() - since_s < 10  # tokenising such a text takes longer than that
    engine.close()
    refused = found[1]
    assert isinstance(refused, RefusalTell) and refused.code == "context_length_exceeded"
    assert "at least" in refused.message and isinstance(found[2], ChoicesTell)


def test_where_bytes_prove_nothing_a_long_text_is_tokenised_while_short_questions_are_answered(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": strip}))
    service, engine, pipe = _service(tmp_path / "model")
    service.take(TextAsk(id=1, prompt="word and " * 400_000, sampling=BRIEF, owner="long"))
    service.take(TextAsk(id=2, prompt="Hello", sampling=BRIEF, owner="short"))
    numbers = [tell.id for tell in pipe.wait(2) if isinstance(tell, ChoicesTell | RefusalTell)]
    engine.close()
    assert numbers == [2, 1]


def test_a_question_that_was_dropped_is_neither_tokenised_nor_answered(tiny_model: Path) -> None:
    service, engine, pipe = _service(tiny_model)
    long = Sampling(seed=1, max_tokens=400, n=128)
    for number in range(1, 5):
        service.take(TextAsk(id=number, prompt="Go on", sampling=long))
    service.take(EmbedAsk(id=5, inputs=("text " * 80,) * 2000))
    for number in range(1, 6):
        service.take(DropAsk(number))
    since_s = time.monotonic()
    service.take(TextAsk(id=6, prompt="Hello", sampling=BRIEF))
    pipe.wait(1)
    assert time.monotonic() - since_s < 10
    engine.close()  # whatever still runs is told first
    assert [tell.id for tell in pipe.tells() if isinstance(tell, ChoicesTell | RefusalTell | VectorsTell)] == [6]


# ----------------------------------------------------------------------------------------- who leaves
def _in_flight(server: RunningServer) -> int:
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/healthz") as answer:
        return int(json.loads(answer.read())["requests_in_flight"])


def _soon_idle(server: RunningServer, within_s: float = 3.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if _in_flight(server) == 0:
            return True
        time.sleep(0.05)
    return False


LONG: dict[str, Callable[[openai.OpenAI], object]] = {
    "chat": lambda client: client.chat.completions.create(model="tiny", messages=MESSAGES, n=128, max_tokens=450),
    "completion": lambda client: client.completions.create(model="tiny", prompt="Go on", n=128, max_tokens=450),
    "embedding": lambda client: client.embeddings.create(model="tiny", input=["text " * 90] * 2000),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_client_that_gives_up_and_retries_leaves_no_copy_running(server: RunningServer, kind: str) -> None:
    server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)  # the engine is there
    with pytest.raises(openai.APITimeoutError):
        LONG[kind](server.client(timeout=0.3, max_retries=2))
    assert _soon_idle(server)


def test_a_client_that_leaves_a_stream_leaves_nothing_running(server: RunningServer) -> None:
    stream = server.client().chat.completions.create(
        model="tiny", messages=MESSAGES, n=128, max_tokens=450, stream=True
    )
    next(iter(stream))
    stream.close()
    assert _soon_idle(server)


def test_a_cancelled_batch_frees_its_lines_at_once(server: RunningServer) -> None:
    client = server.client()
    body = {"model": "tiny", "messages": MESSAGES, "n": 128, "max_tokens": 450}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = "".join(json.dumps(line | {"custom_id": str(i)}) + "\n" for i in range(8))
    file = client.files.create(file=("b.jsonl", lines.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    deadline = time.monotonic() + 30
    while _in_flight(server) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _in_flight(server) == 8
    client.batches.cancel(batch.id)
    assert _soon_idle(server)


# --------------------------------------------------------------------------------------------- two keys
@pytest.fixture(scope="module")
def two_keys(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server for two keys whose batches ask one request at a time."""
    folder = tmp_path_factory.mktemp("two-keys")
    (folder / "limits.toml").write_text(
        "batch_in_flight = 1\nunfinished_batches = 2\nunfinished_batches_all_keys = 3\n"
    )
    options = ("--api-key-env", "KEYS", "--limits", str(folder / "limits.toml"))
    with RunningServer(tiny_model, folder, options, {"KEYS": "alpha-key,beta-key"}) as server:
        yield server


def test_two_keys_do_not_fill_the_places_of_a_third(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("requests_in_flight = 12\n")
    options = ("--api-key-env", "KEYS", "--limits", str(tmp_path / "limits.toml"))
    keys = ("alpha-key", "beta-key", "gamma-key")
    with RunningServer(tiny_model, tmp_path / "server", options, {"KEYS": ",".join(keys)}) as server:
        clients = [server.client(api_key=key, timeout=100) for key in keys]
        clients[0].chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)  # the engine runs
        health = urllib.request.Request(server.url.removesuffix("/v1") + "/healthz")
        health.add_header("authorization", "Bearer alpha-key")
        with urllib.request.urlopen(health) as answer:
            engine = int(json.loads(answer.read())["engine_pid"])
        held: list[list[int]] = [[], [], []]

        def ask(key: int) -> None:
            try:
                clients[key].chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
                held[key].append(200)
            except openai.APIStatusError as error:
                held[key].append(error.status_code)

        threads = [threading.Thread(target=ask, args=(key,)) for key in (*[0] * 20, *[1] * 20, 2)]
        os.kill(engine, signal.SIGSTOP)
        try:
            for thread in threads:
                thread.start()
                thread.join(0.05)
        finally:
            os.kill(engine, signal.SIGCONT)
        for thread in threads:
            thread.join(60)
    assert held[2] == [200]
    assert held[0].count(200) in (6, 7) and 2 <= held[1].count(200) <= 4
    assert set(held[0] + held[1]) == {200, 429}


def _batch(client: openai.OpenAI, lines: int, **settings: Any) -> str:
    body = {"model": "tiny", "messages": MESSAGES} | settings
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    text = "".join(json.dumps(line | {"custom_id": str(i)}) + "\n" for i in range(lines))
    file = client.files.create(file=("b.jsonl", text.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def test_a_keys_batches_wait_neither_for_another_keys_batches_nor_for_its_places(two_keys: RunningServer) -> None:
    alpha, beta = two_keys.client(api_key="alpha-key"), two_keys.client(api_key="beta-key")
    held = [_batch(alpha, 4, n=128, max_tokens=450) for _ in range(2)]
    with pytest.raises(openai.RateLimitError, match="2 batches under way"):
        _batch(alpha, 1, max_tokens=1)
    mine = _batch(beta, 1, max_tokens=1)
    with pytest.raises(openai.RateLimitError, match="server has too many batches"):
        for _ in range(3):
            _batch(beta, 1, n=128, max_tokens=450)
    deadline = time.monotonic() + 60
    while beta.batches.retrieve(mine).status != "completed" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert beta.batches.retrieve(mine).status == "completed"
    assert all(alpha.batches.retrieve(batch).request_counts.completed < 2 for batch in held)  # type: ignore[union-attr]
    for client in (alpha, beta):
        for batch in client.batches.list():
            if batch.status in ("validating", "in_progress"):
                client.batches.cancel(batch.id)


def test_one_token_of_a_key_does_not_wait_for_the_thousand_samples_of_another(two_keys: RunningServer) -> None:
    alpha, beta = (two_keys.client(api_key=key, timeout=120) for key in ("alpha-key", "beta-key"))
    beta.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    stop = threading.Event()

    def flood() -> None:
        try:
            with alpha.chat.completions.create(
                model="tiny", messages=MESSAGES, n=128, max_tokens=450, stream=True
            ) as chunks:
                for _ in chunks:
                    if stop.is_set():
                        return
        except openai.APIError:
            return

    threads = [threading.Thread(target=flood) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    waits_s = []
    for _ in range(5):
        since_s = time.monotonic()
        beta.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4)
        waits_s.append(time.monotonic() - since_s)
    stop.set()
    for thread in threads:
        thread.join()
    assert statistics.median(waits_s) < 5  # a hundred times that where samples are taken as they come


# ------------------------------------------------------------------------------------------- TCP_NODELAY
def test_an_accepted_connection_sends_small_answers_at_once(tmp_path: Path) -> None:
    listener = _bind(ServerSettings(model_folder="m", name="m", state=tmp_path))

    async def accepted() -> int:
        found: asyncio.Queue[int] = asyncio.Queue()

        async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            made = writer.get_extra_info("socket")
            found.put_nowait(made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(look, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            writer.close()
            return await found.get()

    assert asyncio.run(accepted()) != 0
