"""Trained here, answered by a vLLM server: every finished adapter is made known to it before anyone asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from local_samples import training_lines
from local_truths import SHORT_ANSWERS, tuned_model

from semievol_api.capabilities import FineTuneRequest, ProviderSettings, TrainSpec
from semievol_api.errors import UserError
from semievol_api.session import run
from semievol_providers.local.jobs import AdapterServer
from semievol_providers.local.provider import connect
from tests.e2e.conftest import TASK, write_rows
from tests.providers.vllm_server import MODEL, NAME, NEEDS_VLLM_PYTHON

pytest_plugins = ("local_fixtures", "vllm_server")


class _Server(ThreadingHTTPServer):
    """Answers as vLLM does: `status` and `words`; keeps what it was told."""

    status, words = 200, "Success: LoRA adapter added successfully."

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[tuple[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.told.append((self.path, body))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.words.encode())

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


async def test_the_server_is_told_once_by_name_and_folder(server: _Server) -> None:
    adapters = AdapterServer(server.url)
    for _ in range(2):
        await adapters.tell("ft:one", "/jobs/one/adapter")
    server.status, server.words = 400, "The lora adapter 'ft:two' has already been loaded."
    await adapters.tell("ft:two", "/jobs/two/adapter")
    assert server.told[0] == ("/v1/load_lora_adapter", {"lora_name": "ft:one", "lora_path": "/jobs/one/adapter"})
    assert [body["lora_name"] for _, body in server.told] == ["ft:one", "ft:two"]


async def test_a_server_that_takes_no_adapters_is_one_calm_paragraph(server: _Server) -> None:
    server.status, server.words = 404, '{"detail":"Not Found"}'
    with pytest.raises(UserError, match=r"answered 404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING.*run again") as refused:
        await AdapterServer(server.url).tell("ft:one", "/jobs/one/adapter")
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="cannot be reached"):
        await AdapterServer("http://127.0.0.1:9").tell("ft:one", "/jobs/one/adapter")


async def test_a_model_is_ready_only_once_the_server_has_its_adapter(
    server: _Server, tiny_model: Path, tmp_path: Path
) -> None:
    given = {"model": str(tiny_model), "name": "tiny", "device": "cpu", "served_at": server.url, "train": {"rank": 4}}
    home = connect(ProviderSettings(name="home", options=given, environ={}, base_folder=str(tmp_path)))
    server.status = 500
    with pytest.raises(UserError, match="is trained and lies in"):
        await tuned_model(home.finetuner, REQUEST)
    server.status = 200
    name = await tuned_model(home.finetuner, REQUEST)
    (_, body) = server.told[-1]
    assert body["lora_name"] == name
    assert (Path(body["lora_path"]) / "adapter_model.safetensors").is_file()
    await home.aclose()


REQUEST = FineTuneRequest(
    model="tiny", training_file=training_lines(12).encode(), run_key="served",
    spec=TrainSpec(n_epochs=1, seed=0),
)  # fmt: skip


CONFIG = (
    """
[run]
mode = "paper"
folder = "out"

[data]
task = "task.toml"
labeled = "labeled.csv"
unlabeled = "unlabeled.csv"
test = "test.csv"
near_duplicates = false

[providers.served]
kind = "openai"
vendor = "vllm"
base_url = "{url}"
api_key_env = ""

[providers.home]
kind = "local"
model = "{model}"
name = "demo-llama"
device = "cpu"
served_at = "{url}"

[roles]
student = {{ provider = "served", model = "demo-llama" }}
trainer = {{ provider = "home", model = "demo-llama" }}
embedder = {{ provider = "home", model = "demo-llama" }}

[train]
n_epochs = 1
poll_s = 0.1
"""
    + SHORT_ANSWERS
)


@pytest.mark.slow
@NEEDS_VLLM_PYTHON
def test_a_whole_run_on_a_vllm_server_with_adapters_loaded_while_it_runs(vllm_url: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "labeled.csv", 12)
    write_rows(tmp_path / "unlabeled.csv", 12, start=40)
    write_rows(tmp_path / "test.csv", 8, start=100)
    (tmp_path / "task.toml").write_text(TASK, "utf-8")
    (tmp_path / "semievol.toml").write_text(CONFIG.format(url=vllm_url, model=MODEL.as_posix()), "utf-8")
    result = run(tmp_path / "semievol.toml")
    models = [str(model["name"]) for model in result.verdict.document["models"]]  # type: ignore[index, union-attr]
    assert {"base", "warm", "semievol"} <= set(models)
    assert NAME == "demo-llama"
