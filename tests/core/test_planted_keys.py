"""The search for planted keys finds them wherever they may lie, and fails the session."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest

from tests.planted_keys import files_with_keys

ROOT = Path(__file__).resolve().parents[2]
KEY = "-".join(("sk", "planted", "0123456789"))
LEAKY = """
import os

def test_leaks(tmp_path):
    {leak}
"""


def test_keys_are_found_in_plain_packed_and_tabular_files_but_not_in_the_users_own(tmp_path: Path) -> None:
    try:
        (tmp_path / "run.log").write_text(f"asked with {KEY}")
        (tmp_path / "tape.gz").write_bytes(gzip.compress(KEY.encode()))
        pq.write_table(pyarrow.table({"text": [f"my key is {KEY}"]}), tmp_path / "evidence.parquet", compression="zstd")
        (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:50])
        (tmp_path / "labeled.csv").write_text(KEY)
        (tmp_path / "clean.json").write_text("{}")
        found = {path.name for path in files_with_keys(tmp_path)}
    finally:
        for path in tmp_path.iterdir():
            path.unlink()  # else this session would fail, as it should
    assert found == {"run.log", "tape.gz", "evidence.parquet"}


@pytest.mark.parametrize(
    ("leak", "code", "processes"),
    [
        ('(tmp_path / "labeled.csv").write_text("KEY")', 0, 0),
        ('(tmp_path / "versions.json").write_text(repr(dict(os.environ)))', 1, 0),
        ('(tmp_path / "versions.json").write_text(repr(dict(os.environ)))', 1, 1),
        ('print("KEY")', 1, 0),
    ],
    ids=["the user's own file", "the environment", "the environment, in a process that shares the work", "output"],
)
def test_a_session_that_leaves_a_key_behind_fails(
    leak: str, code: int, processes: int, tmp_path: Path, child_env: dict[str, str]
) -> None:
    test = tmp_path / "test_leaky.py"
    test.write_text(LEAKY.format(leak=leak.replace("KEY", KEY)))
    (tmp_path / "conftest.py").write_text("from tests.planted_keys import *\n")
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(test)]
    command += ["-n", str(processes), f"--rootdir={tmp_path}", f"--basetemp={tmp_path / 'inner'}"]
    try:
        done = subprocess.run(command, env=child_env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    finally:
        test.unlink()
        for path in (tmp_path / "inner").rglob("*"):
            if path.is_file():
                path.unlink()
    assert done.returncode == code, done.stdout + done.stderr
    assert ("planted keys were found" in done.stderr) == (code == 1)
