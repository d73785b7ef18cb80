"""The shipped examples: checked, planned, and the hosted one run whole against our own server.

Nothing changes but base_url (and sizes, to be quick); the model's name stays OpenAI's. Afterwards the plan is held
against what the server counted.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from semievol_api.cassettes.exchange import load
from semievol_api.config.settings import load_config
from semievol_api.errors import MissingAbilityError
from semievol_api.planning.bill import spent_by
from semievol_api.planning.estimating import estimate
from semievol_api.session import check, run_async
from semievol_api.training.jobs import stored_job
from tests.conformance import validate_request, validate_response, validate_sft_line

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DEMO_MODEL = ROOT / "semievol_api" / "demo" / "model"
NAME = "gpt-4o-mini-2024-07-18"
KEYS = {"OPENAI_API_KEY": "sk-planted-0123456789", "NEBIUS_API_KEY": "planted"}
ROWS = {"data.max_unlabeled": 24, "data.max_test": 12}
SMALL = {**ROWS, "train.n_epochs": 1, "train.poll_s": 0.2}
TINY = {"max_labeled = ": 20, "max_unlabeled = ": 20, "max_test = ": 8}


@pytest.mark.parametrize("name", ["gpt-4o-mini.toml", "llama-3.1-8b.toml"])
async def test_a_shipped_example_passes_check_and_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KEYS:
        monkeypatch.delenv(variable, raising=False)
    config = load_config(EXAMPLES / name, {"data.max_unlabeled": 50, "data.max_test": 20})
    assert check(config, KEYS).config is config
    planned = await estimate(config)
    assert planned.usd is not None and 0 < planned.usd.expected < 5
    assert [file.name for file in planned.trainings] == ["warm", "semievol"]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our own server on the demo's model, under OpenAI's names."""
    pytest.importorskip("torch")
    state = tmp_path_factory.mktemp("server")
    ready = state / "ready.json"
    command = [sys.executable, "-m", "semievol_providers.server.command", str(DEMO_MODEL), "--name", NAME]
    command += ["--alias", f"text-embedding-3-small={NAME}", "--port", "0", "--state", str(state)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'providers'}", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--ready-file", str(ready), "--stop-with-stdin"],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while not ready.is_file():
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        yield json.loads(ready.read_text())["url"]
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@pytest.mark.slow
async def test_the_hosted_example_runs_whole_against_our_server_and_its_plan_is_right(
    base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["OPENAI_API_KEY"])
    changes = {**SMALL, "providers.hosted.base_url": base_url, "run.folder": str(tmp_path / "run")}
    changes |= {"roles.tokenizer": str(DEMO_MODEL), "cassette.path": str(tmp_path / "tape"), "cassette.mode": "record"}
    config = load_config(EXAMPLES / "gpt-4o-mini.toml", changes)
    planned = await estimate(config)
    result = await run_async(config)
    spent = spent_by(config)
    assert result.verdict.document["n_test"] == 12
    assert spent is not None
    for stage in ("collaborate", "evaluate"):
        rows = [row for row in planned.rows if row.stage.split("/")[0] == stage]
        prompt = sum(row.prompt.expected for row in rows)
        assert prompt == pytest.approx(spent.stages[stage].prompt, rel=0.1), stage
        low, high = sum(row.completion.low for row in rows), sum(row.completion.high for row in rows)
        assert low <= spent.stages[stage].completion <= high, stage
    (justify,) = [row for row in planned.rows if row.stage == "justify"]
    assert justify.prompt.low <= 1.1 * spent.stages["justify"].prompt
    assert spent.stages["justify"].prompt <= 1.1 * justify.prompt.high
    for name, tokens in spent.trained_tokens.items():
        (row,) = [r for r in planned.rows if r.stage == f"jobs/{stored_job(name)}" and r.kind == "train"]
        assert row.training.expected == pytest.approx(tokens, rel=0.1), name
    assert set(spent.trained_tokens) == {"warm", "semievol"}
    _every_request_is_valid(tmp_path / "tape", tmp_path / "run")


def _every_request_is_valid(tape: Path, run: Path) -> None:
    """Requests and answers against the published specification, files against the formats that it lacks."""
    exchanges = list(load(tape).exchanges.values())
    seen = Counter(exchange.request.path.split("/")[1] for exchange in exchanges)
    assert {"chat", "embeddings", "files", "fine_tuning"} <= set(seen) and len(exchanges) > 150, seen
    for exchange in exchanges:
        request, body = exchange.request, exchange.request.body
        form = {part.name: part.text or part.filename for part in body.parts}
        path = f"/v1{request.path}{'?' if request.query else ''}{urlencode(request.query)}"
        validate_request(request.method, path, form or body.to_bytes() or None)
        if request.path != "/embeddings":  # vectors come as base64, which the specification does not describe
            validate_response(request.method, path, exchange.response.status, exchange.response.body.to_bytes())
        if body.json and request.method == "POST":
            assert json.loads(body.to_bytes())["model"].removeprefix("ft:").startswith((NAME, "text-embedding-3-small"))
    for name in ("warm_up", "evolve"):
        for line in (run / name / "train.jsonl").read_bytes().splitlines():
            validate_sft_line(line)


@pytest.mark.slow
async def test_the_change_that_is_suggested_after_the_shutdown_runs_against_our_server(
    base_url: str, tmp_path: Path
) -> None:
    text = (EXAMPLES / "gpt-4o-mini.toml").read_text("utf-8").replace("../runs", str(tmp_path))
    text = text.replace("../semievol_api", str(ROOT / "semievol_api"))
    rows = "".join(f"{name}{count}\n" for name, count in TINY.items())
    text = text.replace("[providers.hosted]", f"{rows}\n[providers.hosted]")
    config = tmp_path / "semievol.toml"
    config.write_text(text)
    with pytest.raises(MissingAbilityError) as refused:
        check(load_config(config), KEYS, today=datetime.date(2027, 1, 15))
    said = str(refused.value)
    assert 'vendor = "semievol", base_url = "http://127.0.0.1:8000/v1"' in said
    text = text.replace('base_url = "https://api.openai.com/v1"', f'vendor = "semievol"\nbase_url = "{base_url}"')
    config.write_text(
        text.replace('api_key_env = "OPENAI_API_KEY"\n', "").replace("n_epochs = 2", "n_epochs = 1\npoll_s = 0.2")
    )
    check(load_config(config), {}, today=datetime.date(2027, 1, 15))
    assert (await run_async(load_config(config))).verdict.document["n_test"] == 8
