"""vLLM's own OpenAI server on the demo's model, for tests that ask it from outside; started by another Python.

Opt-in: SEMIEVOL_VLLM_PYTHON names a Python that has vLLM (`make test-vllm` does).
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = os.environ.get("SEMIEVOL_VLLM_PYTHON", "")
NEEDS_VLLM_PYTHON = pytest.mark.skipif(not PYTHON, reason="needs SEMIEVOL_VLLM_PYTHON, a Python with vLLM")
MODEL = Path(__file__).resolve().parents[2] / "semievol_api" / "demo" / "model"
NAME = "demo-llama"


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """On the CPU; takes adapters while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-num-seqs", "32", "--max-logprobs", "20", "--enable-lora", "--max-lora-rank", "16"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]  # a seed would end the engine
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    env.pop("PYTHONPATH", None)
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    with log.open("wb") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text("utf-8", "replace")[-3000:]
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text("utf-8", "replace")[-3000:])
