"""The script of docs/serve.md runs as it stands there, but for the server's address."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from server_running import RunningServer

pytest_plugins = ("server_fixtures",)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "serve.md"


def test_the_five_minute_script_trains_waits_and_asks(
    tiny_model: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert script.count("http://127.0.0.1:8000/v1") == 1
    row = {"messages": [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}]}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(12)))
    with RunningServer(tiny_model, tmp_path / "server", ("--alias", "my-llama=tiny")) as server:
        text = script.replace("http://127.0.0.1:8000/v1", server.url)
        command = [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=child_env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "The job has successfully completed" in done.stdout
    assert len(done.stdout.splitlines()) > 5
