"""The page of a running server in a headless Chromium, and its metrics."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from local_samples import training_lines
from server_running import RunningServer

from tests.chromium import chromium, console_errors, requested

pytest_plugins = ("server_fixtures",)


def _wait(look: Any, what: str) -> Any:
    deadline = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)
    return found


def test_the_page_shows_jobs_live_curves_batches_and_models(tiny_model: Path, tmp_path: Path) -> None:
    with RunningServer(tiny_model, tmp_path / "server") as server, chromium(tmp_path / "profile") as driver:
        client = server.client()
        driver.get(server.url.removesuffix("/v1"))
        _wait(lambda: "tiny" in driver.find_element("id", "models").text, "model")
        assert "asleep" in driver.find_element("id", "health").text
        assert driver.find_element("id", "jobs").text == "No jobs yet."
        file = client.files.create(file=("t.jsonl", training_lines(20).encode()), purpose="fine-tune")
        settings: Any = {"n_epochs": 50, "batch_size": 1}
        job = client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, validation_file=file.id, hyperparameters=settings
        )
        label = "return document.querySelector('svg')?.getAttribute('aria-label')"
        first = _wait(lambda: driver.execute_script(label), "curve")
        assert job.id in first
        _wait(lambda: driver.execute_script(label) not in (None, first), "progress of the curve")
        assert "running" in driver.find_element("id", "jobs").text
        assert "1 training" in driver.find_element("id", "queue").text
        client.fine_tuning.jobs.cancel(job.id)
        _wait(lambda: "cancelled" in driver.find_element("id", "jobs").text, "cancelled job")
        origins = {re.match(r"(\w+:(//[^/]+)?)", url).group(1) for url in requested(driver)}  # type: ignore[union-attr]
        assert origins <= {server.url.removesuffix("/v1"), "data:"}
        assert console_errors(driver) == []


def test_the_page_asks_for_the_key_and_shows_no_markup_of_clients(tiny_model: Path, tmp_path: Path) -> None:
    options = ("--api-key-env", "KEYS", "--alias", "<h1>bold</h1>=tiny")
    with (
        RunningServer(tiny_model, tmp_path / "server", options, {"KEYS": "alpha"}) as server,
        chromium(tmp_path / "profile", 390, 800) as driver,
    ):
        driver.get(server.url.removesuffix("/v1"))
        _wait(lambda: driver.find_element("id", "door").is_displayed(), "question for the key")
        driver.find_element("id", "key").send_keys("alpha\n")
        _wait(lambda: "<h1>bold" in driver.find_element("id", "models").text, "model")
        assert len(driver.find_elements("tag name", "h1")) == 1
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_page_says_what_does_not_run_and_that_it_runs_again(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("engine_silence_s = 8\n")
    options = ("--limits", str(tmp_path / "limits.toml"))
    with (
        RunningServer(tiny_model, tmp_path / "server", options) as server,
        chromium(tmp_path / "profile", 390, 800) as driver,
    ):
        server.client().embeddings.create(model="tiny", input="x")
        root = server.url.removesuffix("/v1")
        with urllib.request.urlopen(root + "/healthz") as answer:
            engine = int(json.loads(answer.read())["engine_pid"])
        driver.get(root)
        _wait(lambda: "ready" in driver.find_element("id", "health").text, "engine")
        degraded = driver.find_element("id", "degraded")
        assert not degraded.is_displayed()
        os.kill(engine, signal.SIGSTOP)
        _wait(lambda: "engine is not running: No sign of life" in degraded.text, "reason")
        _wait(lambda: not degraded.is_displayed(), "recovery")
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_metrics_count_requests_tokens_and_jobs_without_names(server: RunningServer) -> None:
    client = server.client()
    client.embeddings.create(model="tiny", input="a secret text")
    base = server.url.removesuffix("/v1")
    with urllib.request.urlopen(base + "/metrics") as answer:
        text = answer.read().decode()
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.search(r'semievol_requests_total\{method="POST",route="create_embedding",status="200"\} ([0-9.]+)', text)
    assert line is not None and float(line.group(1)) >= 1
    assert re.search(r'semievol_tokens_total\{kind="prompt"\} [1-9]', text)
    assert "semievol_engine_ready 1.0\n" in text and "secret" not in text
    for row in text.splitlines():
        assert re.fullmatch(r"# HELP \w+ .+|# TYPE \w+ \w+|\w+(\{[^}]*\})? [0-9.e+-]+", row), row


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics"])
def test_pages_for_people_are_read_only(server: RunningServer, path: str) -> None:
    request = urllib.request.Request(server.url.removesuffix("/v1") + path, method="POST", data=b"x")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request)
    assert raised.value.code == 405
    raised.value.close()
